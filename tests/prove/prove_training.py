"""Killing training at random moments with kill -9: a Ray Train worker, its driver, and Tune's driver, five times each.

Every killed run must end with the metrics of the run that was left alone. What a distributed training repeats is the
distance from the last position that the first worker told (twice a second, and at checkpoints) back to the checkpoint
that the run went on from, and what it did after it told that, less than lies between two checkpoints; what a search
repeats are the trials that were under way.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from forge_core.data.sample import generate_sample_data
from tests.prove.search_work import TRIALS

KILLS = 5
TOLERANCE = 1e-6
EVERY = 100
EPOCHS = 8
BATCH = 16
ROWS = 16_000
MOST_SECONDS = 180.0
_COMPARED = ("train_loss", "log_loss", "accuracy")


@dataclass
class Kill:
    """One kill: of what, at which step, what it cost."""

    victim: str
    step: int = 0
    resumed: int = 0
    seconds: float = 0.0
    difference: float = float("nan")
    faults: list[str] = field(default_factory=list)

    @property
    def repeated(self) -> int:
        """Batches done again."""
        return max(0, self.step - self.resumed)


class Ground:
    """A folder with rows and the runs on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rows = generate_sample_data(ROWS, random_state=0)[["feature1", "feature2", "target"]]
        if not (folder / "r.parquet").exists():
            rows.to_parquet(folder / "r.parquet")

    def start(self, run: str) -> "subprocess.Popen[str]":
        """Start a training of the name, or go on with it."""
        away = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
        return subprocess.Popen(
            [
                sys.executable, "-m", "forge_core.training.distributed_trainer", f"--dataset={self.folder}/r.parquet",
                "--num-workers=2", f"--batch-size={BATCH}", f"--epochs={EPOCHS}", "--dropout=0.1",
                f"--checkpoint-every={EVERY}", f"--run-name={run}",
            ],
            env={**{k: v for k, v in os.environ.items() if k not in away}, "FORGE_HOME": str(self.folder)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def at(self, run: str) -> Path:
        """Return a run's folder."""
        return self.folder / "storage/training" / run

    def position(self, run: str) -> int:
        """Return the step that was last told."""
        file = self.at(run) / "position.json"
        return int(json.loads(file.read_text())["step"]) if file.is_file() else 0

    def newest(self, run: str) -> int:
        """Return the step of the newest checkpoint."""
        return max((int(file.stem) for file in (self.at(run) / "checkpoints").glob("*.checkpoint")), default=0)

    def epochs(self, run: str) -> list[dict[str, Any]]:
        """Return each epoch's metrics."""
        return [json.loads(file.read_text()) for file in sorted((self.at(run) / "epochs").glob("*.json"))]

    def wait_for(self, run: str, step: int, process: "subprocess.Popen[str]") -> None:
        """Wait until the run told a step."""
        end = time.monotonic() + MOST_SECONDS
        while self.position(run) < step and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)


def run(only: Sequence[str] = ()) -> bool:
    """Kill, compare and report; `only` may name `worker`, `driver` or `search`."""
    with tempfile.TemporaryDirectory(prefix="forge-prove-") as name:
        loops = {
            "worker": lambda: _distributed(Path(name), "worker"),
            "driver": lambda: _distributed(Path(name), "driver"),
            "search": lambda: _searches(Path(name)),
        }
        results = [loop() for victim, loop in loops.items() if not only or victim in only]
    return all(results)


def _distributed(folder: Path, victim: str) -> bool:
    chance = random.Random(victim)
    ground = Ground(folder)
    started = time.monotonic()
    if not ground.newest("calm"):
        _finish(ground.start("calm"))
    calm, alone = ground.epochs("calm"), time.monotonic() - started
    last = ground.newest("calm")
    kills = [_kill(ground, victim, number, chance.randrange(1, int(last * 0.9)), calm) for number in range(KILLS)]
    table = Table(
        title=f"kill -9 of the {victim}; left alone: {last} batches"
        + (f", {alone:.0f} s" if alone > 1 else "")
        + f"; tolerance {TOLERANCE:g}, checkpoint every {EVERY}"
    )
    for column in (
        "at step",
        "went on from",
        f"batches repeated (+ less than {EVERY})",
        "seconds",
        "largest difference",
        "faults",
    ):
        table.add_column(column)
    for kill in kills:
        table.add_row(
            str(kill.step), str(kill.resumed), str(kill.repeated), f"{kill.seconds:.0f}",
            f"{kill.difference:.1g}", "; ".join(kill.faults) or "none",
        )  # fmt: skip
    Console().print(table)
    return not any(kill.faults for kill in kills)


def _searches(folder: Path) -> bool:
    """Kill the driver of a search, run it again, and compare every trial with those of the search left alone."""
    chance = random.Random("search")
    started = time.monotonic()
    faults = _finish(_search(folder, "calm"))
    alone = time.monotonic() - started
    calm = json.loads((folder / "calm.json").read_text())
    table = Table(title=f"kill -9 of the driver of a search of {TRIALS} trials; left alone: {alone:.0f} s")
    for column in (
        "trials done at the kill",
        "found again",
        "done after it",
        "seconds",
        "largest difference",
        "faults",
    ):
        table.add_column(column)
    for number in range(KILLS):
        name, started = f"search-{number}", time.monotonic()
        wanted = chance.randrange(1, TRIALS)
        process = _search(folder, name)
        journal = folder / name / "searches"
        while len(list(journal.glob("*/*.json"))) < wanted and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.random())
        process.kill()
        process.wait()
        done = len(list(journal.glob("*/*.json")))
        found_faults = _finish(_search(folder, name))
        again = json.loads((folder / f"{name}.json").read_text())
        both = list(zip(calm["trials"], again["trials"], strict=True))
        difference = max(abs(a["log_loss"] - b["log_loss"]) for a, b in both)
        if difference > TOLERANCE or any(a["hyperparameters"] != b["hyperparameters"] for a, b in both):
            found_faults.append("other trials")
        if again["hyperparameters"] != calm["hyperparameters"]:
            found_faults.append("another winner")
        if again["resumed"] != done:
            found_faults.append(f"{done - again['resumed']} trials that were done were done again")
        table.add_row(
            str(done), str(again["resumed"]), str(TRIALS - again["resumed"]), f"{time.monotonic() - started:.0f}",
            f"{difference:.1g}", "; ".join(found_faults) or "none",
        )  # fmt: skip
        faults += found_faults
    Console().print(table)
    return not faults


def _search(folder: Path, name: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.prove.search_work", str(folder / name), str(folder / f"{name}.json")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def _kill(ground: Ground, victim: str, number: int, step: int, calm: list[dict[str, Any]]) -> Kill:
    kill, name = Kill(victim), f"{victim}-{number}"
    started = time.monotonic()
    process = ground.start(name)
    ground.wait_for(name, step, process)
    if process.poll() is not None:
        kill.faults.append("ended before the kill")
    elif victim == "worker":
        pid = json.loads((ground.at(name) / f"workers/{number % 2}.json").read_text())["pid"]
        os.kill(pid, signal.SIGKILL)
    else:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kill.step = ground.position(name)
    kill.resumed = ground.newest(name)
    if victim == "driver":
        time.sleep(1.0)
        # Workers may outlive their driver for a moment.
        kill.step, kill.resumed = max(kill.step, ground.position(name)), ground.newest(name)
        process = ground.start(name)
    kill.faults += _finish(process)
    kill.seconds = time.monotonic() - started
    found = ground.epochs(name)
    if len(found) != len(calm):
        kill.faults.append(f"{len(found)} epochs instead of {len(calm)}")
        return kill
    kill.difference = max(abs(a[m] - b[m]) for a, b in zip(calm, found, strict=True) for m in _COMPARED)
    if kill.difference > TOLERANCE:
        kill.faults.append("other metrics")
    if kill.repeated > 2 * EVERY:
        kill.faults.append("more was repeated than lies between checkpoints")
    print(kill, flush=True)
    return kill


def _finish(process: "subprocess.Popen[str]") -> list[str]:
    try:
        out, _ = process.communicate(timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        return [f"not over after {MOST_SECONDS:g} s: {out[-300:]}"]
    return [] if process.returncode == 0 else [f"exit status {process.returncode}: {out[-300:]}"]


if __name__ == "__main__":
    sys.exit(0 if run(sys.argv[1:]) else 1)
