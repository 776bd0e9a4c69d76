"""The questions asked of one feature: its distribution, and the values that the reference's cells do not hold."""

from dataclasses import dataclass

from forge_core.monitoring.drift_report import Kind
from forge_core.statistics.counts import FeatureCounts
from forge_core.statistics.drift_tests import (
    TestResult,
    homogeneity_test,
    missing_rate_test,
    psi,
    psi_interval,
    tail_test,
)


@dataclass(frozen=True)
class Comparison:
    """The answer to one question: rows on either side, debiased PSI with its 95 % interval, and the test."""

    kind: Kind
    n_reference: int
    n_current: int
    psi: float
    psi_low: float
    psi_high: float
    test: TestResult


def compare_feature(was: FeatureCounts, now: FeatureCounts, *, numeric: bool) -> list[Comparison]:
    """Return the answers for one feature: distribution, missing, unseen, and for numbers range.

    The questions share no row's fate: missing is asked of all rows, unseen and range of those present, and the
    distribution of those that fall into cells. So a column that went missing is one finding, not three.
    """
    n_was, n_now = was.n_rows - was.missing, now.n_rows - now.missing
    found = [
        _compare_cells(was, now, numeric),
        _compare_shares("missing", (was.missing, was.n_rows), (now.missing, now.n_rows)),
        _compare_shares("unseen", (was.unseen, n_was), (now.unseen, n_now)),
    ]
    if numeric:
        below = tail_test(was.below, n_was, now.below, n_now)
        above = tail_test(was.above, n_was, now.above, n_now)
        beyond = (was.below + was.above, n_was), (now.below + now.above, n_now)
        statistic = below.statistic + above.statistic
        either = TestResult(statistic, 0, min(1.0, 2 * min(below.p_value, above.p_value)))
        found.append(_compare_shares("range", *beyond, test=either))
    return found


def _compare_cells(was: FeatureCounts, now: FeatureCounts, ordered: bool) -> Comparison:
    a, b = was.cells, now.cells
    low, high = psi_interval(a, b, ordered=ordered)
    test = homogeneity_test(a, b, ordered=ordered)
    return Comparison("distribution", int(a.sum()), int(b.sum()), psi(a, b, ordered=ordered), low, high, test)


def _compare_shares(
    kind: Kind, was: tuple[int, int], now: tuple[int, int], *, test: TestResult | None = None
) -> Comparison:
    """Compare two shares, each (hits, rows): two cells and an exact test."""
    cells = [was[0], was[1] - was[0]], [now[0], now[1] - now[0]]
    low, high = psi_interval(*cells, ordered=False, min_expected=0)
    size = psi(*cells, ordered=False, min_expected=0)
    return Comparison(kind, was[1], now[1], size, low, high, test or missing_rate_test(*was, *now))
