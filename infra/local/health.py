"""Asking the members how they are, over HTTP and without a heavy client."""

import http.client
import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import datetime
from typing import Any

from forge_core.errors import ServiceUnavailable
from forge_core.settings import Settings
from infra.local.environment import POOL, token_path
from infra.local.members import WORKER
from infra.local.processes import family

Run = dict[str, Any]

# 127.0.0.1 is never reached through a proxy, whatever the environment says.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def fetch(url: str, *, method: str = "GET", body: Any = None, token: str = "", timeout: float = 3.0) -> Any:
    """Return a server's answer: parsed JSON, else its text, None when empty.

    Raises
    ------
    ServiceUnavailable
        No connection, no answer within `timeout` seconds, or a status of 400 and above.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method)
    request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with _OPENER.open(request, timeout=timeout) as response:
            text = response.read().decode()
    except urllib.error.HTTPError as error:
        raise ServiceUnavailable(f"{url} answers with status {error.code}.", context={"status": error.code}) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ServiceUnavailable(f"{url} does not answer: {error}.") from error
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text


def ask(name: str, settings: Settings, started_at: float, *, timeout: float = 3.0) -> str:
    """Return why a member is not healthy; the empty string when it is.

    Parameters
    ----------
    name : str
        `prefect`, `mlflow`, `ray` or `worker`.
    settings : Settings
        Addresses.
    started_at : float
        When its process began, in seconds since 1970: an older worker of the same name does not count.
    timeout : float, default 3.0
        Seconds to wait for the answer.
    """
    try:
        return _QUESTIONS[name](settings, started_at, timeout)
    except ServiceUnavailable as error:
        return str(error)
    except (OSError, KeyError, TypeError, ValueError) as error:
        return f"its answer cannot be read: {error!r}."


def dashboard(settings: Settings, path: str, *, method: str = "GET", timeout: float = 10.0) -> Any:
    """Return the answer of Ray's dashboard to a request with Ray's token: its variable's, else this stack's."""
    token = os.environ.get("RAY_AUTH_TOKEN") or token_path(settings).read_text(encoding="ascii").strip()
    return fetch(f"{settings.dashboard_url}{path}", method=method, token=token, timeout=timeout)


def crash_dead_runs(api: str, dead: Callable[[Run], bool], *, token: str = "") -> int:
    """Mark as crashed the pool's unfinished runs that `dead` is true of, and return how many there were.

    `api` is the address of Prefect's API, with the key `token` where it needs one. Such a run would hold its
    deployment's only slot until its lease ends, and be shown as running for ever.
    """
    unfinished = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
    query = {"flow_runs": unfinished, "work_pools": {"name": {"any_": [POOL]}}, "limit": 200}
    runs = fetch(f"{api}/flow_runs/filter", method="POST", body=query, token=token)
    state = {"type": "CRASHED", "name": "Crashed", "message": "The process of this run ended before its work did."}
    crashed = [run for run in runs if dead(run)]
    for run in crashed:
        url = f"{api}/flow_runs/{run['id']}/set_state"
        fetch(url, method="POST", body={"state": state, "force": True}, token=token, timeout=10.0)
    return len(crashed)


def of_earlier_stack(_: Run) -> bool:
    """Tell that a run is dead before the first worker starts: no process of this stack can be alive."""
    return True


def without_worker(run: Run) -> bool:
    """Tell whether a run is dead while there is no worker: its process is gone, or will never be started."""
    return _process_gone(run) or (run["state_type"] == "PENDING" and not run["infrastructure_pid"])


def unreported(run: Run) -> bool:
    """Tell whether a run is dead that a living worker may not know of, an earlier worker having started it."""
    return bool(run["state_type"] == "RUNNING") and _process_gone(run)


def _process_gone(run: Run) -> bool:
    # `1234` or `host:1234`, by Prefect's release.
    host, _, pid = (run["infrastructure_pid"] or "").rpartition(":")
    return host in {"", socket.gethostname()} and pid.isdigit() and not family(int(pid))


def _prefect(settings: Settings, _: float, timeout: float) -> str:
    answer = fetch(f"{settings.prefect_url}/api/health", timeout=timeout)
    return "" if answer is True else f"its health check says {answer!r}."


def _mlflow(settings: Settings, _: float, timeout: float) -> str:
    answer = fetch(f"{settings.mlflow_url}/health", timeout=timeout)
    return "" if answer == "OK" else f"its health check says {answer!r}."


def _ray(settings: Settings, _: float, timeout: float) -> str:
    dashboard(settings, "/api/version", timeout=timeout)
    answer = dashboard(settings, "/api/gcs_healthz", timeout=timeout)
    return "" if "success" in str(answer) else f"its control store says {answer!r}."


def _worker(settings: Settings, started_at: float, timeout: float) -> str:
    url = f"{settings.prefect_url}/api/work_pools/{POOL}/workers/filter"
    for worker in fetch(url, method="POST", body={}, timeout=timeout):
        seen = datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp()
        if worker["name"] == WORKER and worker["status"] == "ONLINE" and seen >= started_at - 1.0:
            return ""
    return f"the Prefect server has not heard from the worker {WORKER!r}."


_QUESTIONS: dict[str, Callable[[Settings, float, float], str]] = {
    "prefect": _prefect,
    "mlflow": _mlflow,
    "ray": _ray,
    "worker": _worker,
}
