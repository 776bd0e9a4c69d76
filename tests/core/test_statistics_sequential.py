import numpy as np
import pytest
from scipy import stats

from forge_core.statistics.sequential import conformal_p_values, loss_evidence, rank_evidence, upper_mean


def test_ranks_of_exchangeable_scores_are_uniform_and_those_of_a_shift_small() -> None:
    rng = np.random.default_rng(0)
    p = conformal_p_values(rng.normal(size=(630, 5)).round(1), 30)
    assert p.shape == (600, 5)
    assert stats.kstest(p.ravel(), "uniform").pvalue > 0.01
    shifted = conformal_p_values(np.r_[rng.normal(size=(60, 1)), rng.normal(4, 1, (10, 1))], 60)
    assert shifted.max() < 0.2


def test_a_stratum_is_compared_with_itself() -> None:
    rng = np.random.default_rng(1)
    weekend = np.arange(140) % 7 >= 5
    scores = rng.normal(size=(140, 1)) + 10 * weekend[:, None]
    apart = conformal_p_values(scores, 70, strata=weekend.tolist())
    together = conformal_p_values(scores, 70)
    assert apart[weekend[70:]].mean() == pytest.approx(0.5, abs=0.2)
    assert together[weekend[70:]].mean() < 0.3


@pytest.mark.slow
def test_ranks_alarm_within_the_horizon_at_most_at_alpha() -> None:
    rng = np.random.default_rng(2)
    alarms = sum(rank_evidence(rng.random((100, 8)), horizon=100, alpha=0.05)[0].alarm for _ in range(400))
    assert alarms / 400 <= 0.05
    p = rng.random((100, 8))
    p[50:, 2] = rng.random(50) * 0.02
    evidence, by_feature = rank_evidence(p, horizon=100, alpha=0.05)
    assert evidence.first_alarm is not None and 50 < evidence.first_alarm < 60
    assert by_feature[-1].argmax() == 2


def test_losses_alarm_at_most_at_alpha_and_soon_after_a_change() -> None:
    rng = np.random.default_rng(3)
    calm = [loss_evidence(rng.random(5000) < 0.2, baseline=0.2, horizon=5000, alpha=0.05).alarm for _ in range(200)]
    assert np.mean(calm) <= 0.05
    delays = []
    for _ in range(40):
        losses = np.r_[rng.random(2000) < 0.2, rng.random(3000) < 0.3].astype(float)
        first = loss_evidence(losses, baseline=0.2, horizon=100_000, alpha=0.05).first_alarm
        assert first is not None and first > 2000
        delays.append(first - 2000)
    assert np.median(delays) < 700


def test_losses_out_of_range_are_refused_and_none_is_no_evidence() -> None:
    with pytest.raises(ValueError, match=r"expected losses in \[0, 1\]"):
        loss_evidence([0.2, 3.0], baseline=0.1, horizon=10, alpha=0.05)
    assert not loss_evidence([], baseline=0.1, horizon=10, alpha=0.05).alarm


def test_the_upper_bound_of_a_mean_covers_it() -> None:
    rng = np.random.default_rng(4)
    bounds = [upper_mean(rng.random(400) < 0.2) for _ in range(400)]
    assert 0.92 <= np.mean(np.array(bounds) >= 0.2) <= 0.98
    assert upper_mean(np.zeros(99)) == pytest.approx(0.01)
