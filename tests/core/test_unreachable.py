"""Servers that do not answer: which one, where it was looked for, how to start it; soon, not after minutes."""

import time

import pytest
import s3fs

from forge_core.data.sources import open_source
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    ["http://127.0.0.1:1/rows.csv", "postgresql://me:hidden@127.0.0.1:1/db?table=rows", "s3://rows/rows.parquet"],
)
def test_a_source_whose_server_is_not_there_is_named(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": f"http://{NOWHERE}"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    started = time.monotonic()
    with pytest.raises(ServiceUnavailable, match=r"cannot reach .*rows.*is the server up\?") as caught:
        list(open_source(source).batches())
    s3fs.S3FileSystem.clear_instance_cache()
    assert time.monotonic() - started < 40
    assert "hidden" not in str(caught.value)


def test_serve_that_is_not_there_is_named() -> None:
    with pytest.raises(ServiceUnavailable, match=r"expected Ray's dashboard at http://127\.0\.0\.1:1/.*make up"):
        get_serve_client(Settings(dashboard_port=1)).statuses()
