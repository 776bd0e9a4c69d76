"""What a version's own pipeline says of the replayed rows, and whether a served answer is that."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forge_core.deployment.replay_rows import ReplayRows
from forge_core.deployment.served_path import Answer
from forge_core.models.version import VersionFolder


@dataclass(frozen=True)
class Offline:
    """What the pipeline says of each row: labels (or numbers), and with classes each one's probability.

    Examples
    --------
    >>> offline = Offline([1, 0, 0], [0, 1], np.array([[0.3, 0.7], [0.9, 0.1], [0.50001, 0.49999]]))
    >>> served = [Answer("a", 1, 0.7), Answer("b", 0, 0.8), Answer("c", 1, 0.50001)]
    >>> [offline.agrees(row, answer, tolerance=1e-4) for row, answer in enumerate(served)]
    [True, False, True]
    """

    labels: list[Any]
    classes: list[Any] | None = None
    probabilities: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, folder: VersionFolder, rows: ReplayRows) -> "Offline":
        """Return what a version's native pipeline says; held-out and planted rows keep their own column types."""
        parts: list[pd.DataFrame] = [part for part in (rows.held_out, rows.planted) if len(part)]
        labels = [label for part in parts for label in np.asarray(folder.pipeline.predict(part)).tolist()]
        if folder.task == "regression":
            return cls(labels)
        return cls(labels, folder.classes, np.concatenate([folder.pipeline.predict_proba(part) for part in parts]))

    def difference(self, row: int, answer: Answer) -> float | None:
        """Return how far the served probability (or number) is from the offline one; None where there is none."""
        if self.probabilities is None or self.classes is None:
            return None if answer.prediction is None else abs(float(answer.prediction) - self.labels[row])
        if answer.probability is None or answer.prediction not in self.classes:
            return None
        return abs(answer.probability - float(self.probabilities[row, self.classes.index(answer.prediction)]))

    def agrees(self, row: int, answer: Answer, tolerance: float) -> bool:
        """Tell whether an answer is the pipeline's: close, and with its label.

        Predicted numbers beyond 1 are held against the tolerance in relation to them. A label may be another one
        only where the pipeline itself finds both equally probable within the tolerance.
        """
        difference = self.difference(row, answer)
        if self.probabilities is None or self.classes is None:
            return difference is not None and difference <= tolerance * max(1.0, abs(self.labels[row]))
        if difference is None or not difference <= tolerance:
            return False
        shares = self.probabilities[row]
        served = shares[self.classes.index(answer.prediction)]
        return answer.prediction == self.labels[row] or bool(shares.max() - served <= 2 * tolerance)

    def probability(self, row: int) -> float | None:
        """Return the probability of the row's own label; None for a regression."""
        if self.probabilities is None or self.classes is None:
            return None
        return float(self.probabilities[row, self.classes.index(self.labels[row])])
