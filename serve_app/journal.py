"""Served rows on their way to the profiler: a bounded buffer that never holds a reply up."""

import asyncio
import logging
from typing import Any

from ray import serve

from forge_core.monitoring.metrics import DROPPED
from serve_app.counting import Counting

logger = logging.getLogger(__name__)

Row = tuple[Any, ...]
_GATHER_SECONDS = 0.25
_SHIPMENT = 4096


class Journal:
    """Gathers served rows and ships them to the profiler a quarter of a second later, many at once.

    Parameters
    ----------
    counting : Counting
        Where dropped rows are counted.
    max_rows : int
        Rows that wait at most; more are dropped and counted.
    """

    def __init__(self, counting: Counting, max_rows: int = 50_000) -> None:
        self.counting, self.max_rows = counting, max_rows
        self.rows: dict[tuple[str, str, float], list[Row]] = {}
        self.waiting = self.dropped = 0
        self._shipping: asyncio.Task[None] | None = None
        self._log: Any = None

    def add(self, model: str, version: str, window_hours: float, rows: list[Row]) -> None:
        """Keep rows for the next shipment, or drop and count them when the buffer is full."""
        if self.waiting + len(rows) > self.max_rows:
            self._drop(len(rows), "router")
            return
        self.rows.setdefault((model, version, window_hours), []).extend(rows)
        self.waiting += len(rows)
        if self._shipping is None or self._shipping.done():
            self._shipping = asyncio.ensure_future(self._ship())

    def _drop(self, n_rows: int, at: str) -> None:
        self.dropped += n_rows
        self.counting.count(DROPPED, (at,), n_rows)

    async def settle(self) -> None:
        """Return when all that was added has left."""
        while self._shipping is not None and not self._shipping.done():
            await self._shipping

    async def _ship(self) -> None:
        while self.waiting:
            await asyncio.sleep(_GATHER_SECONDS)
            taken, self.rows = self.rows, {}
            for (model, version, hours), rows in taken.items():
                for start in range(0, len(rows), _SHIPMENT):
                    await self._send(model, version, hours, rows[start : start + _SHIPMENT])

    async def _send(self, model: str, version: str, hours: float, rows: list[Row]) -> None:
        try:
            if self._log is None:
                # Asking for a handle waits for the controller, and plain values need no look at each of them.
                self._log = serve.get_app_handle("profiler").log.options(request_serialization="pickle")
            await self._log.remote(model, version, hours, rows)
        except Exception:
            self._drop(len(rows), "profiler")
            logger.exception("profiler did not take rows model=%s rows=%d", model, len(rows))
        finally:
            self.waiting -= len(rows)
