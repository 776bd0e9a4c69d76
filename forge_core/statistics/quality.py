"""How good predictions are, with intervals: one table of metrics for training, gates and live traffic.

Intervals come from the percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13), drawn over whole groups when rows come in clusters such as days: rows of one day are
alike, and pretending that they are independent makes every interval too narrow.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

# A classification has two classes and one probability a row, that of the second class; a multiclass has more, and a
# probability for each.
Task = Literal["classification", "multiclass", "regression"]
Floats = NDArray[np.float64]
Metric = Callable[[Floats, Floats, Floats], float]

_TINY = 1e-15


@dataclass(frozen=True)
class Interval:
    """A figure with the ends of its confidence interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return the three numbers as plain JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def _mean(values: Floats, weights: Floats) -> float:
    return float(np.average(values, weights=weights))


def _accuracy(y: Floats, p: Floats, w: Floats) -> float:
    return _mean((p >= 0.5) == (y == 1), w)


def _log_loss(y: Floats, p: Floats, w: Floats) -> float:
    return _mean(log_loss_per_row(y, p), w)


def _brier(y: Floats, p: Floats, w: Floats) -> float:
    return _mean((p - y) ** 2, w)


def _roc_auc(y: Floats, p: Floats, w: Floats) -> float:
    order = np.argsort(p, kind="stable")
    y, p, w = y[order], p[order], w[order]
    positive, negative = w * (y == 1), w * (y != 1)
    if not positive.sum() or not negative.sum():
        return float("nan")
    starts = np.r_[0, np.flatnonzero(np.diff(p)) + 1]  # rows of one score share their rank
    pos, neg = np.add.reduceat(positive, starts), np.add.reduceat(negative, starts)
    below = np.cumsum(neg) - neg
    return float((pos * (below + neg / 2)).sum() / (pos.sum() * neg.sum()))


def _precision(y: Floats, p: Floats, w: Floats) -> float:
    chosen = w[p >= 0.5].sum()
    return float(w[(p >= 0.5) & (y == 1)].sum() / chosen) if chosen else 0.0


def _recall(y: Floats, p: Floats, w: Floats) -> float:
    there = w[y == 1].sum()
    return float(w[(p >= 0.5) & (y == 1)].sum() / there) if there else float("nan")


def _rmse(y: Floats, p: Floats, w: Floats) -> float:
    return float(np.sqrt(_mean((p - y) ** 2, w)))


def _mae(y: Floats, p: Floats, w: Floats) -> float:
    return _mean(np.abs(p - y), w)


def _r2(y: Floats, p: Floats, w: Floats) -> float:
    spread = _mean((y - _mean(y, w)) ** 2, w)
    return 1.0 - _mean((p - y) ** 2, w) / spread if spread else float("nan")


def _top_accuracy(y: Floats, p: Floats, w: Floats) -> float:
    return _mean(p.argmax(axis=1) == y, w)


def _many_log_loss(y: Floats, p: Floats, w: Floats) -> float:
    chosen = p[np.arange(len(y)), y.astype(int)]
    return _mean(-np.log(np.clip(chosen, _TINY, 1)), w)


def _many_brier(y: Floats, p: Floats, w: Floats) -> float:
    return _mean(((p - np.eye(p.shape[1])[y.astype(int)]) ** 2).sum(axis=1), w)


def _macro_auc(y: Floats, p: Floats, w: Floats) -> float:
    """Return the mean over the classes that are there of each one's area against the rest (Provost, Domingos 2000)."""
    areas = [_roc_auc((y == number).astype(float), p[:, number], w) for number in range(p.shape[1])]
    return float(np.nanmean(areas)) if not np.isnan(areas).all() else float("nan")


def _macro_f1(y: Floats, p: Floats, w: Floats) -> float:
    chosen = p.argmax(axis=1)
    scores = []
    for number in range(p.shape[1]):
        hits = w[(chosen == number) & (y == number)].sum()
        named = w[chosen == number].sum() + w[y == number].sum()
        if named:
            scores.append(2 * hits / named)
    return float(np.mean(scores))


METRICS: Mapping[Task, Mapping[str, Metric]] = {
    "classification": {
        "accuracy": _accuracy,
        "roc_auc": _roc_auc,
        "log_loss": _log_loss,
        "brier": _brier,
        "precision": _precision,
        "recall": _recall,
    },
    "multiclass": {
        "accuracy": _top_accuracy,
        "roc_auc": _macro_auc,
        "log_loss": _many_log_loss,
        "brier": _many_brier,
        "f1": _macro_f1,
    },
    "regression": {"rmse": _rmse, "mae": _mae, "r2": _r2},
}
LOWER_IS_BETTER = frozenset({"log_loss", "brier", "rmse", "mae"})


def log_loss_per_row(y_true: ArrayLike, probability: ArrayLike) -> Floats:
    """Return each row's log loss in nats, shape (n_rows,); probabilities are clipped to [1e-15, 1 - 1e-15]."""
    y, p = np.asarray(y_true, float), np.clip(np.asarray(probability, float), _TINY, 1 - _TINY)
    return -(y * np.log(p) + (1 - y) * np.log1p(-p))


def classification_metrics(y_true: ArrayLike, probability: ArrayLike) -> dict[str, float]:
    """Return every metric of a classification.

    Parameters
    ----------
    y_true : array-like of shape (n_rows,)
        Numbers of the classes, from 0 on.
    probability : array-like of shape (n_rows,) or (n_rows, n_classes)
        That of class 1, or of each class.
    """
    return all_metrics("classification" if np.ndim(probability) == 1 else "multiclass", y_true, probability)


def regression_metrics(y_true: ArrayLike, prediction: ArrayLike) -> dict[str, float]:
    """Return every metric of a regression, shapes (n_rows,)."""
    return all_metrics("regression", y_true, prediction)


def all_metrics(task: Task, y_true: ArrayLike, prediction: ArrayLike) -> dict[str, float]:
    """Return every metric of a task."""
    y, p = np.asarray(y_true, float), np.asarray(prediction, float)
    weights = np.ones(len(y))
    return {name: metric(y, p, weights) for name, metric in METRICS[task].items()}


def bootstrap_interval(
    metric: str,
    y_true: ArrayLike,
    prediction: ArrayLike,
    *,
    task: Task = "classification",
    groups: Any = None,
    n_resamples: int = 200,
    confidence: float = 0.95,
    random_state: int = 0,
) -> Interval:
    """Return a metric with its percentile bootstrap interval.

    Parameters
    ----------
    metric : str
        A key of `METRICS[task]`.
    y_true, prediction : array-like of shape (n_rows,)
        Labels, and the probability of class 1 (or the predicted number); of shape (n_rows, n_classes) with
        more than two classes.
    groups : array-like of shape (n_rows,), optional
        Cluster of each row (its day, say); whole clusters are drawn.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y = rng.random(1000) < 0.3
    >>> str(bootstrap_interval("accuracy", y, np.full(1000, 0.2)))
    '0.7230 [0.6899, 0.7501]'
    """
    y, p = np.asarray(y_true, float), np.asarray(prediction, float)
    measure = METRICS[task][metric]
    draws = [measure(y, p, w) for w in _resampled_weights(len(y), groups, n_resamples, random_state)]
    return _interval(measure(y, p, np.ones(len(y))), draws, confidence)


def paired_improvement(
    metric: str,
    y_true: ArrayLike,
    incumbent: ArrayLike,
    candidate: ArrayLike,
    *,
    task: Task = "classification",
    groups: Any = None,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    random_state: int = 0,
) -> Interval:
    """Return by how much the candidate is better than the incumbent on the same rows; above zero is better.

    Both models are scored on the same resamples, so what is hard for both cancels out.
    """
    y = np.asarray(y_true, float)
    old, new = np.asarray(incumbent, float), np.asarray(candidate, float)
    measure = METRICS[task][metric]
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0

    def gain(weights: Floats) -> float:
        return sign * (measure(y, new, weights) - measure(y, old, weights))

    draws = [gain(w) for w in _resampled_weights(len(y), groups, n_resamples, random_state)]
    return _interval(gain(np.ones(len(y))), draws, confidence)


def _resampled_weights(n_rows: int, groups: Any, n_resamples: int, random_state: int) -> Any:
    """Yield each resample as row weights: how often the row, or its group, was drawn."""
    rng = np.random.default_rng(random_state)
    _, group = np.unique(np.arange(n_rows) if groups is None else np.asarray(groups), return_inverse=True)
    n_groups = group.max() + 1 if n_rows else 0
    for _ in range(n_resamples):
        yield np.bincount(rng.integers(0, n_groups, n_groups), minlength=n_groups)[group].astype(float)


def _interval(value: float, draws: list[float], confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))
