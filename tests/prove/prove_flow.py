"""Killing the train flow in every step, and its worker: the same run started again goes on where it was cut.

Every round trains on rows of its own (`since`), so that nothing is found again but what the killed run left.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from forge_core.deployment.routing import read_state
from forge_core.errors import ForgeError
from forge_core.ledger import Ledger
from forge_core.settings import Settings
from forge_core.tracking.registry import Registry
from infra.local.prefect_api import FINAL, PrefectApi
from infra.local.processes import free_ports, same_process
from infra.local.stack import apply_environment, clean, status, up
from tests.stack_settings import short_home, stack_settings

MOST_SECONDS = 60.0
UNTIL = "2013-02-01"
# One month's held-out days are too few for the gate to let a first model pass; three are enough.
UNTIL_PASSING = "2013-04-01"
STEPS = ("ingest", "compare-with-training", "search", "fit", "evaluate", "compile", "register", "deploy")
REPEATABLE = {"register", "deploy"}
BRINGING_LIVE = {"deploy", "promoted"}
# Only the first model is sure to be deployed, so the kill in `deploy` comes first.
ROUNDS = ("deploy", *(step for step in STEPS if step != "deploy"), "promoted", "worker", "both")
_CANDIDATE = "forge.candidate"

Run = dict[str, Any]
States = dict[str, str]


@dataclass
class Kill:
    """One kill: where it hit, and what the next run did."""

    step: str
    hit: str = ""
    restart: float | None = None
    whole: float = 0.0
    again: list[str] = field(default_factory=list)
    versions: str = ""
    faults: list[str] = field(default_factory=list)

    def need(self, claim: bool, fault: str) -> None:
        """Keep a fault where the claim does not hold."""
        if not claim:
            self.faults.append(fault)


class Ground:
    """The stack that is killed on, and what to ask it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.prefect = PrefectApi(settings.prefect_url)
        self.registry = Registry(settings.mlflow_url)
        self.ledger = Ledger(settings.ledger)

    def look(self, run: Run) -> Run:
        """Return a run as it is now."""
        return self.prefect.call("GET", f"/flow_runs/{run['id']}")

    def states(self, run: Run) -> States:
        """Return each step's state so far, in the order they started."""
        return {task["name"].rpartition("-")[0]: task["state_name"] for task in self.prefect.tasks(run)}

    def until(self, run: Run, claim: Callable[[Run], bool], seconds: float, every: float = 0.05) -> Run:
        """Return a run once the claim holds for it; raise where it does not come to that."""
        deadline = time.monotonic() + seconds
        while not claim(run := self.look(run)):
            if time.monotonic() > deadline:
                message = (run.get("state") or {}).get("message")
                raise ForgeError(f"{run['name']} is {run['state_name']} after {seconds:.0f} s: {message}")
            time.sleep(every)
        return run

    def began(self, run: Run, since: float, kill: Kill) -> None:
        """Measure the seconds from a kill until a run is at work."""
        self.until(run, lambda now: now["state_type"] in {"RUNNING", *FINAL}, 6 * MOST_SECONDS)
        kill.restart = time.monotonic() - since
        kill.need(kill.restart <= MOST_SECONDS, f"started after {kill.restart:.0f} s, not {MOST_SECONDS:.0f}")

    def finished(self, run: Run, kill: Kill, name: str = "the next run") -> Run:
        """Return a run once it ended, and keep a fault where it did not complete."""
        run = self.until(run, lambda now: now["state_type"] in FINAL, 300.0, every=0.3)
        kill.need(run["state_type"] == "COMPLETED", f"{name} {run['state_name']}: {run['state'].get('message')}")
        return run

    def check_versions(self, model: str, kill: Kill) -> None:
        """Keep faults where a candidate has several versions, or what is promoted is not what is live."""
        counts = Counter(version.tags[_CANDIDATE] for version in self.registry.versions(model))
        champion = read_state(self.ledger)[1]["models"].get(model, {}).get("champion")
        with httpx.Client(base_url=self.settings.api_url, trust_env=False, timeout=10.0) as api:
            live = api.get("/health").raise_for_status().json()["models"].get(model)
        alias = self.registry.find(model)
        kill.versions = f"{sum(counts.values())} of {len(counts)} candidates, v{live} live"
        kill.need(bool(counts) and max(counts.values()) == 1, f"versions per candidate: {dict(counts)}")
        kill.need(live == champion, f"live is {live}, promoted is {champion}")
        kill.need((alias and alias.version) == live, f"the alias is at {alias and alias.version}, not {live}")
        kill.need(live is not None or kill.step not in BRINGING_LIVE, "nothing is live")


def run(only: Sequence[str] = ()) -> bool:
    """Kill in every step and tell whether every bound was kept; `only` names the rounds to run."""
    console = Console()
    settings = stack_settings(short_home(), free_ports)
    rounds = [step for step in ROUNDS if not only or step in only]
    kills: list[Kill] = []
    begun = time.monotonic()
    try:
        up(settings, quiet=True)
        apply_environment(settings)
        ground = Ground(settings)
        for number, step in enumerate(rounds, start=1):
            kill = Kill(step)
            kills.append(kill)
            started = time.monotonic()
            try:
                _ROUNDS.get(step, _cut)(ground, kill, f"2013-01-{number:02d}")
            except (ForgeError, httpx.HTTPError, psutil.Error) as error:
                kill.faults.append(str(error))
            kill.whole = time.monotonic() - started
            console.print(f"{_verdict(kill)} {step}: {kill.hit or 'not killed'}; {kill.whole:.0f} s", highlight=False)
            for fault in kill.faults:
                console.print(f"    {fault}", highlight=False)
    finally:
        clean(settings, quiet=True)
    _print(console, kills, time.monotonic() - begun)
    return all(not kill.faults for kill in kills)


def _cut(ground: Ground, kill: Kill, since: str) -> None:
    """Kill the flow as soon as a step is seen, and start the same run again."""

    def seen(run: Run) -> bool:
        return kill.step in ground.states(run)

    until = UNTIL_PASSING if kill.step == "deploy" else UNTIL
    _cut_and_repeat(ground, kill, "flights", {"model": "flights", "since": since, "until": until, "trials": 4}, seen)


def _cut_promoted(ground: Ground, kill: Kill, since: str) -> None:
    """Kill between the ledger's promotion and Serve's: the next run must bring the version live."""

    def champion() -> str | None:
        return read_state(ground.ledger)[1]["models"].get("sample", {}).get("champion")

    before = champion()

    def promoted(_: Run) -> bool:
        return champion() != before

    parameters = {"model": "sample", "source": "sample:?rows=6000", "trials": 2}
    _cut_and_repeat(ground, kill, "sample", parameters, promoted)


def _cut_and_repeat(
    ground: Ground, kill: Kill, model: str, parameters: dict[str, Any], moment: Callable[[Run], bool]
) -> None:
    killed = ground.prefect.run(f"train/{model}", parameters)
    killed = ground.until(killed, lambda now: moment(now) or now["state_type"] in FINAL, 300.0, every=0.02)
    kill.need(killed["state_type"] not in FINAL, "the run ended before it could be killed")
    _kill_flow(killed)
    at = time.monotonic()
    again = ground.prefect.run(f"train/{model}", parameters)
    ground.began(again, at, kill)
    again = ground.finished(again, kill)
    _compare(ground, kill, killed, again)
    ground.check_versions(model, kill)


def _compare(ground: Ground, kill: Kill, killed: Run, again: Run) -> None:
    """Keep faults where the next run repeated what was finished before the kill."""
    before, after = ground.states(killed), ground.states(again)
    last = next(reversed(before), "")
    # The server hears of a step's end only from the process, which may not have come to say so.
    done = {step for step, state in before.items() if state in {"Completed", "Cached"} or step != last}
    kill.hit = f"{last or 'before any step'} was {before.get(last, 'nothing').lower()}"
    kill.again = [step for step, state in after.items() if state != "Cached"]
    wrong = [step for step in kill.again if step in done - REPEATABLE]
    kill.need(not wrong, f"repeated though finished before: {', '.join(wrong)}")
    state = ground.look(killed)["state_name"]
    kill.need(state == "Crashed", f"the killed run is called {state}")


def _kill_worker(ground: Ground, kill: Kill, since: str) -> None:
    """Kill the worker in the middle of a search: its flow goes on, and a new worker takes new runs."""
    parameters = {"model": "flights", "since": since, "until": UNTIL, "trials": 4}
    orphan = ground.prefect.run("train/flights", parameters)
    orphan = ground.until(orphan, lambda now: "search" in ground.states(now) or now["state_type"] in FINAL, 300.0)
    at = _kill_member(ground, "worker")
    small = ground.prefect.run("ingest/flights", {"model": "flights", "since": since, "until": UNTIL})
    ground.began(small, at, kill)
    ground.finished(small, kill, "the small run")
    steps = ground.states(ground.finished(orphan, kill, "the run whose worker was killed"))
    kill.hit = f"the worker, during search; its run ended after {next(reversed(steps), 'no step')}"
    kill.need("Cached" not in steps.values(), f"found again: {steps}")
    # A slot that the orphan did not give back would show here.
    at = time.monotonic()
    again = ground.prefect.run("train/flights", parameters)
    first = kill.restart
    ground.began(again, at, kill)
    kill.restart = max(first or 0.0, kill.restart or 0.0)
    again = ground.finished(again, kill)
    kill.again = [step for step, state in ground.states(again).items() if state != "Cached"]
    kill.need(set(kill.again) <= REPEATABLE, f"repeated though finished before: {', '.join(kill.again)}")
    ground.check_versions("flights", kill)


def _kill_both(ground: Ground, kill: Kill, since: str) -> None:
    """Kill the worker and its flow at once: nobody is left to report the flow, which holds its deployment's slot."""
    parameters = {"model": "flights", "since": since, "until": UNTIL, "trials": 4}
    killed = ground.prefect.run("train/flights", parameters)
    killed = ground.until(killed, lambda now: "search" in ground.states(now) or now["state_type"] in FINAL, 300.0)
    at = _kill_member(ground, "worker")
    _kill_flow(killed)
    again = ground.prefect.run("train/flights", parameters)
    ground.began(again, at, kill)
    again = ground.finished(again, kill)
    _compare(ground, kill, killed, again)
    kill.hit = f"worker and flow; {kill.hit}"
    ground.check_versions("flights", kill)


def _kill_member(ground: Ground, name: str) -> float:
    """Kill a member of the stack with signal 9 and return when."""
    pid = next(member.pid for member in status(ground.settings).members if member.name == name)
    os.kill(pid, signal.SIGKILL)
    return time.monotonic()


def _kill_flow(run: Run) -> None:
    """Kill a flow run's process with signal 9, and its children: by group only where the group is its own."""
    pid = int((run["infrastructure_pid"] or "").rpartition(":")[2] or 0)
    process = psutil.Process(pid)
    born = process.create_time()
    children = process.children(recursive=True)
    if os.getpgid(pid) == pid:
        os.killpg(pid, signal.SIGKILL)
    else:  # the worker keeps its flows in its own group
        for one in [process, *children]:
            one.kill()
    deadline = time.monotonic() + 10.0
    while same_process(pid, born) and time.monotonic() < deadline:
        time.sleep(0.01)


def _verdict(kill: Kill) -> str:
    return "[green]✔[/]" if not kill.faults else "[red]✘[/]"


def _print(console: Console, kills: Sequence[Kill], seconds: float) -> None:
    table = Table(title=f"prove flow: kill -9, then the same run again ({seconds:.0f} s)", title_justify="left")
    for column in ("killed in", "what it hit", "restart s", "repeated steps", "versions", "ok"):
        table.add_column(column, justify="right" if column == "restart s" else "left")
    for kill in kills:
        restart = "" if kill.restart is None else f"{kill.restart:.1f}"
        repeated = ", ".join(kill.again) or "none"
        table.add_row(kill.step, kill.hit, restart, repeated, kill.versions, _verdict(kill))
    console.print(table)
    for kill in kills:
        for fault in kill.faults:
            console.print(f"[red]{kill.step}[/]: {fault}", highlight=False)


_ROUNDS = {"promoted": _cut_promoted, "worker": _kill_worker, "both": _kill_both}
