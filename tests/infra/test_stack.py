"""The local stack with its real servers: one for this file, killed in several ways, and whole again each time."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from forge_core.errors import ConfigurationError, ServiceUnavailable
from forge_core.settings import Settings
from infra.local import health, stack
from infra.local.environment import child_environment
from infra.local.processes import free_ports, owned_processes, port_is_free, stack_processes
from infra.local.state import read_state
from tests.stack_settings import short_home, stack_settings

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    """A running stack of this file's own, because its tests kill members."""
    settings = stack_settings(short_home(), free_ports)
    try:
        stack.up(settings, quiet=True, deployments=False)
        yield settings
    finally:
        stack.clean(settings, quiet=True)


def _pids(settings: Settings) -> dict[str, int]:
    return {member.name: member.pid for member in stack.status(settings).members}


def _until(claim: Callable[[], bool], seconds: float = 40.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if claim():
            return True
        time.sleep(0.25)
    return False


def _leaders(settings: Settings) -> list[str]:
    """Return the members that have a process at the head of a session; twice means twice started."""
    return sorted(owner for process, owner in owned_processes(settings.home) if os.getsid(process.pid) == process.pid)


def test_every_member_answers_and_is_weighed(settings: Settings) -> None:
    found = stack.status(settings)
    assert found.healthy
    assert [member.name for member in found.members] == ["prefect", "mlflow", "ray", "worker"]
    assert all(member.memory_bytes > 10_000_000 and member.uptime_seconds > 0 for member in found.members)
    assert found.memory_bytes < 4_000_000_000


def test_up_on_a_running_stack_changes_nothing(settings: Settings) -> None:
    before = _pids(settings)
    stack.up(settings, quiet=True, deployments=False)
    assert _pids(settings) == before


def test_other_ports_for_a_running_stack_are_refused(settings: Settings) -> None:
    other = settings.model_copy(update={"prefect_port": free_ports(1)[0]})
    with pytest.raises(ConfigurationError, match="FORGE_PREFECT_PORT"):
        stack.up(other, quiet=True)


def test_the_dashboard_asks_for_the_token(settings: Settings) -> None:
    with pytest.raises(ServiceUnavailable, match="401"):
        health.fetch(f"{settings.dashboard_url}/api/version")


def test_status_from_a_terminal_tells_by_its_exit_code(settings: Settings) -> None:
    command = [sys.executable, "-m", "infra.local", "status"]
    shown = subprocess.run(command, env=_terminal(settings), capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "Prefect worker" in shown.stdout
    nowhere = _terminal(settings.model_copy(update={"home": settings.home / "none"}))
    assert subprocess.run(command, env=nowhere, capture_output=True, check=False).returncode == 3


def test_a_killed_worker_comes_back(settings: Settings) -> None:
    before = _pids(settings)
    os.kill(before["worker"], signal.SIGKILL)
    assert _until(lambda: _pids(settings)["worker"] not in {0, before["worker"]})
    assert _until(lambda: stack.status(settings).healthy)
    after = _pids(settings)
    assert {name for name in before if before[name] != after[name]} == {"worker"}
    assert stack.status(settings).members[3].restarts == 1


@pytest.mark.long
def test_a_member_that_does_not_come_up_is_told_with_its_log_and_leaves_others_alone(settings: Settings) -> None:
    home = short_home()
    broken = stack_settings(home, free_ports)
    try:
        (home / "mlflow").mkdir()
        (home / "mlflow" / "mlflow.db").write_bytes(b"this is no database" * 100)
        with pytest.raises(ServiceUnavailable) as error:
            stack.up(broken, quiet=True, deployments=False)
        assert "MLflow server did not come up" in str(error.value)
        assert "file is not a database" in str(error.value)
        assert str(home / "logs" / "mlflow.log") in str(error.value)
        assert stack_processes(home) == []
    finally:
        stack.clean(broken, quiet=True)
    assert stack.status(settings).healthy


@pytest.mark.long
def test_up_after_a_killed_supervisor_replaces_every_member_once(settings: Settings) -> None:
    run = _run_that_never_ends(settings)
    before = stack.status(settings)
    os.kill(before.supervisor_pid, signal.SIGKILL)
    assert _until(lambda: not stack.status(settings).running)
    old = stack_processes(settings.home)
    assert old
    stack.up(settings, quiet=True, deployments=False)
    assert stack.status(settings).healthy
    assert _leaders(settings) == ["mlflow", "prefect", "ray", "supervisor", "worker"]
    assert not set(_pids(settings).values()) & {member.pid for member in before.members}
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in old)
    told = health.fetch(f"{settings.prefect_url}/api/flow_runs/{run}")
    assert told["state_type"] == "CRASHED"


def test_down_leaves_no_process_and_keeps_the_data(settings: Settings) -> None:
    assert stack.down(settings, quiet=True)
    assert stack_processes(settings.home) == []
    assert read_state(settings.home) is None
    assert all(port_is_free(port, "") for port in (settings.prefect_port, settings.ray_port, settings.dashboard_port))
    with sqlite3.connect(settings.home / "prefect" / "prefect.db") as database:
        assert database.execute("select count(*) from work_pool").fetchone() == (1,)
    assert not stack.down(settings, quiet=True)


def _terminal(settings: Settings) -> dict[str, str]:
    variables = child_environment(settings, "terminal")
    return {name: value for name, value in variables.items() if not name.startswith("MLOPS_FORGE_")}


def _run_that_never_ends(settings: Settings) -> str:
    """Return the id of a flow run of the pool that is called running and has no process."""
    api = f"{settings.prefect_url}/api"
    flow = health.fetch(f"{api}/flows/", method="POST", body={"name": "lost"})
    body = {"name": "lost", "flow_id": flow["id"], "work_pool_name": "local"}
    deployment = health.fetch(f"{api}/deployments/", method="POST", body=body)
    state = {"state": {"type": "RUNNING", "name": "Running"}}
    return _create_run(f"{api}/deployments/{deployment['id']}/create_flow_run", state)


def _create_run(url: str, body: dict[str, Any], tries: int = 10) -> str:
    """Return the id of a new run; the server says 503 while its SQLite file is locked, as Prefect's client knows."""
    while True:
        tries -= 1
        try:
            return str(health.fetch(url, method="POST", body=body)["id"])
        except ServiceUnavailable as error:
            if error.context.get("status") != 503 or not tries:
                raise
            time.sleep(1.0)
