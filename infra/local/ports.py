"""The stack's ports: which setting holds each, and a clear word when one cannot be used."""

from collections.abc import Mapping

import psutil

from forge_core.errors import ConfigurationError
from forge_core.settings import Settings
from infra.local.processes import port_is_free

PURPOSES = {
    "prefect_port": "the Prefect server",
    "mlflow_port": "the MLflow server",
    "ray_port": "the Ray head",
    "dashboard_port": "Ray's dashboard",
    "api_port": "the prediction API",
    "haproxy_metrics_port": "the ingress proxy's metrics",
    "haproxy_stats_port": "the ingress proxy's statistics page",
}
# HAProxy binds these two on every address, and so does Ray's GCS.
_EVERY_ADDRESS = {"haproxy_metrics_port", "haproxy_stats_port", "ray_port"}


def own_mlflow(settings: Settings) -> bool:
    """Tell whether the tracking server is this stack's own, not one elsewhere named by MLFLOW_TRACKING_URI."""
    local = f"http://{settings.host}:{settings.mlflow_port}"
    return settings.tracking_uri.rstrip("/") in {"", local}


def stack_ports(settings: Settings) -> dict[str, int]:
    """Return the ports that the settings give to this stack, by field name."""
    names = [name for name in PURPOSES if name != "mlflow_port" or own_mlflow(settings)]
    return {name: getattr(settings, name) for name in names}


def check_ports(settings: Settings) -> None:
    """Return nothing when all ports can be used.

    Raises
    ------
    ConfigurationError
        Two services share a port, or somebody else listens on one: says which, for what, who holds it and
        which variable changes it.
    """
    seen: dict[int, str] = {}
    for name, port in stack_ports(settings).items():
        if port in seen:
            raise ConfigurationError(
                f"Every service needs its own port: {variable(seen[port])} and {variable(name)} are both {port}. "
                f"Give one of them another number.",
                context={"port": port},
            )
        seen[port] = name
    for name, port in stack_ports(settings).items():
        if not port_is_free(port, "" if name in _EVERY_ADDRESS else settings.host):
            raise ConfigurationError(_taken(name, port), context={"port": port, "variable": variable(name)})


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"FORGE_{name.upper()}"


def holder(port: int) -> tuple[int, str] | None:
    """Return process number and name of who listens on a port; None when that cannot be seen."""
    try:
        listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        for connection in listening:
            if connection.laddr and connection.laddr.port == port and connection.pid:
                return connection.pid, psutil.Process(connection.pid).name()
    except psutil.Error:
        return None
    return None


def differing_ports(settings: Settings, running: Mapping[str, int]) -> list[str]:
    """Return the variables whose port differs from the one that a running stack uses."""
    wanted = stack_ports(settings)
    return [variable(name) for name, port in wanted.items() if name in running and running[name] != port]


def _taken(name: str, port: int) -> str:
    found = holder(port)
    by = f"process {found[0]} ({found[1]})" if found else "a process that this user cannot see"
    return (
        f"Port {port} for {PURPOSES[name]} is taken by {by}. "
        f"Stop it, or choose another port with {variable(name)} (environment or .env)."
    )
