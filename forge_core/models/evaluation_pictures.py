"""How a candidate did, to look at: PNG bytes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from forge_core.pictures import CURRENT, GREEN, INK, ORANGE, SKY, VERMILION, png, short_text, small_multiples, tidy_axes
from forge_core.statistics.quality import METRICS, Task

_LINES = (CURRENT, VERMILION, GREEN, ORANGE, SKY, INK)


def evaluation_figure(
    task: Task, y_true: ArrayLike, prediction: ArrayLike, title: str, classes: Sequence[Any]
) -> bytes:
    """Return the picture of a task: ROC, calibration and confusion, or predicted against observed and residuals.

    Parameters
    ----------
    y_true : array-like of shape (n_rows,)
        Numbers of the classes, or numbers.
    prediction : array-like of shape (n_rows,) or (n_rows, n_classes)
        As `forge_core.models.model_trainer.score` gives it.
    classes : sequence
        The classes' names; empty for a regression.
    """
    y, p = np.asarray(y_true, float), np.asarray(prediction, float)
    figure, boxes = small_multiples(2 if task == "regression" else 3, height=4.2)
    figure.suptitle(title)
    if task == "regression":
        _draw_scatter(boxes[0], y, p)
        _draw_residuals(boxes[1], y - p)
    else:
        shares = np.column_stack([1 - p, p]) if p.ndim == 1 else p
        # With two classes one curve says it all.
        shown = [1] if p.ndim == 1 else _most_frequent(y, shares.shape[1])
        _draw_roc(boxes[0], y, shares, shown, classes)
        _draw_calibration(boxes[1], y, shares, shown, classes)
        counts = confusion_matrix(y, shares.argmax(axis=1), labels=range(len(classes)))
        _draw_confusion(boxes[2], counts, classes)
    for axes in boxes:
        tidy_axes(axes)
    return png(figure)


def precision_recall_figure(y_true: ArrayLike, prediction: ArrayLike, classes: Sequence[Any]) -> bytes:
    """Return precision by recall: one curve for two classes, else one a class against the rest.

    Parameters are those of `evaluation_figure`.
    """
    y, p = np.asarray(y_true, int), np.asarray(prediction, float)
    shares = np.column_stack([1 - p, p]) if p.ndim == 1 else p
    shown = [1] if p.ndim == 1 else _most_frequent(y, shares.shape[1])
    figure, (axes,) = small_multiples(1, width=5.2, height=4.2)
    for colour, number in zip(_LINES, shown, strict=False):
        hits = y == number
        if not hits.any():
            continue
        precision, recall, _ = precision_recall_curve(hits, shares[:, number])
        axes.step(recall, precision, where="post", color=colour, lw=2, label=short_text(str(classes[number])))
        axes.axhline(hits.mean(), color="0.6" if len(shown) == 1 else colour, ls="--", lw=1)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.03))
    axes.set_title("Precision and recall (dashed: chance)", loc="left")
    if len(shown) > 1:
        axes.legend(frameon=False, fontsize=8, title="class against the rest", title_fontsize=8)
    tidy_axes(axes)
    return png(figure)


def confusion_figure(counts: np.ndarray, classes: Sequence[Any]) -> bytes:
    """Return observed against predicted classes; `counts` has shape (n_classes, n_classes), rows observed."""
    figure, (axes,) = small_multiples(1, width=5.2, height=4.6)
    _draw_confusion(axes, counts, classes)
    tidy_axes(axes)
    return png(figure)


def _most_frequent(y: np.ndarray, n_classes: int) -> list[int]:
    counts = np.bincount(y.astype(int), minlength=n_classes)
    return sorted(np.argsort(-counts, kind="stable")[: len(_LINES)].tolist())


def _draw_roc(axes: Axes, y: np.ndarray, shares: np.ndarray, shown: Sequence[int], classes: Sequence[Any]) -> None:
    areas = []
    for colour, number in zip(_LINES, shown, strict=False):
        hits = (y == number).astype(float)
        false_positive, true_positive, _ = roc_curve(hits, shares[:, number])
        areas.append(METRICS["classification"]["roc_auc"](hits, shares[:, number], np.ones(len(y))))
        axes.plot(false_positive, true_positive, color=colour, lw=2, label=short_text(str(classes[number])))
    axes.plot([0, 1], [0, 1], color="0.6", ls="--", lw=1)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.set_title(f"ROC, area {np.nanmean(areas):.3f}" + (" (mean)" if len(areas) > 1 else ""), loc="left")
    if len(shown) > 1:
        axes.legend(frameon=False, fontsize=8, title="class against the rest", title_fontsize=8)


def _draw_calibration(
    axes: Axes, y: np.ndarray, shares: np.ndarray, shown: Sequence[int], classes: Sequence[Any]
) -> None:
    top = 0.0
    for colour, number in zip(_LINES, shown, strict=False):
        observed, predicted = calibration_curve(y == number, shares[:, number], n_bins=10, strategy="quantile")
        axes.plot(predicted, observed, "o-", color=colour, lw=2, markersize=4)
        top = max(top, float(predicted.max()), float(observed.max()))
    axes.plot([0, 1.05 * top], [0, 1.05 * top], color="0.6", ls="--", lw=1)
    axes.set(xlabel="predicted probability", ylabel="observed share")
    of = f" of {classes[shown[0]]}" if len(shown) == 1 else ""
    axes.set_title(f"Calibration{of}, ten equal groups", loc="left")


def _draw_confusion(axes: Axes, counts: np.ndarray, classes: Sequence[Any]) -> None:
    rates = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(rates, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 8:
        for row, column in np.ndindex(*counts.shape):
            colour = "white" if rates[row, column] > 0.6 else INK
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=8, color=colour)
    names = [short_text(str(name), 10) for name in classes]
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=0 if len(names) <= 4 else 45)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="predicted", ylabel="observed")
    axes.set_title("Confusion (shade: share of the row)", loc="left")


def _draw_scatter(axes: Axes, y: np.ndarray, p: np.ndarray) -> None:
    axes.plot(y, p, ".", color=CURRENT, alpha=0.3)
    axes.axline((y.mean(), y.mean()), slope=1, color="0.6", ls="--", lw=1)
    axes.set(xlabel="observed", ylabel="predicted")
    axes.set_title("Predicted against observed", loc="left")


def _draw_residuals(axes: Axes, residuals: np.ndarray) -> None:
    # Nearly equal residuals leave no room for forty bins between them.
    middle, width = float(residuals.mean()), float(np.ptp(residuals))
    width = max(width, 1e-6 * max(abs(middle), 1.0))
    axes.hist(residuals, bins=40, range=(middle - width, middle + width), color=VERMILION)
    axes.set(xlabel="observed minus predicted", ylabel="rows")
    axes.set_title(f"Residuals, mean {residuals.mean():.3g}", loc="left")
