"""What orchestration costs: the training pipeline as a Prefect flow against the same functions called plainly.

Both run in this process, in the order plain, flow, flow, plain, against the real local servers and on the same rows;
datasets, candidates, cached answers and the registered model are removed in between, so each does all of the work.
"""

import os
import shutil
import time
from pathlib import Path

from forge_core.tracking.registry import Registry
from infra.local.processes import free_ports
from infra.local.stack import clean, environment, up
from tests.benchmarks.harness import Report
from tests.stack_settings import short_home, stack_settings

UNTIL = "2013-07-01"
TRIALS = 16


def run() -> bool:
    """Measure and report; the target is at most 10 % on a run of about a minute."""
    report = Report("flow")
    home = short_home()
    settings = stack_settings(home, free_ports)
    plain: list[float] = []
    flow: list[float] = []
    try:
        up(settings, quiet=True)
        os.environ.update(environment(settings))
        _plain()  # pays for every import, and is not counted
        for measured, work in ((plain, _plain), (flow, _flow), (flow, _flow), (plain, _plain)):
            _forget(home, settings.mlflow_url)
            measured.append(work())
            print(f"{work.__name__.strip('_')}: {measured[-1]:.1f} s", flush=True)
    finally:
        _leave_ray()
        clean(settings, quiet=True)
    report.add("plain, seconds (mean of 2)", sum(plain) / 2)
    report.add("as a flow, seconds (mean of 2)", sum(flow) / 2)
    report.add("flow / plain", sum(flow) / sum(plain), at_most=1.10)
    return report.finish()


def _leave_ray() -> None:
    """Disconnect this process, which Ray ends when the cluster goes first."""
    import ray

    ray.shutdown()


def _plain() -> float:
    import flows.tasks as steps
    from flows import train as module

    originals = {name: getattr(module, name) for name in _STEPS}
    silenced = {name: getattr(steps, name) for name in _ARTIFACTS}
    try:
        for name in _STEPS:
            setattr(module, name, originals[name].fn)
        for name in _ARTIFACTS:
            setattr(steps, name, lambda *args, **kwargs: None)
        started = time.perf_counter()
        module._train("flights", None, None, UNTIL, TRIALS, None, False, "bench")
        return time.perf_counter() - started
    finally:
        for name in _STEPS:
            setattr(module, name, originals[name])
        for name in _ARTIFACTS:
            setattr(steps, name, silenced[name])


def _flow() -> float:
    import asyncio

    from flows.train import train

    started = time.perf_counter()
    asyncio.run(train(model="flights", until=UNTIL, trials=TRIALS, deploy=False, reason="bench"))
    return time.perf_counter() - started


def _forget(home: Path, mlflow_url: str) -> None:
    """Empty what the first run left, so that the second repeats every step."""
    Registry(mlflow_url).client.delete_registered_model("flights")
    for folder in ("storage/datasets", "storage/candidates", "prefect/results"):
        shutil.rmtree(home / folder, ignore_errors=True)


_STEPS = (
    "ingest_rows",
    "compare_parts",
    "search_parameters",
    "fit_winner",
    "evaluate_candidate",
    "compile_pipeline",
    "register_version",
    "deploy_version",
)
_ARTIFACTS = (
    "leave_table",
    "leave_text",
    "leave_picture",
    "create_progress_artifact",
    "update_progress_artifact",
)

if __name__ == "__main__":
    run()
