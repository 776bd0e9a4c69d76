"""`health serve|node|worker`: whether this container does what it is there for."""

import os
import sys
from collections.abc import Callable, Sequence

from forge_core.errors import ForgeError, ServiceUnavailable
from forge_core.settings import Settings
from infra.docker.entrypoint.node import node_runs
from infra.local.health import fetch

_WORKER_PORT = "8080"


def health(settings: Settings, options: Sequence[str]) -> int:
    """Return 0 when the named part is well, 1 with a sentence on stderr when not, 2 for a part that is not known."""
    part = options[0] if options else "serve"
    if part not in _PARTS:
        sys.stderr.write(f"expected one of {', '.join(_PARTS)}, found {part!r}\n")
        return 2
    try:
        _PARTS[part](settings)
    except ForgeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _serve(settings: Settings) -> None:
    fetch(f"{settings.api_url}/health")


def _node(settings: Settings) -> None:
    address = os.environ.get("RAY_ADDRESS", "")
    if not node_runs(address):
        raise ServiceUnavailable(f"no node of the Ray cluster at {address} runs here")


def _worker(settings: Settings) -> None:
    fetch(f"http://127.0.0.1:{os.environ.get('PREFECT_WORKER_WEBSERVER_PORT', _WORKER_PORT)}/health")
    if os.environ.get("RAY_ADDRESS"):
        _node(settings)


_PARTS: dict[str, Callable[[Settings], None]] = {"serve": _serve, "node": _node, "worker": _worker}
