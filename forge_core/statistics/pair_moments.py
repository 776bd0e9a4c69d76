"""How features go together: co-moments of normal scores, which add up and cost little.

Each number is replaced by the normal score of its cell, so that a single wild value cannot move anything; per pair of
features the products of scores are summed. A change of correlation changes the mean product, and nothing else that a
look at one feature at a time could see.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Floats = NDArray[np.float64]

# 190 pairs; features beyond the first twenty are watched alone.
MAX_PAIRED = 20


@dataclass(frozen=True)
class NormalScores:
    """The score of each place of each paired feature: its cells, then below, then above the range.

    Attributes
    ----------
    scores : mapping of str to tuple of float, length n_cells + 2
    """

    scores: Mapping[str, tuple[float, ...]]

    @classmethod
    def fit(cls, counts: Mapping[str, NDArray[np.int64]]) -> "NormalScores":
        """Return the scores that the reference's cells fix, in order; constant features and blank ones are left out."""
        told: dict[str, tuple[float, ...]] = {}
        for name, cells in counts.items():
            total = float(cells.sum())
            if np.count_nonzero(cells) < 2 or len(told) == MAX_PAIRED:
                continue
            ends = np.cumsum(cells)
            z = special.ndtri((ends - cells / 2) / total)
            mean = float((z * cells).sum() / total)
            spread = float(np.sqrt(((z - mean) ** 2 * cells).sum() / total))
            beyond = special.ndtri(0.5 / (total + 1))
            # Sums of multiples of 1/64 are exact in floats, so merging does not depend on the order.
            told[name] = tuple((np.round((np.r_[z, beyond, -beyond] - mean) / spread * 64) / 64).tolist())
        return cls(told)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Return the pairs in the order of all arrays."""
        return list(combinations(self.scores, 2))

    def moments(self, places: Mapping[str, NDArray[np.int64]]) -> "PairMoments":
        """Return the moments of rows, given each feature's place number (-1: missing), each of shape (n_rows,)."""
        if len(self.scores) < 2:
            return PairMoments.none(self)
        lookup = {name: np.r_[np.array(z), 0.0] for name, z in self.scores.items()}
        z = np.column_stack([lookup[name][places[name]] for name in self.scores])
        held = np.column_stack([places[name] >= 0 for name in self.scores]).astype(float)
        upper = np.triu_indices(z.shape[1], 1)
        squares = z * z
        return PairMoments((held.T @ held)[upper], (z.T @ z)[upper], (squares.T @ squares)[upper])


@dataclass(frozen=True, eq=False)
class PairMoments:
    """Rows with both features, sum of products and sum of squared products, each of shape (n_pairs,)."""

    n: Floats
    products: Floats
    squares: Floats

    @classmethod
    def none(cls, scores: NormalScores) -> "PairMoments":
        """Return the moments of no rows."""
        empty = np.zeros(len(scores.pairs))
        return cls(empty, empty, empty)

    def __add__(self, other: "PairMoments") -> "PairMoments":
        return PairMoments(self.n + other.n, self.products + other.products, self.squares + other.squares)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: value.tolist() for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Sequence[float]]) -> "PairMoments":
        """Return the moments that `to_dict` gave away."""
        return cls(*(np.asarray(value[name], float) for name in ("n", "products", "squares")))

    @property
    def means(self) -> Floats:
        """Return the mean product of each pair, about its rank correlation; 0 without rows."""
        return np.divide(self.products, self.n, out=np.zeros_like(self.n), where=self.n > 0)

    @property
    def variance_of_mean(self) -> Floats:
        """Return the squared standard error of each mean."""
        safe = np.maximum(self.n, 1)
        return np.maximum(self.squares / safe - self.means**2, 0) / safe


def pair_p_values(reference: PairMoments, current: PairMoments) -> Floats:
    """Return two-sided p values that mean products agree (Welch's test), shaped as `current`'s arrays.

    `current` may hold many windows, arrays of shape (n_windows, n_pairs).
    """
    gap = np.abs(current.means - reference.means)
    both = (reference.n > 1) & (current.n > 1)
    total = reference.variance_of_mean + current.variance_of_mean
    t = np.divide(gap, np.sqrt(total), out=np.zeros_like(gap + total), where=both & (total > 0))
    smaller = np.maximum(np.minimum(reference.n, current.n) - 1, 1)
    return np.minimum(2 * stats.t.sf(t, smaller), 1.0)
