"""Served rows on their way to the profiler: a bounded buffer that never holds a reply up."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from ray import serve

from forge_core.monitoring.metric_names import DROPPED, LOGGED, SHADOW_DROPPED
from serve_app.columns import Packed, Row, Table, packed
from serve_app.counting import Counting

logger = logging.getLogger(__name__)

_GATHER_SECONDS = 0.5
# So long a shipment may take to the profiler before that is asked to write; then it is asked again.
_ARRIVAL_SECONDS = 0.2
# Rows of one call to the profiler: single ones are put in columns on the way, batches are so already.
_SHIPMENT, _TABLE_SHIPMENT = 4096, 16_384


class Watch(NamedTuple):
    """How a model's rows are watched: hours of a window, features that are counted but never logged, and their form.

    The form says which columns stand before the features: `served`, or `split` where a split shares the traffic out.
    Rows of the form `shadow` have no features, and go to the shadow log alone.
    """

    window_hours: float
    redacted: tuple[str, ...] = ()
    form: str = "served"


_Key = tuple[str, str, Watch]


class Journal:
    """Gathers served rows and ships them to the profiler half a second later, many at once.

    Rows count as waiting until the profiler has written them; those that it did not, or that died with it, are
    counted as dropped.

    Parameters
    ----------
    counting : Counting
        Where logged and dropped rows are counted.
    max_rows : int
        Rows that wait at most; more are dropped and counted.
    """

    def __init__(self, counting: Counting, max_rows: int = 50_000) -> None:
        self.counting, self.max_rows = counting, max_rows
        self.rows: dict[_Key, list[Row]] = {}
        self.tables: list[tuple[_Key, Table]] = []
        self.waiting = self.dropped = 0
        self._gathering: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._log: Any = None

    def add(self, model: str, version: str, watch: Watch, rows: list[Row] | Table) -> None:
        """Keep rows for the next shipment, or drop and count them when the buffer is full."""
        if self.waiting + len(rows) > self.max_rows:
            self._drop(model, version, watch, len(rows), "router")
            return
        if isinstance(rows, Table):
            self.tables.append(((model, version, watch), rows))
        else:
            self.rows.setdefault((model, version, watch), []).extend(rows)
        self.waiting += len(rows)
        if self._gathering is None or self._gathering.done():
            self._gathering = asyncio.ensure_future(self._gather())

    def _drop(self, model: str, version: str, watch: Watch, n_rows: int, at: str) -> None:
        if watch.form == "shadow":
            self.counting.count(SHADOW_DROPPED, (model, version, at), n_rows)
            return
        self.dropped += n_rows
        self.counting.count(DROPPED, (model, version, at), n_rows)

    async def settle(self, write: Callable[[], Awaitable[Any]]) -> None:
        """Return when all that was added before this call is written or dropped.

        Parameters
        ----------
        write : async callable
            Makes the profiler write what it has, which it would else do seconds later.
        """
        self._ship_all()
        pending = set(self._under_way)
        while pending:
            _, pending = await asyncio.wait(pending, timeout=_ARRIVAL_SECONDS)
            if pending:
                await write()

    async def _gather(self) -> None:
        while self.rows or self.tables:
            await asyncio.sleep(_GATHER_SECONDS)
            self._ship_all()

    def _ship_all(self) -> None:
        gathered, self.rows, tables, self.tables = self.rows, {}, self.tables, []
        for key, rows in gathered.items():
            for start in range(0, len(rows), _SHIPMENT):
                part = rows[start : start + _SHIPMENT]
                self._ship(key, len(part), partial(packed, part))
        for key, parts in _shipments(tables):
            self._ship(key, sum(map(len, parts)), partial(_packed_together, parts))

    def _ship(self, key: _Key, n_rows: int, columns: Callable[[], Packed]) -> None:
        sent = asyncio.ensure_future(self._send(*key, n_rows, columns))
        self._under_way.add(sent)
        sent.add_done_callback(self._under_way.discard)

    async def _send(self, model: str, version: str, watch: Watch, n_rows: int, columns: Callable[[], Packed]) -> None:
        try:
            if self._log is None:
                # Asking for a handle waits for the controller, and plain values need no look at each of them.
                self._log = serve.get_app_handle("profiler").log.options(request_serialization="pickle")
            await self._log.remote(model, version, watch, columns())
            if watch.form != "shadow":
                self.counting.count(LOGGED, (model, version), n_rows)
        except Exception:
            self._drop(model, version, watch, n_rows, "profiler")
            logger.exception("rows not logged model=%s version=%s rows=%d", model, version, n_rows)
        finally:
            self.waiting -= n_rows


def _shipments(tables: Sequence[tuple[_Key, Table]]) -> Iterator[tuple[_Key, list[Table]]]:
    """Yield the tables of each key, as many as a shipment may hold: each costs a call, however small it is."""
    held: dict[_Key, list[Table]] = {}
    for key, table in tables:
        parts = held.setdefault(key, [])
        if parts and sum(map(len, parts)) + len(table) > _TABLE_SHIPMENT:
            yield key, parts
            parts = held[key] = []
        parts.append(table)
    yield from held.items()


def _packed_together(tables: Sequence[Table]) -> Packed:
    return packed(Table.joined(tables))
