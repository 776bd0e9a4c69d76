"""What all tests share: which run beside which, and one real stack, up for the session, stopped by process id."""

import os
from collections.abc import Iterator

import pytest

from forge_core.settings import Settings, get_settings
from infra.local import stack as local
from infra.local.processes import free_ports
from tests.stack_settings import short_home, stack_settings


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests that share a server into one group, which one process runs; those of the stack take longest, so first.

    Every HAProxy of a machine wants the same ports unless told otherwise, so there is one process that starts stacks.
    """
    for item in items:
        if item.get_closest_marker("stack"):
            group = "stack"
        else:
            group = "serve" if "serve" in item.path.parts[-2:] else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("stack") is None)


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
