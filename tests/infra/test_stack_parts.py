"""The parts of the local stack that need no server: processes, ports, the state file, the variables."""

import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from forge_core.errors import ConfigurationError, Conflict
from forge_core.settings import Settings
from infra.local import stack
from infra.local.environment import MEMBER, STACK, ensure_token, export_lines, token_path
from infra.local.members import INNER_PORTS, members, ray_folder
from infra.local.processes import (
    MemoryWatch,
    free_ports,
    is_alive,
    pss_bytes,
    stack_processes,
    stop_marked,
    stop_processes,
)
from infra.local.state import StackState, read_state, write_state
from tests.stack_settings import stack_settings

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A marked process that ignores SIGTERM, with an unmarked child in its session."""
    child = (
        "import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], env={})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"{child}; {STUBBORN}"],
        stdout=subprocess.PIPE,
        env={**os.environ, STACK: str(tmp_path.resolve()), MEMBER: "worker"},
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    stop_marked(tmp_path, grace=0.1)
    process.wait(5)
    process.stdout.close()


def test_processes_are_found_by_mark_and_by_session(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    found = stack_processes(tmp_path)
    assert sleeper.pid in {process.pid for process in found}
    assert len(found) == 2
    assert stack_processes(tmp_path, member="ray") == []
    assert stack_processes(tmp_path / "other") == []


def test_a_process_that_ignores_the_request_is_ended_by_force(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    found = stack_processes(tmp_path)
    assert stop_processes(found, grace=0.5) == []
    assert sleeper.poll() == -9
    assert not any(is_alive(process) for process in found)


def test_memory_watch_keeps_the_highest_sum(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    with MemoryWatch(tmp_path, [os.getpid()], interval=0.05) as watch:
        time.sleep(0.2)
    own = pss_bytes([psutil.Process()])
    assert watch.peak_bytes > own > 1_000_000


def test_free_ports_differ_and_keep_out_of_the_range_of_ray() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(20000 <= port < 30000 for port in ports)
    promised = range(20000, 29980)  # nobody listens on them yet, and somebody will
    assert set(free_ports(5, but=promised)).isdisjoint(promised)


def test_a_taken_port_is_named_with_its_holder_and_its_variable(tmp_path: Path) -> None:
    settings = stack_settings(tmp_path / "home", free_ports)
    with socket.create_server(("127.0.0.1", settings.mlflow_port)), pytest.raises(ConfigurationError) as error:
        stack.up(settings, quiet=True)
    text = str(error.value)
    assert f"Port {settings.mlflow_port} for the MLflow server" in text
    assert f"process {os.getpid()} (" in text
    assert "FORGE_MLFLOW_PORT" in text
    assert stack_processes(settings.home) == []


def test_two_services_on_one_port_are_refused(tmp_path: Path) -> None:
    settings = stack_settings(tmp_path, free_ports)
    settings = settings.model_copy(update={"api_port": settings.prefect_port})
    with pytest.raises(ConfigurationError, match="FORGE_PREFECT_PORT and FORGE_API_PORT"):
        stack.up(settings, quiet=True)


def test_two_commands_on_one_home_do_not_mix(tmp_path: Path) -> None:
    settings = stack_settings(tmp_path, free_ports)
    with (tmp_path / "stack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="Another `up` or `down`"):
            stack.down(settings, quiet=True)


def test_a_home_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    settings = Settings(home=tmp_path / "file")
    with pytest.raises(ConfigurationError, match="FORGE_HOME must be a folder"):
        stack.up(settings, quiet=True)


def test_a_state_file_of_another_process_with_our_number_is_not_believed(tmp_path: Path) -> None:
    write_state(StackState(str(tmp_path), os.getpid(), psutil.Process().create_time() - 1000, {}))
    state = read_state(tmp_path)
    assert state is not None
    assert not state.supervised
    assert not stack.status(Settings(home=tmp_path)).running


def test_a_broken_state_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text('{"home": ')
    assert read_state(tmp_path) is None


def test_the_variables_agree_with_the_settings_and_carry_no_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = stack_settings(tmp_path, free_ports)
    variables = stack.environment(settings)
    assert STACK not in variables
    assert STACK not in export_lines(settings)
    for name in list(os.environ):
        if name.startswith("FORGE_"):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    again = Settings(_env_file=None)
    assert again.home == tmp_path.resolve()
    assert again.policy_file.is_absolute()
    for name in ("api_port", "prefect_url", "mlflow_url", "ray_port", "dashboard_url", "storage", "ledger", "model"):
        assert getattr(again, name) == getattr(settings, name)


def test_the_token_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert ensure_token(token_path(settings)) == ensure_token(token_path(settings))
    assert token_path(settings).stat().st_mode & 0o777 == 0o600


def test_a_tracking_server_elsewhere_leaves_out_our_own(tmp_path: Path) -> None:
    inner = dict.fromkeys(INNER_PORTS, 20000)
    ours = Settings(home=tmp_path, tracking_uri="")
    elsewhere = Settings(home=tmp_path, tracking_uri="http://tracking.example:5000")
    assert [member.name for member in members(ours, inner)] == ["prefect", "mlflow", "ray", "worker"]
    assert [member.name for member in members(elsewhere, inner)] == ["prefect", "ray", "worker"]


def test_the_ray_folder_leaves_room_for_socket_names(tmp_path: Path) -> None:
    deep = Settings(home=tmp_path / ("long" * 40))
    assert len(str(ray_folder(deep))) < 40
    assert ray_folder(deep) != ray_folder(Settings(home=tmp_path))
