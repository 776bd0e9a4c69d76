"""Distributed training against the same network under plain torch DDP, on two processes of this machine's CPU.

The plain script holds the same rows as one tensor in memory; ours once holds them and once streams them through Ray
Data with a quarter of the memory they take. Rows a second are those of the epochs after the first.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd

from forge_core.training.distributed_trainer import train_distributed
from tests.benchmarks.harness import Report, claim_equally

ROWS, FEATURES, BATCH, HIDDEN = 800_000, 40, 1024, (256, 128)
EPOCHS = 8

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
    """Measure and report; of plain DDP at least 0.9 from memory and 0.7 streamed, in memory that stays bounded."""
    claim_equally()
    import ray

    report = Report("training")
    with tempfile.TemporaryDirectory(prefix="forge-bench-") as name:
        folder = Path(name)
        random = np.random.default_rng(0)
        X = random.standard_normal((ROWS, FEATURES), np.float32)
        y = (X[:, :4].sum(axis=1) + random.standard_normal(ROWS) > 0).astype(np.float32)
        frame = pd.DataFrame(X, columns=[f"f{i}" for i in range(FEATURES)]).assign(target=y.astype(int))
        frame.to_parquet(folder / "rows.parquet", row_group_size=100_000)
        frame.head(ROWS // 4).to_parquet(folder / "quarter.parquet", row_group_size=100_000)
        n_train = int(ROWS * 0.85)
        np.save(folder / "rows.npy", np.column_stack([X, y])[:n_train])
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        try:
            _measure(report, folder)
        finally:
            ray.shutdown()
    return report.finish()


def _measure(report: Report, folder: Path) -> None:
    plain = [_plain(folder, 2)]
    kept, kept_peak = _ours(folder, "rows", "kept", 2**30)
    blocks = json.loads((folder / "storage/training/kept/prepared.json").read_text())["blocks"]
    whole = 4 * (blocks["n_features"] + 2) * sum(blocks["train"])
    streamed, streamed_peak = _ours(folder, "rows", "streamed", whole // 8)
    plain.append(_plain(folder, 2))
    _, quarter_peak = _ours(folder, "quarter", "quarter", whole // 32)
    alone = _plain(folder, 1)
    peer = sum(plain) / len(plain)
    report.add("plain DDP, 2 processes, rows/s (mean of 2 runs)", peer)
    report.add("plain, 1 process, rows/s", alone)
    report.add("ours from memory, 2 workers, rows/s", kept)
    report.add("ours streamed, 2 workers, rows/s", streamed)
    report.add("ours from memory / plain DDP", kept / peer, at_least=0.9)
    report.add("ours streamed / plain DDP", streamed / peer, at_least=0.7)
    report.add("training rows, MB", whole / 2**20)
    report.add("allowance for rows while streaming, both workers, MB", whole / 4 / 2**20)
    report.add("peak memory of both workers, kept, MB", kept_peak)
    report.add("peak memory of both workers, streamed, MB", streamed_peak)
    report.add("the same with a quarter of the rows, MB", quarter_peak)
    report.add("streamed: peak with all rows / with a quarter", streamed_peak / quarter_peak, at_most=1.1)


def _ours(folder: Path, rows: str, name: str, memory: int) -> tuple[float, float]:
    """Return rows a second, and the most memory in MB that both workers had."""
    over, peak = threading.Event(), [0.0]
    watcher = threading.Thread(target=_watch, args=(folder / "storage/training" / name, over, peak))
    watcher.start()
    try:
        result = train_distributed(
            str(folder / f"{rows}.parquet"), num_workers=2, batch_size=BATCH, epochs=EPOCHS, hidden_sizes=HIDDEN,
            memory_bytes=memory, run_name=name, storage_url=str(folder / "storage"),
        )  # fmt: skip
    finally:
        over.set()
        watcher.join()
    speed = float(np.mean([epoch["rows_per_second"] for epoch in result.history[1:]]))
    print(f"{name}: {speed:,.0f} rows/s", flush=True)
    return speed, peak[0]


def _watch(folder: Path, over: threading.Event, peak: list[float]) -> None:
    """Keep the most memory that both workers had: their own, and what they hold of Ray's object store."""
    while not over.wait(0.25):
        held = 0.0
        for file in (folder / "workers").glob("[0-9]*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):  # one that has ended has no memory
                status = Path(f"/proc/{json.loads(file.read_text())['pid']}/status").read_text()
                fields = dict(line.split(":", 1) for line in status.splitlines())
                held += sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) / 1024
        peak[0] = max(peak[0], held)


def _plain(folder: Path, processes: int) -> float:
    script = folder / "plain.py"
    script.write_text(_PLAIN)
    started = time.perf_counter()
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", str(script),
            str(folder / "rows.npy"), str(EPOCHS), str(BATCH), json.dumps(HIDDEN),
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
