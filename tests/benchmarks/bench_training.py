"""Distributed training against the same network under plain torch DDP, on two processes of this machine's CPU.

The plain script holds the same rows as one tensor in memory; ours once holds them and once streams them through Ray
Data with a quarter of the memory they take. Rows a second are those of the epochs after the first.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from forge_core.training.distributed_trainer import train_distributed
from tests.benchmarks.harness import Report

ROWS, FEATURES, BATCH, HIDDEN = 800_000, 40, 1024, (256, 128)
EPOCHS, SHORT = 14, 4

_PLAIN = """
import json, sys, time
import numpy as np, torch, torch.distributed as dist
from forge_core.models.mlp import build_network
file, epochs, batch, hidden = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
rows = torch.from_numpy(np.load(file))
X, y = rows[:, :-1].contiguous(), rows[:, -1].long()
torch.manual_seed(0)
network = build_network([X.shape[1], *hidden, 2])
model = torch.nn.parallel.DistributedDataParallel(network) if world > 1 else network
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
for epoch in range(epochs):
    started = time.perf_counter()
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(epoch))[rank::world]
    for part in order.split(batch // world):
        loss = torch.nn.functional.cross_entropy(model(X[part]), y[part])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    if rank == 0:
        print(json.dumps({"rows_per_second": len(X) / (time.perf_counter() - started)}), flush=True)
"""


def run() -> bool:
    """Measure and report; in memory at least 0.9 of plain DDP, streamed 0.7, tracking at most 10 %."""
    import ray

    report = Report("training")
    with tempfile.TemporaryDirectory(prefix="forge-bench-") as name:
        folder = Path(name)
        random = np.random.default_rng(0)
        X = random.standard_normal((ROWS, FEATURES), np.float32)
        y = (X[:, :4].sum(axis=1) + random.standard_normal(ROWS) > 0).astype(np.float32)
        pd.DataFrame(X, columns=[f"f{i}" for i in range(FEATURES)]).assign(target=y.astype(int)).to_parquet(
            folder / "rows.parquet", row_group_size=100_000
        )
        n_train = int(ROWS * 0.85)
        np.save(folder / "rows.npy", np.column_stack([X, y])[:n_train])
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        try:
            _measure(report, folder)
        finally:
            ray.shutdown()
    return report.finish()


def _measure(report: Report, folder: Path) -> None:
    plain = _plain(folder, 2)
    alone = _plain(folder, 1)
    kept, kept_memory, kept_seconds = _ours(folder, "kept", EPOCHS, 2**30)
    train_bytes = json.loads((folder / "storage/training/kept/prepared.json").read_text())["blocks"]
    whole = 4 * (train_bytes["n_features"] + 2) * sum(train_bytes["train"])
    streamed, streamed_memory, _ = _ours(folder, "streamed", SHORT, whole // 8)
    plain = (plain + _plain(folder, 2)) / 2
    tracked_seconds = _tracked(folder)
    report.add("plain DDP, 2 processes, rows/s (mean of 2 runs)", plain)
    report.add("plain, 1 process, rows/s", alone)
    report.add("ours from memory, 2 workers, rows/s", kept)
    report.add("ours streamed, 2 workers, rows/s", streamed)
    report.add("ours from memory / plain DDP", kept / plain, at_least=0.9)
    report.add("ours streamed / plain DDP", streamed / plain, at_least=0.7)
    report.add("training rows, MB", whole / 2**20)
    report.add("allowance for rows while streaming, both workers, MB", whole / 4 / 2**20)
    report.add("peak growth of both workers' own memory, kept, MB", kept_memory)
    report.add("peak growth of both workers' own memory, streamed, MB", streamed_memory, at_most=whole / 2**20)
    report.add("training without tracking, seconds", kept_seconds)
    report.add("with / without tracking", tracked_seconds / kept_seconds, at_most=1.10)


def _ours(
    folder: Path, name: str, epochs: int, memory: int, progress: Callable[[dict[str, Any]], None] | None = None
) -> tuple[float, float, float]:
    """Return rows a second, the workers' peak growth in MB, and seconds from the first epoch's end to the last's."""
    over, peak = threading.Event(), [0.0]
    watcher = threading.Thread(target=_watch, args=(folder / "storage/training" / name, over, peak))
    watcher.start()
    try:
        result = train_distributed(
            str(folder / "rows.parquet"), num_workers=2, batch_size=BATCH, epochs=epochs, hidden_sizes=HIDDEN,
            memory_bytes=memory, run_name=name, storage_url=str(folder / "storage"), progress=progress,
        )  # fmt: skip
    finally:
        over.set()
        watcher.join()
    ends = [f.stat().st_mtime for f in sorted((folder / "storage/training" / name / "epochs").iterdir())]
    speed = float(np.mean([epoch["rows_per_second"] for epoch in result.history[1:]]))
    print(f"{name}: {speed:,.0f} rows/s", flush=True)
    return speed, peak[0], ends[-1] - ends[0]


def _watch(folder: Path, over: threading.Event, peak: list[float]) -> None:
    first: dict[int, float] = {}
    while not over.wait(0.25):
        growth = 0.0
        for file in (folder / "workers").glob("[0-9]*.json"):
            try:
                pid = json.loads(file.read_text())["pid"]
                own = psutil.Process(pid).memory_full_info().uss / 2**20
            except (psutil.Error, ValueError, OSError):
                continue
            growth += own - first.setdefault(pid, own)
        peak[0] = max(peak[0], growth)


def _tracked(folder: Path) -> float:
    from forge_core.tracking.mlflow_extensions import ExperimentTracker

    tracker = ExperimentTracker("bench", tracking_uri=f"sqlite:///{folder}/mlflow.db")
    with tracker:

        def log(metrics: dict[str, Any]) -> None:
            tracker.log_metrics({k: float(v) for k, v in metrics.items()}, step=metrics["epoch"])

        return _ours(folder, "tracked", EPOCHS, 2**30, log)[2]


def _plain(folder: Path, processes: int) -> float:
    script = folder / "plain.py"
    script.write_text(_PLAIN)
    started = time.perf_counter()
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", str(script),
            str(folder / "rows.npy"), str(SHORT), str(BATCH), json.dumps(HIDDEN),
        ],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    speeds = [json.loads(line)["rows_per_second"] for line in done.stdout.splitlines() if line.startswith("{")]
    speed = float(np.mean(speeds[1:]))
    print(f"plain, {processes} processes: {speed:,.0f} rows/s ({time.perf_counter() - started:.0f} s)", flush=True)
    return speed


if __name__ == "__main__":
    run()
