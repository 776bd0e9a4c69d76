"""Our own server for the serving bench: a local stack of its own with both models live, keys, profile and log on."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray

from forge_core.deployment.routing import read_state
from forge_core.deployment.routing_table import desired_table, held_versions
from forge_core.deployment.serve_client import get_serve_client
from forge_core.ledger import Ledger
from infra.local.environment import ROOT, child_environment
from infra.local.processes import free_ports, stack_processes
from infra.local.stack import clean, down, environment, up
from tests.benchmarks.serving_work import MODELS, Served, bring_live, write_policy
from tests.stack_settings import short_home, stack_settings

_KEY = ("serve_app.keys", "create", "--owner", "bench", "--scopes", "predict")


class Ours:
    """The stack: started, stopped and started again with the same data.

    Parameters
    ----------
    folder : Path
        Where the pipelines for the peers go.
    """

    def __init__(self, folder: Path) -> None:
        home = short_home()
        policy = write_policy(home / "policy.yaml")
        self.settings = stack_settings(home, free_ports).model_copy(update={"model": "forest", "policy_file": policy})
        self.folder, self.key, self.url = folder, "", self.settings.api_url

    def start(self) -> None:
        """Bring the stack up, with whatever was live before."""
        up(self.settings, quiet=True)
        os.environ.update(environment(self.settings))

    def bring_live(self) -> dict[str, Served]:
        """Train, register and deploy both models; make a key."""
        served = {name: bring_live(self.settings, name, self.folder) for name in MODELS}
        self.key = _make_key(self)
        time.sleep(5)  # routers read keys every few seconds
        return served

    def ask(self, model: str, records: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
        """Return the probabilities of class 1, each row by a call of its own where it is one, else as a batch."""
        path, body = ("predict", one_row(records)) if len(records) == 1 else ("predict/batch", columns(records))
        headers = {"Authorization": f"Bearer {self.key}"}
        answer = httpx.post(
            f"{self.url}/models/{model}/{path}", json=body, headers=headers, trust_env=False, timeout=60
        )
        if not answer.is_success:
            raise RuntimeError(f"our server answered {answer.status_code}: {answer.text[:500]}")
        told = answer.json()
        replies = told["predictions"] if len(records) > 1 else {name: [value] for name, value in told.items()}
        shares = np.array(replies["prediction_probability"])
        return np.where(np.array(replies["prediction"]) == 1, shares, 1 - shares)

    def watch(self, on: bool) -> None:
        """Switch profile and prediction log."""
        serve = get_serve_client(self.settings)
        table = desired_table(read_state(Ledger(self.settings.ledger))[1], {}, None)
        configuration = serve.config.compose(held_versions(table), table)
        if not on:
            _without_watching(configuration)
        httpx.put(serve.url, json=configuration, headers=serve.headers, trust_env=False, timeout=60).raise_for_status()
        self._settle(serve.statuses)

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the stack."""
        return stack_processes(self.settings.home)

    def _settle(self, statuses: Any) -> None:
        deadline = time.monotonic() + 60
        time.sleep(1.0)  # until then the statuses are those of before
        while time.monotonic() < deadline:
            if set(statuses().values()) == {"RUNNING"} and _answers(self.url):
                return
            time.sleep(0.2)
        raise RuntimeError(f"Serve did not settle: {statuses()}")

    def stop(self) -> None:
        """Stop the stack and keep its data."""
        down(self.settings, quiet=True)

    def clean(self) -> None:
        """Stop the stack and remove its data."""
        clean(self.settings, quiet=True)


def one_row(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the body of /predict."""
    return {"features": records[0]}


def columns(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the body of /predict/batch."""
    return {"columns": {name: [record[name] for record in records] for name in records[0]}, "reply": "columns"}


def _without_watching(configuration: dict[str, Any]) -> None:
    router = next(app for app in configuration["applications"] if app["name"] == "router")
    router["deployments"][0]["user_config"]["watch"] = dict.fromkeys(MODELS)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", trust_env=False, timeout=5.0).is_success
    except httpx.HTTPError:
        return False


def _make_key(ours: Ours) -> str:
    made = subprocess.run(
        [sys.executable, "-m", *_KEY],
        cwd=ROOT, env=child_environment(ours.settings, "bench"), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return made.stdout.split()[-1]
