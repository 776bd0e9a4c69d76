"""Copies of the champion's traffic for a version whose answers nobody sees: off the path, bounded, never awaited.

A row is copied when the hash of its request id falls into the share. What does not fit into the queue is dropped and
counted; one batch at a time is out, so that a slow version cannot pile up work.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from forge_core.data.many_row_checks import Rows
from forge_core.deployment.routing_table import Shadow
from forge_core.errors import SchemaViolation, ServiceUnavailable
from forge_core.experiments.assignment import unit_point
from forge_core.monitoring.metric_names import SHADOW_DROPPED, SHADOWED
from serve_app.counting import Counting
from serve_app.journal import Row, Watch
from serve_app.live_version import LiveVersion, answer, watched

logger = logging.getLogger(__name__)

_BATCH = 64

Ship = Callable[[str, str, Watch, list[Row]], None]
# Request id, event time, receipt, the champion's answer (version, prediction, probability, milliseconds), the record.
Copy = tuple[str, datetime, datetime, str, Any, float, float, Mapping[str, Any]]


@dataclass(eq=False)
class LiveShadow:
    """One model's shadow: the version, its share of the traffic, and the rows that wait for it."""

    live: LiveVersion
    share: float
    salt: str
    waiting: deque[Copy] = field(default_factory=deque)
    task: "asyncio.Task[None] | None" = None


class Shadows:
    """The shadows of all models.

    Parameters
    ----------
    ship : callable
        Takes answers to the profiler: `Journal.add`.
    counting : Counting
        Where they are counted.
    max_rows : int
        Rows of a model that wait at most.
    """

    def __init__(self, ship: Ship, counting: Counting, max_rows: int = 2048) -> None:
        self.ship, self.counting, self.max_rows = ship, counting, max_rows
        self.of: dict[str, LiveShadow] = {}

    def route(self, wanted: Mapping[str, tuple[Shadow, LiveVersion]]) -> None:
        """Shadow these from now on; what waits for one that is gone is dropped and counted."""
        before, self.of = self.of, {}
        for model, (shadow, live) in wanted.items():
            known = before.get(model)
            if known is not None and known.live is live:
                known.share = shadow["share"]
                self.of[model] = known
            else:
                self.of[model] = LiveShadow(live, shadow["share"], f"shadow:{live.version}")
        for model, gone in before.items():
            if self.of.get(model) is not gone and gone.waiting:
                self._drop(model, gone, len(gone.waiting))
                gone.waiting.clear()

    def offer(
        self,
        shadow: LiveShadow,
        champion: LiveVersion,
        records: Rows,
        ids: Sequence[str],
        answers: Sequence[tuple[Any, Any]],
        seconds: float,
        times: tuple[datetime, datetime],
    ) -> None:
        """Copy the share of answered rows that falls to the shadow; returns at once.

        Parameters
        ----------
        answers : sequence of (prediction, score)
            The champion's, one a row; the score as windows count it.
        seconds : float
            What the champion took.
        times : (datetime, datetime)
            Event time, and when the rows were answered.
        """
        chosen = [n for n, request_id in enumerate(ids) if unit_point(shadow.salt, request_id) < shadow.share]
        room = self.max_rows - len(shadow.waiting)
        if len(chosen) > room:
            self._drop(champion.model, shadow, len(chosen) - max(room, 0))
            chosen = chosen[: max(room, 0)]
        for n in chosen:
            record = {c: values[n] for c, values in records.items()} if isinstance(records, Mapping) else records[n]
            shadow.waiting.append((ids[n], *times, champion.version, *answers[n], seconds * 1000, record))
        if chosen and (shadow.task is None or shadow.task.done()):
            shadow.task = asyncio.ensure_future(self._drain(champion.model, shadow))

    def _drop(self, model: str, shadow: LiveShadow, n_rows: int) -> None:
        self.counting.count(SHADOW_DROPPED, (model, shadow.live.version, "queue"), n_rows)

    async def _drain(self, model: str, shadow: LiveShadow) -> None:
        while shadow.waiting:
            copies = [shadow.waiting.popleft() for _ in range(min(_BATCH, len(shadow.waiting)))]
            rows = await self._ask(shadow.live, copies)
            self.counting.count(SHADOWED, (model, shadow.live.version), len(rows))
            self.ship(model, shadow.live.version, Watch(1.0, (), "shadow"), rows)

    async def _ask(self, live: LiveVersion, copies: Sequence[Copy]) -> list[tuple[Any, ...]]:
        """Return the shadow log's rows of copies."""
        started = time.perf_counter()
        checked = [_checked(live, copy[-1]) for copy in copies]
        good = [row for row in checked if row is not None]
        scores = await self._scores(live, good)
        milliseconds = (time.perf_counter() - started) * 1000
        given = iter(scores)
        rows = []
        for copy, row in zip(copies, checked, strict=True):
            score = None if row is None else next(given)
            fault = "contract" if row is None else "error" if score is None else ""
            rows.append(_row(live, copy, score, milliseconds, fault))
        return rows

    async def _scores(self, live: LiveVersion, rows: list[tuple[Any, ...]]) -> Sequence[Any]:
        """Return a score a row, None for those that the version fails on."""
        if not rows:
            return []
        try:
            return await live.lane.ask(rows)
        except Exception as error:
            logger.warning("a shadow does not answer version=%s rows=%d: %s", live.version, len(rows), error)
            # One row may have failed them all; where nobody answers, asking again would only take long.
            if len(rows) == 1 or isinstance(error, ServiceUnavailable):
                return [None] * len(rows)
        middle = len(rows) // 2
        return [*await self._scores(live, rows[:middle]), *await self._scores(live, rows[middle:])]


def _checked(live: LiveVersion, record: Mapping[str, Any]) -> tuple[Any, ...] | None:
    try:
        return live.contract.check_rows([record])[0]
    except SchemaViolation:
        return None


def _row(live: LiveVersion, copy: Copy, score: Any, milliseconds: float, fault: str) -> tuple[Any, ...]:
    request_id, event_time, received, champion, prediction, probability, champion_ms, _ = copy
    mine = (None, None) if score is None else (answer(live, score)[0], watched(score))
    theirs = (prediction, probability, round(milliseconds, 3), round(champion_ms, 3))
    return (request_id, event_time, received, live.version, champion, *mine, *theirs, fault)
