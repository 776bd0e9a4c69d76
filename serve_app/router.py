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
from forge_core.errors import ModelNotFound, SchemaViolation, ServiceUnavailable
from forge_core.storage import Storage
from serve_app.live_version import LiveVersion, answer, checked_rows, load_live_version, watched

logger = logging.getLogger(__name__)


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
        self.held: dict[str, dict[str, LiveVersion]] = {}
        self._routing = asyncio.Lock()
        self.journal = Journal()
        self._shipping: asyncio.Task[None] | None = None

    async def route(self, table: dict[str, dict[str, str]]) -> None:
        """Load what is new beside what is held, then swap at once.

        A model's row names its champion, which gets the traffic, and its candidate, which answers only who asks
        for that version.
        """
        async with self._routing:
            held = {model: await self._hold(model, row) for model, row in table.items()}
            champions = {m: held[m][row["champion"]] for m, row in table.items() if "champion" in row}
            self.held, self.live = held, champions
        logger.info("routing %s holding %s", self._versions(), {m: sorted(v) for m, v in held.items()})

    async def _hold(self, model: str, row: dict[str, str]) -> dict[str, LiveVersion]:
        current = self.held.get(model, {})
        versions: dict[str, LiveVersion] = {}
        for role, version in row.items():
            try:
                if version not in current:
                    current = {**current, version: await asyncio.to_thread(self._load, model, version)}
                versions[version] = current[version]
            except Exception:
                if role == "champion":
                    raise
                # The deployment that tries it will hear that it is not held; what is live must not suffer.
                logger.exception("candidate not loaded model=%s version=%s", model, version)
        return versions

    def _load(self, model: str, version: str) -> LiveVersion:
        return load_live_version(self.storage, model, version)

    def version_of(self, model: str | None, version: str | None = None) -> LiveVersion:
        """Return the live version of a model (the default one for None), or the named one of those held.

        Raises
        ------
        ServiceUnavailable
            When the default model has no live version yet.
        ModelNotFound
            For another model without one, and for a version that is not held; lists what is.
        """
        name = model or self.default_model
        if version is not None:
            return self._held_version(name, version)
        if name in self.live:
            return self.live[name]
        if name == self.default_model:
            raise ServiceUnavailable(
                f"no version of {name!r} is live yet; train and deploy one: prefect deployment run 'train/{name}'"
            )
        raise ModelNotFound(f"no live model {name!r}; live: {', '.join(sorted(self.live)) or 'none'}")

    def _held_version(self, model: str, version: str) -> LiveVersion:
        held = self.held.get(model, {})
        if version in held:
            return held[version]
        champion = self._versions().get(model)
        told = ", ".join(f"{v} ({'champion' if v == champion else 'candidate'})" for v in sorted(held))
        raise ModelNotFound(
            f"version {version[:64]!r} of {model!r} is not held here; held: {told or 'none'}",
            context={"held": sorted(held)},
        )

    def _versions(self) -> dict[str, str]:
        return {model: live.version for model, live in self.live.items()}

    async def predict(
        self,
        model: str | None,
        records: Sequence[dict[str, Any]],
        request_ids: Sequence[str] | None = None,
        event_time: datetime | None = None,
        version: str | None = None,
    ) -> list[dict[str, Any]]:
        """Return one reply a record (all of one version), and journal the rows.

        Parameters
        ----------
        version : str, optional
            Ask this version, not the live one. Such rows are a trial: neither logged nor watched.

        Raises
        ------
        SchemaViolation
            Names every faulty field, and in a batch its row.
        """
        started = time.perf_counter()
        live = self.version_of(model, version)
        rows = checked_rows(live, records)
        ids = list(request_ids) if request_ids is not None else [str(_uuid7()) for _ in records]
        if len(ids) != len(rows):
            raise SchemaViolation(f"expected one request id a record, found {len(ids)} for {len(rows)} records")
        scores = await live.lane.ask(rows)
        elapsed = round((time.perf_counter() - started) * 1000, 3)
        answers = [answer(live, score) for score in scores]
        if version is None:
            received = datetime.now(UTC)
            moment = event_time or received
            self._keep(
                live,
                [
                    (request_id, moment, received, live.version, "champion", prediction, watched(score), *row)
                    for request_id, row, score, (prediction, _) in zip(ids, rows, scores, answers, strict=True)
                ],
            )
        return [
            {
                "prediction": prediction,
                "prediction_probability": probability,
                "model_version": live.version,
                "processing_time_ms": elapsed,
                "model": live.model,
                "request_id": request_id,
            }
            for request_id, (prediction, probability) in zip(ids, answers, strict=True)
        ]

    def _keep(self, live: LiveVersion, entries: list[tuple[Any, ...]]) -> None:
        self.journal.add(live, entries)
        if self._shipping is None or self._shipping.done():
            self._shipping = asyncio.ensure_future(self._ship())

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
        """Return that we are alive, what is live, and what is on trial."""
        live = self._versions()
        trial = {m: v for m, versions in self.held.items() for v in versions if v != live.get(m)}
        return {"status": "ok", "version": __version__, "models": live, "candidates": trial}


def _uuid7() -> uuid.UUID:
    """Return a time-ordered id (RFC 9562, section 5.7)."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(uuid.uuid4().bytes[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    return uuid.UUID(int=value & ~(0x3 << 62) | 0x2 << 62)
