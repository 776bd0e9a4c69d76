"""The five kinds of column, and how a column of any pandas type becomes one of them, cell by cell.

A cell that is not of its column's kind becomes missing and is reported; it never spoils the cells around it
(one stray word turns a whole CSV column into text).
"""

from collections.abc import Hashable
from decimal import Decimal
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Kind = Literal["number", "integer", "category", "boolean", "datetime"]

# Beyond this a number is infinite for a model, which computes in float32.
LARGEST = float(np.finfo(np.float32).max)

# Beyond this, float64 no longer tells neighbouring integers apart, and int64 ends soon.
_LARGEST_INTEGER = 2.0**63

# A text of more characters is no category: somebody's file, or a quote that was never closed.
LONGEST = 100_000


# Times with a zone, or all without one; texts that mix both are read one by one.
_ARROW_TYPES: dict[Kind, tuple[pa.DataType, ...]] = {
    "number": (pa.float64(),),
    "integer": (pa.int64(),),
    "datetime": (pa.timestamp("us", "UTC"), pa.timestamp("us")),
}


class Coerced(NamedTuple):
    """A column as one kind: its values, and which cells were there and are not of that kind."""

    values: pd.Series
    bad: NDArray[np.bool_]


def kind_of_dtype(dtype: object) -> Kind:
    """Return the kind that a pandas or Pandera dtype stands for; whatever is no number, time or flag is a category."""
    name = str(dtype).lower()
    for start, kind in _KIND_OF_NAME.items():
        if name.startswith(start):
            return kind
    return "category"


def coerce(values: pd.Series, kind: Kind) -> Coerced:
    """Return the column as `kind`, with every cell that is not of that kind missing and marked.

    Parameters
    ----------
    values : Series, shape (n_rows,)
        Any dtype. Empty text counts as missing in all kinds but category.
    kind : Kind
        Numbers become float64, integers int64 (`Int64` where some are missing), categories `str`, booleans
        bool (`boolean` where some are missing), datetimes UTC in microseconds; naive ones are taken as UTC.
    """
    coerced = {
        "number": _to_number,
        "integer": _to_integer,
        "category": _to_category,
        "boolean": _to_boolean,
        "datetime": _to_datetime,
    }[kind](values)
    return coerced


def found_type(values: pd.Series, bad: NDArray[np.bool_]) -> str:
    """Return in one word what the marked cells are: text, number, boolean or datetime."""
    cell = values[bad].iloc[0]
    if isinstance(cell, str):
        return "text"
    if isinstance(cell, bool | np.bool_):
        return "boolean"
    return "number" if isinstance(cell, int | float | np.number) else type(cell).__name__.lower()


_KIND_OF_NAME: dict[str, Kind] = {
    "float": "number",
    "double": "number",
    "decimal": "number",
    "int": "integer",
    "uint": "integer",
    "bool": "boolean",
    "datetime": "datetime",
    "timestamp": "datetime",
    "date": "datetime",
}


def _to_number(values: pd.Series) -> Coerced:
    kind = None if _is_textual(values) else kind_of_dtype(values.dtype)
    if kind in ("number", "integer"):
        return Coerced(values.astype("float64"), _none(values))
    present = values.notna().to_numpy()
    if kind is not None:
        return Coerced(pd.Series(np.nan, index=values.index), present)
    if (numbers := _cast(values, "number")) is not None and not numbers.eq(np.inf).any():
        return Coerced(numbers, _none(values))
    strange = _none(values)
    if values.dtype == object:
        readable = values.map(lambda v: isinstance(v, str | int | float | np.number | Decimal) and type(v) is not bool)
        strange = ~readable.to_numpy(bool) & present
    blank = _blank(values)
    numbers = pd.to_numeric(values.astype(object).mask(strange | blank), errors="coerce").astype("float64")
    return Coerced(numbers, (present & ~blank & numbers.isna().to_numpy()) | strange)


def _to_integer(values: pd.Series) -> Coerced:
    if pd.api.types.is_integer_dtype(values.dtype):
        return Coerced(values.astype("Int64" if values.hasnans else "int64"), _none(values))
    if _is_textual(values) and (whole := _cast(values, "integer")) is not None:
        return Coerced(whole, _none(values))
    numbers, bad = _to_number(values)
    fraction = (numbers.notna() & ~(numbers.abs() < _LARGEST_INTEGER) | (numbers % 1 != 0) & numbers.notna()).to_numpy()
    numbers = numbers.mask(fraction)
    return Coerced(numbers.astype("Int64" if numbers.hasnans else "int64"), bad | fraction)


def _to_category(values: pd.Series) -> Coerced:
    if isinstance(values.dtype, pd.CategoricalDtype) or (values.dtype != object and _is_textual(values)):
        texts = values if values.dtype == "str" else values.astype("str")
        long = (texts.str.len() > LONGEST).to_numpy(bool)
        return Coerced(texts.mask(long) if long.any() else texts, long)
    present = values.notna().to_numpy()
    bad = present & ~values.map(lambda v: isinstance(v, str) and len(v) <= LONGEST).to_numpy(bool)
    return Coerced(values.astype(object).mask(bad | ~present).astype("str"), bad)


def _to_boolean(values: pd.Series) -> Coerced:
    if values.dtype == bool:
        return Coerced(values, _none(values))
    if values.dtype == object:
        values = values.map(lambda v: v if isinstance(v, Hashable) else str(v))
    codes, levels = pd.factorize(values)
    plain = [v.strip().lower() if isinstance(v, str) else v for v in levels]
    known = {True: True, False: False, "true": True, "false": False}
    flags = pd.array([known.get(v) for v in plain] + [None], dtype="boolean")
    wrong = np.array([v not in known and v != "" for v in plain] + [False])
    cells = pd.Series(flags[codes], index=values.index, name=values.name)
    return Coerced(cells if cells.hasnans else cells.astype(bool), wrong[codes])


def _to_datetime(values: pd.Series) -> Coerced:
    present = values.notna().to_numpy()
    if _is_textual(values):
        blank = _blank(values)
        strange = _none(values)
        if values.dtype == object:
            strange = values.map(lambda v: isinstance(v, int | float | bool | np.number)).to_numpy(bool) & present
        cells = values.mask(strange | blank) if (strange | blank).any() else values
        times = pd.to_datetime(cells, errors="coerce", utc=True, format="ISO8601")
        return Coerced(times.astype("datetime64[us, UTC]"), present & ~blank & times.isna().to_numpy())
    if kind_of_dtype(values.dtype) != "datetime":
        return Coerced(pd.Series(pd.NaT, index=values.index, dtype="datetime64[us, UTC]"), present)
    times = pd.to_datetime(values, utc=True)
    return Coerced(times.astype("datetime64[us, UTC]"), _none(values))


def cast_texts(texts: pa.Array, kind: Kind) -> pa.Array | None:
    """Return text cells as Arrow numbers, integers or times; None where any cell is none, or for other kinds."""
    if kind == "integer" and any(pc.any(pc.match_substring(texts, mark)).as_py() for mark in "xX"):
        return None  # Arrow reads 0x10 as a number
    for wanted in _ARROW_TYPES.get(kind, ()):
        try:
            cells = pc.cast(texts, wanted)
        except pa.ArrowInvalid:
            continue
        return None if kind == "number" and pc.any(pc.is_nan(cells)).as_py() else cells
    return None


def _cast(values: pd.Series, kind: Kind) -> pd.Series | None:
    """Return text cells as numbers, blank ones missing; None where any cell is no such number."""
    if values.dtype == object:
        return None
    texts = pa.array(values, from_pandas=True)
    numbers = cast_texts(texts, kind)
    if numbers is None:
        trimmed = pc.utf8_trim_whitespace(texts)
        numbers = cast_texts(pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, texts.type), trimmed), kind)
    if numbers is None:
        return None
    if kind == "number":
        return pd.Series(numbers.to_numpy(zero_copy_only=False), index=values.index, name=values.name)
    dtype = "Int64" if numbers.null_count else "int64"
    cells = numbers.to_pandas(integer_object_nulls=True).to_numpy()
    return pd.Series(cells, index=values.index, name=values.name).astype(dtype)


def _blank(values: pd.Series) -> NDArray[np.bool_]:
    if values.dtype != object and _is_textual(values):
        return (values.str.strip() == "").to_numpy(bool, na_value=False)
    return values.map(lambda v: isinstance(v, str) and not v.strip()).to_numpy(bool)


def _none(values: pd.Series) -> NDArray[np.bool_]:
    return np.zeros(len(values), bool)


def _is_textual(values: pd.Series) -> bool:
    return values.dtype == object or (
        pd.api.types.is_string_dtype(values.dtype) and not isinstance(values.dtype, pd.CategoricalDtype)
    )
