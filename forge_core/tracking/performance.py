"""How predictions did, as numbers and pictures: what `log_model_performance` sends."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_score,
    recall_score,
)

from forge_core.errors import ConfigurationError
from forge_core.models.evaluation_pictures import confusion_figure, evaluation_figure, precision_recall_figure
from forge_core.models.target import infer_learning
from forge_core.statistics.quality import Task, classification_metrics, regression_metrics

logger = logging.getLogger(__name__)

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
        task, _of_labels(y, predicted, labels), _drawn({"confusion.png": lambda: confusion_figure(counts, labels)})
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
        "precision_recall.png": lambda: precision_recall_figure(numbers, shares, labels),
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
