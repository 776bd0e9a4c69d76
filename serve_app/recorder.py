"""What there is once for all routers: the writer of feedback, in groups, the sum of metrics, the keys' rates."""

import asyncio
import logging
from datetime import datetime

from sqlalchemy.exc import SQLAlchemyError

from forge_core.experiments.recording import Recorded
from forge_core.experiments.records import Exposure, Outcome
from forge_core.ledger import Feedback, Ledger
from forge_core.monitoring.check_gauges import check_gauges
from forge_core.monitoring.metric_names import LABELS
from forge_core.monitoring.metrics import Tally, exposition
from serve_app.experiment_writer import ExperimentWriter
from serve_app.rates import Buckets, Spent

logger = logging.getLogger(__name__)

Rows = list[tuple[str, float, datetime]]


class Recorder:
    """The only writer of feedback, so that many router replicas never fight for SQLite's lock."""

    def __init__(self, ledger_url: str) -> None:
        self.ledger = Ledger(ledger_url)
        self._total, self._buckets = Tally(), Buckets()
        self._experiments = ExperimentWriter(self.ledger)
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

    async def expose(self, experiment_id: str, exposure: Exposure) -> None:
        """Return once it is committed that a user met a variant."""
        await self._experiments.expose(experiment_id, exposure)

    async def record_outcomes(self, experiment_id: str, outcomes: list[Outcome]) -> list[Recorded]:
        """Return what became of outcomes of an experiment; returns only after the commit."""
        return await self._experiments.record(experiment_id, outcomes)

    async def gather(self, tally: Tally) -> None:
        """Add what a router counted since its last call."""
        self._total.add(tally)

    async def balance(self, spent: Spent) -> dict[str, float]:
        """Return the keys' common levels after taking what a router let in."""
        return self._buckets.exchange(spent)

    async def metrics(self) -> bytes:
        """Return all counts since this process began, and what the newest checks found, in Prometheus' text format."""
        try:
            checks = await asyncio.to_thread(self.ledger.newest_events, "checked")
        except SQLAlchemyError as error:  # counts are worth having without it
            logger.warning("no checks in the metrics: %s", type(error).__name__)
            checks = []
        return exposition(self._total, check_gauges(checks))

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
