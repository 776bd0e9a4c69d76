"""The local stack as one thing: `up`, `status`, `down`, `clean`."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from rich.console import Console

from forge_core.errors import ConfigurationError, Conflict, ServiceUnavailable
from forge_core.settings import Settings
from infra.local.deployments import register_deployments, tail
from infra.local.environment import ROOT, apply_environment, child_environment, ensure_token, environment, token_path
from infra.local.members import ray_folder
from infra.local.ports import check_ports, differing_ports, own_mlflow
from infra.local.processes import same_process, stack_processes, stop_marked
from infra.local.serving import await_api, begin_reconcile
from infra.local.state import MemberState, StackState, read_state, remove_state
from infra.local.status import MemberStatus, StackStatus, status

__all__ = ["MemberStatus", "StackStatus", "apply_environment", "clean", "down", "environment", "status", "up"]

_STOP_SECONDS = 60.0


def up(settings: Settings, *, quiet: bool = False, deployments: bool = True) -> None:
    """Return once every member and the prediction API answer; a stack that runs already is left as it is.

    Parameters
    ----------
    settings : Settings
        Home, ports, and the seconds that each member may take.
    quiet : bool, default False
        Print nothing.
    deployments : bool, default True
        Register the flows of deployments/prefect.yaml and bring Serve to the ledger's desired state (about 8 s).

    Raises
    ------
    ConfigurationError
        A port is taken or given twice, or the running stack uses other ports.
    ServiceUnavailable
        A member did not come up, and what had been started is stopped again; or the flows could not be
        registered, and the stack goes on.
    Conflict
        Another `up` or `down` works on the same home.
    """
    console = Console(quiet=quiet, highlight=False)
    home = settings.home.resolve()
    _make_folders(home)
    with _alone(home):
        state = read_state(home)
        if state is not None and state.supervised:
            _join(settings, state, console)
        else:
            _begin(settings, console)
        if deployments:
            begun = time.monotonic()
            reconciler = begin_reconcile(settings)
            register_deployments(settings)
            console.print(f"  [green]✓[/green] {'Flows registered':<16}{time.monotonic() - begun:6.1f} s")
            await_api(settings, reconciler)
            console.print(f"  [green]✓[/green] {'Prediction API':<16}{time.monotonic() - begun:6.1f} s")
    _print_addresses(settings, console)


def down(settings: Settings, *, quiet: bool = False) -> bool:
    """Stop every process of the stack, keep its data, and return whether anything had been running.

    Raises
    ------
    ServiceUnavailable
        A process could not be stopped.
    Conflict
        Another `up` or `down` works on the same home.
    """
    console = Console(quiet=quiet, highlight=False)
    home = settings.home.resolve()
    if not home.exists():
        console.print(f"Nothing runs: there is no {home}.")
        return False
    with _alone(home):
        stopped = _stop_all(home)
    sentence = f"Stopped {stopped} processes; none is left. The data stays in {home}."
    console.print(sentence if stopped else f"Nothing was running. The data stays in {home}.", soft_wrap=True)
    return stopped > 0


def clean(settings: Settings, *, quiet: bool = False) -> None:
    """Stop the stack and remove its home with everything in it."""
    down(settings, quiet=quiet)
    shutil.rmtree(ray_folder(settings), ignore_errors=True)
    shutil.rmtree(settings.home.resolve(), ignore_errors=True)


def _join(settings: Settings, state: StackState, console: Console) -> None:
    """Wait for a stack that somebody started before; give members that had failed another chance."""
    if differing := differing_ports(settings, state.ports):
        raise ConfigurationError(
            f"The stack in {state.home} runs on other ports than the settings say ({', '.join(differing)}). "
            f"Stop it with `make down` first, or set the ports back."
        )
    if any(member.phase == "failed" for member in state.members.values()):
        os.kill(state.supervisor_pid, signal.SIGHUP)
        time.sleep(1.0)
    console.print("The stack runs already.")
    _await_members(settings, state.supervisor_pid, console)


def _begin(settings: Settings, console: Console) -> None:
    home = settings.home.resolve()
    _clear_leftovers(home, console)
    check_ports(settings)
    ensure_token(token_path(settings))
    _fresh_ray_folder(settings)
    supervisor = _start_supervisor(settings)
    try:
        _await_members(settings, supervisor.pid, console)
    except BaseException:
        console.print("Stopping what had been started.")
        _stop_all(home)
        raise


def _clear_leftovers(home: Path, console: Console) -> None:
    if (home / "stack.json").exists():
        remove_state(home)
        console.print("The state file was of a supervisor that is gone; it was removed.")
    if count := stop_marked(home, grace=5.0):
        console.print(f"Stopped {count} processes that an earlier stack had left behind.")


def _start_supervisor(settings: Settings) -> subprocess.Popen[bytes]:
    logs = settings.home.resolve() / "logs"
    for path in logs.glob("*.log"):
        path.replace(path.with_suffix(".log.1"))
    with (logs / "supervisor.log").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "infra.local", "supervise"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=child_environment(settings, "supervisor"),
            start_new_session=True,
        )


def _await_members(settings: Settings, supervisor_pid: int, console: Console) -> None:
    home = settings.home.resolve()
    begun = time.monotonic()
    created = psutil.Process(supervisor_pid).create_time()
    shown: set[str] = set()
    while True:
        state = read_state(home)
        if not same_process(supervisor_pid, created):
            log = home / "logs" / "supervisor.log"
            raise ServiceUnavailable(f"The supervisor ended at once.\n{tail(log)}\nThe whole log: {log}")
        seats = list(state.members.values()) if state is not None and state.supervisor_pid == supervisor_pid else []
        for seat in seats:
            if seat.phase == "failed":
                raise ServiceUnavailable(_not_up(seat, seat.message))
            if seat.phase == "running" and seat.name not in shown:
                shown.add(seat.name)
                console.print(f"  [green]✓[/green] {seat.title:<16}{seat.seconds_to_start:6.1f} s")
        if seats and len(shown) == len(seats):
            return
        waited = time.monotonic() - begun
        for seat in seats:
            # What waits for another member has had no time of its own yet.
            if seat.phase not in {"running", "waiting"} and waited > settings.startup_timeout:
                reason = f"no answer within {settings.startup_timeout:.0f} s (FORGE_STARTUP_TIMEOUT): {seat.message}"
                raise ServiceUnavailable(_not_up(seat, reason))
        if waited > 2 * settings.startup_timeout:
            raise ServiceUnavailable(f"The supervisor brought nothing up; its log: {home / 'logs' / 'supervisor.log'}")
        time.sleep(0.2)


def _not_up(seat: MemberState, reason: str) -> str:
    return (
        f"The {seat.title} did not come up: {reason}\nThe last lines of its log:\n{tail(Path(seat.log))}\n"
        f"The whole log: {seat.log}"
    )


def _stop_all(home: Path) -> int:
    """Stop the supervisor, which stops its members, then whatever is left; return how many processes there were."""
    before = len(stack_processes(home))
    state = read_state(home)
    for process in stack_processes(home, member="supervisor"):
        process.terminate()
    deadline = time.monotonic() + _STOP_SECONDS
    while stack_processes(home, member="supervisor") and time.monotonic() < deadline:
        time.sleep(0.2)
    before = max(before, stop_marked(home, grace=5.0))
    if left := [process.pid for process in stack_processes(home) if process.pid != os.getpid()]:
        raise ServiceUnavailable(f"These processes of the stack do not end: {left}. Look at them, then try again.")
    if state is not None:
        remove_state(home)
    return before


def _print_addresses(settings: Settings, console: Console) -> None:
    rows = {
        "Prefect": settings.prefect_url,
        "MLflow" if own_mlflow(settings) else "MLflow (not ours)": settings.mlflow_url,
        "Ray dashboard": settings.dashboard_url,
        "Prediction API": settings.api_url,
        "Logs": str(settings.home.resolve() / "logs"),
    }
    for name, address in rows.items():
        console.print(f"  {name:<18}{address}", soft_wrap=True)


def _fresh_ray_folder(settings: Settings) -> None:
    folder = ray_folder(settings)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)


def _make_folders(home: Path) -> None:
    try:
        for folder in (home, home / "logs", home / "prefect", home / "mlflow" / "artifacts"):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"FORGE_HOME must be a folder that can be written: {home} is not ({error})."
        ) from error


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    with (home / "stack.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"Another `up` or `down` works on {home}; wait until it is done.") from None
        yield
