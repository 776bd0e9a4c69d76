"""Exposures and outcomes of all routers on their way into the ledger, many a transaction."""

import asyncio
from typing import Any

from forge_core.experiments.recording import Recorded, record_outcomes
from forge_core.experiments.records import ExperimentRecords, Exposure, Outcome
from forge_core.ledger import Ledger

Rows = list[Exposure] | list[Outcome]


class ExperimentWriter:
    """Commits in groups: what comes while one transaction is under way goes together into the next.

    Parameters
    ----------
    ledger : Ledger
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._records: ExperimentRecords | None = None
        self._waiting: list[tuple[str, Rows, asyncio.Future[Any]]] = []
        self._running: asyncio.Task[None] | None = None

    async def expose(self, experiment_id: str, exposure: Exposure) -> None:
        """Return once a meeting is committed."""
        await self._commit(experiment_id, [exposure])

    async def record(self, experiment_id: str, outcomes: list[Outcome]) -> list[Recorded]:
        """Return what became of each outcome, once all are committed."""
        found: list[Recorded] = await self._commit(experiment_id, outcomes)
        return found

    async def _commit(self, experiment_id: str, rows: Rows) -> Any:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((experiment_id, rows, done))
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._drain())
        return await done

    async def _drain(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            for experiment_id in dict.fromkeys(name for name, _, _ in group):
                mine = [(rows, done) for name, rows, done in group if name == experiment_id]
                try:
                    results = await asyncio.to_thread(self._write, experiment_id, [rows for rows, _ in mine])
                except Exception as error:
                    for _, done in mine:
                        if not done.done():
                            done.set_exception(error)
                    continue
                for (_, done), result in zip(mine, results, strict=True):
                    if not done.done():
                        done.set_result(result)

    def _write(self, experiment_id: str, sent: list[Rows]) -> list[Any]:
        """Commit the meetings first: an outcome that came right behind finds its own."""
        if self._records is None:
            self._records = ExperimentRecords(self._ledger)
        exposures = [row for rows in sent for row in rows if isinstance(row, Exposure)]
        outcomes = [row for rows in sent for row in rows if isinstance(row, Outcome)]
        self._records.expose(experiment_id, exposures)
        recorded: list[Recorded] = []
        if outcomes:
            definition = self._records.get(experiment_id).definition
            recorded = record_outcomes(self._records, definition, outcomes, in_log=definition.live)
        results: list[Any] = []
        for rows in sent:
            n_outcomes = sum(isinstance(row, Outcome) for row in rows)
            results.append(recorded[:n_outcomes] if n_outcomes else None)
            recorded = recorded[n_outcomes:]
        return results
