"""Ray Tune's part of a search: trials in actors that are reused, early stop, and a record of each trial's end."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from forge_core.storage import Storage
from forge_core.training.search_sampler import Sampler
from forge_core.training.trials import WHOLE, TrialData, TrialPlan, run_trial

logger = logging.getLogger(__name__)

# Read by Tune when a run starts: no files a trial, no upkeep of a state that our journal makes needless, no boxes
# on the terminal.
_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "RAY_AIR_NEW_OUTPUT": "0",
}

_TALKATIVE = ("ray.tune.tune", "ray.tune.analysis.experiment_analysis", "ray.tune.execution.tune_controller")


class TrialActor(tune.Trainable):
    """Runs trial after trial on rows that it took from the object store once; a trial that raises leaves it alive."""

    def setup(self, config: dict[str, Any], data: TrialData, plan: TrialPlan) -> None:
        """Take the rows and begin the first trial."""
        self._data, self._plan = data, plan
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial."""
        self._stages: list[dict[str, Any]] = []
        self._running = run_trial(self._data, self._plan, new_config["parameters"])
        return True

    def step(self) -> dict[str, Any]:
        """Run the trial's next stage and return all stages so far."""
        try:
            stage = next(self._running)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            return {"objective": float("nan"), "thirds": WHOLE, "stages": self._stages, "reason": reason, "done": True}
        value = stage["metrics"][self._plan.metric]
        stage["metrics"] = {k: v if v == v else None for k, v in stage["metrics"].items()}  # NaN is no JSON
        self._stages.append({**stage, "value": value})
        done = stage["thirds"] == WHOLE
        return {"objective": value, "thirds": stage["thirds"], "stages": self._stages, "reason": None, "done": done}


class Recorder(tune.Callback):
    """Hands on a record of each trial that ended."""

    def __init__(self, ended: Callable[[dict[str, Any]], None]) -> None:
        self._ended = ended

    def __reduce__(self) -> tuple[Any, ...]:
        return Recorder, (_nothing,)  # Tune keeps pickles of its callbacks; what records belong to stays here

    def __deepcopy__(self, memo: Any) -> "Recorder":
        return self

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a trial that ended by itself, was stopped, or raised."""
        self._ended(record_of(trial.config, trial.last_result or {}))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a trial whose process died."""
        error = trial.get_error()
        lines = [line.strip() for line in str(error).splitlines() if line.strip() not in ("", "None")]
        reason = f"its process ended: {lines[-1] if lines else type(error).__name__}"
        self._ended(record_of(trial.config, {**(trial.last_result or {}), "reason": reason}))


def _nothing(record: dict[str, Any]) -> None:
    pass


def record_of(config: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's record as plain JSON."""
    stages = list(result.get("stages") or [])
    last = stages[-1] if stages else {"thirds": 0, "metrics": {}, "seconds": 0.0, "value": None}
    reason = result.get("reason") or (None if stages else "ended without a result")
    state = "failed" if reason else "complete" if last["thirds"] == WHOLE else "stopped"
    if state == "failed":
        logger.warning("trial=%d failed: %s", config["number"], reason)
    return {
        "number": config["number"],
        "state": state,
        "hyperparameters": dict(config["parameters"]),
        "value": None if reason else last["value"],
        "metrics": last["metrics"],
        "seconds": last["seconds"],
        "stages": stages,
        "reason": reason,
    }


def run_trials(
    storage: Storage,
    data: TrialData,
    plan: TrialPlan,
    distributions: Mapping[str, Any],
    *,
    todo: list[int],
    done: list[dict[str, Any]],
    first: Mapping[str, Any],
    mode: str,
    seed: int,
    early_stop: bool,
    workers: int | None,
    ended: Callable[[dict[str, Any]], None],
) -> None:
    """Run the trials with the numbers `todo`; `ended` is called with each one's record.

    Parameters
    ----------
    distributions, todo, done, first
        See `forge_core.training.search_sampler.Sampler`.
    mode : {"min", "max"}
        Which way the metric is better.
    workers : int, optional
        Trials at a time; at most, and by default, the cluster's cores.
    """
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    if workers is not None and workers > cores:
        logger.warning("workers=%d cores=%d: as many trials at a time as there are cores", workers, cores)
    at_a_time = min(workers or cores, cores, len(todo))
    scheduler = ASHAScheduler(
        time_attr="thirds", metric="objective", mode=mode, max_t=WHOLE, grace_period=1, reduction_factor=3
    )
    with _results_folder(storage) as place, _tune_environment():
        tune.Tuner(
            tune.with_resources(tune.with_parameters(TrialActor, data=data, plan=plan), {"cpu": 1}),
            tune_config=tune.TuneConfig(
                search_alg=Sampler(distributions, mode, seed, todo, done, first),
                scheduler=scheduler if early_stop else None,
                num_samples=len(todo),
                max_concurrent_trials=at_a_time,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="search",
                verbose=0,
                callbacks=[Recorder(ended)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=1),  # a node that went; errors are caught in the actor
                **place,
            ),
        ).fit()


@contextmanager
def _results_folder(storage: Storage) -> Iterator[dict[str, Any]]:
    """Give Tune a folder for its own files that goes with the search; on S3 workers of other machines reach it too."""
    with storage.draft() as folder:
        if "file" in storage.fs.protocol or "memory" in storage.fs.protocol:
            yield {"storage_path": str(folder)}
            return
        import pyarrow.fs

        path = storage.path(f"searches/.drafts/{folder.name}")
        try:
            filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(storage.fs))
            yield {"storage_path": path, "storage_filesystem": filesystem}
        finally:
            if storage.fs.exists(path):
                storage.fs.rm(path, recursive=True)


@contextmanager
def _tune_environment() -> Iterator[None]:
    """Set Tune's switches, and keep it from logging that it misses the files that it was told not to write."""
    levels = {name: logging.getLogger(name).level for name in _TALKATIVE}
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    before = {name: os.environ.get(name) for name in _TUNE_ENVIRONMENT}
    os.environ.update(_TUNE_ENVIRONMENT)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
