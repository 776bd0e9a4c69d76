"""A switchboard over a small contract whose variants score in place, and its API served over real HTTP."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandera.pandas as pa
import uvicorn

from forge_core.data.contracts import Contract
from infra.local.processes import free_ports
from serve_app.api import build_api
from serve_app.bodies import USUAL, Limits
from serve_app.door import Door
from serve_app.journal import Journal
from serve_app.lanes import Lane
from serve_app.live_version import LiveVersion
from serve_app.router import Switchboard
from serve_app.steering import Steering

CONTRACT = Contract(pa.DataFrameSchema({"x": pa.Column("float64", pa.Check.le(400)), "town": pa.Column("str")}))

Scores = Callable[[list[float]], list[float]]


def rising(values: list[float]) -> list[float]:
    """Return a score that tells which row it belongs to."""
    return [(value + 1) / 602 for value in values]


class StillJournal(Journal):
    """Keeps what would be shipped."""

    async def _gather(self) -> None:
        return


class Board(Switchboard):
    """A switchboard whose versions are loaded from `known`; what would be shipped stays."""

    def __init__(self, known: dict[str, Scores], *, seconds: float = 0.002, patience: float = 30.0) -> None:
        super().__init__("memory://none", "m")
        self.journal = StillJournal(self.counting)
        self.known, self.seconds, self.patience, self.loads = known, seconds, patience, list[str]()

    def _load(self, model: str, version: str) -> LiveVersion:
        self.loads.append(version)
        scores = self.known[version]

        async def send(rows: list[Any]) -> Sequence[float]:
            await asyncio.sleep(self.seconds)
            return scores([row[0] for row in rows])

        columns, lane = CONTRACT.feature_columns, Lane(send, seconds=self.patience)
        return LiveVersion(model, version, CONTRACT, columns, "classification", [0, 1], {}, {}, lane)


@contextmanager
def served(
    board: Switchboard, limits: Limits = USUAL, door: Door | None = None, steering: Steering | None = None
) -> Iterator[str]:
    """Serve the API of a board over HTTP on a free port; a `Board` has a candidate 2 where it knows one."""
    (port,) = free_ports(1)
    door = door or Door(list, open_without_key=True)
    api = build_api(board, door, trust_event_time=True, limits=limits, steering=steering)
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    if isinstance(board, Board):
        asyncio.run(board.route({"m": {"champion": "1", **({"candidate": "2"} if "2" in board.known else {})}}))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
