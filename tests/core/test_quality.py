"""Metrics and their intervals, against scikit-learn and against what is known."""

import numpy as np
import pytest
from sklearn import metrics as reference

from forge_core.statistics.quality import (
    bootstrap_interval,
    classification_metrics,
    paired_improvement,
    regression_metrics,
)

RNG = np.random.default_rng(0)
Y = (RNG.random(4000) < 0.3).astype(float)
P = np.round(np.clip(0.2 * Y + RNG.random(4000) * 0.7, 0.01, 0.99), 2)  # rounded: ties must count half


def test_classification_metrics_equal_scikit_learns() -> None:
    ours = classification_metrics(Y, P)
    assert ours["roc_auc"] == pytest.approx(reference.roc_auc_score(Y, P))
    assert ours["log_loss"] == pytest.approx(reference.log_loss(Y, P))
    assert ours["brier"] == pytest.approx(reference.brier_score_loss(Y, P))
    assert ours["accuracy"] == pytest.approx(reference.accuracy_score(Y, P >= 0.5))
    assert ours["precision"] == pytest.approx(reference.precision_score(Y, P >= 0.5))
    assert ours["recall"] == pytest.approx(reference.recall_score(Y, P >= 0.5))


def test_regression_metrics_equal_scikit_learns() -> None:
    prediction = Y + RNG.normal(size=4000)
    ours = regression_metrics(Y, prediction)
    assert ours["rmse"] == pytest.approx(reference.root_mean_squared_error(Y, prediction))
    assert ours["mae"] == pytest.approx(reference.mean_absolute_error(Y, prediction))
    assert ours["r2"] == pytest.approx(reference.r2_score(Y, prediction))


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(100):
        y = (rng.random(300) < 0.3).astype(float)
        interval = bootstrap_interval("accuracy", y, np.full(300, 0.2), random_state=seed)
        covered += interval.low <= 0.7 <= interval.high
    assert 88 <= covered <= 100


def test_rows_that_come_in_days_give_wider_intervals() -> None:
    rng = np.random.default_rng(2)
    day = np.repeat(np.arange(40), 100)
    y = (rng.random(4000) < np.clip(0.3 + 0.2 * rng.normal(size=40), 0, 1)[day]).astype(float)
    alone = bootstrap_interval("log_loss", y, np.full(4000, 0.3))
    clustered = bootstrap_interval("log_loss", y, np.full(4000, 0.3), groups=day)
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)


def test_paired_improvement_sees_a_small_but_sure_gain_in_the_metrics_own_direction() -> None:
    better = np.clip(P + 0.05 * (Y - 0.5), 0.01, 0.99)
    for metric in ("log_loss", "roc_auc"):
        gain = paired_improvement(metric, Y, P, better, n_resamples=200)
        assert 0 < gain.low < gain.value < gain.high
        loss = paired_improvement(metric, Y, better, P, n_resamples=200)
        assert loss.high < 0
