"""A real MLflow server for the tests of tracking and of the registry, and the surroundings in which it is the one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from forge_core.settings import get_settings
from tests.servers import MlflowServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch, server: MlflowServer, tmp_path: Path) -> Iterator[None]:
    # The variables and not `set_tracking_uri`, which would leave them set for every later test.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()
