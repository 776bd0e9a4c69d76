"""The parts of the image's entry points that need no server: variables, children, logs, health."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge_core.errors import ConfigurationError, ServiceUnavailable
from forge_core.settings import Settings
from infra.docker.entrypoint.children import Children
from infra.docker.entrypoint.logs import Follower
from infra.docker.entrypoint.node import answers, node_command, node_runs
from infra.docker.entrypoint.variables import member_variables, take_variables
from infra.local.processes import free_ports, stack_processes

OWNED = ("FORGE_", "PREFECT_", "MLFLOW_", "RAY_", "MODEL_PATH")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """This process without any stack's variables, and without those that a test takes afterwards."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(OWNED):
            monkeypatch.delenv(name)
    yield monkeypatch
    for name in set(os.environ) - set(before):
        del os.environ[name]


@pytest.fixture
def children(tmp_path: Path, bare: pytest.MonkeyPatch) -> Iterator[Children]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with Children(Settings(home=tmp_path, startup_timeout=1.0)) as children:
        yield children
    assert stack_processes(tmp_path) == []
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_what_the_operator_set_stays_and_what_is_not_given_stays_unset(
    bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bare.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    bare.setenv("RAY_ADDRESS", "ray-head:6379")
    settings = Settings(home=tmp_path, tracking_uri="")
    take_variables(settings)
    told = member_variables(settings, "worker")
    for variables in (os.environ, told):
        assert variables["PREFECT_API_URL"] == "http://prefect:4200/api"
        assert variables["RAY_AUTH_MODE"] == "token" and variables["FORGE_HOME"] == str(tmp_path)
        assert "MLFLOW_TRACKING_URI" not in variables
    assert told["RAY_ADDRESS"] == "ray-head:6379"
    bare.delenv("RAY_ADDRESS")
    assert "RAY_ADDRESS" not in member_variables(settings, "worker")


def test_the_head_makes_the_token_that_others_read(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "run" / "ray_token"
    path.parent.mkdir()
    bare.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    settings = Settings(home=tmp_path / "home")
    with pytest.raises(ConfigurationError, match="RAY_AUTH_TOKEN_PATH"):
        take_variables(settings)
    take_variables(settings, new_token=True)
    token = path.read_text()
    assert len(token) == 64 and os.environ["RAY_AUTH_TOKEN"] == token and path.stat().st_mode & 0o777 == 0o600
    del os.environ["RAY_AUTH_TOKEN"]
    take_variables(settings)
    assert os.environ["RAY_AUTH_TOKEN"] == token


def test_a_home_that_cannot_be_written_is_told(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(ConfigurationError, match="FORGE_HOME"):
        take_variables(Settings(home=tmp_path / "home"))


def test_told_to_stop_the_children_end_and_the_code_is_0(children: Children) -> None:
    children.start("worker", (sys.executable, "-c", "import time; time.sleep(60)"))
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert children.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize(("code", "told"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_a_child_that_ends_gives_its_code(children: Children, code: str, told: int) -> None:
    children.start("trainer", (sys.executable, "-c", code))
    assert children.wait() == told


@pytest.mark.slow
def test_what_does_not_come_up_is_told_with_its_reason(children: Children) -> None:
    with pytest.raises(ServiceUnavailable, match=r"the head did not come up within 1 s .*: not yet"):
        children.until(lambda: "not yet", "the head")
    children.settings = Settings(home=children.settings.home, startup_timeout=60.0)
    children.start("ray", (sys.executable, "-c", "raise SystemExit(2)"))
    with pytest.raises(ServiceUnavailable, match="the head did not come up: ray ended with exit code 2"):
        children.until(lambda: "not yet", "the head")
    children.told.set()
    assert children.until(lambda: "not yet", "the head") is False


def test_logs_are_followed_in_whole_lines_and_without_passwords(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture
) -> None:
    old, new = tmp_path / "a.err", tmp_path / "b.err"
    old.write_text("of an earlier start\n")
    follower = Follower(lambda: sorted(tmp_path.glob("*.err")))
    with old.open("a") as file:
        file.write(":actor_name:Router\nledger postgresql://forge:secret@db/forge\nhalf")
    new.write_text("new file\n")
    follower.step()
    assert capfdbinary.readouterr().out == b"ledger postgresql://forge:***@db/forge\nnew file\n"
    with old.open("a") as file:
        file.write(" and half\n")
    follower.step()
    assert capfdbinary.readouterr().out == b"half and half\n"


def test_a_node_for_programs_gives_the_cluster_nothing_and_takes_no_replica() -> None:
    command = node_command("ray-head:6379", ("--num-cpus=1",), drivers_only=True)
    assert {"--address=ray-head:6379", "--num-cpus=0", "--labels=forge-drivers=only"} <= set(command)
    assert command[-1] == "--num-cpus=1" and "--num-cpus=0" not in node_command("ray-head:6379", ())


def test_an_address_that_is_none_is_refused_and_one_without_a_head_is_told() -> None:
    (port,) = free_ports(1)
    assert f"127.0.0.1:{port} does not answer" in answers(f"127.0.0.1:{port}") and not node_runs(f"127.0.0.1:{port}")
    for wrong in ("ray://head:10001", "ray-head", "head:port"):
        with pytest.raises(ConfigurationError, match="expected host:port of a Ray head in RAY_ADDRESS"):
            node_command(wrong, ())
