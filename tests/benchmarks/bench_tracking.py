"""What tracking adds to a training: 30 s of it with everything logged, against the same without.

A small network is trained in NumPy on one core, 1 500 steps. The tracked one logs eight metrics a step, parameters,
seeds, its rows, and at the end its performance with pictures, to an MLflow server on this machine that takes its share
of the two cores. Order: plain, tracked, tracked, plain; the faster of each kind counts, because others disturb only
upwards. Starting and ending the run belong to the tracked time.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import pandas as pd

from forge_core.tracking.mlflow_extensions import ExperimentTracker
from infra.local.processes import free_ports
from tests.benchmarks.harness import Report

STEPS = 1500
_ROWS, _WIDTH = 4096, 256


def run() -> bool:
    """Measure and report."""
    report = Report("tracking")
    with tempfile.TemporaryDirectory(prefix="forge-bench-") as name:
        folder = Path(name)
        uri = f"http://127.0.0.1:{free_ports(1)[0]}"
        server = _serve(folder, uri)
        try:
            with ExperimentTracker("warm", tracking_uri=uri, outbox=folder / "outbox") as tracker:
                tracker.log_metrics({"loss": 1.0})
            repeats = _repeats()
            times: dict[bool, list[float]] = {False: [], True: []}
            cpu: dict[bool, list[float]] = {False: [], True: []}
            calls: list[float] = []
            for tracked in (False, True, True, False):
                began = time.process_time()
                seconds, spent = _train(repeats, folder / "outbox" if tracked else None)
                times[tracked].append(seconds)
                cpu[tracked].append(time.process_time() - began)
                calls += spent
                print(f"{'tracked' if tracked else 'plain'}: {seconds:.1f} s", flush=True)
            kept = _count(uri)
        finally:
            server.terminate()
            server.wait()
    plain, tracked_seconds = min(times[False]), min(times[True])
    report.add("plain training, s", plain)
    report.add("tracked training, s", tracked_seconds)
    report.add("tracked / plain", tracked_seconds / plain, at_most=1.10)
    report.add("tracked / plain, CPU of this process", min(cpu[True]) / min(cpu[False]))
    report.add("one call of log_metrics, median us", float(np.median(calls)) * 1e6)
    report.add("one call of log_metrics, p99 us", float(np.quantile(calls, 0.99)) * 1e6)
    report.add("metrics that MLflow has, share of those logged", kept / (STEPS * 2), at_least=1.0)
    return report.finish()


def _train(repeats: int, outbox: Path | None) -> tuple[float, list[float]]:
    """Train and return the seconds, and those of each call of `log_metrics`."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(_ROWS, _WIDTH))
    y = (rows[:, :8].sum(axis=1) > 0).astype(float)
    one, two = rng.normal(size=(_WIDTH, _WIDTH)) / 16, rng.normal(size=_WIDTH) / 16
    calls: list[float] = []
    p = np.full(_ROWS, 0.5)
    started = time.perf_counter()
    tracker = None
    if outbox is not None:
        tracker = ExperimentTracker("bench", outbox=outbox, patience=60)
        tracker.start_run()
        tracker.log_params({f"parameter_{n}": n for n in range(40)})
        tracker.log_seeds(network=0)
        tracker.log_dataset(pd.DataFrame(rows[:, :8]).rename(columns=str), name="rows", source="memory:rows")
    for step in range(STEPS):
        for _ in range(repeats):
            batch = rng.integers(0, _ROWS, 512)
            hidden = np.maximum(rows[batch] @ one, 0)
            error = 1 / (1 + np.exp(-hidden @ two)) - y[batch]
            one -= 0.01 * rows[batch].T @ (np.outer(error, two) * (hidden > 0)) / len(batch)
            two -= 0.01 * hidden.T @ error / len(batch)
        if tracker is not None:
            values = {f"metric_{n}": float(np.abs(error[n::8]).mean()) for n in range(8)}
            before = time.perf_counter()
            tracker.log_metrics(values, step=step)
            calls.append(time.perf_counter() - before)
    p = 1 / (1 + np.exp(-np.maximum(rows @ one, 0) @ two))
    if tracker is not None:
        tracker.log_model_performance(y.astype(int), (p >= 0.5).astype(int), p)
        tracker.end_run()
    return time.perf_counter() - started, calls


def _repeats() -> int:
    """Return how many updates a step has, so that all of them take some 30 s here."""
    rng = np.random.default_rng(0)
    rows, one = rng.normal(size=(512, _WIDTH)), rng.normal(size=(_WIDTH, _WIDTH))
    started = time.perf_counter()
    for _ in range(200):
        rows @ one
        rows.T @ (rows @ one)
    return max(1, round(1.25 * 30 / STEPS / ((time.perf_counter() - started) / 200)))


def _count(uri: str) -> int:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("bench")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return sum(len(client.get_metric_history(run.info.run_id, "metric_0")) for run in runs)


def _serve(folder: Path, uri: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", uri.rpartition(":")[2]]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
    variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(command, cwd=folder, env={**os.environ, **variables}, stdout=log, stderr=log)
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            if httpx.get(f"{uri}/health", trust_env=False, timeout=2.0).is_success:
                return server
        except httpx.HTTPError:
            time.sleep(0.25)
    server.terminate()
    raise RuntimeError(f"MLflow did not start: {(folder / 'server.log').read_text()[-2000:]}")


if __name__ == "__main__":
    run()
