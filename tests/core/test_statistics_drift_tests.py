import numpy as np
import pytest
from scipy import stats

from forge_core.statistics.drift_tests import (
    homogeneity_test,
    merge_cells,
    missing_rate_test,
    psi,
    psi_interval,
    tail_test,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def test_psi_without_merging_is_the_textbook_sum() -> None:
    a, b = np.array([500, 300, 200]), np.array([400, 300, 300])
    r, c = a / 1000, b / 1000
    assert psi(a, b, debiased=False, ordered=False) == pytest.approx(((c - r) * np.log(c / r)).sum())
    assert psi(a, b, ordered=False) == pytest.approx(((c - r) * np.log(c / r)).sum() - 2 * (2 / 1000))


def test_debiased_psi_of_one_distribution_is_about_zero_and_the_raw_one_is_not(rng: np.random.Generator) -> None:
    share = np.full(10, 0.1)
    pairs = [(rng.multinomial(1000, share), rng.multinomial(300, share)) for _ in range(300)]
    raw = np.mean([psi(a, b, debiased=False) for a, b in pairs])
    assert raw == pytest.approx(9 * (1 / 1000 + 1 / 300), rel=0.1)
    assert np.mean([psi(a, b) for a, b in pairs]) < 0.3 * raw


def test_a_shift_of_the_mean_by_d_sigma_has_a_psi_near_d_squared(rng: np.random.Generator) -> None:
    edges = stats.norm.ppf(np.arange(1, 64) / 64)
    a = np.bincount(np.searchsorted(edges, rng.normal(size=50_000)), minlength=64)
    b = np.bincount(np.searchsorted(edges, rng.normal(0.5, size=50_000)), minlength=64)
    assert psi(a, b) == pytest.approx(0.25, abs=0.03)


def test_the_interval_covers_the_true_index_about_95_times_in_100(rng: np.random.Generator) -> None:
    r = np.full(10, 0.1)
    c = r * np.linspace(0.7, 1.3, 10)
    true = ((c - r) * np.log(c / r)).sum()
    inside = 0
    for _ in range(300):
        low, high = psi_interval(rng.multinomial(4000, r), rng.multinomial(1000, c))
        inside += low <= true <= high
    assert 270 <= inside <= 297


def test_an_empty_bin_keeps_the_index_finite() -> None:
    assert np.isfinite(psi([500, 500], [1000, 0], ordered=False))
    assert psi([0, 1000], [0, 1000]) == 0
    assert psi([10, 20], [0, 0]) == 0
    assert psi_interval([5, 5], [0, 0]) == (0.0, 0.0)


def test_merging_looks_at_pooled_counts_only(rng: np.random.Generator) -> None:
    a, b = rng.integers(0, 40, 64), rng.integers(0, 40, 64)
    b[0] += a.sum() - b.sum()
    for ordered in (True, False):
        first, second = merge_cells(a, b, ordered=ordered), merge_cells(b, a, ordered=ordered)
        np.testing.assert_array_equal(first[0], second[1])
        assert first[0].sum() == a.sum() and first[1].sum() == b.sum()


def test_merged_bins_are_large_enough_and_about_ten() -> None:
    a, _ = merge_cells(np.full(64, 100), np.full(64, 10))
    assert 9 <= a.size <= 10
    a, _ = merge_cells([50_000, 1, 50_000], [500, 0, 500])
    assert a.size == 2
    a, _ = merge_cells([1000, 500, 5, 4, 3], [100, 50, 0, 1, 2], ordered=False)
    assert sorted(a) == [512, 1000]


def test_homogeneity_p_values_are_uniform_without_drift(rng: np.random.Generator) -> None:
    zipf = 1 / np.arange(1, 51)
    share = zipf / zipf.sum()
    p = [homogeneity_test(rng.multinomial(1000, share), rng.multinomial(1000, share)).p_value for _ in range(400)]
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.085


def test_homogeneity_agrees_with_scipys_contingency_table() -> None:
    a, b = [120, 80, 200], [60, 70, 90]
    ours, theirs = homogeneity_test(a, b), stats.chi2_contingency([a, b])
    assert (ours.statistic, ours.df) == (pytest.approx(theirs.statistic), 2)
    assert ours.p_value == pytest.approx(theirs.pvalue)


def test_a_missing_rate_from_5_to_15_percent_is_found_in_200_rows() -> None:
    assert missing_rate_test(500, 10_000, 30, 200).p_value < 1e-5
    assert missing_rate_test(500, 10_000, 0, 200).p_value < 1e-3
    assert missing_rate_test(500, 10_000, 10, 200).p_value > 0.5
    assert missing_rate_test(0, 10_000, 0, 200).p_value == 1
    assert missing_rate_test(0, 0, 0, 200).p_value == 1


def test_one_wild_value_is_chance_and_four_in_200_are_not() -> None:
    assert tail_test(0, 10_000, 1, 200).p_value == pytest.approx(200 / 10_200)
    assert tail_test(0, 10_000, 4, 200).p_value < 1e-6
    assert tail_test(0, 10_000, 0, 200).p_value == 1
