import math

import numpy as np
import pytest
from scipy import integrate, stats

from forge_core.statistics.paired_evidence import level_evidence, rate_evidence, superiority_evidence


def test_superiority_has_mean_1_exactly_between_equals_and_less_against_a_better_one() -> None:
    wins = np.arange(31)
    better, worse = superiority_evidence(wins, 30 - wins)
    for log_e in (better, worse):
        assert stats.binom(30, 0.5).pmf(wins) @ np.exp(log_e) == pytest.approx(1, abs=1e-12)
    assert stats.binom(30, 0.4).pmf(wins) @ np.exp(better) < 1 < stats.binom(30, 0.4).pmf(wins) @ np.exp(worse)
    assert better == pytest.approx(worse[::-1])


def test_superiority_is_the_mixture_it_says_and_bears_large_counts() -> None:
    def density(t: float) -> float:
        return 2 * stats.beta.pdf(t, 20, 20) * (2 * t) ** 60 * (2 * (1 - t)) ** 40

    expected = math.log(integrate.quad(density, 0.5, 1)[0])
    assert superiority_evidence(60, 40)[0][0] == pytest.approx(expected, abs=1e-9)
    better, worse = superiority_evidence([0, 600_000, 0], [0, 400_000, 100_000])
    assert better.tolist()[0] == pytest.approx(0, abs=1e-12) and better[1] > 10_000 and np.isfinite(worse).all()
    assert worse[2] > 10_000 and better[2] == -700


def test_rates_in_a_block_have_mean_at_most_1_under_exact_chance() -> None:
    for n_new, n_old, events in ((5, 95, 7), (40, 60, 30), (50, 50, 99), (1, 3, 2)):
        on_new = np.arange(max(0, events - n_old), min(n_new, events) + 1)
        chances = stats.hypergeom(n_new + n_old, events, n_new).pmf(on_new)
        log_e = [rate_evidence(k, n_new, events - k, n_old)[0] for k in on_new]
        assert chances.sum() == pytest.approx(1) and chances @ np.exp(log_e) <= 1 + 1e-9


def test_a_growing_canary_on_a_worsening_day_is_no_harm_but_an_erring_one_is() -> None:
    rng = np.random.default_rng(0)
    shares, rates = np.repeat([0.01, 0.05, 0.25, 0.5], 50), np.repeat([0.002, 0.005, 0.02, 0.04], 50)
    n_new = rng.binomial(400, shares)
    alarms, pooled, delays = [], [], []
    for _ in range(200):
        for_new, for_old = rng.binomial(n_new, rates), rng.binomial(400 - n_new, rates)
        counts = [np.cumsum(c) for c in (for_new, n_new, for_old, 400 - n_new)]
        alarms.append((rate_evidence(*counts) >= math.log(20)).any())
        pooled.append(rate_evidence(*(c[-1] for c in counts))[0] >= math.log(20))
        counts[0] = np.cumsum(for_new + rng.binomial(n_new, 0.02))
        log_e = rate_evidence(*counts)
        delays.append(np.argmax(log_e >= math.log(20)) if (log_e >= math.log(20)).any() else np.inf)
    assert np.mean(alarms) <= 0.05 < np.mean(pooled)
    assert np.median(delays) < 60


def test_looks_with_one_version_only_add_nothing() -> None:
    log_e = rate_evidence([0, 50, 50], [0, 100, 100], [5, 5, 60], [100, 100, 200])
    assert log_e.tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    assert rate_evidence(0, 0, 0, 0)[0] == pytest.approx(0, abs=1e-12)


def test_a_level_has_mean_1_exactly_at_its_limit_and_less_below() -> None:
    k = np.arange(41)
    for limit in (0.05, 0.6):
        evidence = np.exp(level_evidence(k, np.full(41, 40), limit))
        assert stats.binom(40, limit).pmf(k) @ evidence == pytest.approx(1, abs=1e-9)
        assert stats.binom(40, limit / 2).pmf(k) @ evidence < 1
    assert level_evidence(80, 800, 0.05)[0] > math.log(20) > level_evidence(45, 800, 0.05)[0]


def test_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        superiority_evidence([3, -1], [1, 1])
    with pytest.raises(ValueError, match="same looks"):
        superiority_evidence([3, 1], [1])
    with pytest.raises(ValueError, match="never fall"):
        rate_evidence([3, 2], [10, 20], [0, 0], [10, 20])
    for call in (lambda: rate_evidence(3, 2, 0, 10), lambda: level_evidence(3, 2, 0.1)):
        with pytest.raises(ValueError, match="at most as many events as rows"):
            call()
    with pytest.raises(ValueError, match=r"limit in \(0, 1\)"):
        level_evidence(1, 2, 1.0)
