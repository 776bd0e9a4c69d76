"""The prediction log: every answer with its inputs, as Parquet by day, so that labels can be joined later.

`predictions/{model}/date=YYYY-MM-DD/part-….parquet`, by event time; `pd.read_parquet(folder)` reads it all. Parts are
only added, each whole. A request that was logged twice counts once: what was received first.

While a split shares a model's traffic out (a rollout, an experiment), rows also say `split` (its id), `assigned` (the
variant that the user key's hash chose), `propensity` (that variant's share of the traffic at the time; missing where
somebody named the user's variant), `unit` (16 hexadecimal digits in place of the key), `latency_ms` (in the router),
and `fault`: why the champion answered instead, `contract` or `error`, else empty. `variant` is who answered.
"""

import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from forge_core.errors import SchemaViolation
from forge_core.storage import Storage

REQUIRED = ("request_id", "event_time", "received_at", "version", "variant", "prediction", "probability")
_TIMES, _TEXTS, _NUMBERS = (
    ("event_time", "received_at"),
    ("request_id", "version", "variant", "owner", "assigned", "split", "unit", "fault"),
    ("probability", "propensity", "latency_ms"),
)


class PredictionLog:
    """The prediction log of one model.

    Parameters
    ----------
    storage : Storage
    model : str

    Examples
    --------
    >>> at = datetime(2024, 1, 1, 23, 59, tzinfo=UTC)
    >>> row = {"request_id": "r1", "event_time": at, "received_at": at, "version": "1", "variant": "champion"}
    >>> log = PredictionLog(Storage("memory://log-example"), "demo")
    >>> log.append(pd.DataFrame([{**row, "prediction": 1, "probability": 0.8, "age": 30}]))
    >>> log.read(columns=["request_id", "age"]).values.tolist()
    [['r1', 30.0]]
    """

    def __init__(self, storage: Storage, model: str) -> None:
        self.storage, self.model = storage, model

    @property
    def folder(self) -> str:
        """Return the key of the folder that holds the log."""
        return f"predictions/{self.model}"

    def append(self, frame: pd.DataFrame) -> None:
        """Add rows: the required columns and the features, one part for each date of event time.

        Numbers are stored as float64, times as UTC microseconds, everything else as text or truth values, so that
        parts agree whichever rows happen to have values missing.

        Raises
        ------
        SchemaViolation
            When a required column is not there, or an event time is missing.
        """
        absent = [name for name in REQUIRED if name not in frame.columns]
        if absent or frame["event_time"].isna().any():
            raise SchemaViolation(
                f"expected the columns {', '.join(REQUIRED)} and an event time in every row, found "
                f"{'no ' + ', '.join(absent) if absent else 'rows without event time'}; complete the rows",
                context={"columns": absent or ["event_time"]},
            )
        table = {str(name): _tidy(str(name), column) for name, column in frame.items()}
        tidy = pd.DataFrame(table).reset_index(drop=True)
        for day, part in _by_day(tidy):
            # Readers take the types from the first name, so a part with a column of unknown type comes last.
            known = all(part[name].notna().any() or part[name].dtype != object for name in part)
            key = f"{self.folder}/date={day}/{'part' if known else 'sparse'}-{uuid.uuid4().hex}.parquet"
            self.storage.write_frame(key, part)

    def read(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        version: str | None = None,
        columns: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Return logged rows in order of event time, each request once.

        Parameters
        ----------
        since, until : datetime, optional
            Event times from `since` (included) to `until` (excluded), UTC; only the days between are opened.
        version : str, optional
        columns : sequence of str, optional
            Columns to give back; default all. Nothing found gives an empty frame with them.
        """
        wanted = None if columns is None else [*columns, *(c for c in REQUIRED if c not in columns)]
        tables = [self._part(key, wanted) for key in self._keys(since, until)]
        if not tables:
            return pd.DataFrame({name: _tidy(name, pd.Series(dtype=object)) for name in columns or REQUIRED})
        frame = pa.concat_tables(tables, promote_options="permissive").to_pandas()
        frame = _once(frame)
        kept = pd.Series(True, index=frame.index)
        if since is not None:
            kept &= frame["event_time"] >= since
        if until is not None:
            kept &= frame["event_time"] < until
        if version is not None:
            kept &= frame["version"] == version
        frame = frame[kept].sort_values("event_time", kind="stable").reset_index(drop=True)
        return frame if columns is None else frame.reindex(columns=list(columns))

    def maintain(self, now: datetime, retention_days: float | None = None) -> tuple[int, int]:
        """Put each finished day's parts into one file and remove days past their retention; return how many of each.

        A day is finished a day after its end. Interrupted, it leaves rows twice for a while, which are read once.
        """
        joined = removed = 0
        days: dict[date, list[str]] = {}
        for key in self._keys(None, None):
            days.setdefault(_date_of(key), []).append(key)
        for day, keys in days.items():
            ended = datetime.combine(day + timedelta(days=1), datetime.min.time(), UTC)
            if retention_days is not None and now - ended > timedelta(days=retention_days):
                removed += 1
            elif len(keys) > 1 and now - ended > timedelta(days=1):
                tables = [self._part(key, None) for key in keys]
                frame = _once(pa.concat_tables(tables, promote_options="permissive").to_pandas())
                self.storage.write_frame(f"{self.folder}/date={day}/day-{uuid.uuid4().hex}.parquet", frame)
                joined += 1
            else:
                continue
            for key in keys:
                self.storage.fs.rm(self.storage.path(key))
        return joined, removed

    def _keys(self, since: datetime | None, until: datetime | None) -> list[str]:
        first = since.astimezone(UTC).date() if since else date.min
        last = until.astimezone(UTC).date() if until else date.max
        keys = self.storage.list(self.folder, suffix=".parquet")
        return [key for key in keys if first <= _date_of(key) <= last]

    def _part(self, key: str, columns: list[str] | None) -> pa.Table:
        with self.storage.fs.open(self.storage.path(key), "rb") as file:
            part = pq.ParquetFile(file)
            names = part.schema_arrow.names
            return part.read(columns=[name for name in names if columns is None or name in columns])


def _once(frame: pd.DataFrame) -> pd.DataFrame:
    """Return each request once: what was received first."""
    return frame.sort_values(["received_at", "event_time"], kind="stable").drop_duplicates("request_id")


def _date_of(key: str) -> date:
    return date.fromisoformat(key.split("/date=")[1][:10])


def _by_day(frame: pd.DataFrame) -> Iterable[tuple[date, pd.DataFrame]]:
    """Return the rows of each date of event time; nearly always it is one for all."""
    moments = frame["event_time"]
    if len(frame) and (day := moments.min().date()) == moments.max().date():
        return [(day, frame)]
    return frame.groupby(moments.dt.date, sort=True)


def _tidy(name: str, column: pd.Series) -> pd.Series:
    if name in _TIMES or pd.api.types.is_datetime64_any_dtype(column.dtype):
        return pd.to_datetime(column, utc=True).astype("datetime64[us, UTC]")
    if name in _NUMBERS:
        return pd.to_numeric(column).astype(np.float64)
    if name in _TEXTS:
        return column.astype("str")
    if pd.api.types.is_bool_dtype(column.dtype):
        return column
    if pd.api.types.is_numeric_dtype(column.dtype):
        return pd.Series(column.to_numpy(np.float64, na_value=np.nan), index=column.index)
    if not column.notna().any():
        return column.astype(object)
    if isinstance(column.dtype, pd.StringDtype):
        return column
    return _tidy_objects(column)


def _tidy_objects(column: pd.Series) -> pd.Series:
    """Return mixed values as one type: all numbers, all truth values, else text; missing stays missing."""
    present: list[Any] = column.dropna().tolist()
    if all(isinstance(value, bool) for value in present):
        return column.astype("boolean")
    if all(isinstance(value, int | float) for value in present):
        return pd.to_numeric(column).astype(np.float64)
    return column.astype("str")
