"""What all tests share: which run beside which, and one real stack, up for the session, stopped by process id."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forge_core.settings import Settings, get_settings
from infra.local import stack as local
from infra.local.processes import free_ports
from tests.stack_settings import short_home, stack_settings

# Every HAProxy of a machine wants the same ports unless told otherwise, so one process has all tests with stacks.
_TOGETHER = {"docs": "stack", "flows": "stack", "infra": "stack", "serve": "serve"}


def _group(path: str) -> str:
    """Return what a test file shares a process with: the stack, the served models, or only itself."""
    return _TOGETHER.get(Path(path).parent.name, path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the group that takes longest."""
    items.sort(key=lambda item: _group(str(item.path)) != "stack")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand groups to processes whole; the plugin's own groups do not survive pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid.partition("::")[0])

    return ByGroup(config, log)


@pytest.fixture(scope="session")
def stack() -> Iterator[Settings]:
    """Prefect, MLflow, Ray with Serve and a worker, with the sample model as default; this process is its client."""
    settings = stack_settings(short_home(), free_ports)
    before = dict(os.environ)
    try:
        local.up(settings, quiet=True)
        local.apply_environment(settings)
        get_settings.cache_clear()
        yield settings
    finally:
        os.environ.clear()
        os.environ.update(before)
        get_settings.cache_clear()
        local.clean(settings, quiet=True)
