"""Experiments as a router sees them: states and verdicts from the ledger, writes by way of the recorder."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Protocol

from forge_core.errors import ConfigurationError, ServiceUnavailable
from forge_core.experiments.definition import CONVERSION, Definition
from forge_core.experiments.meeting import meet
from forge_core.experiments.picture import verdict_figure
from forge_core.experiments.recording import Recorded, outcome, user_key
from forge_core.experiments.records import ExperimentRecords, Exposure, Outcome, Record, Status, check_move
from forge_core.experiments.results import judge_experiment
from forge_core.experiments.traffic import Traffic
from forge_core.experiments.verdict import Judgement
from forge_core.ledger import Ledger
from forge_core.storage import Storage
from serve_app.experiment_forms import Conversion, Measurement

logger = logging.getLogger(__name__)

_REFRESH_SECONDS = 1.0
# Below what proxies and clients wait at most.
_PATIENCE_SECONDS = 20.0


class Writer(Protocol):
    """What commits: the recorder, by its handle or in this process."""

    def expose(self, experiment_id: str, exposure: Exposure) -> Awaitable[None]:
        """Return once a meeting is committed."""

    def record_outcomes(self, experiment_id: str, outcomes: list[Outcome]) -> Awaitable[list[Recorded]]:
        """Return what became of outcomes, once they are committed."""


class ExperimentDesk:
    """What the routes of experiments call.

    Parameters
    ----------
    ledger : callable
        Returns the ledger; asked in a thread, when the first caller needs it.
    storage : Storage
        Where the prediction log is.
    writer : callable
        Returns what commits exposures and outcomes.
    traffic : callable, optional
        Returns what gives live traffic; None where there is none to give.
    """

    def __init__(
        self,
        ledger: Callable[[], Ledger],
        storage: Storage,
        writer: Callable[[], Writer],
        traffic: Callable[[], Traffic] | None = None,
    ) -> None:
        self._ledger, self.storage, self._writer, self._traffic = ledger, storage, writer, traffic
        self._records: ExperimentRecords | None = None
        self._known: dict[str, tuple[float, Record]] = {}
        self._judged: dict[str, tuple[float, Judgement]] = {}
        self._drawing = asyncio.Lock()
        self._changes: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._troubles: dict[str, str] = {}
        self._drawn: tuple[Judgement, bytes] | None = None

    async def create(self, definition: Definition, auto_start: bool, actor: str) -> dict[str, Any]:
        """Make an experiment, or find it with the same definition."""
        record = await asyncio.to_thread(lambda: self._all().create(definition, actor=actor))
        if auto_start and record.status == "created":
            return await self.move(record.id, "running", actor=actor)
        return told(record)

    async def all(self) -> list[dict[str, Any]]:
        """Return every experiment in short."""
        return [told(record) for record in await asyncio.to_thread(lambda: self._all().all())]

    async def look(self, experiment_id: str) -> dict[str, Any]:
        """Return an experiment with its verdict."""
        record = await asyncio.to_thread(lambda: self._all().get(experiment_id))
        judgement = await self._judgement(record)
        change, trouble = self._changes.get(experiment_id), self._troubles.get(experiment_id)
        more: dict[str, Any] = {"changing": True} if change is not None and not change.done() else {}
        more |= {"trouble": trouble} if trouble is not None else {}
        return {**told(record), **more, "verdict": judgement.verdict.to_dict()}

    async def picture(self, experiment_id: str) -> bytes:
        """Return the verdict over time as PNG."""
        record = await asyncio.to_thread(lambda: self._all().get(experiment_id))
        judgement = await self._judgement(record)
        async with self._drawing:
            if self._drawn is None or self._drawn[0] is not judgement:
                self._drawn = judgement, await asyncio.to_thread(verdict_figure, judgement)
            return self._drawn[1]

    async def move(
        self, experiment_id: str, status: Status, *, actor: str, reason: str | None = None, winner: str | None = None
    ) -> dict[str, Any]:
        """Bring an experiment to another state, and its live traffic with it.

        Loading versions may take longer than a connection lives, so after a while what is answered is how it stands,
        with `changing_to`; the change goes on. Asked again meanwhile, or by another router, it is made once.
        """
        change = self._changes.get(experiment_id)
        if change is None or change.done():
            work = self._move(experiment_id, status, actor, reason, winner)
            change = self._changes[experiment_id] = asyncio.ensure_future(work)
        done, _ = await asyncio.wait({change}, timeout=_PATIENCE_SECONDS)
        if done:
            return change.result()
        change.add_done_callback(lambda ended: self._tell(experiment_id, ended))
        record = await asyncio.to_thread(lambda: self._all().get(experiment_id))
        return {**told(record), "changing_to": status}

    async def _move(
        self, experiment_id: str, status: Status, actor: str, reason: str | None, winner: str | None
    ) -> dict[str, Any]:
        record = await asyncio.to_thread(lambda: self._all().get(experiment_id))
        if record.status == status:
            return told(record)
        if winner is not None and winner not in record.definition.variants:
            known = ", ".join(record.definition.variants)
            raise ConfigurationError(f"experiment {record.id!r} has no variant {winner!r}; variants: {known}")
        check_move(record, status)
        details: dict[str, Any] = {}
        if status == "stopped":
            verdict = (await self._judgement(record)).verdict
            winner, reason = winner or verdict.winner, reason or str(verdict)
            details = {"verdict": verdict.to_dict()}
        if record.definition.live:
            await asyncio.to_thread(self._steer, record, status, actor)
        why = reason or {"running": "started", "paused": "paused"}.get(status, status)
        moved = await asyncio.to_thread(
            lambda: self._all().move(record, status, actor=actor, reason=why, winner=winner, details=details)
        )
        self._known.pop(experiment_id, None)
        return told(moved)

    def _tell(self, experiment_id: str, ended: "asyncio.Future[dict[str, Any]]") -> None:
        """Keep why a change failed whose caller was answered before."""
        error = ended.exception()
        if error is None:
            self._troubles.pop(experiment_id, None)
        else:
            self._troubles[experiment_id] = str(error)[:2000]
            logger.warning("experiment=%s was not changed: %s", experiment_id, error)

    async def variant(self, experiment_id: str, user: str) -> dict[str, Any]:
        """Return a user's variant, once the meeting is committed."""
        record = await self._record(experiment_id)
        variant, exposure = meet(record, user_key(user))
        if exposure is not None:
            await self._writer().expose(record.id, exposure)
        return {
            "experiment": record.id,
            "variant": variant,
            "model": record.definition.variants[variant].told,
            "status": record.status,
        }

    async def record(self, experiment_id: str, sent: Sequence[Conversion], at: datetime | None) -> list[dict[str, Any]]:
        """Return what became of outcomes, once they are committed."""
        definition = (await self._record(experiment_id)).definition
        outcomes = [
            outcome(
                definition,
                one.metric if isinstance(one, Measurement) else CONVERSION,
                one.value if isinstance(one, Measurement) else 1.0,
                user=one.user if one.user is not None else one.request_id,
                variant=one.variant,
                key=one.key,
                at=at,
            )
            for one in sent
        ]
        recorded = await self._writer().record_outcomes(definition.id, outcomes)
        return [one.to_dict() for one in recorded]

    def _steer(self, record: Record, status: Status, actor: str) -> None:
        if self._traffic is None:
            raise ServiceUnavailable("live traffic can only be given where Serve runs; start the stack with `make up`")
        if status == "running":
            self._traffic().give(record.definition, actor=actor)
        else:
            self._traffic().take_back(record.definition, actor=actor)

    async def _record(self, experiment_id: str) -> Record:
        """Return an experiment as it was at most a second ago: what is asked for every user must not cost a query."""
        read_at, record = self._known.get(experiment_id, (-float("inf"), None))
        if record is None or time.monotonic() - read_at > _REFRESH_SECONDS:
            record = await asyncio.to_thread(lambda: self._all().get(experiment_id))
            if len(self._known) > 1000:
                self._known.clear()
            self._known[experiment_id] = time.monotonic(), record
        return record

    async def _judgement(self, record: Record) -> Judgement:
        """Return the verdict, as it was at most a second ago: many who look at once cost one look."""
        judged_at, found = self._judged.get(record.id, (-float("inf"), None))
        if found is None or time.monotonic() - judged_at > _REFRESH_SECONDS:
            found = await asyncio.to_thread(lambda: judge_experiment(self._all(), record, self.storage))
            if len(self._judged) > 100:
                self._judged.clear()
            self._judged[record.id] = time.monotonic(), found
        return found

    def _all(self) -> ExperimentRecords:
        if self._records is None:
            self._records = ExperimentRecords(self._ledger())
        return self._records


def told(record: Record) -> dict[str, Any]:
    """Return an experiment as the API shows it, without whose variant was set by hand."""
    definition = record.definition.model_dump(mode="json", exclude={"overrides"})
    times = {name: getattr(record, name) for name in ("created_at", "started_at", "stopped_at")}
    return {
        **definition,
        "status": record.status,
        "revision": record.revision,
        "winner": record.winner,
        **{name: None if moment is None else moment.isoformat() for name, moment in times.items()},
    }
