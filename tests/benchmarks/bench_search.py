"""What the search adds to its trials: 32 of about 2 s on two cores, against a bare pool of two processes.

All contestants, in the order pool, ours, ours, pool, and Optuna, fit the same parameters on the same rows with the same
function, one thread a trial. The others start with the rows in memory; ours loads them and keeps a journal. Early stop
is off, so that the work is equal. Ray is up before.
"""

import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from forge_core.data.loaders import get_data_loader
from forge_core.data.sample import generate_sample_data, sample_contract
from forge_core.data.versions import save_dataset
from forge_core.storage import Storage
from forge_core.training.datasets import SplitRequest, load_split
from forge_core.training.trials import WHOLE, TrialData, TrialPlan, run_trial, trial_data
from tests.benchmarks.harness import Report, claim_equally

TRIALS = 32
FIXED: dict[str, Any] = {"max_iter": 60, "max_leaf_nodes": 15, "random_state": 0}
_RATES = np.geomspace(0.03, 0.2, TRIALS).tolist()
_ROWS = int(os.environ.get("BENCH_SEARCH_ROWS", 300_000))
_held: dict[str, Any] = {}


def run() -> bool:
    """Measure and report."""
    import ray

    report = Report("search")
    os.environ["OMP_NUM_THREADS"] = "1"  # children read it at their start, as Ray's actors do
    claim_equally()
    with tempfile.TemporaryDirectory(prefix="forge-bench-") as folder:
        split = _write(folder)
        data = trial_data(load_split(Storage(folder), split), "classification", folds=0, time_column=None, seed=0)
        plan = TrialPlan("gradient_boosting", "classification", "log_loss", tuple(sorted(FIXED.items())), (WHOLE,))
        pool, ours = [], []
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        try:
            for number, work in enumerate(("pool", "ours", "ours", "pool")):
                if work == "pool":
                    seconds, value = _pool(data, plan)
                    pool.append(seconds)
                else:
                    seconds, found = _ours(split, number)
                    ours.append(seconds)
                    assert abs(found - value) < 1e-9, (found, value)  # the same work, or the figures mean nothing
                print(f"{work}: {seconds:.1f} s", flush=True)
        finally:
            ray.shutdown()
        peer = _optuna(data, plan, Path(folder))
        print(f"optuna: {peer:.1f} s", flush=True)
    report.add("bare pool of two processes, seconds (mean of 2)", sum(pool) / 2)
    report.add("search, seconds (mean of 2)", sum(ours) / 2)
    report.add("Optuna with two processes and SQLite, seconds", peer)
    report.add("search / bare pool", sum(ours) / sum(pool), at_most=1.25)
    report.add("Optuna / bare pool", peer / sum(pool) * 2)
    return report.finish()


def _write(folder: str) -> SplitRequest:
    rows = get_data_loader().preprocess_data(generate_sample_data(_ROWS, random_state=0))
    version = save_dataset(Storage(folder), rows, source="sample:", contract=sample_contract())
    return SplitRequest(folder, version.id, "target", "event_time", 0.15, 0.05, 0)


def _ours(split: SplitRequest, number: int) -> tuple[float, float]:
    from ray import tune

    from forge_core.training.search_sampler import Sampler
    from forge_core.training.tuning import search

    def suggest(self: Any, trial_id: str) -> Any:
        return {"number": (n := self._todo.pop(0)), "parameters": {"learning_rate": _RATES[n]}}

    drawn, Sampler.suggest = Sampler.suggest, suggest  # type: ignore[method-assign]
    try:
        started = time.perf_counter()
        found = search(
            split,
            model_type="gradient_boosting",
            metric="log_loss",
            trials=TRIALS,
            fixed={k: v for k, v in FIXED.items() if k != "random_state"},
            space={"learning_rate": tune.loguniform(0.02, 0.3)},
            early_stop=False,
            start_from={"call": number},  # another key: the journal of the last call would answer this one
        )
        return time.perf_counter() - started, found.value
    finally:
        Sampler.suggest = drawn  # type: ignore[method-assign]


def _pool(data: TrialData, plan: TrialPlan) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    started = time.perf_counter()
    with context.Pool(2, initializer=_hold, initargs=(data, plan)) as pool:
        values = pool.map(_one, _RATES, chunksize=1)
    return time.perf_counter() - started, min(values)


def _hold(data: TrialData, plan: TrialPlan) -> None:
    _held.update(data=data, plan=plan)


def _one(rate: float) -> float:
    *_, last = run_trial(_held["data"], _held["plan"], {"learning_rate": rate})
    return float(last["metrics"]["log_loss"])


def _optuna(data: TrialData, plan: TrialPlan, folder: Path) -> float:
    import optuna

    started = time.perf_counter()
    url = f"sqlite:///{folder / 'optuna.db'}"
    study = optuna.create_study(storage=url, study_name="bench")
    for rate in _RATES:
        study.enqueue_trial({"learning_rate": rate})
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_optuna_worker, args=(url, data, plan)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - started
    complete = sum(trial.state.is_finished() for trial in study.trials)
    assert complete == TRIALS, complete
    return seconds


def _optuna_worker(url: str, data: TrialData, plan: TrialPlan) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _hold(data, plan)
    study = optuna.load_study(study_name="bench", storage=url)
    study.optimize(lambda trial: _one(trial.suggest_float("learning_rate", 0.02, 0.3)), n_trials=TRIALS // 2)


if __name__ == "__main__":
    run()
