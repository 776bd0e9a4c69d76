"""What tracking adds to a training: about 60 s of it with everything logged, against the same without.

A small network is trained in NumPy, 1200 steps, about 20 a second. The tracked one logs eight metrics a step,
parameters, seeds, its rows, and at the end its performance with pictures, to an MLflow server on this machine that
takes its share of the two cores. Both go on side by side in turns of ten seconds, because the speed of a shared
machine wanders by a tenth within a minute; a tracked turn ends when the server has everything, which a run waits for
only once. Starting and ending the run belong to the tracked time.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from forge_core.tracking.mlflow_extensions import ExperimentTracker
from tests.benchmarks.harness import Report
from tests.servers import MlflowServer

STEPS, TURN = 1200, 200
_ROWS, _WIDTH = 4096, 256


def run() -> bool:
    """Measure and report."""
    report = Report("tracking")
    repeats = _repeats()
    with tempfile.TemporaryDirectory(prefix="forge-bench-") as name:
        folder = Path(name)
        server = MlflowServer(folder)
        server.start()
        try:
            with ExperimentTracker("warm", tracking_uri=server.uri, outbox=folder / "outbox") as tracker:
                tracker.log_metrics({"loss": 1.0})
            plain, tracked, fixed, calls = _measure(folder / "outbox", repeats)
            kept = _count(server.uri)
        finally:
            server.kill()
    report.add("plain training, s", sum(plain))
    report.add("tracked training, s", sum(tracked) + fixed)
    report.add("of it start, rows, performance and end, s", fixed)
    report.add("tracked / plain", (sum(tracked) + fixed) / sum(plain), at_most=1.10)
    report.add("tracked / plain, median of the turns", float(np.median(np.divide(tracked, plain))))
    report.add("one call of log_metrics, median us", float(np.median(calls)) * 1e6)
    report.add("one call of log_metrics, p99 us", float(np.quantile(calls, 0.99)) * 1e6)
    report.add("metrics that MLflow has, share of those logged", kept / STEPS, at_least=1.0)
    return report.finish()


def _measure(outbox: Path, repeats: int) -> tuple[list[float], list[float], float, list[float]]:
    """Return the seconds of each plain and each tracked turn, those of start and end, and those of each call."""
    plain, tracked = _Network(repeats), _Network(repeats)
    started = time.perf_counter()
    tracker = ExperimentTracker("bench", outbox=outbox, patience=60)
    tracker.start_run()
    tracker.log_params({f"parameter_{n}": n for n in range(40)})
    tracker.log_seeds(network=0)
    tracker.log_dataset(pd.DataFrame(tracked.rows[:, :8]).rename(columns=str), name="rows", source="memory:rows")
    fixed = time.perf_counter() - started
    times: dict[bool, list[float]] = {False: [], True: []}
    calls: list[float] = []
    for turn in range(STEPS // TURN):
        for with_tracker in (False, True) if turn % 2 else (True, False):
            network = tracked if with_tracker else plain
            started = time.perf_counter()
            for step in range(turn * TURN, (turn + 1) * TURN):
                error = network.step()
                if with_tracker:
                    values = {f"metric_{n}": float(np.abs(error[n::8]).mean()) for n in range(8)}
                    before = time.perf_counter()
                    tracker.log_metrics(values, step=step)
                    calls.append(time.perf_counter() - before)
            if with_tracker:
                assert tracker.flush(60)
            times[with_tracker].append(time.perf_counter() - started)
    started = time.perf_counter()
    p = tracked.predict()
    tracker.log_model_performance(tracked.y.astype(int), (p >= 0.5).astype(int), p)
    tracker.end_run()
    return times[False], times[True], fixed + time.perf_counter() - started, calls


class _Network:
    """One hidden layer, trained by hand so that nothing but NumPy takes time."""

    def __init__(self, repeats: int) -> None:
        self.rng, self.repeats = np.random.default_rng(0), repeats
        self.rows = self.rng.normal(size=(_ROWS, _WIDTH))
        self.y = (self.rows[:, :8].sum(axis=1) > 0).astype(float)
        self.one = self.rng.normal(size=(_WIDTH, _WIDTH)) / 16
        self.two = self.rng.normal(size=_WIDTH) / 16

    def step(self) -> np.ndarray:
        for _ in range(self.repeats):
            batch = self.rng.integers(0, _ROWS, 512)
            hidden = np.maximum(self.rows[batch] @ self.one, 0)
            error = 1 / (1 + np.exp(-hidden @ self.two)) - self.y[batch]
            self.one -= 0.01 * self.rows[batch].T @ (np.outer(error, self.two) * (hidden > 0)) / len(batch)
            self.two -= 0.01 * hidden.T @ error / len(batch)
        return error

    def predict(self) -> np.ndarray:
        return 1 / (1 + np.exp(-np.maximum(self.rows @ self.one, 0) @ self.two))


def _repeats() -> int:
    """Return how many updates a step has, so that all steps take some 60 s here.

    Measured on steps of ten: an update alone takes half as long again, and the first ones are slower.
    """
    network = _Network(10)
    for seconds in (1.0, 3.0):
        started, n = time.perf_counter(), 0
        while (taken := time.perf_counter() - started) < seconds:
            network.step()
            n += network.repeats
    return max(1, round(60 / STEPS / (taken / n)))


def _count(uri: str) -> int:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("bench")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return sum(len(client.get_metric_history(run.info.run_id, "metric_0")) for run in runs)


if __name__ == "__main__":
    run()
