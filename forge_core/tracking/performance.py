"""How predictions did, as numbers and pictures: what `log_model_performance` sends."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_curve,
    precision_score,
    recall_score,
)

from forge_core.errors import ConfigurationError
from forge_core.models.evaluation_pictures import evaluation_figure
from forge_core.models.target import infer_learning
from forge_core.pictures import CURRENT, GREEN, INK, ORANGE, SKY, VERMILION, png, short_text, small_multiples, tidy_axes
from forge_core.statistics.quality import Task, classification_metrics, regression_metrics

logger = logging.getLogger(__name__)

_LINES = (CURRENT, VERMILION, GREEN, ORANGE, SKY, INK)
_TITLE = "Held-out rows"


@dataclass(frozen=True)
class Performance:
    """A task, its metrics, and pictures as PNG bytes by file name."""

    task: Task
    metrics: dict[str, float]
    pictures: dict[str, bytes]


def measure_performance(
    y_true: ArrayLike, y_pred: ArrayLike, y_prob: ArrayLike | None = None, *, classes: Sequence[Any] | None = None
) -> Performance:
    """Return every metric of the task and its pictures.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n_rows,)
        Labels and predicted labels, or numbers. Without `y_prob`, text, flags and few whole numbers are classes, and
        everything else is a quantity.
    y_prob : array-like of shape (n_rows,) or (n_rows, n_classes), optional
        The probability of the second class, or of each class.
    classes : sequence, optional
        The classes in the order of the columns of `y_prob`; default: the labels that occur, sorted.

    Raises
    ------
    ConfigurationError
        When lengths differ, or the number of columns is not the number of classes.
    """
    y, predicted = np.asarray(y_true).ravel(), np.asarray(y_pred).ravel()
    if len(y) != len(predicted) or not len(y):
        raise ConfigurationError(f"expected as many predictions as labels, found {len(predicted)} and {len(y)}")
    if y_prob is None and "regression" in (infer_learning(y), infer_learning(predicted)):
        return _regression(y.astype(float), predicted.astype(float))
    labels = list(classes) if classes is not None else sorted({*y.tolist(), *predicted.tolist()})
    if y_prob is not None:
        return _with_probabilities(y, predicted, np.asarray(y_prob, float), labels, given=classes is not None)
    counts = confusion_matrix(_numbers(y, labels), _numbers(predicted, labels), labels=range(len(labels)))
    task: Task = "classification" if len(labels) <= 2 else "multiclass"
    return Performance(
        task, _of_labels(y, predicted, labels), _drawn({"confusion.png": lambda: _confusion_picture(counts, labels)})
    )


def _regression(y: np.ndarray, predicted: np.ndarray) -> Performance:
    pictures = _drawn({"residuals.png": lambda: evaluation_figure("regression", y, predicted, _TITLE, [])})
    return Performance("regression", regression_metrics(y, predicted), pictures)


def _with_probabilities(
    y: np.ndarray, predicted: np.ndarray, shares: np.ndarray, labels: list[Any], *, given: bool
) -> Performance:
    if len(shares) != len(y):
        raise ConfigurationError(f"expected as many probabilities as labels, found {len(shares)} and {len(y)}")
    n_classes = 2 if shares.ndim == 1 else shares.shape[1]
    if not given and len(labels) < n_classes and set(labels) <= set(range(n_classes)):
        labels = list(range(n_classes))  # numbers of classes, of which some do not occur
    if len(labels) != n_classes:
        raise ConfigurationError(
            f"expected probabilities of {len(labels)} classes {labels[:10]}, found {n_classes} columns; "
            "give `classes` in the order of the columns"
        )
    task: Task = "classification" if n_classes == 2 else "multiclass"
    if shares.ndim == 2 and n_classes == 2:
        shares = shares[:, 1]
    numbers = _numbers(y, labels)
    metrics = classification_metrics(numbers, shares)
    metrics |= {f"predicted_{k}": v for k, v in _of_labels(y, predicted, labels).items()}
    drawings: dict[str, Callable[[], bytes]] = {
        "evaluation.png": lambda: evaluation_figure(task, numbers, shares, _TITLE, labels),
        "precision_recall.png": lambda: precision_recall_picture(numbers, shares, labels),
    }
    return Performance(task, metrics, _drawn(drawings))


def _drawn(drawings: Mapping[str, Callable[[], bytes]]) -> dict[str, bytes]:
    """Return the pictures; one that cannot be drawn is told, and costs nobody the metrics."""
    pictures: dict[str, bytes] = {}
    for name, draw in drawings.items():
        try:
            pictures[name] = draw()
        except Exception as error:
            logger.warning("the picture %s cannot be drawn of these rows: %s", name, error)
    return pictures


def _of_labels(y: np.ndarray, predicted: np.ndarray, labels: list[Any]) -> dict[str, float]:
    """Return what the labels alone say; of two classes about the second, of more the mean over the classes."""
    a, b = _numbers(y, labels), _numbers(predicted, labels)
    mean: dict[str, Any] = {"average": "binary" if len(labels) <= 2 else "macro", "zero_division": 0.0}
    return {
        "accuracy": float(accuracy_score(a, b)),
        "precision": float(precision_score(a, b, **mean)),
        "recall": float(recall_score(a, b, **mean)),
        "f1": float(f1_score(a, b, **mean)),
    }


def _numbers(values: np.ndarray, labels: list[Any]) -> np.ndarray:
    place = {label: number for number, label in enumerate(labels)}
    try:
        return np.array([place[value] for value in values.tolist()], int)
    except KeyError as error:
        raise ConfigurationError(f"expected labels among {labels[:10]}, found {error.args[0]!r}") from None


def precision_recall_picture(y: np.ndarray, shares: np.ndarray, labels: Sequence[Any]) -> bytes:
    """Return precision by recall as a PNG, one curve for two classes, else one a class against the rest."""
    columns = np.column_stack([1 - shares, shares]) if shares.ndim == 1 else shares
    counts = np.bincount(y, minlength=columns.shape[1])
    shown = [1] if shares.ndim == 1 else sorted(np.argsort(-counts, kind="stable")[: len(_LINES)].tolist())
    figure, (axes,) = small_multiples(1, width=5.2, height=4.2)
    for colour, number in zip(_LINES, shown, strict=False):
        hits = y == number
        if not hits.any():
            continue
        precision, recall, _ = precision_recall_curve(hits, columns[:, number])
        axes.step(recall, precision, where="post", color=colour, lw=2, label=short_text(str(labels[number])))
        axes.axhline(hits.mean(), color="0.6" if len(shown) == 1 else colour, ls="--", lw=1)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.03))
    axes.set_title("Precision and recall (dashed: chance)", loc="left")
    if len(shown) > 1:
        axes.legend(frameon=False, fontsize=8, title="class against the rest", title_fontsize=8)
    tidy_axes(axes)
    return png(figure)


def _confusion_picture(counts: np.ndarray, labels: Sequence[Any]) -> bytes:
    figure, (axes,) = small_multiples(1, width=5.2, height=4.6)
    _draw_confusion(axes, counts, [short_text(str(label), 10) for label in labels])
    tidy_axes(axes)
    return png(figure)


def _draw_confusion(axes: Axes, counts: np.ndarray, names: list[str]) -> None:
    rates = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(rates, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 8:
        for row, column in np.ndindex(*counts.shape):
            colour = "white" if rates[row, column] > 0.6 else INK
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=0 if len(names) <= 4 else 45)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="predicted", ylabel="observed")
    axes.set_title("Confusion (shade: share of the row)", loc="left")
