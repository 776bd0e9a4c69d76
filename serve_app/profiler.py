"""Turns served predictions into windows (profile and grid counts) and prediction-log parts, off the path.

Rows gather in memory and are written every few seconds, each file whole or not at all; who sent them is told
only then, so that what a killed profiler takes with it can be counted.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import pandas as pd

from forge_core.data.many_row_checks import as_pandas
from forge_core.deployment.mirror import mirrored_version
from forge_core.errors import ServiceUnavailable
from forge_core.monitoring.prediction_log import PredictionLog
from forge_core.monitoring.profiles import Profile
from forge_core.monitoring.shadow_log import SHADOW_COLUMNS, ShadowLog
from forge_core.monitoring.windows import ReferenceProfile, WindowStore, window_starts
from forge_core.statistics.counts import GridCounts
from forge_core.storage import Storage
from serve_app.columns import Packed, joined, n_rows, values_of
from serve_app.journal import Watch

logger = logging.getLogger(__name__)

LOG_COLUMNS = ["request_id", "event_time", "received_at", "version", "variant", "owner", "prediction", "probability"]
# What stands beside them while a split shares the traffic out.
SPLIT_COLUMNS = ["assigned", "split", "propensity", "unit", "latency_ms", "fault"]
_FORMS = {"served": LOG_COLUMNS, "split": [*LOG_COLUMNS, *SPLIT_COLUMNS]}

# Windows that are kept open, so that more rows go into the same file; traffic in order needs one or two a version.
_MAX_OPEN = 64


@dataclass
class _OpenWindow:
    """What this process saw of one window so far."""

    part: str
    counts: GridCounts
    profile: Profile


class Profiler:
    """Collects served rows and writes them as windows and log parts.

    Parameters
    ----------
    storage_url : str
        Where windows and the prediction log go.
    flush_seconds, flush_rows : float, int
        Rows are written when this much time has passed or this many wait.
    max_waiting : int
        Rows kept in memory at most; more are refused.
    """

    def __init__(
        self, storage_url: str, *, flush_seconds: float = 5.0, flush_rows: int = 32_768, max_waiting: int = 200_000
    ) -> None:
        self.storage = Storage(storage_url)
        self.flush_seconds, self.flush_rows, self.max_waiting = flush_seconds, flush_rows, max_waiting
        self._references: dict[tuple[str, str], tuple[ReferenceProfile, list[str]]] = {}
        self._waiting: dict[tuple[str, str, Watch], list[Packed]] = {}
        self._written: dict[tuple[str, str, Watch], asyncio.Future[None]] = {}
        self._open: dict[tuple[str, str, datetime], _OpenWindow] = {}
        self._counts = {"received": 0, "written": 0, "dropped": 0}
        self._last_flush = time.monotonic()
        self._lock = asyncio.Lock()
        self._timer = asyncio.get_running_loop().create_task(self._tick())

    async def log(self, model: str, version: str, watch: Watch, columns: Packed) -> None:
        """Take served rows and return when they are written.

        First come the columns of their form, then those of the features in contract order.

        Raises
        ------
        ServiceUnavailable
            When too many rows wait already, or these could not be written.
        """
        n_new = n_rows(columns)
        self._counts["received"] += n_new
        if self._n_waiting() + n_new > self.max_waiting:
            self._counts["dropped"] += n_new
            raise ServiceUnavailable(f"expected at most {self.max_waiting} rows to wait, found more")
        key = (model, version, watch)
        self._waiting.setdefault(key, []).append(columns)
        written = self._written.setdefault(key, asyncio.get_running_loop().create_future())
        if self._n_waiting() >= self.flush_rows and not self._lock.locked():
            await self.flush()
        await asyncio.shield(written)  # who gives up waiting must not take the others along

    async def flush(self) -> dict[str, int]:
        """Write what waits and return the counts so far."""
        async with self._lock:
            waiting, self._waiting = self._waiting, {}
            written, self._written = self._written, {}
            for key, parts in waiting.items():
                n_parts = sum(map(n_rows, parts))
                try:
                    await asyncio.to_thread(self._write, *key, parts)
                    self._counts["written"] += n_parts
                    written[key].set_result(None)
                except Exception as error:  # whatever is wrong with the log, the predictions were served
                    self._counts["dropped"] += n_parts
                    logger.exception("rows not written model=%s version=%s rows=%d", *key[:2], n_parts)
                    written[key].set_exception(ServiceUnavailable(f"rows not written: {error}"))
                    written[key].exception()  # told, even where nobody waits for it any more
            self._last_flush = time.monotonic()
        return dict(self._counts)

    async def counts(self) -> dict[str, int]:
        """Return rows received, written, dropped and still waiting."""
        return {**self._counts, "waiting": self._counts["received"] - self._counts["written"] - self._counts["dropped"]}

    async def stop(self) -> None:
        """Write what waits and stop the timer."""
        self._timer.cancel()
        await self.flush()

    def _n_waiting(self) -> int:
        return sum(n_rows(part) for parts in self._waiting.values() for part in parts)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self.flush_seconds / 4)
            if self._waiting and time.monotonic() - self._last_flush >= self.flush_seconds:
                await self.flush()

    def _reference(self, model: str, version: str) -> tuple[ReferenceProfile, list[str]]:
        if (model, version) not in self._references:
            with mirrored_version(self.storage, model, version) as folder:
                reference = ReferenceProfile.from_files(folder.reference_files)
                self._references[model, version] = reference, folder.contract.feature_columns
        return self._references[model, version]

    def _write(self, model: str, version: str, watch: Watch, parts: list[Packed]) -> None:
        if watch.form == "shadow":
            ShadowLog(self.storage, model).append(_frame(parts, SHADOW_COLUMNS))
            return
        reference, features = self._reference(model, version)
        logged_as = {name: f"feature.{name}" if name in _FORMS["split"] else name for name in features}
        frame = _frame(parts, [*_FORMS[watch.form], *logged_as.values()])
        hidden = [column for name, column in logged_as.items() if name in watch.redacted]
        PredictionLog(self.storage, model).append(frame.drop(columns=hidden))
        starts = window_starts(frame["event_time"], watch.window_hours)
        first = starts.iloc[0]
        for start, part in [(first, frame)] if (starts == first).all() else frame.groupby(starts):
            watched = part[[*logged_as.values(), "probability"]].reset_index(drop=True)
            watched.columns = pd.Index([*features, "probability"])
            self._add(model, version, start.to_pydatetime(), reference.grid.count(watched), Profile.of(watched))

    def _add(self, model: str, version: str, start: datetime, counts: GridCounts, profile: Profile) -> None:
        """Write a window again with these rows added; what is held in memory changes only with what is written."""
        known = self._open.pop((model, version, start), None)
        part = known.part if known else uuid.uuid4().hex
        if known:
            counts, profile = known.counts + counts, known.profile + profile
        try:
            WindowStore(self.storage, model).write_part(version, start, part, counts, profile.to_bytes())
            known = _OpenWindow(part, counts, profile)
        finally:
            if known:
                self._open[model, version, start] = known  # the newest last
        while len(self._open) > _MAX_OPEN:
            del self._open[next(iter(self._open))]


def _frame(parts: Sequence[Packed], names: Sequence[str]) -> pd.DataFrame:
    """Return the rows of several parts as one frame."""
    columns = zip(names, zip(*parts, strict=True), strict=True)
    return pd.DataFrame({name: as_pandas(values_of(joined(pieces))) for name, pieces in columns})
