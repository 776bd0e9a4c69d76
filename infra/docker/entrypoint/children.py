"""The processes of one container: started, awaited, ended in order when it is told to stop."""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType

import psutil

from forge_core.errors import ServiceUnavailable
from forge_core.settings import Settings
from infra.docker.entrypoint.variables import member_variables
from infra.local.environment import ROOT
from infra.local.processes import family, stop_marked, stop_processes

log = logging.getLogger(__name__)

_GRACE_SECONDS = 10.0


class Children:
    """A container's processes, and the signal that ends them.

    Within `with`, SIGTERM and SIGINT are taken as the wish to stop; leaving it ends every process, the newest first.

    Parameters
    ----------
    settings : Settings
        Home, by which the processes are marked, and the seconds that a start may take.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.told = threading.Event()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Children":
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.told.set())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for member, process in reversed(self.processes.items()):
            stop_processes(family(process.pid)[:1] if member in _LEADERS else family(process.pid), grace=_GRACE_SECONDS)
            process.poll()
            stop_marked(self.settings.home, member=member, grace=3.0)
        log.info("stopped")

    def start(self, member: str, command: Sequence[str], extra: Mapping[str, str] | None = None) -> None:
        """Start a process that prints where this one does, in a session of its own, with further variables."""
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env={**member_variables(self.settings, member), **(extra or {})},
            start_new_session=True,
        )
        self.processes[member] = process
        log.info("started member=%s pid=%d", member, process.pid)

    def until(self, reason: Callable[[], str], what: str) -> bool:
        """Wait until `reason` has nothing to say against it; return False when told to stop meanwhile.

        Raises
        ------
        ServiceUnavailable
            A process ended, or `FORGE_STARTUP_TIMEOUT` seconds have passed: ends with the last reason.
        """
        deadline = time.monotonic() + self.settings.startup_timeout
        while said := reason():
            if self.told.wait(0.5):
                return False
            self._check_ended(what)
            if time.monotonic() > deadline:
                seconds = f"{self.settings.startup_timeout:.0f} s (FORGE_STARTUP_TIMEOUT)"
                raise ServiceUnavailable(f"{what} did not come up within {seconds}: {said}")
        return not self.told.is_set()

    def wait(self, seconds: float | None = None) -> int | None:
        """Return 0 once told to stop, the exit code of the first process that ends, None after so many seconds."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self.told.wait(0.5):
            _collect_orphans(self.processes.values())
            for member, process in self.processes.items():
                if (code := process.poll()) is not None:
                    log.info("ended member=%s code=%d", member, code)
                    return code if code >= 0 else 128 - code
            if deadline is not None and time.monotonic() > deadline:
                return None
        log.info("told to stop")
        return 0

    def _check_ended(self, what: str) -> None:
        for member, process in self.processes.items():
            if (code := process.poll()) is not None:
                raise ServiceUnavailable(f"{what} did not come up: {member} ended with exit code {code}; see above")


# Ray ends its own processes in order when its leader is asked; a worker's flows are asked themselves.
_LEADERS = {"ray", "node"}


def _collect_orphans(known: "Iterable[subprocess.Popen[bytes]]") -> None:
    """Collect ended processes that fell to this one: in a container it is the first, and nobody else would."""
    if os.getpid() != 1:
        return
    ours = {process.pid for process in known}
    for child in psutil.Process().children():
        try:
            if child.pid not in ours and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)
        except (psutil.Error, ChildProcessError):
            continue
