"""Hyperparameter search with Ray Tune: plain function trials, Optuna's sampler, actors that are reused.

Trials load the dataset version by its id (and keep it, since their process is reused); only ids and numbers
cross process borders.
"""

import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from forge_core.data.splits import DataSplit
from forge_core.errors import ModelError, ServiceUnavailable
from forge_core.models.model_trainer import get_model_trainer
from forge_core.statistics.quality import LOWER_IS_BETTER, Task
from forge_core.storage import Storage
from forge_core.training.datasets import SplitRequest, load_split

logger = logging.getLogger(__name__)

Parameters = dict[str, Any]


@dataclass(frozen=True)
class SearchResult:
    """The winner, its value of the metric on the validation part, and every trial in order."""

    hyperparameters: Parameters
    metric: str
    value: float
    trials: list[dict[str, Any]]


def search_space(model_type: str) -> dict[str, Any]:
    """Return Ray Tune's search space of a model type; one without a space is fitted once with its defaults."""
    from ray import tune

    spaces: dict[str, dict[str, Any]] = {
        "gradient_boosting": {
            "learning_rate": tune.loguniform(0.02, 0.2),
            "max_iter": tune.randint(60, 160),
            "max_leaf_nodes": tune.randint(7, 40),
            "min_samples_leaf": tune.randint(20, 300),
            "l2_regularization": tune.loguniform(1e-3, 10.0),
        },
        "random_forest": {
            "n_estimators": tune.randint(50, 200),
            "min_samples_leaf": tune.randint(1, 50),
            "max_features": tune.uniform(0.2, 1.0),
        },
        "logistic_regression": {"C": tune.loguniform(1e-3, 100.0)},
    }
    return spaces.get(model_type, {})


def search(
    split: SplitRequest,
    *,
    model_type: str,
    metric: str,
    task: Task = "classification",
    trials: int = 8,
    fixed: Mapping[str, Any] | None = None,
    start_from: Mapping[str, Any] | None = None,
    random_state: int = 0,
    address: str | None = None,
    progress: Callable[[int, dict[str, Any]], None] | None = None,
) -> SearchResult:
    """Return the hyperparameters that do best on the validation part.

    Parameters
    ----------
    split : SplitRequest
        Which dataset version, and how it is split.
    metric : str
        Compared on the validation part; its direction is known.
    fixed : mapping, optional
        Hyperparameters that are not searched.
    start_from : mapping, optional
        A point to try first, such as the champion's hyperparameters.
    address : str, optional
        Ray's address; None starts or joins what `ray.init` finds.
    progress : callable, optional
        Called after each trial with (trials done, the trial's result).

    Raises
    ------
    ServiceUnavailable
        When Ray does not answer.
    ModelError
        When every trial failed; carries the first failure.
    """
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    connect(address)
    space = search_space(model_type)
    mode = "min" if metric in LOWER_IS_BETTER else "max"
    known = {k: v for k, v in (start_from or {}).items() if k in space}
    sampler = OptunaSearch(
        metric=metric,
        mode=mode,
        seed=random_state,
        points_to_evaluate=[known] if known and set(known) == set(space) else None,
    )
    request = {"model_type": model_type, "task": task, "fixed": {**(fixed or {}), "random_state": random_state}}

    def trial(config: Parameters) -> None:
        tune.report(run_trial(split, request, config))

    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=metric,
            mode=mode,
            search_alg=sampler if space else None,
            num_samples=trials if space else 1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(verbose=0, callbacks=[_progress_callback(progress, metric)] if progress else None),
    )
    results = tuner.fit()
    done = [
        {"hyperparameters": r.config, metric: r.metrics[metric]} for r in results if r.metrics and metric in r.metrics
    ]
    if not done:
        raise ModelError(f"all {len(results)} trials failed; the first: {results[0].error}")
    for failure in results.errors:
        logger.warning("trial failed: %s", failure)
    best = results.get_best_result(metric=metric, mode=mode)
    chosen = {**(fixed or {}), **best.config, "random_state": random_state}
    return SearchResult(chosen, metric, float(best.metrics[metric]), done)


def run_trial(split: SplitRequest, request: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, float]:
    """Fit one configuration on the training part and return its metrics on the validation part."""
    parts = _kept_split(split)
    trainer = get_model_trainer(
        request["model_type"], {**request["fixed"], **config}, task=request["task"], target=parts.target_column
    )
    trainer.train(parts.X_train, parts.y_train)
    return trainer.evaluate(parts.X_val, parts.y_val)


@lru_cache(maxsize=2)
def _kept_split(split: SplitRequest) -> DataSplit:
    return load_split(Storage(split.storage_url), split)


def connect(address: str | None) -> None:
    """Join the Ray cluster at the address, once per process."""
    import ray

    if ray.is_initialized():
        return
    try:
        if address and ":" in address and "://" not in address:
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=5.0).close()  # Ray itself would try for minutes
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, configure_logging=False)
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        raise ServiceUnavailable(
            f"expected Ray at {address or 'this machine'}, found: {error}; start it with `make up` or set RAY_ADDRESS"
        ) from error


def _progress_callback(report: Callable[[int, dict[str, Any]], None], metric: str) -> Any:
    from ray.tune import Callback

    class Progress(Callback):
        done = 0

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.done += 1
            report(self.done, {**trial.config, metric: (trial.last_result or {}).get(metric)})

    return Progress()
