"""Servers that do not answer: which one, where it was looked for, how to start it; soon, not after minutes."""

import time

import pytest

from forge_core.deployment.serve_client import get_serve_client
from forge_core.errors import ServiceUnavailable
from forge_core.settings import Settings
from forge_core.tracking.registry import Registry
from forge_core.training.tuning import connect

NOWHERE = "127.0.0.1:1"


def test_ray_that_is_not_there_is_named_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(ServiceUnavailable, match=f"expected Ray at {NOWHERE}.*make up.*RAY_ADDRESS"):
        connect(NOWHERE)
    assert time.monotonic() - started < 10


def test_mlflow_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with pytest.raises(ServiceUnavailable, match=f"expected MLflow at http://{NOWHERE}.*make up.*MLFLOW_TRACKING_URI"):
        Registry(f"http://{NOWHERE}").versions("flights")


def test_serve_that_is_not_there_is_named() -> None:
    with pytest.raises(ServiceUnavailable, match=r"expected Ray's dashboard at http://127\.0\.0\.1:1/.*make up"):
        get_serve_client(Settings(dashboard_port=1)).statuses()
