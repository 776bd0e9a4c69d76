"""Real servers for a test's time (PostgreSQL, S3, MLflow, HTTP), on 127.0.0.1 and free ports, stopped by process id."""

import http.server
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests

from infra.local.processes import free_ports

S3_KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def postgres_server() -> Iterator[str]:
    """Give the URL of an empty database `postgresql://postgres@127.0.0.1:PORT/postgres`; skips without the programs."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("needs PostgreSQL's server programs: install the Debian package `postgresql`")
    # PostgreSQL refuses to run as root; its own user comes with the package.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    home = Path(tempfile.mkdtemp(prefix="forge-postgres-"))
    (port,) = free_ports(1)
    try:
        if as_user:
            shutil.chown(home, "postgres")
        made = subprocess.run(
            [*as_user, str(programs / "initdb"), "-D", str(home / "data"), "-U", "postgres", "-A", "trust", "-N"],
            cwd=home, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (home / "log").open("w") as log:
            server = subprocess.Popen(
                [*as_user, str(programs / "postgres"), "-D", str(home / "data"), *options],
                cwd=home, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            _wait_for_postgres(programs, port, home / "log")
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            # runuser's child is the postmaster, whose own number stands in its file; SIGINT is its fast shutdown.
            pid_file = home / "data" / "postmaster.pid"
            if pid_file.exists():
                os.kill(int(pid_file.read_text().split()[0]), signal.SIGINT)
            server.wait(30)
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch, *buckets: str) -> Iterator[str]:
    """Give the endpoint of an S3 server with the buckets in it, which the `AWS_…` variables name meanwhile."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    endpoint = f"http://127.0.0.1:{port}"
    for name, value in {**S3_KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    requests.post(f"{endpoint}/moto-api/reset", timeout=10)  # the server before, in this process, left its own
    try:
        for bucket in buckets:
            s3fs.S3FileSystem().mkdir(bucket)
        yield endpoint
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def http_server(folder: Path) -> Iterator[str]:
    """Give the URL of a web server of a folder's files; below /refused it answers 403, below /broken 503."""

    class Files(http.server.SimpleHTTPRequestHandler):
        def send_head(self) -> Any:
            for part, status in {"/refused": 403, "/broken": 503}.items():
                if self.path.startswith(part):
                    self.send_error(status)
                    return None
            return super().send_head()

        def log_message(self, format: str, *args: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def _postgres_programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if found:
        return found[-1].parent
    program = shutil.which("initdb")
    return Path(program).resolve().parent if program else None


def _wait_for_postgres(programs: Path, port: int, log: Path) -> None:
    ready = [str(programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-q"]
    for _ in range(200):
        if subprocess.run(ready, check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError(f"expected PostgreSQL on port {port} within 20 s; its log ends: {log.read_text()[-500:]}")


class MlflowServer:
    """An MLflow server of our own, that can be killed and started again with what it had."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_ports(1)[0]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--serve-artifacts", "--artifacts-destination", str(self.folder / "artifacts")]
        variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env={**os.environ, **variables}, start_new_session=True,
                stdout=log, stderr=log,
            )  # fmt: skip
        until = time.monotonic() + 90
        while not self.answers:
            assert time.monotonic() < until, (self.folder / "server.log").read_text()[-2000:]
            time.sleep(0.25)

    @property
    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.uri}/health", trust_env=False, timeout=2.0).is_success
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
