"""A version goes live through a KubeRay service: written there with the pod's account, read back from Serve."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from forge_core.deployment.kuberay import KubeRay
from forge_core.deployment.rayservice import config_for_pods
from forge_core.deployment.routing import nominate, promote
from forge_core.deployment.serve_client import ServeClient, get_serve_client
from forge_core.deployment.serve_config import get_serve_config
from forge_core.errors import ConfigurationError, ServiceUnavailable
from forge_core.ledger import Ledger
from forge_core.settings import Settings

PATCHED = "/apis/ray.io/v1/namespaces/mlops-forge/rayservices/forge"


class Cluster:
    """Kubernetes' API and Serve's, with a KubeRay between them that passes on what was written at the third look."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []
        self.served: dict[str, Any] = {}
        self.looks, self.status, self.passes_on = 0, 200, True
        self.requests: list[tuple[str, str]] = []

    def patch(self, body: dict[str, Any]) -> None:
        self.written.append(yaml.safe_load(body["spec"]["serveConfigV2"]))
        self.looks = 0

    def applications(self) -> dict[str, Any]:
        self.looks += 1
        if self.written and self.passes_on and self.looks >= 3:
            self.served = self.written[-1]
        apps = self.served.get("applications", [])
        return {a["name"]: {"status": "RUNNING", "deployed_app_config": a, "deployments": {}} for a in apps}


@pytest.fixture
def cluster() -> Iterator[tuple[Cluster, str]]:
    known = Cluster()

    class Api(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, {"applications": known.applications()})

        def do_PATCH(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known.requests.append((self.path, str(self.headers["Authorization"])))
            assert self.headers["Content-Type"] == "application/merge-patch+json"
            if known.status < 400:
                known.patch(body)
            self.answer(known.status, {"message": "rayservices is forbidden"})

        def answer(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield known, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("t-1\n")
    (tmp_path / "namespace").write_text("mlops-forge")
    return tmp_path


def client(url: str, account: Path, pass_on_seconds: float = 20.0) -> ServeClient:
    settings = Settings.model_construct(profile="cluster", ledger_url="postgresql://u:secret@db/x")
    kuberay = KubeRay("forge", kubernetes_url=url, account=account, pass_on_seconds=pass_on_seconds)
    return ServeClient(url, config_for_pods(get_serve_config(settings)), kuberay=kuberay)


@pytest.mark.slow
def test_a_version_goes_live_through_the_rayservice(
    tmp_path: Path, account: Path, cluster: tuple[Cluster, str]
) -> None:
    known, url = cluster
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    for step in (nominate, promote):
        step(ledger, "flights", "7", actor="test", reason="a test")
    serve = client(url, account)
    assert serve.reconcile(ledger) == {"flights": {"champion": "7"}}
    # Loaded first, then routed to; each time it waited until KubeRay had passed it on.
    assert [tables(config) for config in known.written] == [{}, {"flights": {"champion": "7"}}]
    for config in known.written:
        assert "variant-flights-v7" in [app["name"] for app in config["applications"]]
        assert config["http_options"]["host"] == "0.0.0.0" and config["proxy_location"] == "EveryNode"
    # Whoever may read a RayService reads no password there.
    assert "secret" not in yaml.safe_dump(known.written)
    (account / "token").write_text("t-2\n")
    told: list[str] = []
    serve.reconcile(ledger, progress=told.append)
    assert not told and len(known.written) == 2
    assert set(known.requests) == {(PATCHED, "Bearer t-1")}


def tables(config: dict[str, Any]) -> dict[str, Any]:
    router = next(app for app in config["applications"] if app["name"] == "router")
    return router["deployments"][0]["user_config"]["models"]


@pytest.mark.slow
def test_what_kuberay_does_not_pass_on_is_told(tmp_path: Path, account: Path, cluster: tuple[Cluster, str]) -> None:
    known, url = cluster
    known.passes_on = False
    with pytest.raises(ServiceUnavailable, match=r"profiler, recorder, router unchanged.*describe rayservice"):
        client(url, account, pass_on_seconds=0.5).reconcile(Ledger(f"sqlite:///{tmp_path}/ledger.db"))


@pytest.mark.slow
def test_an_account_that_may_not_is_told_what_it_needs(
    tmp_path: Path, account: Path, cluster: tuple[Cluster, str]
) -> None:
    known, url = cluster
    known.status = 403
    with pytest.raises(ServiceUnavailable, match="give it `patch` on that RayService"):
        client(url, account).reconcile(Ledger(f"sqlite:///{tmp_path}/ledger.db"))
    known.status = 422
    with pytest.raises(ConfigurationError, match="Kubernetes refused"):
        client(url, account).reconcile(Ledger(f"sqlite:///{tmp_path}/ledger.db"))


def test_outside_of_a_pod_the_setting_is_refused(tmp_path: Path) -> None:
    settings = Settings.model_construct(home=tmp_path, rayservice="forge")
    with pytest.raises(ConfigurationError, match="FORGE_RAYSERVICE is 'forge'"):
        get_serve_client(settings)
