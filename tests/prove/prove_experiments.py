"""Rollouts under load, good ones and bad ones, and the rollout flow killed at random moments.

`python -m tests.prove experiments [better] [wrong] [wrong-unshadowed] [slow] [failing] [kills] [restart]
 [--connections N] [--kills N] [--seed N] [--direct]`
"""

import argparse
import contextlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from forge_core.deployment.routing import read_state
from forge_core.deployment.serve_client import get_serve_client
from forge_core.errors import ForgeError
from forge_core.experiments.rollout_picture import rollout_figure
from forge_core.experiments.rollout_records import Rollout, RolloutRecords
from forge_core.policy import load_policy
from forge_core.settings import get_settings
from infra.local.environment import ROOT
from infra.local.prefect_api import FINAL, PrefectApi
from infra.local.stack import apply_environment, clean, up
from tests.prove.rollout_ground import RolloutGround, await_true
from tests.prove.serving_ground import MODEL, settings_with_files
from tests.prove.serving_load import Report

PARTS = ("better", "wrong", "wrong-unshadowed", "slow", "failing", "kills", "restart")
RESULTS = Path("build/prove")
_FLOW = "import asyncio; from flows.rollout import rollout; asyncio.run(rollout({model!r}, {version!r}, again={again}))"
# A rollout ends within so many seconds, or the loop gives up on it.
_PATIENCE = 600.0


def run(only: Sequence[str] = ()) -> bool:
    """Run the chosen parts on a stack of their own and tell whether every bound was kept."""
    chosen = _parser().parse_args(list(only))
    console = Console(highlight=False, soft_wrap=True)
    parts = chosen.parts or list(PARTS)
    faults: list[str] = []
    if set(parts) - {"restart"}:
        faults = _rollouts(parts, chosen, console)
    if "restart" in parts and importlib.util.find_spec("tests.prove.experiment_restart"):
        restart = importlib.import_module("tests.prove.experiment_restart")
        faults += [] if restart.run() else ["restart: see above"]
    for fault in faults:
        console.print(f"[red]{fault}")
    return not faults


def _rollouts(parts: Sequence[str], chosen: argparse.Namespace, console: Console) -> list[str]:
    settings, surroundings = settings_with_files(), dict(os.environ)
    begun, faults = time.monotonic(), list[str]()
    try:
        # The first part starts its flow by its deployment, the others as processes that can be killed.
        up(settings, quiet=True, deployments="better" in parts and not chosen.direct)
        apply_environment(settings)
        ground = RolloutGround(settings)
        ground.write_policy()
        ground.make_kinds()
        ground.swap(ground.versions["champion"])
        told = ", ".join(f"v{version} {kind}" for kind, version in ground.versions.items())
        console.print(f"stack and versions ({told}): {time.monotonic() - begun:.0f} s")
        for part in [name for name in PARTS if name in parts and name != "restart"]:
            started = time.monotonic()
            try:
                found = _PARTS[part](ground, chosen, console)
            except ForgeError as error:
                found = [str(error)]
            console.print(f"{'[green]✔[/]' if not found else '[red]✘[/]'} {part} ({time.monotonic() - started:.0f} s)")
            faults += [f"{part}: {fault}" for fault in found]
    finally:
        clean(settings, quiet=True)
        os.environ.clear()
        os.environ.update(surroundings)  # the next stack is another one
        get_settings.cache_clear()
    return faults


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.prove experiments", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=f"{', '.join(PARTS)}; default: all"
    )
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--direct", action="store_true", help="start every flow as a process, none by its deployment")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _better(ground: RolloutGround, chosen: argparse.Namespace, console: Console) -> list[str]:
    """A better model goes through all steps, and back again in one call while the old one is still warm."""
    faults = _back_to_champion(ground)
    ended, report = _rolled_out(ground, chosen, "better", by_deployment=not chosen.direct)
    faults += _judged(ground, console, ended, report, "promoted", "better")
    steps = [e["reason"].partition(":")[0] for e in _account(ground, ended) if e["kind"] == "rollout_step"]
    wanted = [0.0, 0.01, 0.05, 0.25, 0.5, 1.0]
    if ended.steps != tuple(wanted) or len(steps) != 5:
        faults.append(f"not all steps were taken: {steps}")
    serve = get_serve_client(ground.settings)
    row = serve._live_table()[MODEL]
    if row != {"champion": ground.versions["better"], "warm": ground.versions["champion"]}:
        faults.append(f"the router holds {row}")
    return faults


def _bad(kind: str, outcome: str = "rolled back", **policy: Any) -> Any:
    def part(ground: RolloutGround, chosen: argparse.Namespace, console: Console) -> list[str]:
        """A bad model is stopped, and the champion has all traffic again."""
        faults = _back_to_champion(ground)
        ground.write_policy(**policy)
        ended, report = _rolled_out(ground, chosen, kind)
        ground.write_policy()
        faults += _judged(ground, console, ended, report, outcome, kind)
        if ended.step > 0:
            faults.append(f"{kind}: stopped only at {ended.told_step}")
        if get_serve_client(ground.settings)._live_table()[MODEL] != {"champion": ground.versions["champion"]}:
            faults.append("the router holds more than the champion")
        return faults

    return part


def _back_to_champion(ground: RolloutGround) -> list[str]:
    """Start each part with the first version as champion, brought back by HTTP in one call where it is not."""
    live = read_state(ground.ledger)[1]["models"][MODEL]["champion"]
    if live == ground.versions["champion"]:
        return []
    ground.swap(ground.versions["champion"])
    return []


def _rolled_out(
    ground: RolloutGround, chosen: argparse.Namespace, kind: str, *, by_deployment: bool = False
) -> tuple[Rollout, Report]:
    """Roll a version out under load with labels coming, and return how it ended and what callers noticed."""
    version = ground.versions[kind]
    with ground.load([(chosen.connections, None)]) as load, ground.labels():
        if by_deployment:
            prefect = PrefectApi(ground.settings.prefect_url)
            started = prefect.run(
                f"rollout/{MODEL}", {"model": MODEL, "version": version, "reason": "prove", "again": True}
            )

            def done() -> bool:
                return prefect.call("GET", f"/flow_runs/{started['id']}")["state_type"] in FINAL

            await_true(done, _PATIENCE, "the flow run to end", every=1.0)
        else:
            with _flow(ground, version, again=True) as process:
                process.wait(_PATIENCE)
        time.sleep(2.0)  # some traffic after the end
    ended = RolloutRecords(ground.ledger).newest(MODEL)
    if ended is None or ended.version != version:
        raise ForgeError(f"no rollout of version {version} began; see {ground.settings.home}/logs/flows.log")
    RESULTS.mkdir(parents=True, exist_ok=True)
    policy = load_policy(ground.settings.policy_file, MODEL).rollout
    (RESULTS / f"rollout_{kind}.png").write_bytes(rollout_figure(ended, policy))
    return ended, load.report


@contextlib.contextmanager
def _flow(ground: RolloutGround, version: str, *, again: bool = False) -> Iterator["subprocess.Popen[bytes]"]:
    """Give a rollout flow as a process in a group of its own."""
    command = [sys.executable, "-c", _FLOW.format(model=MODEL, version=version, again=again)]
    with (ground.settings.home / "rollout.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True, env={**os.environ}
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _account(ground: RolloutGround, ended: Rollout) -> list[dict[str, Any]]:
    kinds = ("rollout_started", "rollout_step", "rollout_held", "rollout_aborted", "rollout_finished")
    return [e for e in ground.ledger.events(MODEL, *kinds) if e["details"].get("rollout") == ended.id]


def _judged(
    ground: RolloutGround, console: Console, ended: Rollout, report: Report, outcome: str, kind: str
) -> list[str]:
    """Print the ledger's account and what callers noticed, and return what was not so."""
    versions = ", ".join(f"v{version} {n}" for version, n in sorted(report.versions.items()))
    console.print(
        f"  {ended.id} ({kind}): {ended.outcome or ended.status} at {ended.told_step}; {report.requests} requests, "
        f"{len(report.failures)} failed, {len(report.wrong)} not of the version they name ({versions})"
    )
    begun: float | None = None
    for event in _account(ground, ended):
        at = event["recorded_at"].timestamp()
        begun = begun or at
        look = event["details"].get("look") or {}
        rows = f"{look['rows']:,} rows; " if look else ""
        console.print(f"    {at - begun:6.1f} s {event['kind']} by {event['actor']}: {rows}{event['reason'][:600]}")
    faults = [] if ended.outcome == outcome else [f"{kind} was {ended.outcome or ended.status}, not {outcome}"]
    if report.failures:
        faults.append(f"requests failed: {dict(Counter(what for _, what in report.failures))}")
    if report.wrong:
        faults.append(f"{len(report.wrong)} replies are not of the version they name, such as {report.wrong[0]}")
    return faults if report.requests else ["no request was made"]


@dataclass
class Watch:
    """What was seen of the desired state, of the rollout's record, and of the table that Serve has, again and again."""

    looks: int = 0
    tables: int = 0
    faults: list[str] = field(default_factory=list)

    def see(self, ground: RolloutGround) -> None:
        """Compare record and state, read between two equal revisions, and hold Serve's table against what may be."""
        records = RolloutRecords(ground.ledger)
        before, (revision, state), after = (
            records.newest(MODEL), read_state(ground.ledger), records.newest(MODEL),
        )  # fmt: skip
        if before is not None and after is not None and before.revision == after.revision:
            self.looks += 1
            if (wrong := _between(after, state["models"][MODEL])) and read_state(ground.ledger)[0] == revision:
                self.faults.append(wrong)
        with contextlib.suppress(ForgeError):
            row = get_serve_client(ground.settings)._live_table().get(MODEL)
            if row:
                self.tables += 1
                if not _whole(row):
                    self.faults.append(f"Serve's table is {row}")


def _between(rollout: Rollout, entry: dict[str, Any]) -> str:
    """Return what does not fit between a rollout and the desired state; empty where all fits."""
    split, shadow = entry.get("split"), entry.get("shadow")
    if rollout.status == "ended":
        return f"{rollout.id} ended and there is {split or shadow}" if split or shadow else ""
    wanted = None if rollout.in_shadow else [[end, name] for end, name in rollout.split["segments"]]
    found = split["segments"] if split else None
    if found != wanted or (shadow is not None) != rollout.in_shadow or entry.get("candidate") != rollout.version:
        return f"{rollout.id} is at {rollout.told_step} and the state is {entry}"
    return ""


def _whole(row: Any) -> bool:
    segments = row.get("split", {}).get("segments")
    shares = {(0.99, 1.0), (0.95, 1.0), (0.75, 1.0), (0.5, 1.0), (1.0,)}
    return "champion" in row and (segments is None or tuple(end for end, _ in segments) in shares)


def _kills(ground: RolloutGround, chosen: argparse.Namespace, console: Console) -> list[str]:
    """Kill the flow's group at random moments: the next run goes on where it was, and nothing lies between."""
    chance, watch, stop = random.Random(chosen.seed), Watch(), threading.Event()
    faults = _back_to_champion(ground)
    ground.write_policy(min_minutes=0.4, steps=[0.01, 0.05, 0.25, 0.5, 1.0])
    version, killed = ground.versions["better"], list[str]()

    def look() -> None:
        while not stop.wait(0.05):
            watch.see(ground)

    watcher = threading.Thread(target=look)
    with ground.load([(chosen.connections, None)]) as load, ground.labels():
        watcher.start()
        try:
            while len(killed) < chosen.kills:
                # A rollout that ended goes once more round, so that there is something to kill.
                newest = RolloutRecords(ground.ledger).newest(MODEL)
                ended = newest is not None and newest.version == version and newest.status == "ended"
                if ended and newest is not None and newest.outcome == "promoted":
                    _back_to_champion(ground)
                with _flow(ground, version, again=ended) as process:
                    # Under load a flow needs half of it to start and to warm the version again.
                    pause = chance.uniform(4.0, 60.0)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(pause)
                    if process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)
                        process.wait()
                        now = RolloutRecords(ground.ledger).newest(MODEL)
                        killed.append(
                            f"{now.told_step if now and now.version == version else 'not begun'} +{pause:.0f} s"
                        )
            newest = RolloutRecords(ground.ledger).newest(MODEL)
            if newest is None or newest.version != version or newest.status != "ended":
                with _flow(ground, version) as process:
                    process.wait(_PATIENCE)
        finally:
            stop.set()
            watcher.join()
    console.print(f"  killed {len(killed)} times: {', '.join(killed)}")
    console.print(
        f"  {watch.looks} looks at record and state, {watch.tables} at Serve's table: {len(watch.faults)} between"
    )
    ended_at = RolloutRecords(ground.ledger).newest(MODEL)
    assert ended_at is not None
    faults += _judged(ground, console, ended_at, load.report, "promoted", "better")
    started = [e for e in ground.ledger.events(MODEL, "rollout_started") if e["details"]["rollout"] == ended_at.id]
    if len(started) != 1:
        faults.append(f"{ended_at.id} was started {len(started)} times")
    steps = [e["reason"].partition(":")[0] for e in _account(ground, ended_at) if e["kind"] == "rollout_step"]
    if len(steps) != len(set(steps)):
        faults.append(f"a step was taken twice: {steps}")
    ground.write_policy()
    return faults + watch.faults[:5]


_PARTS: dict[str, Any] = {
    "better": _better,
    "wrong": _bad("wrong"),
    "wrong-unshadowed": _bad("wrong", shadow_share=0.0),
    "slow": _bad("slow"),
    "failing": _bad("failing"),
    "kills": _kills,
}
