import json

import numpy as np
import pytest

from forge_core.errors import ConfigurationError, NotEnoughSamples
from forge_core.statistics.estimation import QualityEstimator
from forge_core.statistics.quality import METRICS


def _world(rng: np.random.Generator, n: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return overconfident probabilities of class 1, and outcomes."""
    x = rng.normal(shift, 1, n)
    return 1 / (1 + np.exp(-2.5 * x)), (rng.random(n) < 1 / (1 + np.exp(-x))).astype(float)


@pytest.fixture(scope="module")
def estimator() -> QualityEstimator:
    return QualityEstimator.fit(*_world(np.random.default_rng(0), 20_000))


@pytest.mark.slow
@pytest.mark.parametrize("metric", list(METRICS["classification"]))
def test_estimates_agree_with_the_truth_although_the_model_is_overconfident_and_inputs_moved(
    estimator: QualityEstimator, metric: str
) -> None:
    p, y = _world(np.random.default_rng(1), 40_000, shift=0.7)
    truth = METRICS["classification"][metric](y, p, np.ones(len(y)))
    assert estimator.estimate(metric, p).value == pytest.approx(truth, rel=0.05)


@pytest.mark.slow
def test_the_interval_holds_the_realised_figure_about_95_times_in_100(estimator: QualityEstimator) -> None:
    inside = 0
    for seed in range(200):
        p, y = _world(np.random.default_rng([2, seed]), 500)
        found = estimator.estimate("accuracy", p, random_state=seed)
        inside += found.low <= METRICS["classification"]["accuracy"](y, p, np.ones(len(y))) <= found.high
    assert 182 <= inside <= 199


@pytest.mark.slow
def test_more_than_two_classes() -> None:
    rng = np.random.default_rng(3)

    def world(n: int) -> tuple[np.ndarray, np.ndarray]:
        p = rng.dirichlet([0.7, 0.7, 0.7], n)
        true = p**0.5 / (p**0.5).sum(axis=1, keepdims=True)
        return p, np.array([rng.choice(3, p=row) for row in true])

    estimator = QualityEstimator.fit(*world(4000))
    p, y = world(4000)
    assert estimator.estimate("accuracy", p).value == pytest.approx((p.argmax(axis=1) == y).mean(), abs=0.03)


def test_it_survives_json_exactly(estimator: QualityEstimator) -> None:
    again = QualityEstimator.from_dict(json.loads(json.dumps(estimator.to_dict())))
    p, _ = _world(np.random.default_rng(4), 300)
    assert again.estimate("brier", p) == estimator.estimate("brier", p)


def test_too_few_rows_and_unknown_metrics_are_told(estimator: QualityEstimator) -> None:
    with pytest.raises(NotEnoughSamples, match="at least 100"):
        QualityEstimator.fit([0.2] * 20, [0] * 20)
    with pytest.raises(ConfigurationError, match="no metric 'rmse' for classification; known: accuracy"):
        estimator.estimate("rmse", [0.2])
    with pytest.raises(NotEnoughSamples, match="found none"):
        estimator.estimate("accuracy", [])
