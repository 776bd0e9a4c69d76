"""The four members of the stack: how each is started and what it waits for."""

import hashlib
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from forge_core.settings import Settings
from infra.local.environment import POOL
from infra.local.ports import own_mlflow

WORKER = "forge-local"
# Ports that nobody has to know: any free ones do, so that two stacks stand side by side.
INNER_PORTS = ("ray_client", "ray_agent", "ray_metrics", "serve_fallback_http", "serve_fallback_grpc")
_OBJECT_STORE_BYTES = 500_000_000


@dataclass(frozen=True)
class Member:
    """One server of the stack.

    Attributes
    ----------
    name : str
        Short name: of its log, in the state file, in the mark of its processes.
    title : str
        What people read.
    command : tuple of str
        Program and arguments.
    url : str
        Where a person looks at it; empty when nowhere.
    after : str
        The member that must answer before this one starts; empty for none.
    sweeps : bool
        Whether processes that it left behind are stopped before it starts again. Flow runs outlive their worker.
    variables : mapping of str to str
        Variables that only this member gets.
    """

    name: str
    title: str
    command: tuple[str, ...]
    url: str = ""
    after: str = ""
    sweeps: bool = True
    variables: Mapping[str, str] = field(default_factory=dict)


def members(settings: Settings, inner: Mapping[str, int]) -> tuple[Member, ...]:
    """Return the members in the order in which they are shown.

    Parameters
    ----------
    settings : Settings
        Ports and home.
    inner : mapping of str to int
        A port for each of `INNER_PORTS`.
    """
    chosen = [_prefect(settings)]
    if own_mlflow(settings):
        chosen.append(_mlflow(settings))
    return (*chosen, _ray(settings, inner), _worker(settings))


def ray_folder(settings: Settings) -> Path:
    """Return Ray's session folder: short, because Unix socket paths end at 107 characters, and one per home."""
    digest = hashlib.sha256(str(settings.home.resolve()).encode()).hexdigest()[:10]
    return Path(tempfile.gettempdir()) / f"forge-{digest}"


def _prefect(settings: Settings) -> Member:
    command = ("prefect", "server", "start", "--host", settings.host, "--port", str(settings.prefect_port))
    return Member("prefect", "Prefect server", (sys.executable, "-m", *command), settings.prefect_url)


def _mlflow(settings: Settings) -> Member:
    folder = settings.home.resolve() / "mlflow"
    command = (
        *("mlflow", "server", "--host", settings.host, "--port", str(settings.mlflow_port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{(folder / 'mlflow.db').as_posix()}"),
        *("--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")),
    )
    return Member("mlflow", "MLflow server", (sys.executable, "-m", *command), settings.mlflow_url)


def _ray(settings: Settings, inner: Mapping[str, int]) -> Member:
    command = (
        *("ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats", "--log-color=false"),
        *("--node-ip-address=127.0.0.1", f"--port={settings.ray_port}"),
        *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={settings.dashboard_port}"),
        *(f"--object-store-memory={_OBJECT_STORE_BYTES}", f"--temp-dir={ray_folder(settings)}"),
        # 0: the system picks a free port for each worker, which two heads on one machine cannot clash over.
        *("--min-worker-port=0", "--max-worker-port=0"),
        # The client server cannot be switched off, only moved away from another stack's.
        f"--ray-client-server-port={inner['ray_client']}",
        *(f"--dashboard-agent-listen-port={inner['ray_agent']}", f"--metrics-export-port={inner['ray_metrics']}"),
    )
    variables = {
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(inner["serve_fallback_http"]),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(inner["serve_fallback_grpc"]),
    }
    return Member("ray", "Ray head", (sys.executable, "-m", *command), settings.dashboard_url, variables=variables)


def _worker(settings: Settings) -> Member:
    command = (
        *("prefect", "worker", "start", "--pool", POOL, "--type", "process"),
        *("--name", WORKER, "--install-policy", "never"),
    )
    url = f"{settings.prefect_url}/work-pools/work-pool/{POOL}"
    return Member("worker", "Prefect worker", (sys.executable, "-m", *command), url, after="prefect", sweeps=False)
