"""Two-sample tests of one reference against many windows at once: arrays in, arrays of p values out.

Cells are merged by the *pooled* counts of the two sides: merging by the reference alone, which is one of the samples,
alarms falsely. Rare counts (missing, unseen, out of range) have exact tests.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MergedCells:
    """Both sides over merged cells.

    Attributes
    ----------
    reference, current : ndarray of shape (n_windows, n_bins)
        Counts; a bin that is not there for a window is 0 on both sides.
    """

    reference: Floats
    current: Floats

    @property
    def n_bins(self) -> NDArray[np.int64]:
        """Return how many bins each window has, shape (n_windows,)."""
        return ((self.reference + self.current) > 0).sum(axis=1)

    def sides(self) -> tuple[Floats, Floats]:
        """Return the rows on either side, each of shape (n_windows,)."""
        return self.reference.sum(axis=1), self.current.sum(axis=1)


def merged_cells(
    reference: ArrayLike, current: ArrayLike, *, ordered: bool, n_bins: int = 10, min_expected: float = 10.0
) -> MergedCells:
    """Return a reference and many windows over merged cells, chosen for each window by its pooled counts alone.

    Parameters
    ----------
    reference : array_like of counts, shape (n_cells,)
    current : array_like of counts, shape (n_windows, n_cells)
    ordered : bool
        True for numbers: neighbours join, into about `n_bins` bins of equal pooled share. False for levels: rare ones
        join into one rest.
    min_expected : float
        Smallest pooled share times the smaller sample that a bin keeps; 0 leaves levels as they are.
    """
    b = np.asarray(current, float)
    a = np.broadcast_to(np.asarray(reference, float), b.shape)
    total = (a + b).sum(axis=1)
    smaller = np.minimum(a.sum(axis=1), b.sum(axis=1))
    # How many pooled rows a bin needs; without rows on one side nothing can be told apart, and all is one bin.
    least = np.divide(min_expected * total, smaller, out=np.full(len(b), np.inf), where=smaller > 0)
    if b.shape[1] < 2:
        return MergedCells(a.copy(), b)
    if ordered:
        group, width = _equal_shares(a + b, n_bins), n_bins
        sums = _sum_by_group(group, width, a), _sum_by_group(group, width, b)
        joined = _join_neighbours(sums[0] + sums[1], least)
        return MergedCells(*(_sum_by_group(joined, width, side) for side in sums))
    rare = _rare_levels(a + b, least)
    sides = (np.c_[np.where(rare, 0, side), np.where(rare, side, 0).sum(axis=1)] for side in (a, b))
    return MergedCells(*sides)


def chi_square(cells: MergedCells) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Return statistic, degrees of freedom and p of the two-sample chi-square test, each of shape (n_windows,).

    Both sides are samples, unlike in a goodness-of-fit test, which alarms (1 + n/m) times too readily here.
    """
    m, n = cells.sides()
    df = np.maximum(cells.n_bins - 1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (cells.reference + cells.current) / (m + n)[:, None]
        terms = (cells.current / n[:, None] - cells.reference / m[:, None]) ** 2 / share
        statistic = np.where(df > 0, n * m / (n + m) * np.where(share > 0, terms, 0).sum(axis=1), 0.0)
    return statistic, df, np.where(df > 0, special.chdtrc(np.maximum(df, 1), statistic), 1.0)


def share_p_values(
    reference_hits: int, n_reference: int, hits: ArrayLike, n_rows: ArrayLike, *, exact_below: float = 1.0
) -> Floats:
    """Return exact two-sided p values that a share is the same in the reference and in each window.

    `exact_below` spares the exact sum where p is surely larger (Hoeffding, 1963, theorem 1); those get 1.
    """
    k, n = np.asarray(hits), np.asarray(n_rows)
    return _exact(reference_hits, n_reference, k, n, exact_below, two_sided=True)


def tail_p_values(
    reference_hits: int, n_reference: int, hits: ArrayLike, n_rows: ArrayLike, *, exact_below: float = 1.0
) -> Floats:
    """Return exact one-sided p values that such rows are no more frequent in each window than in the reference."""
    k, n = np.asarray(hits), np.asarray(n_rows)
    return _exact(reference_hits, n_reference, k, n, exact_below, two_sided=False)


def _exact(
    was: int, m: int, k: NDArray[np.int64], n: NDArray[np.int64], exact_below: float, *, two_sided: bool
) -> Floats:
    p = np.ones(len(k))
    if not m:
        return p
    asked = n > 0
    if exact_below < 1:
        asked &= _hoeffding(was, m, k, n, two_sided=two_sided) < exact_below
    if asked.any():
        hits = stats.hypergeom(m + n[asked], was + k[asked], n[asked])
        upper = hits.sf(k[asked] - 1)
        p[asked] = 2 * np.minimum(hits.cdf(k[asked]), upper) if two_sided else upper
    return np.minimum(p, 1.0)


def _hoeffding(was: int, m: int, k: NDArray[np.int64], n: NDArray[np.int64], *, two_sided: bool) -> Floats:
    """Return an upper bound of the tail at k: exp(-n KL(k/n || pooled share))."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share, pooled = k / n, (was + k) / (m + n)
        divergence = special.rel_entr(share, pooled) + special.rel_entr(1 - share, 1 - pooled)
    bound = np.exp(-n * np.nan_to_num(divergence))
    return bound if two_sided else np.where(share > pooled, bound, 1.0)


def _equal_shares(pooled: Floats, n_bins: int) -> NDArray[np.int64]:
    total = np.maximum(pooled.sum(axis=1, keepdims=True), 1.0)
    middle = (np.cumsum(pooled, axis=1) - pooled / 2) / total
    return np.minimum((middle * n_bins).astype(np.int64), n_bins - 1)


def _sum_by_group(group: NDArray[np.int64], width: int, counts: Floats) -> Floats:
    place = group + width * np.arange(len(group))[:, None]
    flat = np.bincount(place.ravel(), counts.ravel(), minlength=width * len(group))
    return flat.reshape(len(group), width).astype(float)


def _join_neighbours(pooled: Floats, least: Floats) -> NDArray[np.int64]:
    """Return a bin's new number: from the left neighbours join until they hold enough; a poor rest joins the last."""
    joined = np.zeros(pooled.shape, np.int64)
    number, held = np.zeros(len(pooled), np.int64), np.zeros(len(pooled))
    for place in range(pooled.shape[1]):
        joined[:, place] = number
        held += pooled[:, place]
        full = held >= least
        number, held = number + full, np.where(full, 0.0, held)
    last = np.maximum(number - 1, 0)
    return np.minimum(joined, last[:, None])


def _rare_levels(pooled: Floats, least: Floats) -> NDArray[np.bool_]:
    """Return which levels join the rest; a rest that is too small itself takes the smallest other level in."""
    rare = pooled < least[:, None]
    rest = np.where(rare, pooled, 0).sum(axis=1)
    poor = (rest > 0) & (rest < least) & ~rare.all(axis=1)
    smallest = np.where(rare, np.inf, pooled).min(axis=1)
    return rare | (poor[:, None] & (pooled == smallest[:, None]))
