"""Every variable that the servers, flows, replicas and terminals of one stack share."""

import os
import secrets
import shlex
import sys
from pathlib import Path

from forge_core.deployment.serve_config import SERVE_VARIABLES
from forge_core.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
STACK = "MLOPS_FORGE_STACK"
MEMBER = "MLOPS_FORGE_MEMBER"
POOL = "local"

# Nothing of the stack reports home.
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_MODEL_CATALOG_URI": "",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WHYLOGS_NO_ANALYTICS": "1",
}

_FIXED = {
    # A missing PREFECT_API_URL must fail, not start a private server.
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    # A killed flow holds its deployment's only slot until this lease ends (default 300 s).
    "PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION": "30",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "forge_core,flows",
    # The same loggers speak outside of flows too.
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    # The job runners hold 1.4 GB and nothing here uses them.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Each call gives up after some seconds; the flows' tasks wait and try again.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "RAY_AUTH_MODE": "token",
    # Ray looks for new log files so often (default 0.5).
    "LOG_NAME_UPDATE_INTERVAL_S": "2",
    # One node has nowhere to drain to; `make down` shuts the applications down itself.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "2",
    **SERVE_VARIABLES,
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}


def environment(settings: Settings) -> dict[str, str]:
    """Return the variables that make any process a client of this stack.

    Parameters
    ----------
    settings : Settings
        Where the stack keeps its state and which ports it uses.

    Returns
    -------
    dict of str to str
        Absolute paths and URLs only, so that the caller's working directory does not matter.
    """
    home = settings.home.resolve()
    return {
        **_forge_variables(settings),
        **QUIET,
        **_FIXED,
        "FORGE_CHECKOUT": str(ROOT),
        "PYTHONPATH": str(ROOT),
        "PREFECT_API_URL": f"{settings.prefect_url}/api",
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home / "prefect" / "results"),
        "MLFLOW_TRACKING_URI": settings.mlflow_url,
        "RAY_ADDRESS": f"127.0.0.1:{settings.ray_port}",
        "RAY_AUTH_TOKEN_PATH": str(token_path(settings)),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(settings.haproxy_metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(settings.haproxy_stats_port),
    }


def apply_environment(settings: Settings) -> None:
    """Make this process, and what it starts, a client of the stack."""
    os.environ.update(environment(settings))


def child_environment(settings: Settings, member: str, extra: dict[str, str] | None = None) -> dict[str, str]:
    """Return the whole environment of one member: the caller's, the stack's, and the marks.

    The marks are how a leftover process of this stack is told from anybody else's; they are no part of
    `environment`, or a terminal that uses the stack would be stopped with it.
    """
    inherited = dict(os.environ)
    local = "127.0.0.1,localhost"
    bypass = ",".join(filter(None, [local, inherited.get("NO_PROXY") or inherited.get("no_proxy")]))
    path = os.pathsep.join(filter(None, [str(Path(sys.executable).parent), inherited.get("PATH")]))
    return {
        **inherited,
        **environment(settings),
        **(extra or {}),
        "PATH": path,
        "NO_PROXY": bypass,
        "no_proxy": bypass,
        "PYTHONUNBUFFERED": "1",
        STACK: str(settings.home.resolve()),
        MEMBER: member,
    }


def export_lines(settings: Settings) -> str:
    """Return shell lines that make a terminal a client of the stack: `eval "$(make -s env)"`."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(environment(settings).items())]
    lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    lines.append('export NO_PROXY="127.0.0.1,localhost${NO_PROXY:+,$NO_PROXY}"')
    return "\n".join(lines)


def token_path(settings: Settings) -> Path:
    """Return where Ray's token lies."""
    return settings.home.resolve() / "ray_token"


def ensure_token(path: Path) -> str:
    """Return Ray's token in a file (64 hexadecimal digits), made once and readable by its owner only."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32), encoding="ascii")
    return path.read_text(encoding="ascii").strip()


def _forge_variables(settings: Settings) -> dict[str, str]:
    """Return our own settings under their names, with paths made absolute."""
    values: dict[str, str] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if name in ("tracking_uri", "model_path"):
            continue
        if isinstance(value, Path):
            value = (value if name == "home" else ROOT / value).resolve()
        values[f"FORGE_{name.upper()}"] = str(value).lower() if isinstance(value, bool) else str(value)
    return values
