"""The few calls to Prefect's REST API that a person's terminal needs; no import of Prefect (seconds)."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx

from forge_core.errors import ForgeError, ServiceUnavailable

FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
Show = Callable[[dict[str, Any], list[dict[str, Any]]], None]


class PrefectApi:
    """A Prefect server by its base URL."""

    def __init__(self, url: str) -> None:
        self.url = f"{url}/api"
        self.client = httpx.Client(base_url=self.url, timeout=30.0, trust_env=False)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the JSON answer of one call."""
        for pause in (0.5, 1.0, 2.0, 4.0, None):
            try:
                answer = self.client.request(method, path, json=body)
            except httpx.HTTPError as error:
                raise ServiceUnavailable(
                    f"expected Prefect at {self.url}, found: {error}; start it with `make up`"
                ) from error
            if answer.status_code != 503 or pause is None:
                break
            time.sleep(pause)  # its database was locked and nothing was written; Prefect's own client retries too
        if answer.status_code >= 400:
            raise ForgeError(f"Prefect answered {answer.status_code} to {method} {path}: {answer.text[:300]}")
        return answer.json() if answer.content else None

    def run(self, deployment: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Start `flow/deployment` and return the flow run, as `prefect deployment run` does."""
        found = self.call("GET", f"/deployments/name/{deployment}")
        return self.call("POST", f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})

    def newest_run(self, deployment: str, since: datetime, patience: float = 60.0) -> dict[str, Any] | None:
        """Return the newest run of a deployment created after a moment, waiting for it a while; None without one."""
        found = self.call("GET", f"/deployments/name/{deployment}")
        query = {
            "flow_runs": {
                "deployment_id": {"any_": [found["id"]]},
                "expected_start_time": {"after_": since.isoformat()},
            },
            "sort": "EXPECTED_START_TIME_DESC",
            "limit": 1,
        }
        deadline = time.monotonic() + patience
        while not (runs := self.call("POST", "/flow_runs/filter", query)) and time.monotonic() < deadline:
            time.sleep(0.5)
        return runs[0] if runs else None

    def wait(self, run: dict[str, Any], show: Show, timeout: float = 600.0) -> dict[str, Any]:
        """Poll a run until it ends, showing it and its tasks; raise with its message when it failed."""
        deadline = time.monotonic() + timeout
        while True:
            run = self.call("GET", f"/flow_runs/{run['id']}")
            show(run, self.tasks(run))
            if run["state_type"] in FINAL:
                break
            if time.monotonic() > deadline:
                raise ForgeError(f"flow run {run['name']} is still {run['state_name']} after {timeout:.0f} s")
            time.sleep(0.5)
        if run["state_type"] != "COMPLETED":
            raise ForgeError(f"flow run {run['name']} ended {run['state_name']}: {run['state'].get('message')}")
        return run

    def tasks(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a run's task runs, its subflows' included, in the order they started."""
        own = self.call("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}, "limit": 200})
        children = self.call("POST", "/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run["id"]]}}})
        for child in children:
            own += self.tasks(child)
        started = [t for t in own if t["start_time"] and t["state_type"] != "PENDING"]
        return sorted((t for t in started if t["task_key"].split("-")[0] != "train"), key=lambda t: t["start_time"])


def now() -> datetime:
    """Return the present, UTC."""
    return datetime.now(UTC)
