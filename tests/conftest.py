"""The one real stack that tests share: its own home and free ports, up for the session, stopped by process id."""

import os
from collections.abc import Iterator

import pytest

from forge_core.settings import Settings, get_settings
from infra.local import stack as local
from infra.local.processes import free_ports
from tests.stack_settings import short_home, stack_settings


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
