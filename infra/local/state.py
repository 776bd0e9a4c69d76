"""What the supervisor last wrote about its stack: one JSON file, always whole."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from infra.local.processes import same_process

FILE = "stack.json"


@dataclass(frozen=True)
class MemberState:
    """One member as its supervisor sees it.

    Attributes
    ----------
    name, title, url, log : str
        Short name, name for people, address for people, path of the log.
    phase : str
        `waiting` (for another member), `starting`, `running`, `restarting` or `failed` (given up).
    pid : int
        Process number; 0 when there is none.
    created : float
        When the process was created, seconds since 1970, which tells it from a later one of the same number.
    seconds_to_start : float
        How long it took until it answered; 0 before that.
    restarts : int
        How often it was started again.
    message : str
        Why it is not running; empty when it is.
    """

    name: str
    title: str
    url: str
    log: str
    phase: str = "waiting"
    pid: int = 0
    created: float = 0.0
    seconds_to_start: float = 0.0
    restarts: int = 0
    message: str = ""


@dataclass(frozen=True)
class StackState:
    """The supervisor, the ports and the members of a stack; times in seconds since 1970."""

    home: str
    supervisor_pid: int
    supervisor_created: float
    ports: dict[str, int]
    members: dict[str, MemberState] = field(default_factory=dict)

    @property
    def supervised(self) -> bool:
        """Whether the supervisor that wrote this is alive."""
        return same_process(self.supervisor_pid, self.supervisor_created)


def read_state(home: Path) -> StackState | None:
    """Return the last written state; None when there is none, or none that can be understood."""
    try:
        content = json.loads((home.resolve() / FILE).read_text(encoding="utf-8"))
        members = {name: MemberState(**value) for name, value in content.pop("members").items()}
        return StackState(**content, members=members)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_state(state: StackState) -> None:
    """Put the state in place of the old one, in one step."""
    path = Path(state.home) / FILE
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")
    part.replace(path)


def remove_state(home: Path) -> None:
    """Take the state file away."""
    (home.resolve() / FILE).unlink(missing_ok=True)
