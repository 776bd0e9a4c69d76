"""Turns served predictions into windows (profile and grid counts) and prediction-log parts, off the path.

Rows gather in memory and are written every couple of seconds as parts, each whole or not at all; a killed
profiler loses at most the rows that were not yet written.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd

from forge_core.deployment.mirror import mirrored_version
from forge_core.monitoring.prediction_log import PredictionLog
from forge_core.monitoring.profiles import profile_frame
from forge_core.monitoring.windows import ReferenceProfile, WindowStore, window_start
from forge_core.storage import Storage

logger = logging.getLogger(__name__)

LOG_COLUMNS = ["request_id", "event_time", "received_at", "version", "variant", "prediction", "probability"]
Row = tuple[Any, ...]


class Profiler:
    """Collects served rows and writes them as windows and log parts.

    Parameters
    ----------
    storage_url : str
        Where windows and the prediction log go.
    flush_seconds, flush_rows : float, int
        A part is written when this much time has passed or this many rows wait.
    max_waiting : int
        Rows kept in memory at most; more are dropped and counted.
    """

    def __init__(
        self, storage_url: str, *, flush_seconds: float = 2.0, flush_rows: int = 8192, max_waiting: int = 200_000
    ) -> None:
        self.storage = Storage(storage_url)
        self.flush_seconds, self.flush_rows, self.max_waiting = flush_seconds, flush_rows, max_waiting
        self._references: dict[tuple[str, str], tuple[ReferenceProfile, list[str]]] = {}
        self._waiting: dict[tuple[str, str, float], list[Row]] = {}
        self._counts = {"received": 0, "written": 0, "dropped": 0}
        self._last_flush = time.monotonic()
        self._lock = asyncio.Lock()
        self._timer = asyncio.get_running_loop().create_task(self._tick())

    async def log(self, model: str, version: str, window_hours: float, rows: Sequence[Row]) -> None:
        """Take served rows: LOG_COLUMNS' values, then the features in the contract's order."""
        self._counts["received"] += len(rows)
        if self._n_waiting() + len(rows) > self.max_waiting:
            self._counts["dropped"] += len(rows)
            return
        self._waiting.setdefault((model, version, window_hours), []).extend(rows)
        if self._n_waiting() >= self.flush_rows and not self._lock.locked():
            await self.flush()

    async def flush(self) -> dict[str, int]:
        """Write what waits and return the counts so far."""
        async with self._lock:
            waiting, self._waiting = self._waiting, {}
            for (model, version, hours), rows in waiting.items():
                try:
                    await asyncio.to_thread(self._write, model, version, hours, rows)
                    self._counts["written"] += len(rows)
                except Exception:  # whatever is wrong with the log, the predictions were served
                    self._counts["dropped"] += len(rows)
                    logger.exception("part not written model=%s version=%s rows=%d", model, version, len(rows))
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
        return sum(map(len, self._waiting.values()))

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

    def _write(self, model: str, version: str, window_hours: float, rows: list[Row]) -> None:
        reference, features = self._reference(model, version)
        frame = pd.DataFrame(rows, columns=[*LOG_COLUMNS, *features])
        windows = WindowStore(self.storage, model)
        starts = {moment: window_start(moment, window_hours) for moment in {row[1] for row in rows}}
        for start, part in frame.groupby([starts[row[1]] for row in rows], sort=True):
            watched = part[[*features, "probability"]].reset_index(drop=True)
            windows.write_part(version, start, reference.grid.count(watched), profile_frame(watched), len(part))
        PredictionLog(self.storage, model).append(frame)
