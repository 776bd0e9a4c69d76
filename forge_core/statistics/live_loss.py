"""A loss between 0 and 1 a row, so that labels can be watched one by one with a guarantee.

Two classes: the squared error of the probability (Brier); more: whether the answer is wrong; a number: whether it
misses by more than nine in ten held-out answers did.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forge_core.statistics.quality import Task
from forge_core.statistics.sequential import Evidence, loss_evidence, upper_mean

Floats = NDArray[np.float64]

_WIDE = 0.9


@dataclass(frozen=True)
class LiveLoss:
    """How loss is counted, and what held-out rows allow.

    Attributes
    ----------
    task : str
    baseline : float
        95 % upper bound of the mean held-out loss, in [0, 1).
    limit : float or None
        For a regression: the error that is a miss, in the target's unit.
    """

    task: Task
    baseline: float
    limit: float | None = None

    @classmethod
    def fit(cls, task: Task, y_true: ArrayLike, answer: ArrayLike) -> "LiveLoss":
        """Return the loss whose baseline held-out rows fix.

        Parameters
        ----------
        y_true : array_like of shape (n_rows,)
            Numbers of the classes, or the target.
        answer : array_like of shape (n_rows,)
            Probability of class 1, number of the answered class (multiclass), or the predicted number.
        """
        y, a = np.asarray(y_true, float), np.asarray(answer, float)
        limit = float(np.quantile(np.abs(a - y), _WIDE)) if task == "regression" else None
        return cls(task, upper_mean(cls(task, 0.0, limit).of(y, a)), limit)

    def of(self, y_true: ArrayLike, answer: ArrayLike) -> Floats:
        """Return each row's loss, shape (n_rows,), as `fit` takes them."""
        y, a = np.asarray(y_true, float), np.asarray(answer, float)
        if self.task == "classification":
            return np.clip((a - y) ** 2, 0.0, 1.0)
        if self.task == "multiclass":
            return (a != y).astype(float)
        return (np.abs(a - y) > (self.limit or 0.0)).astype(float)

    def evidence(
        self, y_true: ArrayLike, answer: ArrayLike, *, allowed: float = 0.0, horizon: int, alpha: float = 0.05
    ) -> Evidence:
        """Return the evidence, in order of prediction, that the loss is above its baseline by more than `allowed`.

        P(a false alarm within `horizon` rows) is at most `alpha`; of rows that come in clusters, `allowed` is what
        keeps a bad day from being an alarm.
        """
        baseline = min(self.baseline + allowed, 1 - 1e-9)
        return loss_evidence(self.of(y_true, answer), baseline=baseline, horizon=horizon, alpha=alpha)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "LiveLoss":
        """Return the loss that `to_dict` gave away."""
        return cls(**value)
