"""What a split costs: throughput with one live against without, in turns on one running stack.

Both variants of the split are the champion, so that nothing differs but the assignment of each request and what the
log keeps of it. (A canary takes batches of its own, and costs what smaller batches cost.)
"""

import contextlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from forge_core.deployment.routing import read_state
from forge_core.deployment.routing_table import Split
from forge_core.deployment.serve_client import get_serve_client
from forge_core.deployment.splits import drop_split, put_split
from forge_core.experiments.assignment import segments_of
from forge_core.ledger import Ledger
from infra.local.processes import stack_processes
from tests.benchmarks.bench_serving import SECONDS, WARM
from tests.benchmarks.harness import Report
from tests.benchmarks.serving_load import Load, measure, need_wrk, write_bodies
from tests.benchmarks.serving_ours import Ours, one_row
from tests.benchmarks.serving_work import bring_live

CONNECTIONS = 64
TURNS = 6
_MODEL = "forest"


@dataclass(frozen=True)
class Measured:
    """One measurement, and the milliseconds of processor time that the whole stack took for a request."""

    load: Load
    cpu_ms: float


def run() -> bool:
    """Measure and report what a live split costs of the throughput.

    Each turn measures with and without, in changing order; a cost is the median of the turns' own. Where the processors
    are busy, throughput is their time by that of a request: the cost by processor time tells what other work of the
    machine did to the first.
    """
    report = Report("split")
    need_wrk()
    with tempfile.TemporaryDirectory(prefix="forge-cost-") as name:
        folder = Path(name)
        ours = Ours(folder)
        try:
            ours.start()
            served = bring_live(ours.settings, _MODEL, folder)
            bodies = write_bodies(folder / "bodies", [one_row([record]) for record in served.records])
            measure(ours.url, "/predict", bodies, CONNECTIONS, WARM)
            turns = [_turn(ours, bodies, split_first=number % 2 == 1) for number in range(TURNS)]
        finally:
            ours.clean()
    plain, split = ([turn[side] for turn in turns] for side in (0, 1))
    pairs = list(zip(plain, split, strict=True))
    report.add("requests/s without", median(p.load.per_second for p in plain))
    report.add("requests/s with a split", median(s.load.per_second for s in split))
    report.add("cost, share of requests/s", _cost(pairs), at_most=0.02)
    report.add("processor ms a request without", median(p.cpu_ms for p in plain))
    report.add("processor ms a request with a split", median(s.cpu_ms for s in split))
    report.add("cost by processor time", median(1 - p.cpu_ms / s.cpu_ms for p, s in pairs))
    report.add("failed requests", float(sum(found.load.errors for found in plain + split)), at_most=0)
    return report.finish()


def _cost(pairs: list[tuple[Measured, Measured]]) -> float:
    return median(1 - split.load.per_second / plain.load.per_second for plain, split in pairs)


def _turn(ours: Ours, bodies: Path, *, split_first: bool) -> tuple[Measured, Measured]:
    found = {}
    for split in (True, False) if split_first else (False, True):
        _share_out(ours, split)
        measure(ours.url, "/predict", bodies, CONNECTIONS, 1.0)
        before = _processor_seconds(ours)
        load = measure(ours.url, "/predict", bodies, CONNECTIONS, SECONDS)
        time.sleep(3.0)  # until the profiler has written what was logged
        used = _processor_seconds(ours) - before
        found[split] = Measured(load, 1000 * used / (load.per_second * SECONDS))
        print(
            f"{'a split' if split else 'no split':<10} {load.told()}, {found[split].cpu_ms:.3f} ms of cpu", flush=True
        )
    return found[False], found[True]


def _processor_seconds(ours: Ours) -> float:
    """Return the processor time that the serving processes of the stack took so far."""
    used = 0.0
    for process in stack_processes(ours.settings.home, member="ray"):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            used += times.user + times.system
    return used


def _share_out(ours: Ours, live: bool) -> None:
    ledger, serve = Ledger(ours.settings.ledger), get_serve_client(ours.settings)
    champion = read_state(ledger)[1]["models"][_MODEL]["champion"]
    split: Split = {
        "id": "experiment:cost",
        "salt": "cost",
        "key": "user",
        "variants": {"control": champion, "treatment": champion},
        "segments": list(segments_of({"control": 0.5, "treatment": 0.5})),
    }
    if live:
        put_split(ledger, _MODEL, split)
    else:
        drop_split(ledger, _MODEL, split["id"])
    serve.reconcile(ledger)
