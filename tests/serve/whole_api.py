"""The whole API over trained models in this process, served over real HTTP."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from forge_core.errors import ForgeError
from infra.local.processes import free_ports
from serve_app.api import build_api
from serve_app.docs_page import docs_routes
from serve_app.live_version import LiveVersion
from serve_app.openapi import openapi_document
from serve_app.protocol import problem_of
from serve_app.v2_routes import v2_routes
from tests.serve.live_models import BoardInProcess


def whole_api(board: BoardInProcess) -> Starlette:
    """Return the application with all routes, open to everybody."""
    api = build_api(board, trust_event_time=True)
    known = {getattr(route, "path", None) for route in api.routes}

    def admit(request: Request, scope: str) -> None:
        assert scope == "predict"

    def document() -> dict[str, Any]:
        return openapi_document(list(board.live.values()), board.default_model)

    async def told(request: Request, error: Exception) -> Response:
        assert isinstance(error, ForgeError)
        return problem_of(error)

    more = [*v2_routes(board, admit), *docs_routes(document, admit)]
    api.router.routes.extend(route for route in more if route.path not in known)
    api.add_exception_handler(ForgeError, told)
    return api


@contextmanager
def served_models(versions: Sequence[LiveVersion], home: Path, default_model: str = "sample") -> Iterator[str]:
    """Serve versions over HTTP on a free port."""
    board = BoardInProcess(versions, default_model, f"sqlite:///{home / 'ledger.db'}")
    (port,) = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(whole_api(board), host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    asyncio.run(board.route_all())
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
