"""Profiler and recorder killed with signal 9 under load: labels lost that were acknowledged, rows lost and counted.

`python -m tests.prove monitoring [--seconds S] [--every S]`
"""

import argparse
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle

import httpx
from rich.console import Console

from forge_core.monitoring.prediction_log import PredictionLog
from forge_core.monitoring.windows import WindowStore
from infra.local.stack import apply_environment, clean, up
from tests.prove.serving_ground import MODEL, Ground, settings_with_files
from tests.prove.serving_load import Report

_VICTIMS = ("profiler", "recorder")


@dataclass
class Labels:
    """Labels that were sent one by one, and those that were acknowledged."""

    sent: int = 0
    acknowledged: set[str] = field(default_factory=set)


def run(only: Sequence[str] = ()) -> bool:
    """Kill both by turns and tell whether every acknowledged label is there and every lost row was counted."""
    parser = argparse.ArgumentParser(prog="python -m tests.prove monitoring", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--every", type=float, default=40.0, help="seconds between two kills of the same kind")
    chosen = parser.parse_args(list(only))
    console, settings = Console(highlight=False), settings_with_files()
    try:
        up(settings, quiet=True)
        apply_environment(settings)
        ground = Ground(settings)
        version = ground.make_versions((3, 8))[-1]
        ground.swap(version)
        before = _rows_in_windows(ground, version)
        with _labelling(settings.api_url) as labels, ground.load([(8, None)]) as load:
            kills = _kill(ground, chosen.seconds, chosen.every / len(_VICTIMS))
        told = _settled(settings.api_url)
        return _judge(console, ground, version, load.report, labels, kills, told, before)
    finally:
        clean(settings, quiet=True)


def _kill(ground: Ground, seconds: float, pause: float) -> list[str]:
    begun, killed = time.monotonic(), list[str]()
    time.sleep(min(pause, 5.0))
    for victim in cycle(_VICTIMS):
        if time.monotonic() - begun > seconds - pause / 2:
            return killed
        if found := ground.replicas(victim):
            found[0].kill()
            killed.append(victim)
        time.sleep(pause)
    return killed


@contextmanager
def _labelling(url: str) -> Iterator[Labels]:
    """Send labels one after the other for as long as the context lasts."""
    labels, over = Labels(), threading.Event()

    def send() -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=30.0) as client:
            while not over.wait(0.005):
                name = f"label-{labels.sent}"
                labels.sent += 1
                with suppress(httpx.HTTPError):
                    if client.post("/feedback", json={"request_id": name, "label": 1}).status_code == 200:
                        labels.acknowledged.add(name)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield labels
    finally:
        over.set()
        thread.join()


def _settled(url: str, seconds: float = 90.0) -> dict[str, int]:
    """Return what became of the rows once none waits."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            told = httpx.get(f"{url}/monitoring", params={"flush": True}, trust_env=False, timeout=60.0)
            if told.status_code == 200 and not told.json()["waiting_in_router"]:
                return told.json()
        time.sleep(1.0)
    raise RuntimeError(f"rows still wait after {seconds:.0f} s")


def _rows_in_windows(ground: Ground, version: str) -> int:
    return sum(window.n_rows for window in WindowStore(ground.storage, MODEL).windows(version))


def _judge(
    console: Console,
    ground: Ground,
    version: str,
    report: Report,
    labels: Labels,
    kills: list[str],
    told: dict[str, int],
    before: int,
) -> bool:
    kept = {f.request_id for f in ground.ledger.feedback(MODEL)}
    lost = labels.acknowledged - kept
    windows = _rows_in_windows(ground, version) - before
    logged = len(PredictionLog(ground.storage, MODEL).read(version=version, columns=["request_id"]))
    answered, dropped = report.versions[version], told["dropped_by_router"]
    uncounted = max(0, answered - windows - dropped)
    console.print(f"kills: {len(kills)} ({', '.join(kills)})")
    console.print(
        f"labels: {labels.sent} sent, {len(labels.acknowledged)} acknowledged, {len(lost)} of these lost, "
        f"{len(kept - labels.acknowledged)} kept without an answer"
    )
    console.print(
        f"rows: {answered} answered, {len(report.failures)} failed, {windows} in windows, {logged} in the log, "
        f"{dropped} counted as dropped ({dropped / max(answered, 1):.3%}), {uncounted} lost without being counted"
    )
    return not lost and not uncounted and not report.failures and bool(labels.acknowledged) and bool(kills)
