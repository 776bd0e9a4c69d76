"""Two count vectors over the same cells: how large is the difference, and can it be chance.

The Population Stability Index is the number that people read; 0.1 and 0.2 are its conventional bands. Between two
samples of one distribution it is not zero but (1/n + 1/m) times a chi-square variable (Yurdakul, Statistical
Properties of Population Stability Index, 2018), so it is shown less that expectation, with an interval from the
noncentral chi-square. Cells are merged by the *pooled* counts: merging by the reference alone, which is one of the two
samples, alarms falsely. Rare counts (missing, unseen, out of range) have exact tests.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Floats = NDArray[np.float64]

FLOOR = 1e-4


@dataclass(frozen=True)
class TestResult:
    """A test's statistic, its degrees of freedom (0 for exact tests) and its p value."""

    __test__ = False  # not a test class, whatever its name says to pytest

    statistic: float
    df: int
    p_value: float


def merge_cells(
    reference: ArrayLike,
    current: ArrayLike,
    *,
    ordered: bool = True,
    n_bins: int = 10,
    min_expected: float = 10.0,
) -> tuple[Floats, Floats]:
    """Return both count vectors over merged cells, chosen by pooled counts alone.

    Parameters
    ----------
    reference, current : array_like of counts, shape (n_cells,)
    ordered : bool
        True for numbers: neighbours join, into about `n_bins` bins of equal pooled share. False for levels: rare ones
        join into one rest.
    min_expected : float
        Smallest pooled share times the smaller sample that a bin keeps; 0 leaves levels as they are.
    """
    a, b = np.asarray(reference, float), np.asarray(current, float)
    smaller, total = min(a.sum(), b.sum()), a.sum() + b.sum()
    if smaller == 0 or a.size < 2:
        return a.sum(keepdims=True), b.sum(keepdims=True)
    pooled = a + b
    if ordered:
        middle = (np.cumsum(pooled) - pooled / 2) / total
        group = np.minimum((middle * n_bins).astype(int), n_bins - 1)
        group = _join_small_neighbours(np.unique(group, return_inverse=True)[1], pooled, min_expected * total / smaller)
    else:
        rare = pooled * smaller / total < min_expected
        if 0 < pooled[rare].sum() * smaller / total < min_expected and not rare.all():
            rare |= pooled == pooled[~rare].min()
        group = np.where(rare, 0, np.cumsum(~rare))
    group = np.unique(group, return_inverse=True)[1]
    merged_a, merged_b = np.bincount(group, a).astype(float), np.bincount(group, b).astype(float)
    held = merged_a + merged_b > 0
    return merged_a[held], merged_b[held]


def psi(
    reference: ArrayLike,
    current: ArrayLike,
    *,
    debiased: bool = True,
    ordered: bool = True,
    min_expected: float = 10.0,
) -> float:
    """Return the Population Stability Index, in [0, ∞): sum of (c - r) ln(c / r) over about ten bins.

    `debiased` takes away what two samples of one distribution show by chance, (B - 1)(1/n + 1/m). A share is never
    taken below half a row or 1e-4, whichever is larger, so that an empty bin cannot make the index infinite. Without
    rows on either side, or with one bin, it is 0. Cells are merged as `merge_cells` says.
    """
    a, b = merge_cells(reference, current, ordered=ordered, min_expected=min_expected)
    return max(0.0, _raw_psi(a, b) - (a.size - 1) * _noise(a, b)) if debiased else _raw_psi(a, b)


def psi_interval(
    reference: ArrayLike,
    current: ArrayLike,
    *,
    confidence: float = 0.95,
    ordered: bool = True,
    min_expected: float = 10.0,
) -> tuple[float, float]:
    """Return the interval of the population's index: the noncentralities under which what was seen is not unusual."""
    a, b = merge_cells(reference, current, ordered=ordered, min_expected=min_expected)
    df, noise = a.size - 1, _noise(a, b)
    if df == 0 or noise == 0:
        return 0.0, 0.0
    x = _raw_psi(a, b) / noise
    tail = (1 - confidence) / 2
    return _noncentrality(x, df, 1 - tail) * noise, _noncentrality(x, df, tail) * noise


def homogeneity_test(
    reference: ArrayLike, current: ArrayLike, *, ordered: bool = False, min_expected: float = 10.0
) -> TestResult:
    """Return the two-sample chi-square test: do both count vectors come from one distribution?

    Both sides are samples, unlike in a goodness-of-fit test, which alarms (1 + n/m) times too readily here.
    """
    a, b = merge_cells(reference, current, ordered=ordered, min_expected=min_expected)
    n, m = b.sum(), a.sum()
    if a.size < 2:
        return TestResult(0.0, 0, 1.0)
    pooled = (a + b) / (n + m)
    statistic = float(n * m / (n + m) * ((b / n - a / m) ** 2 / pooled).sum())
    return TestResult(statistic, a.size - 1, float(stats.chi2.sf(statistic, a.size - 1)))


def missing_rate_test(reference_hits: int, n_reference: int, current_hits: int, n_current: int) -> TestResult:
    """Return the exact two-sided test that a share (missing, unseen) is the same in both; statistic: its difference."""
    if not n_reference or not n_current:
        return TestResult(0.0, 0, 1.0)
    hits = stats.hypergeom(n_reference + n_current, reference_hits + current_hits, n_current)
    p = 2 * min(hits.cdf(current_hits), hits.sf(current_hits - 1))
    return TestResult(current_hits / n_current - reference_hits / n_reference, 0, float(min(1.0, p)))


def tail_test(reference_beyond: int, n_reference: int, current_beyond: int, n_current: int) -> TestResult:
    """Return the exact one-sided test that values beyond the reference's extreme are no more frequent now.

    With none in the reference, p is about (n / (n + m))^k for k values: one wild value never alarms, four of 200 do.
    """
    if not n_reference or not n_current:
        return TestResult(0.0, 0, 1.0)
    total = reference_beyond + current_beyond
    p = stats.hypergeom.sf(current_beyond - 1, n_reference + n_current, total, n_current)
    return TestResult(current_beyond / n_current - reference_beyond / n_reference, 0, float(min(1.0, p)))


def _raw_psi(a: Floats, b: Floats) -> float:
    n, m = b.sum(), a.sum()
    if n == 0 or m == 0 or a.size < 2:
        return 0.0
    was, now = np.maximum(a / m, max(FLOOR, 0.5 / m)), np.maximum(b / n, max(FLOOR, 0.5 / n))
    return float(((now - was) * np.log(now / was)).sum())


def _noise(a: Floats, b: Floats) -> float:
    return float(1 / a.sum() + 1 / b.sum()) if a.sum() and b.sum() else 0.0


def _noncentrality(x: float, df: int, probability: float) -> float:
    """Return the noncentrality at which P(X <= x) is `probability`; 0 when even the central one puts x there."""
    if special.chdtr(df, x) <= probability:
        return 0.0
    return float(special.chndtrinc(x, df, probability))


def _join_small_neighbours(group: NDArray[np.intp], pooled: Floats, least: float) -> NDArray[np.intp]:
    """Return bins in which each holds at least `least` pooled rows: the smallest joins its smaller neighbour."""
    while (sizes := np.bincount(group, pooled)).size > 1 and sizes.min() < least:
        small = int(sizes.argmin())
        sides = [side for side in (small - 1, small + 1) if 0 <= side < sizes.size]
        first = min(small, min(sides, key=lambda side: sizes[side]))
        group = np.where(group > first, group - 1, group)
    return group
