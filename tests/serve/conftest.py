"""Live versions, and a server of them, that the tests of the interfaces share."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import pytest

from serve_app.live_version import LiveVersion
from tests.serve.live_models import trained_versions
from tests.serve.whole_api import served_models


@pytest.fixture(scope="session")
def versions() -> Iterator[Mapping[str, LiveVersion]]:
    """The models `sample`, `mixed` and `numbers`, trained once and answered in this process."""
    with ExitStack() as stack:
        yield trained_versions(stack)


@pytest.fixture(scope="session")
def api_url(versions: Mapping[str, LiveVersion], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the whole API over them."""
    with served_models(list(versions.values()), tmp_path_factory.mktemp("api")) as url:
        yield url
