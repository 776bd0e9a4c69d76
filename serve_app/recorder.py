"""What there is once for all routers: the writer of feedback, in groups, and the sum of all their metrics."""

import asyncio
from datetime import datetime

from forge_core.ledger import Feedback, Ledger
from forge_core.monitoring.metrics import LABELS, Tally, exposition

Rows = list[tuple[str, float, datetime]]


class Recorder:
    """The only writer of feedback, so that many router replicas never fight for SQLite's lock."""

    def __init__(self, ledger_url: str) -> None:
        self.ledger = Ledger(ledger_url)
        self._total = Tally()
        self._waiting: list[tuple[str, Rows, asyncio.Future[None]]] = []
        self._running: asyncio.Task[None] | None = None

    async def record(self, model: str, rows: Rows) -> int:
        """Return how many labels were committed; returns only after the commit."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((model, rows, done))
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._drain())
        await done
        self._total.count(LABELS, (model,), len(rows))
        return len(rows)

    async def gather(self, tally: Tally) -> None:
        """Add what a router counted since its last call."""
        self._total.add(tally)

    async def metrics(self) -> bytes:
        """Return all counts since this process began, in Prometheus' text format."""
        return exposition(self._total)

    async def _drain(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._commit, group)
            except Exception as error:
                for _, _, done in group:
                    if not done.done():
                        done.set_exception(error)
                continue
            for _, _, done in group:
                if not done.done():
                    done.set_result(None)

    def _commit(self, group: list[tuple[str, Rows, "asyncio.Future[None]"]]) -> None:
        by_model: dict[str, list[Feedback]] = {}
        for model, rows, _ in group:
            by_model.setdefault(model, []).extend(Feedback(*row) for row in rows)
        for model, feedback in by_model.items():
            self.ledger.record_feedback(model, feedback)
