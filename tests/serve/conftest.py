"""Live versions that the tests of the interfaces share."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import pytest

from serve_app.live_version import LiveVersion
from tests.serve.live_models import trained_versions


@pytest.fixture(scope="session")
def versions() -> Iterator[Mapping[str, LiveVersion]]:
    """The models `sample`, `mixed` and `numbers`, trained once and answered in this process."""
    with ExitStack() as stack:
        yield trained_versions(stack)
