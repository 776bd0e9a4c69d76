"""How the stack is now, from its state file, its processes and the members themselves."""

import time
from dataclasses import dataclass, field

import psutil

from forge_core.errors import ForgeError
from forge_core.settings import Settings
from infra.local import health
from infra.local.processes import owned_processes, pss_bytes, same_process
from infra.local.serving import serve_runs
from infra.local.state import MemberState, read_state


@dataclass(frozen=True)
class MemberStatus:
    """One member now: `health` is `healthy` or says what is wrong; `memory_bytes` is its whole tree's PSS."""

    name: str
    title: str
    pid: int
    health: str
    url: str
    uptime_seconds: float
    memory_bytes: int
    restarts: int
    log: str


@dataclass(frozen=True)
class StackStatus:
    """The whole stack now; `applications` are Serve's, name to status."""

    running: bool
    members: tuple[MemberStatus, ...] = ()
    applications: dict[str, str] = field(default_factory=dict)
    supervisor_pid: int = 0
    memory_bytes: int = 0

    @property
    def healthy(self) -> bool:
        """Whether it runs and every member answers."""
        return self.running and all(member.health == "healthy" for member in self.members)


def status(settings: Settings) -> StackStatus:
    """Return how the stack is now, by asking every member."""
    home = settings.home.resolve()
    state = read_state(home)
    if state is None or not state.supervised:
        return StackStatus(running=False)
    trees: dict[str, list[psutil.Process]] = {}
    for process, owner in owned_processes(home):
        trees.setdefault(owner, []).append(process)
    members = tuple(_member_status(settings, seat, trees.get(seat.name, [])) for seat in state.members.values())
    everyone = [process for tree in trees.values() for process in tree]
    return StackStatus(
        running=True,
        members=members,
        applications=_applications(settings) if serve_runs(trees.get("ray", [])) else {},
        supervisor_pid=state.supervisor_pid,
        memory_bytes=pss_bytes(everyone),
    )


def _member_status(settings: Settings, seat: MemberState, tree: list[psutil.Process]) -> MemberStatus:
    living = bool(seat.pid) and same_process(seat.pid, seat.created)
    if living:
        reason = health.ask(seat.name, settings, seat.created, timeout=5.0)
        verdict = "healthy" if not reason else f"{seat.phase}: {reason}"
    else:
        verdict = f"{'dead' if seat.phase == 'running' else seat.phase}: {seat.message}".rstrip(": ")
    uptime = max(time.time() - seat.created, 0.0) if living else 0.0
    memory = pss_bytes(tree)
    return MemberStatus(seat.name, seat.title, seat.pid, verdict, seat.url, uptime, memory, seat.restarts, seat.log)


def _applications(settings: Settings) -> dict[str, str]:
    try:
        answer = health.dashboard(settings, "/api/serve/applications/", timeout=15.0)
    except (ForgeError, OSError):
        return {}
    return {name: str(details.get("status", "")) for name, details in answer.get("applications", {}).items()}
