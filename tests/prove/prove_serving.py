"""Swaps, rollbacks, kills and a step of load on a served model: what callers notice.

`python -m tests.prove serving [batches] [swaps] [broken] [kills] [scaling]
 [--swaps N] [--rollbacks N] [--seconds S] [--every S]`
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from forge_core.deployment.serve_config import SERVE_VARIABLES
from infra.local.environment import ROOT
from infra.local.stack import apply_environment, clean, up
from tests.prove.replica_death import N_BATCHES
from tests.prove.serving_ground import Ground, settings_with_files
from tests.prove.serving_load import Report
from tests.prove.serving_rounds import HIGH, LOW, Kill, broken_versions, kills, scaling, swaps, switched_scaling

PARTS = ("batches", "swaps", "broken", "kills", "scaling")
RESULTS = Path("build/prove")
# Each kill may cost what was in flight in the killed process: at most one request a connection.
CONNECTIONS = 16


def run(only: Sequence[str] = ()) -> bool:
    """Run the chosen parts on a stack of their own and tell whether every bound was kept."""
    chosen = _parser().parse_args(list(only))
    console = Console(highlight=False)
    settings = settings_with_files()
    begun, faults = time.monotonic(), list[str]()
    try:
        up(settings, quiet=True)
        apply_environment(settings)
        ground = Ground(settings)
        versions = ground.make_versions((3, 8, 30))
        console.print(f"stack and versions {', '.join(versions)}: {time.monotonic() - begun:.0f} s")
        ground.swap(versions[0])
        for part in chosen.parts or PARTS:
            started = time.monotonic()
            found = _PARTS[part](ground, versions, chosen, console)
            verdict = "[green]✔[/]" if not found else "[red]✘[/]"
            console.print(f"{verdict} {part} ({time.monotonic() - started:.0f} s)")
            faults += [f"{part}: {fault}" for fault in found]
    finally:
        clean(settings, quiet=True)
    for fault in faults:
        console.print(f"[red]{fault}")
    return not faults


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.prove serving", description=__doc__)
    # The empty list is what argparse holds against the choices where no part is named.
    parser.add_argument(
        "parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=f"{', '.join(PARTS)}; default: all"
    )
    parser.add_argument("--swaps", type=int, default=30)
    parser.add_argument("--rollbacks", type=int, default=None, help="default: a third of the swaps")
    parser.add_argument("--seconds", type=float, default=300.0, help="of the kills, and of the step of load by half")
    parser.add_argument("--every", type=float, default=40.0, help="seconds between two kills of the same kind")
    return parser


def _batches(ground: Ground, versions: list[str], chosen: argparse.Namespace, console: Console) -> list[str]:
    """Batches at work in a killed replica are answered by another, on a Serve beside the stack's."""
    variables = {**os.environ, **SERVE_VARIABLES, "RAY_SERVE_ENABLE_HA_PROXY": "0"}
    variables.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "tests.prove.replica_death"]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=150, check=False)
    if done.returncode:
        return [f"the killing itself failed: {done.stderr[-2000:]}"]
    found = json.loads(done.stdout.splitlines()[-1])
    for name, title in (("once", "without another try"), ("again", "with another try")):
        told = ", ".join(f"{n} {what}" for what, n in Counter(found[name]).items())
        console.print(f"  batches at work in a killed replica, {title}: {told}")
    faults = [] if found["again"] == ["answered"] * N_BATCHES else ["batches were lost"]
    # Without another try some are lost, or this would show nothing.
    return faults if set(found["once"]) - {"answered"} else [*faults, "nothing was lost without another try"]


def _swaps(ground: Ground, versions: list[str], chosen: argparse.Namespace, console: Console) -> list[str]:
    n_rollbacks = chosen.swaps // 3 if chosen.rollbacks is None else chosen.rollbacks
    report = swaps(ground, versions, chosen.swaps, n_rollbacks)
    _tell(console, f"{chosen.swaps} swaps and {n_rollbacks} rollbacks", report)
    return _faults(report)


def _broken(ground: Ground, versions: list[str], chosen: argparse.Namespace, console: Console) -> list[str]:
    report, refused = broken_versions(ground)
    _tell(console, "two versions that cannot serve", report)
    for version, why in refused.items():
        console.print(f"    version {version} {why or 'WENT LIVE'}; {report.versions[version]} replies of it")
    faults = [f"version {v} went live" for v, why in refused.items() if not why]
    faults += [f"{report.versions[v]} replies name version {v}" for v in refused if report.versions[v]]
    return faults + _faults(report)


def _kills(ground: Ground, versions: list[str], chosen: argparse.Namespace, console: Console) -> list[str]:
    report, found = kills(ground, chosen.seconds, chosen.every)
    share = len(report.failures) / max(report.requests, 1)
    _tell(console, f"{len(found)} kills in {chosen.seconds:.0f} s ({share:.4%} of requests failed)", report)
    table = Table("killed", "failed", "failing until s", "whole after s", "what failed", box=None)
    for kill in found:
        told = ", ".join(f"{n} × {kind}" for kind, n in kill.failures.items())
        whole = "never" if kill.whole_seconds is None else f"{kill.whole_seconds:.1f}"
        table.add_row(kill.victim, str(kill.failures.total()), f"{kill.failing_seconds:.2f}", whole, told)
    console.print(table)
    return [fault for kill in found for fault in _kill_faults(kill)] + _faults(report, may_fail=True)


def _kill_faults(kill: Kill) -> list[str]:
    most = CONNECTIONS if kill.victim == "router" else 0
    faults = [] if kill.whole_seconds else [f"no new {kill.victim} came"]
    if kill.failures.total() > most:
        faults.append(f"{kill.failures.total()} requests failed after the kill of a {kill.victim}, bound {most}")
    return faults


def _scaling(ground: Ground, versions: list[str], chosen: argparse.Namespace, console: Console) -> list[str]:
    """A version that is not compiled, so that it is the variant that has work to do, under a step of load."""
    ground.swap(ground.not_compiled(versions[0]))
    switched = switched_scaling(ground)
    _tell(console, "autoscaling switched on", switched)
    step = scaling(ground, low=chosen.seconds / 8, high=chosen.seconds / 4)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "serving_scaling.png").write_bytes(step.picture)
    _tell(console, f"{LOW}, {HIGH} and {LOW} connections", step.report)
    faults = _faults(switched) + _faults(step.report)
    for kind in ("router", "variant"):
        before, during, after = step.replicas(kind)
        console.print(f"    {kind}: {before} → {during} → {after} replicas")
        if not before == after == 1 < during:
            faults.append(f"the {kind} did not follow the load: {step.seen}")
    console.print(f"    picture: {RESULTS / 'serving_scaling.png'}")
    return faults


def _faults(report: Report, *, may_fail: bool = False) -> list[str]:
    faults = [] if may_fail or not report.failures else [f"failed: {dict(Counter(k for _, k in report.failures))}"]
    if report.wrong:
        faults.append(f"{len(report.wrong)} replies are not of the version they name, such as {report.wrong[0]}")
    return faults if report.requests else ["no request was made"]


def _tell(console: Console, title: str, report: Report) -> None:
    versions = ", ".join(f"v{version} {n}" for version, n in sorted(report.versions.items()))
    console.print(
        f"  {title}: {report.requests} requests, {len(report.failures)} failed, {len(report.wrong)} not of the version "
        f"they name, longest gap {report.longest_gap * 1000:.0f} ms ({versions})"
    )


_PARTS = {"batches": _batches, "swaps": _swaps, "broken": _broken, "kills": _kills, "scaling": _scaling}
