"""The small process that starts the members, starts them again when they die, and stops them all."""

import fcntl
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from forge_core.errors import ForgeError
from forge_core.settings import Settings
from infra.local import health
from infra.local.environment import ROOT, child_environment
from infra.local.members import INNER_PORTS, Member, members
from infra.local.ports import stack_ports
from infra.local.processes import family, free_ports, stack_processes, stop_marked, stop_processes
from infra.local.serving import begin_reconcile, drain_applications
from infra.local.state import MemberState, StackState, remove_state, write_state

log = logging.getLogger(__name__)

_QUICK_DEATHS = 5
_QUICK_WINDOW = 120.0
# A member that never answered is broken, not unlucky: one more try is enough.
_FIRST_TRIES = 2
# How often dead flow runs are looked for that no worker reports.
_SETTLE_SECONDS = 10.0


@dataclass
class _Seat:
    """A member's place in the supervisor: its process now and its history."""

    member: Member
    state: MemberState
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    next_try: float = 0.0
    deaths: list[float] = field(default_factory=list)
    answered: bool = False


class Supervisor:
    """A stack's members and their lives, until a signal ends them.

    Parameters
    ----------
    settings : Settings
        Home and ports of the stack.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.home = settings.home.resolve()
        self.inner = dict(
            zip(INNER_PORTS, free_ports(len(INNER_PORTS), but=stack_ports(settings).values()), strict=True)
        )
        self.seats = {member.name: self._seat(member) for member in members(settings, self.inner)}
        self.stop = threading.Event()
        self.retry = threading.Event()
        self._had_worker = False
        self._next_settling = 0.0
        self._written: StackState | None = None

    def run(self) -> None:
        """Keep the members running; return once a signal came and all have been stopped."""
        while not self.stop.is_set():
            try:
                self._round()
            except Exception:
                # A full disk or an odd answer must not leave the members without anybody to stop them.
                log.exception("a round failed")
            self.stop.wait(0.25)
        self._shut_down()

    def _round(self) -> None:
        if self.retry.is_set():
            self.retry.clear()
            self._forgive()
        for seat in self.seats.values():
            self._attend(seat)
        if self.seats["worker"].state.phase == "running" and time.monotonic() >= self._next_settling:
            self._settle_runs(health.unreported)
        self._write()

    def _attend(self, seat: _Seat) -> None:
        now = time.monotonic()
        if seat.process is not None and seat.process.poll() is not None:
            self._bury(seat, seat.process.returncode)
        elif seat.state.phase in {"waiting", "restarting"} and now >= seat.next_try and self._may_start(seat):
            self._start(seat)
        elif seat.state.phase == "starting" and now >= seat.next_try:
            seat.next_try = now + 0.5
            reason = health.ask(seat.member.name, self.settings, seat.state.created)
            if not reason:
                seat.answered = True
                took = round(time.monotonic() - seat.started, 1)
                seat.state = replace(seat.state, phase="running", seconds_to_start=took, message="")
                log.info("answers member=%s seconds=%.1f", seat.member.name, took)
                if seat.member.name == "ray" and seat.state.restarts:
                    begin_reconcile(self.settings)  # a new head has forgotten every application
            elif reason != seat.state.message:
                seat.state = replace(seat.state, message=reason)

    def _may_start(self, seat: _Seat) -> bool:
        awaited = self.seats.get(seat.member.after)
        if awaited is None:
            return True
        if awaited.state.phase != "running":
            return False
        self._settle_runs(health.without_worker if self._had_worker else health.of_earlier_stack)
        self._had_worker = True
        return True

    def _settle_runs(self, dead: Callable[[health.Run], bool]) -> None:
        """Give back the slots of flow runs that died with nobody left to tell the server."""
        self._next_settling = time.monotonic() + _SETTLE_SECONDS
        try:
            if count := health.crash_dead_runs(f"{self.settings.prefect_url}/api", dead):
                log.info("marked dead flow runs crashed count=%d", count)
        except ForgeError as error:
            log.warning("could not mark dead flow runs: %s", error)

    def _start(self, seat: _Seat) -> None:
        member = seat.member
        if seat.deaths and member.sweeps:
            stop_marked(self.home, member=member.name, grace=3.0)
        with Path(seat.state.log).open("ab") as output:
            seat.process = subprocess.Popen(
                member.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=child_environment(self.settings, member.name, dict(member.variables)),
                start_new_session=True,
            )
        seat.started = time.monotonic()
        created = psutil.Process(seat.process.pid).create_time()
        seat.state = replace(seat.state, phase="starting", pid=seat.process.pid, created=created, message="")
        log.info("started member=%s pid=%d", member.name, seat.process.pid)

    def _bury(self, seat: _Seat, code: int) -> None:
        now = time.monotonic()
        seat.process = None
        seat.deaths = [death for death in seat.deaths if now - death < _QUICK_WINDOW] + [now]
        ended = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        allowed = _QUICK_DEATHS if seat.answered else _FIRST_TRIES - 1
        if len(seat.deaths) > allowed:
            message = f"given up after {len(seat.deaths)} ends in a short time; the last: {ended}"
            seat.state = replace(seat.state, phase="failed", pid=0, message=message)
            log.error("failed member=%s %s", seat.member.name, message)
            return
        pause = min(0.5 * 2 ** (len(seat.deaths) - 1), 10.0)
        seat.next_try = now + pause
        restarts = seat.state.restarts + 1
        seat.state = replace(seat.state, phase="restarting", pid=0, restarts=restarts, message=ended)
        log.warning("died member=%s %s; starts again in %.1f s", seat.member.name, ended, pause)

    def _forgive(self) -> None:
        for seat in self.seats.values():
            if seat.state.phase == "failed":
                seat.deaths, seat.next_try, seat.answered = [], 0.0, False
                stop_marked(self.home, member=seat.member.name, grace=3.0)
                seat.state = replace(seat.state, phase="restarting", message="")

    def _shut_down(self) -> None:
        log.info("stopping")
        drain_applications(self.settings)
        # The worker first, and what it runs: a flow that ends in order still needs the Prefect server.
        stop_processes(self._family("worker"), grace=10.0)
        others = [process for name in self.seats if name != "worker" for process in self._leader(name)]
        stop_processes(others, grace=10.0)
        for seat in self.seats.values():
            if seat.process is not None:
                seat.process.poll()
        stop_marked(self.home, grace=3.0, spare=[os.getpid()])
        remove_state(self.home)
        log.info("stopped")

    def _family(self, name: str) -> list[psutil.Process]:
        pid = self.seats[name].state.pid
        found = {process.pid: process for process in stack_processes(self.home, member=name)}
        return list({**found, **{process.pid: process for process in family(pid)}}.values() if pid else found.values())

    def _leader(self, name: str) -> list[psutil.Process]:
        return family(self.seats[name].state.pid)[:1]

    def _seat(self, member: Member) -> _Seat:
        path = self.home / "logs" / f"{member.name}.log"
        return _Seat(member, MemberState(member.name, member.title, member.url, str(path)))

    def _write(self) -> None:
        me = psutil.Process()
        state = StackState(
            home=str(self.home),
            supervisor_pid=me.pid,
            supervisor_created=me.create_time(),
            ports={**stack_ports(self.settings), **self.inner},
            members={name: seat.state for name, seat in self.seats.items()},
        )
        if state != self._written:
            write_state(state)
            self._written = state


def supervise(settings: Settings) -> int:
    """Return the exit code of a supervisor's life: 0 after an orderly stop, 1 when the stack has another one."""
    home = settings.home.resolve()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with (home / "supervisor.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.error("another supervisor looks after %s", home)
            return 1
        supervisor = Supervisor(settings)
        # Handlers, also to undo an inherited "ignore": members get the default back, and Prefect's worker needs it.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: supervisor.stop.set())
        signal.signal(signal.SIGHUP, lambda *_: supervisor.retry.set())
        supervisor.run()
    return 0
