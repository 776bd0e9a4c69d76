"""Processes of one stack, found by the mark in their environment: list, stop, and weigh them."""

import os
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import SystemRandom

import psutil

from infra.local.environment import MEMBER, STACK

# Below Linux's range for outgoing connections, above Ray's workers, beside Serve's replicas (30000-31000).
_PORTS_FOR_TESTS = range(20000, 30000)


def stack_processes(home: Path, *, member: str = "") -> list[psutil.Process]:
    """Return the living processes that belong to the stack of `home`.

    A process belongs when its environment carries the mark, or when it shares a session with one that does:
    Ray's workers overwrite the memory of their own environment when they set their title.

    Parameters
    ----------
    home : Path
        The stack's folder.
    member : str, default ""
        Only this member's processes (`prefect`, `mlflow`, `ray`, `worker`, `supervisor`).
    """
    return [process for process, owner in owned_processes(home) if not member or owner == member]


def owned_processes(home: Path) -> list[tuple[psutil.Process, str]]:
    """Return the stack's processes, each with the member that it belongs to."""
    mark = str(home.resolve())
    marked: dict[int, tuple[psutil.Process, str]] = {}
    sessions: dict[int, str] = {}
    unmarked: list[tuple[psutil.Process, int]] = []
    for process in psutil.process_iter():
        try:
            session = os.getsid(process.pid)
            variables = process.environ()
        except (psutil.Error, OSError):
            continue
        if variables.get(STACK) == mark:
            owner = variables.get(MEMBER, "")
            marked[process.pid] = (process, owner)
            sessions.setdefault(session, owner)
        else:
            unmarked.append((process, session))
    shared = [(process, sessions[session]) for process, session in unmarked if session in sessions]
    return [pair for pair in [*marked.values(), *shared] if is_alive(pair[0])]


def family(pid: int) -> list[psutil.Process]:
    """Return the process and all its descendants that live; empty when it is gone."""
    try:
        parent = psutil.Process(pid)
        return [process for process in [parent, *parent.children(recursive=True)] if is_alive(process)]
    except psutil.Error:
        return []


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process still runs; one that ended and was not yet collected by its parent does not."""
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def same_process(pid: int, created: float) -> bool:
    """Tell whether `pid` lives and is the process that was created then (seconds since 1970), not a reused number."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - created) < 1.0 and is_alive(process)
    except psutil.Error:
        return False


def stop_processes(processes: Iterable[psutil.Process], *, grace: float = 10.0) -> list[psutil.Process]:
    """Ask processes to end, end by force those that have not after `grace` seconds, return what still lives.

    The calling process is never stopped.
    """
    living = [process for process in processes if process.pid != os.getpid() and is_alive(process)]
    for process in living:
        _signal(process, force=False)
    living = _wait(living, grace)
    for process in living:
        _signal(process, force=True)
    return _wait(living, 5.0)


def stop_marked(home: Path, *, member: str = "", grace: float = 10.0, spare: Sequence[int] = ()) -> int:
    """Stop the stack's processes (or one member's), children that appear meanwhile too; return how many."""
    stopped: set[int] = set()
    for _ in range(5):
        found = [p for p in stack_processes(home, member=member) if p.pid not in spare and p.pid != os.getpid()]
        if not found:
            break
        stopped.update(process.pid for process in found)
        stop_processes(found, grace=grace)
    return len(stopped)


def free_ports(n: int, *, but: Iterable[int] = ()) -> list[int]:
    """Return `n` different TCP ports (20000-29999) that nobody listens on now; none of `but`, where somebody will."""
    promised = set(but)
    chosen: list[int] = []
    for port in SystemRandom().sample(_PORTS_FOR_TESTS, len(_PORTS_FOR_TESTS)):
        if len(chosen) == n:
            break
        if port not in promised and port_is_free(port, ""):
            chosen.append(port)
    return chosen


def port_is_free(port: int, host: str) -> bool:
    """Tell whether a server could listen on this port; `host` "" means every address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: connections that are only fading away (TIME_WAIT) do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def pss_bytes(processes: Iterable[psutil.Process]) -> int:
    """Return the proportional memory of processes in bytes: each shared page counts once, split among its users."""
    total = 0
    for process in processes:
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
    return total


class MemoryWatch:
    """The highest memory that a stack took while it was watched.

    Parameters
    ----------
    home : Path
        The stack's folder.
    pids : sequence of int, default ()
        Further processes to count with their descendants (the command that uses the stack).
    interval : float, default 3.0
        Seconds between two looks.

    Attributes
    ----------
    peak_bytes : int
        Largest sum of proportional set sizes seen so far.
    """

    def __init__(self, home: Path, pids: Sequence[int] = (), *, interval: float = 3.0) -> None:
        self.home = home
        self.pids = tuple(pids)
        self.interval = interval
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)

    def sample(self) -> int:
        """Return the memory taken now, in bytes, and remember it when it is the highest."""
        everyone = {process.pid: process for process in stack_processes(self.home)}
        for pid in self.pids:
            everyone.update({process.pid: process for process in family(pid)})
        now = pss_bytes(everyone.values())
        self.peak_bytes = max(self.peak_bytes, now)
        return now

    def start(self) -> "MemoryWatch":
        """Begin to watch in a thread; return the watch itself."""
        self._thread.start()
        return self

    def stop(self) -> int:
        """End watching after a last look; return the peak in bytes."""
        self._stop.set()
        self._thread.join()
        self.sample()
        return self.peak_bytes

    def __enter__(self) -> "MemoryWatch":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.sample()
            self._stop.wait(self.interval)


def _signal(process: psutil.Process, *, force: bool) -> None:
    try:
        process.kill() if force else process.terminate()
    except psutil.Error:
        return


def _wait(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    deadline = time.monotonic() + seconds
    living = [process for process in processes if is_alive(process)]
    while living and time.monotonic() < deadline:
        time.sleep(0.1)
        living = [process for process in living if is_alive(process)]
    return living
