"""The shadow log: what a version answered to copies of the champion's traffic, beside what the champion answered.

`shadows/{model}/date=YYYY-MM-DD/part-….parquet`, by event time. Nobody saw these answers. Parts are only added, each
whole; a request that was copied twice to a version counts once.
"""

import uuid
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from forge_core.storage import Storage

# `probability` and `champion_probability` are as in the prediction log: that of the second class, the greatest of
# many, or the predicted number. `fault` is why the version gave no answer, `contract` or `error`, else empty.
SHADOW_COLUMNS = (
    "request_id",
    "event_time",
    "received_at",
    "version",
    "champion_version",
    "prediction",
    "probability",
    "champion_prediction",
    "champion_probability",
    "latency_ms",
    "champion_latency_ms",
    "fault",
)
_TIMES = ("event_time", "received_at")
_NUMBERS = ("probability", "champion_probability", "latency_ms", "champion_latency_ms")


class ShadowLog:
    """The shadow log of one model.

    Parameters
    ----------
    storage : Storage
    model : str

    Examples
    --------
    >>> at = datetime(2024, 1, 1, tzinfo=UTC)
    >>> row = ("r1", at, at, "4", "3", 1, 0.8, 0, 0.4, 2.0, 3.0, "")
    >>> log = ShadowLog(Storage("memory://shadow-example"), "demo")
    >>> log.append(pd.DataFrame([row], columns=SHADOW_COLUMNS))
    >>> log.read("4")[["prediction", "champion_prediction"]].values.tolist()
    [['1', '0']]
    """

    def __init__(self, storage: Storage, model: str) -> None:
        self.storage, self.model = storage, model

    @property
    def folder(self) -> str:
        """Return the key of the folder that holds the log."""
        return f"shadows/{self.model}"

    def append(self, frame: pd.DataFrame) -> None:
        """Add rows with the columns SHADOW_COLUMNS, one part for each date of event time.

        Answers are stored as text, because a version that gives classes as numbers may follow one that gives names.
        """
        tidy = pd.DataFrame({name: _tidy(name, frame[name]) for name in SHADOW_COLUMNS}).reset_index(drop=True)
        for day, part in tidy.groupby(tidy["event_time"].dt.date, sort=True):
            self.storage.write_frame(f"{self.folder}/date={day}/part-{uuid.uuid4().hex}.parquet", part)

    def read(
        self,
        version: str,
        *,
        since: datetime | None = None,
        received_since: datetime | None = None,
        columns: Sequence[str] = SHADOW_COLUMNS,
    ) -> pd.DataFrame:
        """Return a version's rows in the order in which they were answered, each request once.

        Parameters
        ----------
        since : datetime, optional
            Event times from the day of this moment on; earlier days are not opened.
        received_since : datetime, optional
            Only rows that were answered from then on (wall clock).
        """
        first = since.astimezone(UTC).date() if since else date.min
        keys = [key for key in self.storage.list(self.folder, suffix=".parquet") if _date_of(key) >= first]
        tables = [table for key in keys if (table := self._part(key)).num_rows]
        if not tables:
            return pd.DataFrame({name: _tidy(name, pd.Series(dtype=object)) for name in columns})
        frame = pa.concat_tables(tables).to_pandas()
        frame = frame[frame["version"] == version]
        if received_since is not None:
            frame = frame[frame["received_at"] >= received_since]
        frame = frame.sort_values("received_at", kind="stable").drop_duplicates("request_id")
        return frame.reset_index(drop=True)[list(columns)]

    def maintain(self, now: datetime, retention_days: float | None = None) -> int:
        """Remove days past their retention and return how many."""
        if retention_days is None:
            return 0
        last = (now.astimezone(UTC) - timedelta(days=retention_days + 1)).date()
        old = [key for key in self.storage.list(self.folder, suffix=".parquet") if _date_of(key) < last]
        for key in old:
            self.storage.fs.rm(self.storage.path(key))
        return len({_date_of(key) for key in old})

    def _part(self, key: str) -> pa.Table:
        with self.storage.fs.open(self.storage.path(key), "rb") as file:
            return pq.ParquetFile(file).read()


def _date_of(key: str) -> date:
    return date.fromisoformat(key.split("/date=")[1][:10])


def _tidy(name: str, column: pd.Series) -> pd.Series:
    if name in _TIMES:
        return pd.to_datetime(column, utc=True).astype("datetime64[us, UTC]")
    if name in _NUMBERS:
        return pd.to_numeric(column).astype(np.float64)
    return column.map(str, na_action="ignore").astype("str")
