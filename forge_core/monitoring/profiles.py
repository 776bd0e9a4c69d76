"""whylogs profiles: made, merged and described. The only module that knows whylogs.

whylogs 1.6.4 is the last release of an unmaintained project, so three things are done for it here: its default type
mapper asks numpy for names that numpy 2 dropped, so it gets ours; datetimes go through slow per-value paths, so they
are left out; its import sends usage data unless told not to, and takes seconds, so it happens on first use.
Nothing decides by these profiles: counts on the reference grid do (`forge_core.statistics.distributions`).
"""

import os
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

TOP_VALUES = 5


class Profile:
    """A whylogs profile in memory, for who adds to it many times; between processes it goes as bytes."""

    def __init__(self, view: Any) -> None:
        self._view = view

    @classmethod
    def of(cls, frame: pd.DataFrame) -> "Profile":
        """Return the profile of some rows; see `profile_frame`."""
        return cls(_profiled(frame))

    def __add__(self, other: "Profile") -> "Profile":
        """Return the profile of the rows of both; columns may differ."""
        return Profile(self._view.merge(other._view))

    def to_bytes(self) -> bytes:
        """Return what `describe_profile` and `merge_profiles` take."""
        return self._view.serialize()


def profile_frame(frame: pd.DataFrame) -> bytes:
    """Return the serialized whylogs profile of the rows; datetime columns are left out.

    A part costs some tens of milliseconds whatever its rows, so hand over batches, not single rows.
    """
    return _profiled(frame).serialize()


def _profiled(frame: pd.DataFrame) -> Any:
    _quiet()
    from whylogs.core import DatasetProfile

    schema, plain = _schema(), _plain(frame)
    profile = DatasetProfile(schema=schema)
    schema.resolve(pandas=plain)
    profile._initialize_new_columns(tuple(plain))
    for name, column in plain.items():
        tracked = profile._columns[str(name)]
        if column.dtype == np.float64:
            tracked._process_extracted_column(_extracted(column.to_numpy()))
        elif isinstance(column.dtype, pd.StringDtype):
            _track_texts(tracked, column)
        else:
            tracked.track_column(column)
    return profile.view()


def merge_profiles(blobs: Iterable[bytes]) -> bytes:
    """Return the profile of all rows of several profiles; columns may differ.

    Raises
    ------
    ValueError
        When there is nothing to merge.
    """
    views = [_view(blob) for blob in blobs]
    if not views:
        raise ValueError("expected at least one profile to merge, found none; profile some rows first")
    merged = views[0]
    for view in views[1:]:
        merged = merged.merge(view)
    return merged.serialize()


def describe_profile(blob: bytes) -> pd.DataFrame:
    """Return one row per column, sorted by name: n, missing, unique, min, max, mean, q25, median, q75, top.

    `unique` is an estimate (HyperLogLog, about 2 %), quartiles are those of a KLL sketch (exact below about 1 000
    values), `top` lists the most frequent texts with their counts; what a column has not is NaN or an empty list.
    """
    rows = [{"column": name, **_describe(column)} for name, column in _view(blob).get_columns().items()]
    shown = ["column", "n", "missing", "unique", "min", "max", "mean", "q25", "median", "q75", "top"]
    return pd.DataFrame(rows, columns=shown).set_index("column").sort_index()


def _describe(column: Any) -> dict[str, Any]:
    counts, found = column.get_metric("counts"), dict.fromkeys(("min", "max", "mean", "q25", "median", "q75"), np.nan)
    row: dict[str, Any] = {"n": int(counts.n.value), "missing": int(counts.null.value), "top": []}
    row["unique"] = round(column.get_metric("cardinality").estimate or 0)
    distribution, items = column.get_metric("distribution"), column.get_metric("frequent_items")
    if distribution is not None and not distribution.kll.value.is_empty():
        sketch = distribution.kll.value
        found["min"], found["max"], found["mean"] = sketch.get_min_value(), sketch.get_max_value(), distribution.avg
        found["q25"], found["median"], found["q75"] = sketch.get_quantiles([0.25, 0.5, 0.75])
    elif items is not None:
        row["top"] = [(item.value, int(item.est)) for item in items.strings[:TOP_VALUES]]
    return row | found


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Return columns that whylogs can take: no datetimes, categories as text, rows numbered from 0."""
    kept = {}
    for name, column in frame.items():
        if pd.api.types.is_datetime64_any_dtype(column.dtype) or pd.api.types.is_timedelta64_dtype(column.dtype):
            continue
        if isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_bool_dtype(column.dtype):
            column = column.astype("str")
        elif pd.api.types.is_numeric_dtype(column.dtype) and pd.api.types.is_extension_array_dtype(column.dtype):
            column = pd.Series(column.to_numpy(np.float64, na_value=np.nan))
        kept[str(name)] = column.reset_index(drop=True)
    return pd.DataFrame(kept)


def _view(blob: bytes) -> Any:
    _quiet()
    from whylogs.core import DatasetProfileView

    return DatasetProfileView.deserialize(blob)


def _quiet() -> None:
    os.environ["WHYLOGS_NO_ANALYTICS"] = "1"


def _extracted(values: NDArray[np.float64]) -> Any:
    """Return floats as whylogs splits a column, which itself looks at every value in Python."""
    from whylogs.core.preprocessing import PreprocessedColumn

    column = PreprocessedColumn()
    present = values[~np.isnan(values)]
    column.original, column.len, column.numpy.floats = values, len(values), present
    column.null_count = column.nan_count = len(values) - len(present)
    column.inf_count = int(np.isinf(present).sum())
    return column


def _track_texts(tracked: Any, texts: pd.Series) -> None:
    """Track a column of texts by its levels: whylogs itself shows each text to its sketches, one by one."""
    from whylogs.core.preprocessing import PreprocessedColumn

    counts = texts.value_counts()
    column, levels = PreprocessedColumn(), PreprocessedColumn()
    column.original, column.len, column.null_count = texts, len(texts), int(texts.isna().sum())
    column.nan_count = column.null_count  # which is how pandas holds a missing text
    column.pandas.strings, levels.pandas.strings = texts.dropna(), counts.index.to_series()
    tracked._success_count += len(tracked._metrics) * len(column.pandas.strings)
    for namespace, metric in tracked._metrics.items():
        if namespace == "frequent_items":
            for text, count in zip(counts.index.tolist(), counts.tolist(), strict=True):
                metric.frequent_strings.value.update(text[: metric.max_frequent_item_size], count)
        else:
            metric.columnar_update(levels if namespace == "cardinality" else column)


def _schema() -> Any:
    from whylogs.core.schema import DeclarativeSchema

    # A schema collects the columns of every profile made with it, so each profile gets one of its own.
    return DeclarativeSchema(_resolvers(), type_mapper=_column_types(), types=None)


@cache
def _resolvers() -> list[Any]:
    """Return the standard metrics but for Unicode ranges, which are off anyway and cost 13 ms a text column to skip."""
    from dataclasses import replace

    from whylogs.core.resolvers import STANDARD_RESOLVER

    return [
        replace(spec, metrics=[m for m in spec.metrics if m.metric.__name__ != "UnicodeRangeMetric"])
        for spec in STANDARD_RESOLVER
    ]


@cache
def _column_types() -> Any:
    from whylogs.core.datatypes import AnyType, DataType, Fractional, Integral, String, TypeMapper

    class ColumnTypes(TypeMapper):
        """Which of whylogs' types a numpy or pandas dtype is."""

        def __call__(self, dtype_or_type: Any) -> DataType:
            kind = getattr(dtype_or_type, "type", dtype_or_type)
            if getattr(dtype_or_type, "name", None) == "object":
                return String()
            for known, chosen in (
                (str, String),
                ((np.datetime64, np.timedelta64), AnyType),
                ((float, np.floating), Fractional),
                ((bool, int, np.number, np.bool_), Integral),
            ):
                if isinstance(kind, type) and issubclass(kind, known):
                    return chosen()
            return AnyType()

    return ColumnTypes()
