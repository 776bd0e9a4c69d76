"""Two count vectors over the same cells: how large is the difference, and can it be chance.

The Population Stability Index is the number that people read; 0.1 and 0.2 are its conventional bands. Between two
samples of one distribution it is not zero but (1/n + 1/m) times a chi-square variable (Yurdakul, Statistical
Properties of Population Stability Index, 2018), so it is shown less that expectation, with an interval from the
noncentral chi-square.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from forge_core.statistics.count_tests import chi_square, merged_cells, share_p_values, tail_p_values

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
    """Return both count vectors, shape (n_cells,), over merged cells, as `count_tests.merged_cells` chooses them."""
    one = np.asarray(current, float)[None, :]
    cells = merged_cells(reference, one, ordered=ordered, n_bins=n_bins, min_expected=min_expected)
    held = (cells.reference + cells.current)[0] > 0
    if not held.any():
        held[:1] = True
    return cells.reference[0, held], cells.current[0, held]


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
    one = np.asarray(current, float)[None, :]
    statistic, df, p = chi_square(merged_cells(reference, one, ordered=ordered, min_expected=min_expected))
    return TestResult(float(statistic[0]), int(df[0]), float(p[0]))


def missing_rate_test(reference_hits: int, n_reference: int, current_hits: int, n_current: int) -> TestResult:
    """Return the exact two-sided test that a share (missing, unseen) is the same in both; statistic: its difference."""
    if not n_reference or not n_current:
        return TestResult(0.0, 0, 1.0)
    p = share_p_values(reference_hits, n_reference, [current_hits], [n_current])
    return TestResult(current_hits / n_current - reference_hits / n_reference, 0, float(p[0]))


def tail_test(reference_beyond: int, n_reference: int, current_beyond: int, n_current: int) -> TestResult:
    """Return the exact one-sided test that values beyond the reference's extreme are no more frequent now.

    With none in the reference, p is about (n / (n + m))^k for k values: one wild value never alarms, four of 200 do.
    """
    if not n_reference or not n_current:
        return TestResult(0.0, 0, 1.0)
    p = tail_p_values(reference_beyond, n_reference, [current_beyond], [n_current])
    return TestResult(current_beyond / n_current - reference_beyond / n_reference, 0, float(p[0]))


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
