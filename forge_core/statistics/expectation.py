"""What held-out rows let one expect of live answers: with labels, and while there are none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from forge_core.statistics.estimation import MIN_ROWS, QualityEstimator
from forge_core.statistics.live_loss import LiveLoss
from forge_core.statistics.quality import Task


@dataclass(frozen=True)
class Expectation:
    """The loss that is allowed, and what estimates quality without labels.

    Attributes
    ----------
    loss : LiveLoss
    estimator : QualityEstimator or None
        None for a regression, and after fewer than 100 held-out rows.
    """

    loss: LiveLoss
    estimator: QualityEstimator | None

    @classmethod
    def fit(cls, task: Task, y_true: ArrayLike, score: ArrayLike) -> "Expectation":
        """Return what held-out labels, shape (n_rows,), and scores, shape (n_rows,) or (n_rows, n_classes), tell."""
        y, scores = np.asarray(y_true, float), np.asarray(score, float)
        known = task != "regression" and len(y) >= MIN_ROWS
        loss = LiveLoss.fit(task, y, scores.argmax(axis=1) if scores.ndim == 2 else scores)
        return cls(loss, QualityEstimator.fit(scores, y) if known else None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"loss": self.loss.to_dict(), "estimator": self.estimator and self.estimator.to_dict()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Expectation":
        """Return the expectation that `to_dict` gave away."""
        told = value["estimator"]
        return cls(LiveLoss.from_dict(value["loss"]), QualityEstimator.from_dict(told) if told else None)
