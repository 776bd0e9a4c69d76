import math

import numpy as np
import pytest

from forge_core.experiments.decision import decide_conversions, decide_means, decide_paired

pytestmark = pytest.mark.slow

HALVES = [0.5, 0.5]


def visits(rng: np.random.Generator, rates: list[float], n_experiments: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    variant = rng.integers(0, len(rates), (n_experiments, n))
    visitors = variant[..., None] == np.arange(len(rates))
    converted = rng.random((n_experiments, n)) < np.array(rates)[variant]
    return np.cumsum(visitors & converted[..., None], axis=1), np.cumsum(visitors, axis=1)


def test_no_effect_has_a_winner_at_most_at_alpha_under_a_look_after_every_visitor() -> None:
    rng = np.random.default_rng(0)
    for n_variants in (2, 4):
        k, n = visits(rng, [0.1] * n_variants, 200, 4000)
        for visitors in (n, None):
            found = decide_conversions(k, visitors, np.full(n_variants, 1 / n_variants))
            assert (found.winner[:, -1] >= 0).mean() <= 0.05


def test_the_best_wins_and_what_is_said_stays() -> None:
    rng = np.random.default_rng(1)
    k, n = visits(rng, [0.1, 0.1, 0.16], 40, 9000)
    found = decide_conversions(k, n, np.full(3, 1 / 3), min_effect=0.06)
    assert (found.winner[:, -1] == 2).mean() >= 0.95
    assert (np.diff(found.winner, axis=1) != 0).sum(axis=1).max() == 1
    assert (found.ended == (found.winner >= 0)).all() and (np.diff(found.p, axis=1) <= 0).all()
    assert ((found.p <= 0.05).any(axis=-1) == (found.winner >= 0)).all()


def test_two_that_are_equally_good_have_no_winner_between_them() -> None:
    k, n = visits(np.random.default_rng(2), [0.05, 0.15, 0.15], 100, 6000)
    found = decide_conversions(k, n, np.full(3, 1 / 3), min_effect=0.05)
    assert (found.winner[:, -1] >= 0).mean() <= 0.05 and not (found.winner == 0).any()


def test_evidence_depends_on_counts_so_far_and_not_on_when_one_looked() -> None:
    k, n = visits(np.random.default_rng(3), [0.1, 0.13], 1, 5000)
    every, some = decide_conversions(k, n, HALVES), decide_conversions(k[:, 99::100], n[:, 99::100], HALVES)
    assert some.log_e == pytest.approx(every.log_e[:, 99::100])
    assert (some.p >= every.p[:, 99::100] - 1e-12).all()


def test_bad_news_counts_the_other_way_round() -> None:
    k, n = visits(np.random.default_rng(4), [0.1, 0.2], 20, 3000)
    usual, bad = (decide_conversions(k, n, HALVES, min_effect=0.1, lower_is_better=low) for low in (False, True))
    assert (usual.winner[:, -1] == 1).all() and (bad.winner[:, -1] == 0).all()
    assert bad.p[..., 0] == pytest.approx(usual.p[..., 1])
    means = (np.full((1, 2), 500), [[10.0, 11.0]], [[4.0, 4.0]])
    assert decide_means(*means).winner.tolist() == [1]
    assert decide_means(*means, lower_is_better=True).winner.tolist() == [0]


def test_a_change_of_shares_makes_no_winner() -> None:
    rng = np.random.default_rng(5)
    first, second = (visits(rng, [rate, rate], 100, 2000) for rate in (0.1, 0.5))
    # Before, the second variant has a tenth of visitors; then half.
    thin = rng.random((100, 2000)) < 1 / 9
    k, n = (
        np.stack([np.diff(part, axis=1, prepend=0)[..., 0], np.diff(part, axis=1, prepend=0)[..., 1] * thin], -1)
        for part in first
    )
    conversions = np.stack([k.sum(1), second[0][:, -1]], axis=1)[:, None]
    visitors = np.stack([n.sum(1), second[1][:, -1]], axis=1)[:, None]
    apart = decide_conversions(conversions, visitors, [[0.9, 0.1], [0.5, 0.5]])
    pooled = decide_conversions(conversions.sum(2), visitors.sum(2), [0.65, 0.35])
    assert (apart.winner[:, -1] >= 0).mean() <= 0.05 < (pooled.winner[:, -1] >= 0).mean()


def test_a_declared_maximum_ends_it() -> None:
    rng = np.random.default_rng(6)
    looks = np.arange(199, 8000, 200)
    k, n = (part[:, looks] for part in visits(rng, [0.1, 0.1], 400, 8000))
    found = decide_conversions(k, n, HALVES, max_visitors=4000)
    assert found.bound is not None and found.z is not None
    assert np.isfinite(found.bound[:, :20]).all() and np.isinf(found.bound[:, 20:]).all()
    assert found.ended[:, 19:].all() and not found.ended[:, :19].all()
    assert (found.winner[:, -1] == found.winner[:, 19]).all()
    assert (found.winner[:, -1] >= 0).mean() <= 0.08
    better = decide_conversions(
        *(part[:, looks] for part in visits(rng, [0.1, 0.14], 100, 8000)), HALVES, max_visitors=4000
    )
    assert (better.winner[:, -1] == 1).mean() >= 0.9 and not (better.winner == 0).any()


def test_looks_that_come_seldom_or_late_still_spend_alpha_once() -> None:
    n = np.array([[300, 310], [1900, 1910], [2500, 2490], [2600, 2590]])
    found = decide_conversions(n // 10, n, HALVES, max_visitors=4000, n_looks=10)
    assert found.bound is not None
    assert np.isfinite(found.bound).tolist() == [True, True, True, False]
    assert found.ended.tolist() == [False, False, True, True]
    early = decide_conversions(n // 10, n, HALVES, max_visitors=3830, n_looks=10)
    assert early.ended.tolist() == [False, True, True, True]


def test_means_are_decided_too_within_alpha_and_with_a_maximum() -> None:
    rng = np.random.default_rng(7)
    shown = np.arange(99, 3000, 50)
    values = rng.exponential(1, (300, 3000, 2))
    n = np.broadcast_to(np.arange(1, 3001)[:, None], values.shape)
    for shift, least, most in ((0.0, 0.0, 0.06), (0.3, 0.95, 1.0)):
        moved = values + np.array([0.0, shift])
        mean = np.cumsum(moved, axis=1) / n
        var = np.cumsum(moved**2, axis=1) / n - mean**2
        moments = [part[:, shown] for part in (n, mean, var)]
        for maximum in (None, 5000):
            wins = decide_means(*moments, n_star=5000, max_units=maximum).winner[:, -1]
            assert least <= (wins >= 0).mean() <= most and (not shift or not (wins == 0).any())


def test_nothing_and_one_variant_without_data_have_no_winner() -> None:
    found = decide_conversions(np.zeros((2, 2)), np.zeros((2, 2)), HALVES, max_visitors=100)
    assert found.winner.tolist() == [-1, -1] and found.p.min() == 1
    assert decide_conversions([[0, 3]], [[0, 40]], [0.01, 0.99]).winner.tolist() == [-1]
    assert decide_means([[0, 900]], [[math.nan, 3.0]], [[math.nan, 1.0]]).winner.tolist() == [-1]
    assert decide_means([[900, 900]], [[1.0, 1.0]], [[0.0, 0.0]], max_units=1000).winner.tolist() == [-1]


def test_pairs_on_the_same_rows_promote_or_stop_and_keep_to_it() -> None:
    rng = np.random.default_rng(8)
    for chance, said in ((0.65, 1), (0.35, -1)):
        wins = np.cumsum(rng.random((100, 1500)) < chance, axis=1)
        found = decide_paired(wins, np.arange(1, 1501) - wins)
        assert (found[:, -1] == said).all() and (found[:, 0] == 0).all()
        assert (np.diff(found, axis=1) != 0).sum(axis=1).max() == 1
    wins = np.cumsum(rng.random((500, 1500)) < 0.5, axis=1)
    assert (decide_paired(wins, np.arange(1, 1501) - wins)[:, -1] == 1).mean() <= 0.05


def test_what_cannot_be_decided_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha"):
        decide_conversions([[1, 1]], None, HALVES, alpha=0)
    with pytest.raises(ValueError, match="two variants"):
        decide_conversions([[1]], None, [1.0])
    with pytest.raises(ValueError, match="visitors beside conversions"):
        decide_conversions([[1, 1]], None, HALVES, max_visitors=100)
    with pytest.raises(ValueError, match="the same shares all along"):
        decide_conversions([[[1, 1]]], [[[5, 5]]], [HALVES], max_visitors=100)
