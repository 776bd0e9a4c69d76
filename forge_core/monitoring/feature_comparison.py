"""What is asked of features: their distribution, values outside the reference's cells, and how pairs go together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
from forge_core.statistics.pair_moments import PairMoments, pair_p_values


@dataclass(frozen=True)
class Comparison:
    """The answer to one question: of what, rows on either side, debiased PSI with its 95 % interval, and the test."""

    feature: str
    kind: Kind
    n_reference: int
    n_current: int
    psi: float
    psi_low: float
    psi_high: float
    test: TestResult


def compare_feature(name: str, was: FeatureCounts, now: FeatureCounts, *, numeric: bool) -> list[Comparison]:
    """Return the answers for one feature: distribution, missing, unseen, and for numbers range and unit.

    The questions share no row's fate: missing is asked of all rows, unseen, range and unit of those present, and the
    distribution of those that fall into cells. So a column that went missing is one finding, not three. A column of
    numbers of which most are none now has another type.
    """
    n_was, n_now = was.n_rows - was.missing, now.n_rows - now.missing
    found = [
        _compare_cells(name, was, now, numeric),
        _compare_shares(name, "missing", (was.missing, was.n_rows), (now.missing, now.n_rows)),
        _compare_shares(
            name,
            "schema" if numeric and now.unseen > n_now / 2 else "unseen",
            (was.unseen, n_was),
            (now.unseen, n_now),
        ),
    ]
    if numeric:
        below = tail_test(was.below, n_was, now.below, n_now)
        above = tail_test(was.above, n_was, now.above, n_now)
        beyond = (was.below + was.above, n_was), (now.below + now.above, n_now)
        either = TestResult(below.statistic + above.statistic, 0, min(1.0, 2 * min(below.p_value, above.p_value)))
        far = tail_test(was.far, n_was, now.far, n_now)
        # Values of another order are one fault, told once.
        other_unit = far.p_value < either.p_value or now.far > (now.below + now.above) / 2
        found.append(_compare_shares(name, "unit" if other_unit else "range", *beyond, test=either))
    return found


def compare_pairs(pairs: Sequence[tuple[str, str]], was: PairMoments, now: PairMoments) -> list[Comparison]:
    """Return the answers for pairs: has their correlation (of normal scores) changed."""
    change, p = now.means - was.means, pair_p_values(was, now)
    spread = np.sqrt(was.variance_of_mean + now.variance_of_mean)
    low, high = np.maximum(np.abs(change) - 1.96 * spread, 0) ** 2, (np.abs(change) + 1.96 * spread) ** 2
    size = np.maximum(change**2 - spread**2, 0)
    return [
        Comparison(f"{a} × {b}", "correlation", int(was.n[i]), int(now.n[i]), float(size[i]), float(low[i]),
                   float(high[i]), TestResult(float(change[i]), 0, float(p[i])))
        for i, (a, b) in enumerate(pairs)
    ]  # fmt: skip


def _compare_cells(name: str, was: FeatureCounts, now: FeatureCounts, ordered: bool) -> Comparison:
    a, b = was.cells, now.cells
    low, high = psi_interval(a, b, ordered=ordered)
    test = homogeneity_test(a, b, ordered=ordered)
    return Comparison(name, "distribution", int(a.sum()), int(b.sum()), psi(a, b, ordered=ordered), low, high, test)


def _compare_shares(
    name: str, kind: Kind, was: tuple[int, int], now: tuple[int, int], *, test: TestResult | None = None
) -> Comparison:
    """Compare two shares, each (hits, rows): two cells and an exact test."""
    cells = [was[0], was[1] - was[0]], [now[0], now[1] - now[0]]
    low, high = psi_interval(*cells, ordered=False, min_expected=0)
    size = psi(*cells, ordered=False, min_expected=0)
    return Comparison(name, kind, was[1], now[1], size, low, high, test or missing_rate_test(*was, *now))
