"""A real Prometheus and Alertmanager on the project's own files, and a receiver for what they send."""

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml

from infra.local.processes import free_ports

FILES = Path(__file__).resolve().parents[1] / "infra" / "prometheus"
PROGRAMS = ("prometheus", "prometheus-alertmanager")


@dataclass
class Watcher:
    """A running Prometheus, and the alerts that the receiver got."""

    url: str
    received: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Return a query's answer, an empty list where there are no series."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": query}, trust_env=False, timeout=10).json()
        if answer["status"] != "success":
            raise ValueError(f"{query}: {answer}")
        return answer["data"]["result"]

    def until(self, claim: Callable[[], Any], seconds: float = 60.0) -> Any:
        """Return the first answer that holds within so many seconds, else the last."""
        deadline = time.monotonic() + seconds
        while not (found := claim()) and time.monotonic() < deadline:
            time.sleep(0.3)
        return found


@contextmanager
def watching(folder: Path, api_port: int) -> Iterator[Watcher]:
    """Run both on copies of the project's files, with faster clocks and this test's addresses."""
    port, alert_port, hook_port = free_ports(3)
    shutil.copy(FILES / "rules.yml", folder)
    config = yaml.safe_load((FILES / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (folder / "targets").mkdir()
    for name, target in (("forge", api_port), ("alertmanager", alert_port)):
        (folder / "targets" / f"{name}.yml").write_text(yaml.safe_dump([{"targets": [f"127.0.0.1:{target}"]}]))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    alerts = yaml.safe_load((FILES / "alertmanager.yml").read_text())
    alerts["route"]["group_wait"] = "1s"
    alerts["receivers"][0]["webhook_configs"][0]["url"] = f"http://127.0.0.1:{hook_port}/"
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(alerts))
    watcher = Watcher(f"http://127.0.0.1:{port}")
    server = _receiver(hook_port, watcher.received)
    commands = (
        ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb",
         f"--web.listen-address=127.0.0.1:{port}"],
        ["prometheus-alertmanager", f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/alerts",
         f"--web.listen-address=127.0.0.1:{alert_port}", "--cluster.listen-address="],
    )  # fmt: skip
    processes = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.log").open("wb") as log:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        if not watcher.until(lambda: _is_ready(watcher.url)):
            raise RuntimeError((folder / "prometheus.log").read_text()[-2000:])
        yield watcher
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(20)
        server.shutdown()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", trust_env=False, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _receiver(port: int, received: list[dict[str, Any]]) -> HTTPServer:
    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.extend(json.loads(self.rfile.read(int(self.headers["content-length"])))["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Stay silent."""

    server = HTTPServer(("127.0.0.1", port), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
