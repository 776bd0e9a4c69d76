"""The services of infra/docker/docker-compose.yml as plain processes: their own commands, variables and health checks.

Only addresses differ: a service's name and port become 127.0.0.1 and a free port.
"""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

# A machine that is busy with other tests starves Serve's proxies, which Serve would then kill.
PATIENT = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60"}
ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "infra" / "docker" / "docker-compose.yml"
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"


def compose() -> dict[str, Any]:
    """Return the file, its merge keys resolved."""
    return yaml.safe_load(FILE.read_text())


def image_variables() -> dict[str, str]:
    """Return the variables that our image sets."""
    block = re.search(r"^ENV PATH=.*?(?:[^\\]\n)", DOCKERFILE.read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    pairs = re.findall(r"(\w+)=(\S*?)(?: \\)?$", block[0], re.MULTILINE)
    return {name: value for name, value in pairs if name not in ("PATH", "PYTHONPATH")}


@dataclass
class Processes:
    """Services that run, each with its own folder below `home`.

    Attributes
    ----------
    home : Path
        Folder of logs and states.
    addresses : dict of str to str
        `service:port` as the file has it, to where it is here.
    variables : dict of str to str
        What all services get besides.
    """

    home: Path
    addresses: dict[str, str]
    variables: dict[str, str]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def log(self, service: str) -> str:
        """Return what a service printed."""
        return (self.home / f"{service}.log").read_text(errors="replace")

    def start(self, service: str) -> None:
        """Start a service as its container would be."""
        with (self.home / f"{service}.log").open("ab") as log:
            self.running[service] = subprocess.Popen(
                self.command(service), cwd=ROOT, env=self.environment(service), stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def command(self, service: str) -> list[str]:
        """Return a service's program and arguments."""
        told = compose()["services"][service]
        words = [*told.get("entrypoint", ["python", "-m", "infra.docker.entrypoint"]), *told["command"]]
        return self._here(words)

    def environment(self, service: str) -> dict[str, str]:
        """Return a service's variables."""
        home = self.home / service
        told = {**image_variables(), **compose()["services"][service].get("environment", {})}
        here = {name: self._place(str(value)) for name, value in told.items()}
        # As in a container: nothing of this terminal's stack.
        owned = ("FORGE_", "PREFECT_", "MLFLOW_", "RAY_", "AWS_", "PG", "MODEL_PATH")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(owned)}
        return {**clean, **here, **self.variables, "FORGE_HOME": str(home), "PREFECT_HOME": str(home / "prefect")}

    def wait(self, *services: str, seconds: float = 300.0) -> None:
        """Return once the health check of each service says that it is well; one that ends is started once again."""
        deadline = time.monotonic() + seconds
        again = {service for service in services if compose()["services"][service]["restart"] == "unless-stopped"}
        for service in services:
            while (said := self.sick(service)) and time.monotonic() < deadline:
                code = self.running[service].poll()
                if code is not None:
                    assert service in again, f"{service} ended with {code}: {self.log(service)[-3000:]}"
                    again.remove(service)
                    self.start(service)
                time.sleep(0.5)
            assert not said, f"{service} is not well: {said}\n{self.log(service)[-3000:]}"

    def sick(self, service: str) -> str:
        """Return what a service's health check says against it; the empty string when it is well."""
        told = compose()["services"][service].get("healthcheck", {}).get("test")
        words = told[1:] if told else ["python", "-m", "infra.docker.entrypoint", "health", "serve"]
        done = subprocess.run(
            self._here(words), cwd=ROOT, env=self.environment(service), capture_output=True, text=True, check=False
        )
        return "" if done.returncode == 0 else (done.stderr or f"exit code {done.returncode}")[-500:]

    def stop(self, service: str, seconds: float = 60.0) -> int:
        """End a service as Docker does and return its exit code."""
        process = self.running.pop(service)
        process.send_signal(signal.SIGTERM)
        return process.wait(seconds)

    def kill_all(self) -> None:
        """End by force whatever was left, with what it started."""
        for process in self.running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        self.running.clear()

    def _here(self, words: list[str]) -> list[str]:
        ports = {name.rpartition(":")[2]: place.rpartition(":")[2] for name, place in self.addresses.items()}
        found = [self._place(word) for word in words]
        found = [ports.get(word, "127.0.0.1" if word == "0.0.0.0" else word) for word in found]
        return [sys.executable if word == "python" else word for word in found]

    def _place(self, text: str) -> str:
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
        for name, place in self.addresses.items():
            text = text.replace(name, place).replace(f"127.0.0.1:{name.rpartition(':')[2]}/", f"{place}/")
        return text
