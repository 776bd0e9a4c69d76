"""How fast we serve, beside the products that people serve with: the same pipeline, machine, rows and load.

Each server is started, asked whether it answers as the pipeline does, warmed, measured alone and stopped. Ours runs
with everything switched on, before and after all others (the mean counts, because the machine's speed wanders), and
each time with profile and log off too. Batches are put to ours and to MLflow's in turns, while the processes of the
other stand still; each is judged at the number of connections at which it answers most rows. `BENCH_SECONDS=2` tries it
out; figures count at 10.
"""

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from tests.benchmarks.harness import Report
from tests.benchmarks.serving_load import Load, mean, measure, need_wrk, write_bodies
from tests.benchmarks.serving_ours import Ours, columns, one_row
from tests.benchmarks.serving_peers import MLFLOW, PEERS, Peer, ask, check, split_frame, started
from tests.benchmarks.serving_venvs import venv_of
from tests.benchmarks.serving_work import MODELS, Served

SECONDS = float(os.environ.get("BENCH_SECONDS", "10"))
WARM = min(3.0, SECONDS)
LEVELS = (64, 16, 1)
BATCH_LEVELS = (2, 4)
BATCH_ROUNDS = 2
_BATCH = 1000

Loads = dict[int, Load]


def run() -> bool:
    """Measure and report."""
    need_wrk()
    for product in ("bentoml", "mlserver"):
        venv_of(product)
    with tempfile.TemporaryDirectory(prefix="forge-bench-") as name:
        folder = Path(name)
        ours = Ours(folder)
        try:
            ours.start()
            served = ours.bring_live()
            first = _measure_ours(ours, served, folder, turned=False)
            batches = {model: _measure_batches(ours, served[model], folder) for model in MODELS}
            ours.stop()
            peers = {peer.name: _measure_peer(peer, served["forest"], folder) for peer in PEERS}
            ours.start()
            last = _measure_ours(ours, served, folder, turned=True)
        finally:
            ours.clean()
    return _report([first, last], peers, batches)


class _Ours:
    """What one round of ours gave."""

    def __init__(self) -> None:
        self.levels: Loads = {}
        self.watched: list[Load] = []
        self.unwatched: list[Load] = []


def _measure_ours(ours: Ours, served: dict[str, Served], folder: Path, *, turned: bool) -> _Ours:
    """Measure with everything on and with profile and log off, in turns; the second time in the opposite order."""
    found = _Ours()
    for number, watching in enumerate((False, True, True, False) if turned else (True, False, False, True)):
        if not (number == 0 and watching):  # the stack comes up watching
            ours.watch(watching)
        for model in MODELS:
            check("ours", partial(ours.ask, model), served[model].records, served[model].onnx_answers, batches=True)
        bodies = write_bodies(folder / "ours", [one_row([r]) for r in served["forest"].records])
        first = watching and not found.levels
        name = "ours" if watching else "ours, not watching"
        levels = _levels(name, ours.url, "/predict", bodies, LEVELS if first else LEVELS[:1], ours.key)
        (found.watched if watching else found.unwatched).append(levels[LEVELS[0]])
        if first:
            found.levels = levels
    return found


def _measure_peer(peer: Peer, served: Served, folder: Path) -> Loads:
    own = folder / peer.name.replace(", ", "-").replace(" ", "-")
    with started(peer, served, own) as running:
        url = running.url
        check(peer.name, partial(ask, peer, url), served.records, peer.right(served))
        bodies = write_bodies(own / "bodies", [peer.body([record]) for record in served.records])
        return _levels(peer.name, url, peer.path, bodies, LEVELS, idle=lambda: ask(peer, url, served.records[:1]))


class _Batches(NamedTuple):
    """What the turns of batches gave, by the number of connections."""

    ours: dict[int, list[Load]]
    mlflow: dict[int, list[Load]]


def _measure_batches(ours: Ours, served: Served, folder: Path) -> _Batches:
    """Put batches to ours, which runs and watches, and to MLflow's, one after the other and the other way round."""
    own = folder / f"MLflow-{served.name}"
    path, found = f"/models/{served.name}/predict/batch", _Batches(defaultdict(list), defaultdict(list))
    ours.watch(True)
    with started(MLFLOW, served, own) as running:
        check("MLflow", partial(ask, MLFLOW, running.url), served.records, served.answers, batches=True)
        bodies = write_bodies(own / "bodies", _batches(served, split_frame))
        our_bodies = write_bodies(folder / "ours-batch", _batches(served, columns))
        for turn in (0, 1, 1, 0) * BATCH_ROUNDS:
            if turn == 0:
                with _standing_still(running.processes()):
                    _turn(found.ours, f"ours, {served.name}", ours.url, path, our_bodies, ours.key)
            else:
                with _standing_still(ours.processes()):
                    _turn(found.mlflow, f"MLflow, {served.name}", running.url, MLFLOW.path, bodies)
    return found


def _turn(found: dict[int, list[Load]], name: str, url: str, path: str, bodies: Path, key: str | None = None) -> None:
    """Add what one turn of batches gives at each number of connections."""
    for level in BATCH_LEVELS:
        measure(url, path, bodies, level, min(WARM, 2.0), key)
        load = measure(url, path, bodies, level, SECONDS / 2, key)
        print(f"{name:<22} batches of {_BATCH}, {level} connections: {load.told()}", flush=True)
        found[level].append(load)


@contextmanager
def _standing_still(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Stop processes for a turn, which is shorter than what any of them waits for another."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _batches(served: Served, form: Callable[[Sequence[dict[str, Any]]], Any]) -> list[Any]:
    """Return four bodies of 1000 rows, each in another order."""
    shuffled = [np.random.default_rng(n).permutation(len(served.records))[:_BATCH] for n in range(4)]
    return [form([served.records[i] for i in order]) for order in shuffled]


def _levels(
    name: str,
    url: str,
    path: str,
    bodies: Path,
    levels: Sequence[int],
    key: str | None = None,
    idle: Callable[[], Any] = lambda: None,
) -> Loads:
    """Warm a server at the most connections, then measure it at each number of them.

    `idle` returns once an answer came: some go on with requests whose caller has left.
    """
    measure(url, path, bodies, levels[0], WARM, key)
    found = {}
    for level in levels:
        idle()
        found[level] = measure(url, path, bodies, level, SECONDS, key)
        print(f"{name:<22} {level:>3} connections: {found[level].told()}", flush=True)
    return found


def _report(rounds: Sequence[_Ours], peers: dict[str, Loads], batches: dict[str, _Batches]) -> bool:
    report = Report("serving")
    most = LEVELS[0]
    ours = {level: mean([found.levels[level] for found in rounds]) for level in LEVELS[1:]}
    ours[most] = mean([load for found in rounds for load in found.watched])
    unwatched = mean([load for found in rounds for load in found.unwatched])
    for name, loads in {"ours": ours, "ours, not watching": {most: unwatched}, **peers}.items():
        report.add(f"{name}: requests/s", loads[most].per_second)
        report.add(f"{name}: p99, ms", loads[most].p99)
        if 1 in loads:
            report.add(f"{name}: p50 at 1 connection, ms", loads[1].p50)
    for peer in PEERS:
        rate = ours[most].per_second / peers[peer.name][most].per_second
        tail = ours[most].p99 / peers[peer.name][most].p99
        at_least, at_most = _LIMITS[peer.form]
        report.add(f"requests/s, ours / {peer.name}", rate, at_least=at_least)
        report.add(f"p99, ours / {peer.name}", tail, at_most=at_most)
    report.add("requests/s, ours / not watching", ours[most].per_second / unwatched.per_second, at_least=0.92)
    quickest = min(peers[peer.name][1].p50 for peer in PEERS if peer.form == "documentation")
    report.add("p50 at 1 connection, ours / best as documented", ours[1].p50 / quickest, at_most=0.25)
    for model, at_least in {"forest": 1.5, "logistic": 5.0}.items():
        best = {}
        for name, turns in batches[model]._asdict().items():
            rates = {level: mean(loads).per_second for level, loads in turns.items()}
            for level, rate in rates.items():
                report.add(f"{model}, batches of {_BATCH}, {level} connections: {name}, rows/s", rate * _BATCH)
            best[name] = max(rates.values())
        ratio = best["ours"] / best["mlflow"]
        report.add(f"{model}, batches of {_BATCH}: rows/s, ours / MLflow", ratio, at_least=at_least)
    failed = [load.errors for found in rounds for load in (*found.levels.values(), *found.watched, *found.unwatched)]
    failed += [load.errors for both in batches.values() for loads in both.ours.values() for load in loads]
    report.add("requests of ours that failed", sum(failed), at_most=0)
    others = [load.errors for loads in peers.values() for load in loads.values()]
    others += [load.errors for both in batches.values() for loads in both.mlflow.values() for load in loads]
    report.add("requests of the others that failed", sum(others))
    return report.finish()


# Requests/s of ours to theirs at least, p99 at most, at 64 connections.
_LIMITS: dict[str, tuple[float, float | None]] = {
    "documentation": (40.0, 1 / 20),
    "tuned": (3.5, 1 / 3),
    "limit": (0.45, None),
}

if __name__ == "__main__":
    run()
