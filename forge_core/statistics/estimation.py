"""How good predictions are likely to be while no label has come: confidence-based estimation.

Calibrated, a model's own probabilities say how often it is right (CBPE; Bialek and others, "Estimating Model
Performance under Covariate Shift Without Labels", arXiv 2401.08348). The estimate sees a change of inputs. It is
blind to a change of what the inputs mean (concept drift): only labels show that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forge_core.errors import ConfigurationError, NotEnoughSamples
from forge_core.statistics.quality import METRICS, Interval, Task

Floats = NDArray[np.float64]

BLINDNESS = "estimated from the model's own confidence: a change of what the inputs mean is invisible to it"
MIN_ROWS = 100
_N_CALIBRATORS = 30
_N_DRAWS = 300


@dataclass(frozen=True)
class Calibrator:
    """A monotone step from a stated probability to how often it came true.

    Attributes
    ----------
    stated, true : tuple of float
        Corners, in order; between two of them the line, outside the nearest.
    """

    stated: tuple[float, ...]
    true: tuple[float, ...]

    @classmethod
    def fit(cls, probability: Floats, outcome: Floats, weights: Floats | None = None) -> "Calibrator":
        """Return the isotonic fit (Zadrozny, Elkan 2002) of 0/1 outcomes on stated probabilities, shapes (n_rows,)."""
        from sklearn.isotonic import IsotonicRegression

        found = IsotonicRegression(out_of_bounds="clip").fit(probability, outcome, sample_weight=weights)
        return cls(tuple(found.X_thresholds_.tolist()), tuple(found.y_thresholds_.tolist()))

    def __call__(self, probability: ArrayLike) -> Floats:
        return np.interp(np.asarray(probability, float), self.stated, self.true)


@dataclass(frozen=True)
class QualityEstimator:
    """Estimates a classification's metrics without labels.

    Attributes
    ----------
    calibrators : tuple of tuple of Calibrator
        The fit on all held-out rows first, then those on resamples of them; in each one calibrator a class, or a
        single one (that of class 1) for two classes.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> stated = rng.random(5000)
    >>> estimator = QualityEstimator.fit(stated, rng.random(5000) < stated**2)
    >>> str(estimator.estimate("accuracy", rng.random(1000)))
    '0.7611 [0.7370, 0.7885]'
    """

    calibrators: tuple[tuple[Calibrator, ...], ...]

    @classmethod
    def fit(cls, probability: ArrayLike, y_true: ArrayLike, *, random_state: int = 0) -> "QualityEstimator":
        """Return the estimator that held-out rows give.

        Parameters
        ----------
        probability : array_like of shape (n_rows,) or (n_rows, n_classes)
            That of class 1, or of each class.
        y_true : array_like of shape (n_rows,)
            Numbers of the classes, from 0 on.

        Raises
        ------
        NotEnoughSamples
            With fewer than 100 rows.
        """
        p, y = _columns(probability), np.asarray(y_true, float)
        if len(y) < MIN_ROWS:
            raise NotEnoughSamples(f"expected at least {MIN_ROWS} held-out rows to calibrate on, found {len(y)}")
        rng = np.random.default_rng(random_state)
        n = len(y)
        draws = [None, *(np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(_N_CALIBRATORS))]
        return cls(tuple(_fit(p, y, weights) for weights in draws))

    @property
    def n_classes(self) -> int:
        """Return how many classes there are."""
        return max(2, len(self.calibrators[0]))

    def calibrated(self, probability: ArrayLike, number: int = 0) -> Floats:
        """Return calibrated probabilities in the shape of `probability`; `number` chooses a resample's calibrators."""
        p = _columns(probability)
        found = np.column_stack([step(p[:, place]) for place, step in enumerate(self.calibrators[number])])
        if found.shape[1] == 1:
            return found[:, 0]
        total = found.sum(axis=1, keepdims=True)
        return np.where(total > 0, found / np.where(total > 0, total, 1), 1 / found.shape[1])

    def estimate(
        self, metric: str, probability: ArrayLike, *, confidence: float = 0.95, random_state: int = 0
    ) -> Interval:
        """Return a metric's expectation on unlabelled rows, with the interval in which the realised one is expected.

        The interval holds both doubts: about the calibration (resampled) and about the labels (drawn).

        Raises
        ------
        NotEnoughSamples
            Without rows.
        ConfigurationError
            For a metric that is not one of the task.
        """
        p = np.asarray(probability, float)
        task: Task = "classification" if self.n_classes == 2 else "multiclass"
        if metric not in METRICS[task]:
            raise ConfigurationError(f"no metric {metric!r} for {task}; known: {', '.join(METRICS[task])}")
        if not len(p):
            raise NotEnoughSamples("expected predictions to estimate quality of, found none")
        p = p[:, 1] if self.n_classes == 2 and p.ndim == 2 else p
        measure, ones = METRICS[task][metric], np.ones(len(p))
        rng = np.random.default_rng(random_state)
        drawn = []
        for number in range(_N_DRAWS):
            chances = self.calibrated(p, number=1 + number % (len(self.calibrators) - 1))
            drawn.append(measure(_draw(rng, chances), p, ones))
        tail = (1 - confidence) / 2
        low, high = np.nanquantile(drawn, [tail, 1 - tail])
        exact = _EXPECTED.get(metric) if task == "classification" else None
        value = exact(p, self.calibrated(p)) if exact else float(np.nanmean(drawn))
        return Interval(float(value), float(low), float(high))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"calibrators": [[[step.stated, step.true] for step in steps] for steps in self.calibrators]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "QualityEstimator":
        """Return the estimator that `to_dict` gave away."""
        told = value["calibrators"]
        return cls(tuple(tuple(Calibrator(tuple(s), tuple(t)) for s, t in steps) for steps in told))


def _columns(probability: ArrayLike) -> Floats:
    p = np.asarray(probability, float)
    if p.ndim == 1:
        return p[:, None]
    return p[:, 1:] if p.shape[1] == 2 else p


def _fit(p: Floats, y: Floats, weights: NDArray[np.int64] | None) -> tuple[Calibrator, ...]:
    drawn = slice(None) if weights is None else weights > 0
    kept = None if weights is None else weights[drawn].astype(float)
    numbers = [1] if p.shape[1] == 1 else range(p.shape[1])
    return tuple(
        Calibrator.fit(p[drawn, place], (y[drawn] == number).astype(float), kept)
        for place, number in enumerate(numbers)
    )


def _draw(rng: np.random.Generator, chances: Floats) -> Floats:
    if chances.ndim == 1:
        return (rng.random(len(chances)) < chances).astype(float)
    upto = np.cumsum(chances, axis=1)
    return np.minimum((rng.random((len(chances), 1)) > upto).sum(axis=1), chances.shape[1] - 1).astype(float)


def _accuracy(p: Floats, chance: Floats) -> float:
    return float(np.where(p >= 0.5, chance, 1 - chance).mean())


def _precision(p: Floats, chance: Floats) -> float:
    chosen = p >= 0.5
    return float(chance[chosen].mean()) if chosen.any() else 0.0


def _recall(p: Floats, chance: Floats) -> float:
    return float(chance[p >= 0.5].sum() / chance.sum()) if chance.sum() else float("nan")


def _brier(p: Floats, chance: Floats) -> float:
    return float((chance * (1 - p) ** 2 + (1 - chance) * p**2).mean())


def _log_loss(p: Floats, chance: Floats) -> float:
    clipped = np.clip(p, 1e-15, 1 - 1e-15)
    return float(-(chance * np.log(clipped) + (1 - chance) * np.log1p(-clipped)).mean())


def _roc_auc(p: Floats, chance: Floats) -> float:
    """Return the area of the expected curve: every row is a positive by its chance and a negative by the rest."""
    order = np.argsort(p, kind="stable")
    starts = np.r_[0, np.flatnonzero(np.diff(p[order])) + 1]
    positive, negative = np.add.reduceat(chance[order], starts), np.add.reduceat(1 - chance[order], starts)
    if not positive.sum() or not negative.sum():
        return float("nan")
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))


_EXPECTED: Mapping[str, Callable[[Floats, Floats], float]] = {
    "accuracy": _accuracy,
    "precision": _precision,
    "recall": _recall,
    "brier": _brier,
    "log_loss": _log_loss,
    "roc_auc": _roc_auc,
}
