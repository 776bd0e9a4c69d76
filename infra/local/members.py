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


def ray_head(
    settings: Settings, inner: Mapping[str, int], *, address: str = "127.0.0.1", host: str = "127.0.0.1"
) -> tuple[str, ...]:
    """Return the command of a Ray head.

    Parameters
    ----------
    settings : Settings
        Ports, and the home, by which its session folder is named.
    inner : mapping of str to int
        A port for each of `INNER_PORTS`.
    address : str
        Of this node in the cluster; empty: the one that Ray finds.
    host : str
        Where the dashboard listens.
    """
    return (
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *("--log-color=false", *((f"--node-ip-address={address}",) if address else ()), f"--port={settings.ray_port}"),
        *("--include-dashboard=true", f"--dashboard-host={host}", f"--dashboard-port={settings.dashboard_port}"),
        *(f"--object-store-memory={_OBJECT_STORE_BYTES}", f"--temp-dir={ray_folder(settings)}"),
        # 0: the system picks a free port for each worker, which two heads on one machine cannot clash over.
        *("--min-worker-port=0", "--max-worker-port=0"),
        # The client server cannot be switched off, only moved away from another stack's.
        f"--ray-client-server-port={inner['ray_client']}",
        *(f"--dashboard-agent-listen-port={inner['ray_agent']}", f"--metrics-export-port={inner['ray_metrics']}"),
    )


def head_variables(inner: Mapping[str, int]) -> dict[str, str]:
    """Return the variables that only a Ray head gets: ports that two heads on one machine must not share."""
    return {
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(inner["serve_fallback_http"]),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(inner["serve_fallback_grpc"]),
    }


def worker_command(name: str) -> tuple[str, ...]:
    """Return the command of a Prefect worker that runs the flows of our pool as processes."""
    command = ("prefect", "worker", "start", "--pool", POOL, "--type", "process", "--install-policy", "never")
    return (sys.executable, "-m", *command, "--name", name)


def _ray(settings: Settings, inner: Mapping[str, int]) -> Member:
    return Member("ray", "Ray head", ray_head(settings, inner), settings.dashboard_url, variables=head_variables(inner))


def _worker(settings: Settings) -> Member:
    url = f"{settings.prefect_url}/work-pools/work-pool/{POOL}"
    return Member("worker", "Prefect worker", worker_command(WORKER), url, after="prefect", sweeps=False)
