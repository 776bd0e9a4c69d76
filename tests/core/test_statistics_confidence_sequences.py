import math

import numpy as np
import pytest
from scipy import stats

from forge_core.statistics.confidence_sequences import (
    combined_periods,
    difference_sequence,
    higher_mean_evidence,
    ratio_moments,
)
from forge_core.statistics.group_sequential import group_sequential_z, maximum_inflation, obrien_fleming_bounds
from forge_core.statistics.power import duration_days, sample_size_for_means, sample_size_per_variant


def running_moments(values: np.ndarray) -> list[np.ndarray]:
    n = np.arange(1, values.shape[-1] + 1)
    mean = np.cumsum(values, axis=-1) / n
    return [np.broadcast_to(n, values.shape), mean, np.cumsum(values**2, axis=-1) / n - mean**2]


@pytest.mark.slow
@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_cover_at_every_look_together_and_the_plain_ones_do_not(skewed: bool) -> None:
    rng = np.random.default_rng(0)
    draw = (lambda: rng.exponential(1, (400, 4000))) if skewed else (lambda: rng.normal(1, 1, (400, 4000)))
    a, b = running_moments(draw()), running_moments(draw() + 0.5)
    found = difference_sequence(*a, *b, n_star=4000)
    assert 1 - ((found.low <= 0.5) & (found.high >= 0.5)).all(axis=1).mean() <= 0.05
    b[1] = b[1] - 0.5
    assert (np.abs(group_sequential_z(*a, *b)[:, 100:]) > 1.96).any(axis=1).mean() > 0.25


def test_the_interval_is_that_of_the_formula_and_p_falls_below_alpha_just_when_it_leaves_0() -> None:
    n, alpha = 3000, 0.05
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / 5000
    scaled = 2 * n * rho2
    width = math.sqrt(4 / n * 2 * (scaled + 1) / scaled * math.log(math.sqrt(scaled + 1) / alpha))
    found = difference_sequence(n, [1.0], 2.0, n, [1.3], 2.0, n_star=5000)
    assert found.high - found.value == pytest.approx([width]) and found.value == pytest.approx([0.3])
    for gap in np.linspace(0, 0.3, 40):
        found = difference_sequence(n, [1.0], 2.0, n, [1.0 + gap], 2.0, n_star=5000)
        assert bool(found.low[0] > 0) == bool(found.p[0] < alpha)


def test_the_interval_is_tightest_where_it_was_asked_to_be() -> None:
    def width(n: float, n_star: float) -> float:
        found = difference_sequence(n / 2, [0.0], 1.0, n / 2, [0.0], 1.0, n_star=n_star)
        return float(found.high[0] - found.low[0])

    assert min((width(8000, n_star), n_star) for n_star in (500, 2000, 8000, 32_000, 128_000))[1] == 8000


def test_p_never_rises_again() -> None:
    found = difference_sequence([500, 1000], [0, 0], 1.0, [500, 1000], [0.5, 0.0], 1.0)
    assert found.p[1] == found.p[0] < 1e-4


def test_too_little_to_go_by_is_no_evidence() -> None:
    cases = {
        "no units": (0, math.nan, math.nan, 500, 1.0, 1.0),
        "few units": (99, 0.0, 1.0, 500, 9.0, 1.0),
        "nothing varies": (500, 1.0, 0.0, 500, 2.0, 0.0),
        "a rounding error below 0": (500, 1.0, -1e-18, 500, 1.0, 0.0),
    }
    for said, moments in cases.items():
        found = difference_sequence(*([m] for m in moments))
        assert (found.low[0], found.high[0], found.p[0]) == (-math.inf, math.inf, 1.0) or said == "no units"
        assert found.p[0] == 1.0 and higher_mean_evidence(*([m] for m in moments))[0] == 0.0
    tiny = difference_sequence(500, [1.0], 1e-30, 500, [1.0], 1e-30)
    assert tiny.p[0] == 1.0 and tiny.low[0] < 0 < tiny.high[0]


def test_one_sided_evidence_is_the_half_of_the_two_sided_one() -> None:
    up, down = (higher_mean_evidence(500, 0.0, 1.0, 500, mean, 1.0) for mean in (0.2, -0.2))
    p = difference_sequence(500, [0.0], 1.0, 500, [0.2], 1.0).p[0]
    assert np.exp(up) + np.exp(down) == pytest.approx(2 / p) and up > 2 > 0 > down


@pytest.mark.parametrize(
    ("change", "said"),
    [({"alpha": 0.0}, "alpha"), ({"alpha": 1.5}, "alpha"), ({"n_star": 0}, "n_star")],
)
def test_arguments_out_of_range_are_refused(change: dict, said: str) -> None:
    for function in (difference_sequence, higher_mean_evidence):
        with pytest.raises(ValueError, match=said):
            function([200], [0.0], [1.0], [200], [0.0], [1.0], **change)
        with pytest.raises(ValueError, match="variances of at least 0"):
            function([200], [0.0], [-1.0], [200], [0.0], [1.0])
        with pytest.raises(ValueError, match="units of at least 0"):
            function([-200], [0.0], [1.0], [200], [0.0], [1.0])


def test_a_ratio_has_the_spread_that_it_shows_over_many_samples() -> None:
    rng = np.random.default_rng(1)
    pages = rng.poisson(3, (4000, 400)) + 1.0
    clicks = rng.binomial(pages.astype(int), rng.beta(2, 8, pages.shape))
    ratios = clicks.mean(axis=1) / pages.mean(axis=1)
    covariance = np.cov(clicks.ravel(), pages.ravel())
    value, variance = ratio_moments(clicks.mean(), pages.mean(), covariance[0, 0], covariance[1, 1], covariance[0, 1])
    assert value == pytest.approx(ratios.mean(), rel=0.01) and variance / 400 == pytest.approx(ratios.var(), rel=0.08)
    value, variance = ratio_moments([0.0], [0.0], [0.0], [0.0], [0.0])
    assert math.isnan(value[0]) and variance[0] == 0


def test_periods_are_compared_within_themselves() -> None:
    # Without this, the variant with more of its units from the good period would seem better.
    n_a, n_b, rate = np.array([900, 500]), np.array([100, 500]), np.array([0.1, 0.5])
    found = combined_periods(n_a, rate, rate * (1 - rate), n_b, rate, rate * (1 - rate))
    assert found[4] - found[1] == pytest.approx(0, abs=1e-12)
    same = combined_periods([300, 300], [0.2, 0.2], [0.16, 0.16], [300, 300], [0.3, 0.3], [0.21, 0.21])
    assert same == pytest.approx((600, 0.2, 0.16, 600, 0.3, 0.21))
    empty = combined_periods([300, 10], [0.2, 0.9], [0.16, 0.1], [300, 0], [0.3, math.nan], [0.21, math.nan])
    assert empty[4] - empty[1] == pytest.approx(0.1)


def test_bounds_are_those_of_the_literature() -> None:
    # DeMets and Lan 1994, table 1 (O'Brien-Fleming type, two-sided 0.05, five looks).
    assert obrien_fleming_bounds([0.2, 0.4, 0.6, 0.8, 1.0]).round(2).tolist() == [4.88, 3.36, 2.68, 2.29, 2.03]
    assert obrien_fleming_bounds([1.0]) == pytest.approx([1.959964], abs=1e-6)
    assert obrien_fleming_bounds([1.0], 0.05, two_sided=False) == pytest.approx([1.644854], abs=1e-6)
    assert maximum_inflation(1) == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("fractions", [[0.1, 0.15, 0.7, 1.0], np.arange(1, 51) / 50, [0.5, 0.9, 1.2]])
def test_bounds_spend_alpha_and_no_more(fractions: list[float]) -> None:
    rng = np.random.default_rng(2)
    steps = np.diff(fractions, prepend=0.0)
    z = np.cumsum(rng.normal(0, np.sqrt(steps), (60_000, len(steps))), axis=1) / np.sqrt(fractions)
    two, one = obrien_fleming_bounds(fractions), obrien_fleming_bounds(fractions, 0.025, two_sided=False)
    assert (np.abs(z) >= two).any(axis=1).mean() == pytest.approx(0.05, abs=0.003)
    assert (z >= one).any(axis=1).mean() == pytest.approx(0.025, abs=0.002)


def test_the_inflated_maximum_has_the_power_asked_for() -> None:
    rng, n_looks = np.random.default_rng(3), 10
    drift = (stats.norm.isf(0.025) + stats.norm.ppf(0.9)) * math.sqrt(maximum_inflation(n_looks, power=0.9))
    at = np.arange(1, n_looks + 1) / n_looks
    walk = np.cumsum(rng.normal(drift / n_looks, math.sqrt(1 / n_looks), (60_000, n_looks)), axis=1)
    assert (walk / np.sqrt(at) >= obrien_fleming_bounds(at)).any(axis=1).mean() == pytest.approx(0.9, abs=0.005)


@pytest.mark.parametrize("fractions", [[], [0.5, 0.4], [0.0, 1.0], [0.5, 1.1, 1.2], [0.5, 0.501]])
def test_looks_that_do_not_ascend_are_refused(fractions: list[float]) -> None:
    with pytest.raises(ValueError, match="fractions that ascend"):
        obrien_fleming_bounds(fractions)


def test_the_sample_size_gives_the_power() -> None:
    rng, n = np.random.default_rng(4), sample_size_per_variant(0.10, 0.02)
    a, b = rng.binomial(n, 0.10, 40_000) / n, rng.binomial(n, 0.12, 40_000) / n
    z = group_sequential_z(n, a, a * (1 - a), n, b, b * (1 - b))
    assert (z > 1.96).mean() == pytest.approx(0.8, abs=0.01)
    assert sample_size_per_variant(0.12, -0.02) == n < sample_size_per_variant(0.10, 0.02, n_variants=3)
    assert sample_size_for_means(math.sqrt((0.09 + 0.1056) / 2), 0.02) == n
    assert duration_days(n, 1000, [0.5, 0.5]) == pytest.approx(2 * n / 1000)


def test_plans_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rates in \(0, 1\) that differ"):
        sample_size_per_variant(0.1, 0.0)
    with pytest.raises(ValueError, match="alpha and power"):
        sample_size_per_variant(0.1, 0.02, alpha=1.0)
    with pytest.raises(ValueError, match="spread above 0"):
        sample_size_for_means(0.0, 0.1)
    with pytest.raises(ValueError, match="shares above 0"):
        duration_days(100, 1000, [1.0, 0.0])
