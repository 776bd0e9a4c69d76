"""Composes the whole Serve configuration from the desired state and PUTs it to Ray's dashboard.

A PUT replaces every application, so there is exactly one place that composes. Each live version is an
application of its own, `variant-{model}-v{version}`; the router learns the routing table through
`user_config`, so a swap reconfigures it and restarts nothing: load the new version beside the old, wait
until it runs (it warms itself with its stored example), flip the table, then remove the old one.

The table has candidates too, which the router holds and gives no traffic. A candidate is loaded only for the
deployment that tries it: after a restart nobody waits for one that a killed deployment left behind.
"""

import fcntl
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from forge_core.deployment.kuberay import KubeRay
from forge_core.deployment.rayservice import config_for_pods
from forge_core.deployment.routing import State, read_state
from forge_core.deployment.routing_table import (
    Table,
    champions_alone,
    desired_table,
    held_versions,
    names_of,
    told_table,
    variant_name,
)
from forge_core.deployment.serve_config import ServeConfig, get_serve_config
from forge_core.errors import ConfigurationError, ModelError, ServiceUnavailable
from forge_core.ledger import Ledger
from forge_core.settings import Settings

logger = logging.getLogger(__name__)


class ServeClient:
    """Brings Serve to the desired state.

    Parameters
    ----------
    dashboard_url : str
        Base URL of Ray's dashboard.
    config : ServeConfig
        What the configuration is composed of.
    token : str, optional
        Ray's authentication token.
    api_key : str
        What our own calls to the prediction API show.
    api_url : str
        Where they go; by default to where the configuration says that the API listens.
    kuberay : KubeRay, optional
        Passes the configuration on, where Serve runs below a KubeRay service.
    """

    def __init__(
        self,
        dashboard_url: str,
        config: ServeConfig,
        *,
        token: str | None = None,
        api_key: str = "",
        api_url: str = "",
        kuberay: KubeRay | None = None,
    ) -> None:
        self.url = f"{dashboard_url}/api/serve/applications/"
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.config, self.api_key, self._kuberay = config, api_key, kuberay
        self.api_url = api_url or f"http://{config.host}:{config.port}"

    def reconcile(
        self,
        ledger: Ledger,
        *,
        trying: str | None = None,
        timeout: float = 180.0,
        progress: Callable[[str], None] = logger.info,
    ) -> Table:
        """Bring Serve to the ledger's desired state without dropping a request; return the live routing table.

        Parameters
        ----------
        trying : str, optional
            The model whose candidate is loaded. Of other models a candidate that is held already stays.
        timeout : float
            Seconds that applications have to come up.

        Raises
        ------
        ModelError
            When a new version does not start; the old one keeps serving.
        ServiceUnavailable
            When Ray's dashboard does not answer.
        """
        with self._alone():
            return self._reconcile(read_state(ledger)[1], trying, timeout, progress)

    def _reconcile(self, state: State, trying: str | None, timeout: float, progress: Callable[[str], None]) -> Table:
        live = self._live_table()
        wanted = desired_table(state, live, trying)
        new, old, running = held_versions(wanted), held_versions(live), self._statuses()
        if new - old or not running:
            progress(f"loading {names_of(new - old) or 'the router'} beside what runs")
            self._put(new | old, live)
            try:
                self._wait(new | old, timeout, progress)
            except ModelError:
                if not live:  # Serve begins anew: the champions serve, whatever is wrong with one on trial
                    self._serve_champions(champions_alone(wanted), timeout, progress)
                raise
        if wanted != live:
            progress(told_table(wanted))
            self._put(new | old, wanted)
            self._wait(new | old, timeout, progress)
        stray = {name for name in running if name.startswith("variant-")} - {variant_name(*v) for v in new}
        changed = self._changed(new, wanted)
        if old - new or stray:
            progress(f"removing {', '.join(sorted(stray)) or names_of(old - new)}")
        if changed:
            progress(f"changing {', '.join(changed)}")
        if old - new or stray or changed:
            self._put(new, wanted)
        if changed:
            self._wait(new, timeout, progress)
        return wanted

    def _serve_champions(self, table: Table, timeout: float, progress: Callable[[str], None]) -> None:
        progress(told_table(table))
        self._put(held_versions(table), table)
        self._wait(held_versions(table), timeout, progress)

    def _changed(self, variants: Iterable[tuple[str, str]], table: Table) -> list[str]:
        """Return the applications that Serve was last told otherwise: other replicas, windows, arguments."""
        told = {name: app.get("deployed_app_config") or {} for name, app in self._statuses().items()}
        apps = {app["name"]: app for app in self.config.compose(variants, table)["applications"]}
        # Serve writes keys of its own beside ours, such as the logging that all applications share.
        return sorted(n for n, app in apps.items() if {key: told.get(n, {}).get(key) for key in app} != app)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process of this machine at a time change Serve: a PUT replaces what another one is loading.

        The lock goes with the process that holds it, so a killed one keeps nobody waiting.
        """
        name = f"forge-serve-{os.getuid()}-{hashlib.sha256(self.url.encode()).hexdigest()[:16]}.lock"
        with (Path(tempfile.gettempdir()) / name).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def statuses(self) -> dict[str, str]:
        """Return every Serve application with its status (RUNNING, DEPLOYING, DEPLOY_FAILED …)."""
        return {name: app["status"] for name, app in self._statuses().items()}

    def replicas(self) -> dict[str, list[int]]:
        """Return the process ids of each application's running replicas."""
        return {
            name: [r["pid"] for d in app["deployments"].values() for r in d["replicas"] if r["state"] == "RUNNING"]
            for name, app in self._statuses().items()
        }

    def _live_table(self) -> Table:
        """Read the table back from Serve itself, so that a head restart (which forgets all) is seen."""
        router = self._statuses().get("router")
        if not router or router["status"] not in ("RUNNING", "DEPLOYING", "UNHEALTHY"):
            return {}
        config: dict[str, Any] = next(
            (d for d in router["deployed_app_config"]["deployments"] if d["name"] == "Router"), {}
        )
        return config.get("user_config", {}).get("models", {})

    def _statuses(self) -> dict[str, Any]:
        return self._request("GET").json().get("applications", {})

    def _put(self, variants: Iterable[tuple[str, str]], table: Table) -> None:
        config = self.config.compose(variants, table)
        if self._kuberay is not None:
            self._kuberay.put(config, self._statuses)
            return
        answer = self._request("PUT", json=config)
        if answer.status_code >= 400:
            raise ConfigurationError(f"Serve refused the configuration: {answer.text.strip()[-500:]}")

    def _request(self, method: str, **options: Any) -> httpx.Response:
        try:
            # `Ray-Serve` calls go to this machine or cluster, never through a proxy of the environment.
            with httpx.Client(trust_env=False, timeout=60.0, headers=self.headers) as client:
                answer = client.request(method, self.url, **options)
        except httpx.HTTPError as error:
            raise ServiceUnavailable(
                f"expected Ray's dashboard at {self.url}, found: {error or type(error).__name__}; "
                "start it with `make up`"
            ) from error
        if answer.status_code == 401:
            raise ServiceUnavailable(f"Ray's dashboard at {self.url} refused our token; see RAY_AUTH_TOKEN_PATH")
        return answer

    def _wait(self, variants: Iterable[tuple[str, str]], timeout: float, progress: Callable[[str], None]) -> None:
        names = {"router", "profiler", "recorder", *(variant_name(m, v) for m, v in variants)}
        deadline = time.monotonic() + timeout
        seen: dict[str, str] = {}
        while True:
            apps = self._statuses()
            statuses = {name: apps[name]["status"] if name in apps else "NOT_STARTED" for name in names}
            for name, status in statuses.items():
                if seen.get(name) != status:
                    progress(f"{name}: {status.lower()}")
            seen = statuses
            if failed := [n for n, s in statuses.items() if s == "DEPLOY_FAILED"]:
                raise ModelError(f"{failed[0]} did not start, what ran before goes on: {_reason(apps[failed[0]])}")
            if all(status == "RUNNING" for status in statuses.values()):
                return
            if time.monotonic() > deadline:
                waiting = {n: s for n, s in statuses.items() if s != "RUNNING"}
                reasons = "; ".join(_reason(apps[n]) for n in waiting if n in apps)
                raise ModelError(f"not running after {timeout:.0f} s: {waiting}; {reasons}; see FORGE_HOME/logs")
            time.sleep(0.3)


def get_serve_client(settings: Settings) -> ServeClient:
    """Return a client with the settings' addresses; the token comes from Ray's own variables."""
    token_file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    token = os.environ.get("RAY_AUTH_TOKEN") or (token_file.read_text().strip() if token_file.is_file() else None)
    config, kuberay = get_serve_config(settings), None
    if settings.rayservice:
        config, kuberay = config_for_pods(config), KubeRay(settings.rayservice)
    return ServeClient(
        settings.dashboard_url,
        config,
        token=token,
        api_key=settings.api_key,
        api_url=settings.api_url,
        kuberay=kuberay,
    )


def _reason(app: Mapping[str, Any]) -> str:
    messages = [app.get("message", ""), *(d.get("message", "") for d in app.get("deployments", {}).values())]
    return " | ".join(m.strip()[-600:] for m in messages if m) or "no message"
