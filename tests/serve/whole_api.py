"""The whole API over trained models in this process, served over real HTTP."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from starlette.applications import Starlette

from serve_app.api import build_api
from serve_app.door import Door
from serve_app.live_version import LiveVersion
from tests.serve.boards import served
from tests.serve.live_models import BoardInProcess


def whole_api(board: BoardInProcess) -> Starlette:
    """Return the application with all routes, open to everybody."""
    return build_api(board, Door(list, open_without_key=True), trust_event_time=True)


@contextmanager
def served_models(versions: Sequence[LiveVersion], home: Path, default_model: str = "sample") -> Iterator[str]:
    """Serve versions over HTTP on a free port."""
    board = BoardInProcess(versions, default_model, f"sqlite:///{home / 'ledger.db'}")
    asyncio.run(board.route_all())
    with served(board) as url:
        yield url
