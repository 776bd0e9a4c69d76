"""Hyperparameter search with Ray Tune: plain function trials, Optuna's sampler, actors that are reused.

The driver loads the rows once and puts the training and validation part into Ray's object store; each actor takes
them once and runs trial after trial. Finished trials lie in a journal at the storage URL, so that a search that was
cut goes on from there.
"""

import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pandas as pd

from forge_core.errors import ConfigurationError, ModelError, ServiceUnavailable
from forge_core.models.model_trainer import get_model_trainer
from forge_core.models.target import Learning, infer_learning
from forge_core.statistics.quality import LOWER_IS_BETTER, METRICS
from forge_core.storage import Storage
from forge_core.training.datasets import SplitRequest, load_split
from forge_core.training.search_journal import Journal
from forge_core.training.search_report import search_figure, trials_table
from forge_core.training.trial_runs import Tracking, TrialRuns
from forge_core.training.trials import WHOLE, TrialData, TrialPlan, trial_data

logger = logging.getLogger(__name__)

Parameters = dict[str, Any]
Progress = Callable[[int, dict[str, Any]], None]


@dataclass(frozen=True)
class SearchResult:
    """The winner, its value of the metric, and every trial in order.

    A trial is a dictionary: `number`, `state` (complete, stopped: ended early, failed), `hyperparameters`, the metric
    by its name, `metrics`, `seconds`, `reason`. The winner is among the complete ones.
    """

    hyperparameters: Parameters
    metric: str
    value: float
    trials: list[dict[str, Any]]
    key: str = ""
    resumed: int = 0  # trials that an earlier call had done
    unsent_runs: int = 0  # trials that the tracking server does not have yet
    parent_run: str | None = None
    seconds: float = field(default=0.0, compare=False)

    @property
    def mode(self) -> Literal["min", "max"]:
        """Which way is better."""
        return _mode(self.metric)

    def table(self) -> pd.DataFrame:
        """Return one row a trial."""
        return trials_table(self.trials, self.metric)

    def picture(self) -> bytes:
        """Return a PNG: the metric by trial, with the best so far."""
        return search_figure(self.trials, self.metric, self.mode)


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
    task: Learning | Literal["auto"] = "classification",
    trials: int = 8,
    fixed: Mapping[str, Any] | None = None,
    space: Mapping[str, Any] | None = None,
    start_from: Mapping[str, Any] | None = None,
    folds: int | None = None,
    early_stop: bool = True,
    workers: int | None = None,
    random_state: int = 0,
    address: str | None = None,
    progress: Progress | None = None,
    tracking: Tracking | None = None,
    patience: float = 30.0,
) -> SearchResult:
    """Return the hyperparameters that do best on rows that their models did not see.

    Parameters
    ----------
    split : SplitRequest
        Which dataset version, and how it is split; the held-out part is never shown to a trial.
    metric : str
        A key of the task's metrics; its direction is known.
    trials : int
        Numbers 0 to trials - 1; asking for more later keeps those that are done.
    fixed : mapping, optional
        Hyperparameters that are not searched.
    space : mapping, optional
        Domains of ray.tune by hyperparameter; by default `search_space(model_type)`.
    start_from : mapping, optional
        A point to try first, such as the champion's hyperparameters.
    folds : int, optional
        0 scores on the validation part, k >= 2 is cross-validation over training and validation part (forward in
        time where rows have a time). By default 0 where rows have a time, else 5.
    early_stop : bool
        End trials that lag behind after a third of their rounds (ASHA; Li et al. 2020).
    workers : int, optional
        Trials at a time, one core each; at most, and by default, the cluster's cores.
    random_state : int
        Of the sampler, the folds and the models. The first ten trials depend on nothing else; later ones, and what
        is stopped early, on the order in which trials ended, unless `workers` is 1.
    address : str, optional
        Ray's address; None starts or joins what `ray.init` finds.
    progress : callable, optional
        Called after each trial with (trials done, its parameters and metric; None where it failed).
    tracking : Tracking, optional
        Makes each trial a child run in MLflow.
    patience : float
        Seconds to wait at the end for a tracking server that is away.

    Raises
    ------
    ConfigurationError
        For an unknown model type, hyperparameter or metric, or a search space that is empty.
    UnusableTarget, NotEnoughSamples
        When nothing can be learnt from the target, or a fold holds one class only.
    ServiceUnavailable
        When Ray does not answer.
    ModelError
        When every trial failed; carries the first failure.
    """
    started = time.perf_counter()
    if trials < 1 or (workers is not None and workers < 1):
        raise ConfigurationError(f"expected at least one trial and one worker, found {trials} and {workers}")
    get_model_trainer(model_type, fixed, task="regression" if task == "regression" else "classification")
    storage = Storage(split.storage_url)
    parts = load_split(storage, split)
    learning: Learning = infer_learning(parts.y_train) if task == "auto" else task
    folds = folds if folds is not None else 0 if split.time_column else 5
    data = trial_data(parts, learning, folds=folds, time_column=split.time_column, seed=random_state)
    _check_metric(metric, learning, data)
    constant = dict(fixed or {})
    trainer = get_model_trainer(model_type, constant, task=learning)
    if "random_state" in trainer.pipeline.named_steps["estimator"].get_params():
        constant["random_state"] = random_state

    connect(address)
    from forge_core.training.search_run import run_trials
    from forge_core.training.search_sampler import distributions_of

    domains = {k: v for k, v in (search_space(model_type) if space is None else space).items() if k not in constant}
    distributions = distributions_of(domains) if space is not None or domains else {}
    get_model_trainer(model_type, {**constant, **dict.fromkeys(distributions)}, task=learning)
    trials = trials if distributions else 1
    journal = Journal(storage, {
        "split": asdict(split), "model_type": model_type, "metric": metric, "learning": learning, "fixed": constant,
        "space": {name: str(d) for name, d in distributions.items()}, "start_from": dict(start_from or {}),
        "folds": folds, "early_stop": early_stop, "random_state": random_state,
    })  # fmt: skip
    done = journal.read(trials)
    runs = TrialRuns(tracking, journal.key) if tracking else None
    records = {record["number"]: record for record in done}
    for record in done if runs else []:
        runs.send(record)  # type: ignore[union-attr]

    def ended(record: dict[str, Any]) -> None:
        journal.write(record)
        records[record["number"]] = record
        if runs:
            runs.send(record)
        if progress:
            progress(len(records), {**record["hyperparameters"], metric: record["value"]})

    plan = TrialPlan(
        model_type, learning, metric, tuple(sorted(constant.items())), (1, WHOLE) if early_stop else (WHOLE,)
    )
    todo = [number for number in range(trials) if number not in records]
    try:
        if todo:
            run_trials(
                storage, data, plan, distributions, todo=todo, done=done, first=dict(start_from or {}),
                mode=_mode(metric), seed=random_state, early_stop=early_stop, workers=workers, ended=ended,
            )  # fmt: skip
    finally:
        ordered = [records[number] for number in sorted(records)]
        best = _best(ordered, metric)
        shown = [_shown(record, metric) for record in ordered]
        picture = search_figure(shown, metric, _mode(metric)) if runs and shown else None
        unsent = runs.finish(best, picture, patience) if runs else 0
    if best is None:
        raise ModelError(
            f"all {len(ordered)} trials failed; the first: {ordered[0]['reason'] if ordered else 'none was run'}"
        )
    return SearchResult(
        {**constant, **best["hyperparameters"]}, metric, best["value"], shown, key=journal.key, resumed=len(done),
        unsent_runs=unsent, parent_run=runs.parent_run if runs else None, seconds=time.perf_counter() - started,
    )  # fmt: skip


def _check_metric(metric: str, learning: Learning, data: TrialData) -> None:
    kind: Any = learning if learning == "regression" or data.y.nunique() == 2 else "multiclass"
    if metric not in METRICS[kind]:
        raise ConfigurationError(
            f"expected a metric of a {kind} task ({', '.join(METRICS[kind])}), found {metric!r}; choose one of them"
        )


def _mode(metric: str) -> Literal["min", "max"]:
    return "min" if metric in LOWER_IS_BETTER else "max"


def _best(records: list[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    """Return the best complete trial, of equal ones the first."""
    complete = [record for record in records if record["state"] == "complete"]
    sign = 1 if _mode(metric) == "min" else -1
    return min(complete, key=lambda record: (sign * record["value"], record["number"]), default=None)


def _shown(record: Mapping[str, Any], metric: str) -> dict[str, Any]:
    shown = {name: record[name] for name in ("number", "state", "hyperparameters", "metrics", "seconds", "reason")}
    return {**shown, metric: record["value"]}


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
