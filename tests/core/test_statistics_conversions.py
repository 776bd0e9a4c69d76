import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from forge_core.statistics.conversion_evidence import concentration_for, conversion_evidence, lift_interval
from forge_core.statistics.rate_comparison import higher_rate_evidence
from forge_core.statistics.ratio_mismatch import MISMATCH, mismatch_evidence


def test_evidence_of_conversions_has_mean_1_exactly_while_the_shares_hold() -> None:
    for shares in ([0.5, 0.5], [0.2, 0.8], [0.1, 0.3, 0.6]):
        total = 9
        counts = [c for c in itertools.product(range(total + 1), repeat=len(shares)) if sum(c) == total]
        chances = stats.multinomial(total, shares).pmf(counts)
        assert chances @ np.exp(conversion_evidence(counts, shares, concentration=7.0)) == pytest.approx(1, abs=1e-12)


def test_evidence_of_conversions_is_the_mixture_it_says() -> None:
    a, b, (n, k) = 30.0, 70.0, (25, 40)
    likelihood = integrate.quad(lambda t: stats.beta.pdf(t, a, b) * t**n * (1 - t) ** k, 0, 1, epsabs=0)[0]
    expected = math.log(likelihood) - n * math.log(0.3) - k * math.log(0.7)
    assert conversion_evidence([[n, k]], [0.3, 0.7], concentration=100)[0] == pytest.approx(expected, abs=1e-6)


def test_no_conversions_are_no_evidence_and_one_variant_without_any_is() -> None:
    log_e = conversion_evidence([[0, 0], [0, 12], [0, 60]], [0.5, 0.5])
    assert log_e[0] == pytest.approx(0, abs=1e-12) and 0 < log_e[1] < math.log(20) < log_e[2]


@pytest.mark.parametrize(
    ("counts", "shares", "said"),
    [
        ([[1, 2]], [0.5, 0.6], "1 together"),
        ([[1, 2]], [1.0, 0.0], "above 0"),
        ([[1, -2]], [0.5, 0.5], "at least 0"),
        ([[1, math.nan]], [0.5, 0.5], "no number"),
        ([[1, 2, 3]], [0.5, 0.5], "2 variants"),
        ([1, 2], [0.5, 0.5], "by look"),
    ],
)
def test_counts_and_shares_that_cannot_be_are_refused(counts: list, shares: list, said: str) -> None:
    for function in (conversion_evidence, mismatch_evidence):
        with pytest.raises(ValueError, match=said):
            function(counts, shares)


def test_the_concentration_fits_the_effect() -> None:
    spread = stats.beta(60, 60).std()
    assert concentration_for(0.10, 0.02) == 120 and spread == pytest.approx(0.02 / (2 * 0.22), rel=1e-9)
    assert concentration_for(0.10, -0.02) < concentration_for(0.10, 0.001)
    with pytest.raises(ValueError, match=r"in \(0, 1\) that differ"):
        concentration_for(0.9, 0.2)


@pytest.mark.slow
def test_the_interval_of_the_lift_covers_it_at_all_looks_together() -> None:
    rng = np.random.default_rng(0)
    for lift in (1.0, 1.5):
        missed = 0
        for _ in range(150):
            on_other = np.cumsum(rng.random(600) < 0.3 * lift / (0.3 * lift + 0.7))
            looks = range(9, 600, 30)
            ends = [lift_interval(n + 1 - on_other[n], int(on_other[n]), 0.3) for n in looks]
            missed += not all(low <= lift <= high for low, high in ends)
        assert missed / 150 <= 0.05
    assert lift_interval(0, 0, 0.5) == (0.0, math.inf)
    low, high = lift_interval(0, 80, 0.5)
    assert 1 < low < 80 and high == math.inf
    low, high = lift_interval(80, 0, 0.5)
    assert low == 0 and 0 < high < 1


def test_the_interval_excludes_1_just_when_the_evidence_says_so() -> None:
    for on_other in range(100, 200, 3):
        low, high = lift_interval(100, on_other, 0.5)
        log_e = conversion_evidence([[100, on_other]], [0.5, 0.5])[0]
        assert (not low <= 1 <= high) == (log_e > math.log(20))


def expected_evidence(rates: tuple[float, float], shares: list[float], n_visitors: int, **declared: float) -> float:
    """Return the mean of the evidence over everything that can happen to so many visitors."""
    chances = np.array(
        [shares[0] * rates[0], shares[1] * rates[1], shares[0] * (1 - rates[0]), shares[1] * (1 - rates[1])]
    )
    cells = np.array([c for c in itertools.product(range(n_visitors + 1), repeat=4) if sum(c) == n_visitors])
    converted = cells[:, :2]
    log_e = higher_rate_evidence(converted, converted + cells[:, 2:], shares, **declared)
    return float(stats.multinomial(n_visitors, chances).pmf(cells) @ np.exp(log_e))


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.9, 0.1]])
def test_evidence_of_a_higher_rate_has_mean_1_exactly_whatever_was_declared(shares: list[float]) -> None:
    for rate in (0.01, 0.3, 0.9):
        assert expected_evidence((rate, rate), shares, 8) == pytest.approx(1, abs=1e-9)
        assert expected_evidence((rate, rate), shares, 8, baseline=0.5, min_effect=0.2) == pytest.approx(1, abs=1e-9)
    assert expected_evidence((0.4, 0.3), shares, 8, baseline=0.3, min_effect=0.2) < 1
    assert expected_evidence((0.3, 0.6), shares, 8, baseline=0.3, min_effect=0.2) > 1.1


def test_the_rest_adds_to_conversions_and_without_it_rare_ones_lose_nothing() -> None:
    common = [
        higher_rate_evidence([[500, 560]], n, [0.5, 0.5], baseline=0.5, min_effect=0.05) for n in ([[1000] * 2], None)
    ]
    assert common[0][0] > common[1][0] + 1.5
    rare = [
        higher_rate_evidence([[50, 90]], n, [0.5, 0.5], baseline=5e-4, min_effect=2e-4) for n in ([[1e5] * 2], None)
    ]
    assert rare[0][0] == pytest.approx(rare[1][0], abs=0.02)


def test_periods_add_up_and_a_change_of_shares_is_no_effect() -> None:
    conversions, visitors = np.array([[[30, 40], [50, 80]]]), np.array([[[300, 310], [500, 520]]])
    apart = higher_rate_evidence(conversions, visitors, [[0.5, 0.5], [0.5, 0.5]])
    assert apart == pytest.approx(higher_rate_evidence(conversions.sum(1), visitors.sum(1), [0.5, 0.5]))
    # A tenth converts while the second has 10 %, a half while it has 50 %: alike in either period.
    conversions, visitors = np.array([[[90, 10], [250, 250]]]), np.array([[[900, 100], [500, 500]]])
    assert higher_rate_evidence(conversions, visitors, [[0.9, 0.1], [0.5, 0.5]])[0] < 0
    pooled = higher_rate_evidence(conversions.sum(1), visitors.sum(1), [0.7, 0.3])[0]
    assert pooled > math.log(100)


def test_a_higher_rate_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least as many visitors"):
        higher_rate_evidence([[10, 10]], [[5, 20]], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"declared rates in \(0, 1\)"):
        higher_rate_evidence([[1, 1]], None, [0.5, 0.5], baseline=0.99, min_effect=0.05)
    with pytest.raises(ValueError, match="two variants"):
        higher_rate_evidence([[1, 1, 1]], None, [0.3, 0.3, 0.4])
    with pytest.raises(ValueError, match="found shape"):
        higher_rate_evidence([[1, 1]], None, [[0.5, 0.5], [0.9, 0.1]])
    assert higher_rate_evidence(np.zeros((3, 2)), np.zeros((3, 2)), [0.5, 0.5]).tolist() == pytest.approx([0, 0, 0])


def test_a_mismatch_of_shares_is_found_early_and_not_where_there_is_none() -> None:
    rng = np.random.default_rng(1)
    alarms, delays = 0, []
    for _ in range(300):
        second = np.cumsum(rng.random(5000) < 0.05)
        counts = np.stack([np.arange(1, 5001) - second, second], axis=-1)
        alarms += bool((mismatch_evidence(counts, [0.95, 0.05]) >= MISMATCH).any())
        lost = np.cumsum(rng.random(5000) < 0.03 / 0.98)
        log_e = mismatch_evidence(np.stack([np.arange(1, 5001) - lost, lost], axis=-1), [0.95, 0.05])
        delays.append(np.argmax(log_e >= MISMATCH) if (log_e >= MISMATCH).any() else np.inf)
    assert alarms / 300 <= 0.01
    assert np.median(delays) < 4000
