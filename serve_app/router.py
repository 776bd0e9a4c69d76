"""The front: parse, check against the version's contract, ask the variant's lane, reply; log off the path."""

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ray import serve

from forge_core import __version__
from forge_core.data.contracts import Contract
from forge_core.deployment.mirror import mirrored_version
from forge_core.deployment.serve_client import variant_name
from forge_core.errors import ModelNotFound, SchemaViolation, ServiceUnavailable
from forge_core.statistics.quality import Task
from forge_core.storage import Storage
from serve_app.lanes import Lane

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveVersion:
    """What the router knows of a version: its contract, what /model/info says, and the lane to its variant."""

    model: str
    version: str
    contract: Contract
    columns: list[str]
    task: Task
    info: dict[str, Any]
    example: dict[str, Any]
    lane: Lane


@dataclass
class Journal:
    """Served rows on their way to the profiler: a bounded buffer that never holds a reply up."""

    max_rows: int = 50_000
    rows: dict[tuple[str, str], list[tuple[Any, ...]]] = field(default_factory=dict)
    waiting: int = 0
    dropped: int = 0

    def add(self, live: LiveVersion, rows: list[tuple[Any, ...]]) -> None:
        """Keep rows for the next shipment, or drop and count them when the buffer is full."""
        if self.waiting + len(rows) > self.max_rows:
            self.dropped += len(rows)
            return
        self.rows.setdefault((live.model, live.version), []).extend(rows)
        self.waiting += len(rows)

    def take(self) -> dict[tuple[str, str], list[tuple[Any, ...]]]:
        """Return all rows and start afresh."""
        taken, self.rows, self.waiting = self.rows, {}, 0
        return taken


class Switchboard:
    """The routing table and what hangs on it; the HTTP routes in `api.py` call only this.

    Parameters
    ----------
    storage_url : str
        Where versions are mirrored.
    default_model : str
        The model of `/predict` and `/model/info`.
    window_hours : mapping
        Length of a profiling window, per model.
    """

    def __init__(self, storage_url: str, default_model: str, window_hours: dict[str, float]) -> None:
        self.storage = Storage(storage_url)
        self.default_model, self.window_hours = default_model, window_hours
        self.live: dict[str, LiveVersion] = {}
        self.journal = Journal()
        self._shipping: asyncio.Task[None] | None = None

    async def route(self, table: dict[str, dict[str, str]]) -> None:
        """Load what is new beside what is live, then swap in one assignment."""
        live = {}
        for model, entry in table.items():
            current = self.live.get(model)
            same = current is not None and current.version == entry["champion"]
            live[model] = current if same and current else await asyncio.to_thread(self._load, model, entry["champion"])
        self.live = live
        logger.info("routing %s", {m: v.version for m, v in live.items()})

    def _load(self, model: str, version: str) -> LiveVersion:
        with mirrored_version(self.storage, model, version) as folder:
            contract, example = folder.contract, folder.input_example
            info = {
                "name": model,
                "version": version,
                "task": folder.task,
                "features": {c: contract.kinds[c] for c in contract.feature_columns},
                "serves": folder.compiled,
                "metrics": {name: m.to_dict() for name, m in folder.evaluation.metrics.items()},
                "features_hash": folder.features_hash,
                "lineage": folder.lineage,
                "example": {"features": example},
            }
            task = folder.task
        handle = serve.get_app_handle(variant_name(model, version))

        async def send(rows: list[Any]) -> Sequence[Any]:
            return await handle.score.remote(rows)

        return LiveVersion(model, version, contract, contract.feature_columns, task, info, example, Lane(send))

    def version_of(self, model: str | None) -> LiveVersion:
        """Return the live version of a model, the default one for None."""
        name = model or self.default_model
        if name in self.live:
            return self.live[name]
        if name == self.default_model:
            raise ServiceUnavailable(
                f"no version of {name!r} is live yet; train and deploy one: prefect deployment run 'train/{name}'"
            )
        raise ModelNotFound(f"no live model {name!r}; live: {', '.join(sorted(self.live)) or 'none'}")

    async def predict(
        self,
        model: str | None,
        records: Sequence[dict[str, Any]],
        request_ids: Sequence[str] | None = None,
        event_time: datetime | None = None,
    ) -> list[dict[str, Any]]:
        """Return one reply a record (all of one version), and journal the rows.

        Raises
        ------
        SchemaViolation
            Names every faulty field, and in a batch its row.
        """
        started = time.perf_counter()
        live = self.version_of(model)
        rows = _checked(live, records)
        ids = list(request_ids) if request_ids is not None else [str(_uuid7()) for _ in records]
        if len(ids) != len(rows):
            raise SchemaViolation(f"expected one request id a record, found {len(ids)} for {len(rows)} records")
        scores = await live.lane.ask(rows)
        elapsed = round((time.perf_counter() - started) * 1000, 3)
        received = datetime.now(UTC)
        replies, entries = [], []
        for request_id, row, score in zip(ids, rows, scores, strict=True):
            prediction, probability = _answer(live.task, score)
            replies.append(
                {
                    "prediction": prediction,
                    "prediction_probability": probability,
                    "model_version": live.version,
                    "processing_time_ms": elapsed,
                    "model": live.model,
                    "request_id": request_id,
                }
            )
            entries.append(
                (request_id, event_time or received, received, live.version, "champion", prediction, score, *row)
            )
        self.journal.add(live, entries)
        if self._shipping is None or self._shipping.done():
            self._shipping = asyncio.ensure_future(self._ship())
        return replies

    async def _ship(self) -> None:
        await asyncio.sleep(0.05)  # let a handful of replies gather; nobody waits for this
        while batches := self.journal.take():
            handle = serve.get_app_handle("profiler")
            for (model, version), rows in batches.items():
                try:
                    await handle.log.remote(model, version, self.window_hours.get(model, 24.0), rows)
                except Exception:
                    self.journal.dropped += len(rows)
                    logger.exception("profiler did not take rows model=%s rows=%d", model, len(rows))

    async def record(self, model: str | None, labels: Sequence[tuple[str, float]], event_time: datetime | None) -> int:
        """Return how many labels were committed to the ledger."""
        name = self.version_of(model).model
        moment = event_time or datetime.now(UTC)
        rows = [(request_id, label, moment) for request_id, label in labels]
        return await serve.get_app_handle("recorder").record.remote(name, rows)

    async def monitoring(self, flush: bool) -> dict[str, Any]:
        """Return how many served rows were profiled and logged, waiting or dropped."""
        handle = serve.get_app_handle("profiler")
        if flush:
            if self._shipping is not None:
                await self._shipping
            await handle.flush.remote()
        counts = await handle.counts.remote()
        return {**counts, "waiting_in_router": self.journal.waiting, "dropped_by_router": self.journal.dropped}

    def health(self) -> dict[str, Any]:
        """Return that we are alive, and what is live."""
        return {"status": "ok", "version": __version__, "models": {m: v.version for m, v in self.live.items()}}


def _checked(live: LiveVersion, records: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    rows, faults = [], []
    for number, record in enumerate(records):
        try:
            row = live.contract.check_row(record)
            rows.append(tuple(row[c] for c in live.columns))
        except SchemaViolation as error:
            faults += [{**fault, **({"row": number} if len(records) > 1 else {})} for fault in error.context["faults"]]
    if faults:
        shown = "; ".join(f"{f['field']}: {f['reason']}" for f in faults[:5])
        raise SchemaViolation(f"{len(faults)} faults: {shown}", context={"faults": faults[:100]})
    return rows


def _answer(task: Task, score: float) -> tuple[float | int, float | None]:
    """Return (prediction, probability of the predicted class or None for regression)."""
    if task == "regression":
        return score, None
    return (1, score) if score >= 0.5 else (0, 1.0 - score)


def _uuid7() -> uuid.UUID:
    """Return a time-ordered id (RFC 9562, section 5.7)."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(uuid.uuid4().bytes[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    return uuid.UUID(int=value & ~(0x3 << 62) | 0x2 << 62)
