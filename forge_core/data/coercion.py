"""The five kinds of column, and how a column of any pandas type becomes one of them, cell by cell.

A cell that is not of its column's kind becomes missing and is reported; it never spoils the cells around it
(one stray word turns a whole CSV column into text).
"""

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Kind = Literal["number", "integer", "category", "boolean", "datetime"]

# Beyond this a number is infinite for a model, which computes in float32.
LARGEST = float(np.finfo(np.float32).max)

# A text column with at least this share of numbers is a number column with some unreadable cells.
_MOSTLY = 0.9


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


def kind_of_column(values: pd.Series) -> Kind:
    """Return the kind that a column's cells show; text that is numbers but for a few cells counts as numbers."""
    if values.dtype != object and not pd.api.types.is_string_dtype(values.dtype):
        return kind_of_dtype(values.dtype)
    present = values.dropna()
    if len(present) and present.map(lambda v: isinstance(v, bool | np.bool_)).all():
        return "boolean"
    if not len(present):
        return "category"
    share = 1.0 - _to_number(present).bad.mean()
    # Text in which every cell is a number was text on purpose: codes with leading zeros, years as labels.
    return "number" if _MOSTLY <= share < 1 or (share == 1 and not _any_text(present)) else "category"


def coerce(values: pd.Series, kind: Kind) -> Coerced:
    """Return the column as `kind`, with every cell that is not of that kind missing and marked.

    Parameters
    ----------
    values : Series, shape (n_rows,)
        Any dtype. Empty text counts as missing in all kinds but category.
    kind : Kind
        Numbers become float64, integers int64 (float64 where some are missing), categories `str`, booleans
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
    present = values.notna().to_numpy()
    kind = None if _is_textual(values) else kind_of_dtype(values.dtype)
    if kind in ("number", "integer"):
        return Coerced(values.astype("float64"), np.zeros(len(values), bool))
    if kind is not None:
        return Coerced(pd.Series(np.nan, index=values.index), present)
    strange = values.map(lambda v: not isinstance(v, str | int | float | np.number) or isinstance(v, bool | np.bool_))
    strange = strange.to_numpy(bool) & present if values.dtype == object else np.zeros(len(values), bool)
    blank = values.map(lambda v: isinstance(v, str) and not v.strip()).to_numpy(bool)
    numbers = pd.to_numeric(values.astype(object).mask(strange | blank), errors="coerce").astype("float64")
    return Coerced(numbers, (present & ~blank & numbers.isna().to_numpy()) | strange)


def _to_integer(values: pd.Series) -> Coerced:
    if pd.api.types.is_integer_dtype(values.dtype) and not values.hasnans:
        return Coerced(values.astype("int64"), np.zeros(len(values), bool))
    numbers, bad = _to_number(values)
    fraction = (numbers.notna() & (~np.isfinite(numbers) | (numbers % 1 != 0))).to_numpy()
    numbers = numbers.mask(fraction)
    return Coerced(numbers if numbers.hasnans else numbers.astype("int64"), bad | fraction)


def _to_category(values: pd.Series) -> Coerced:
    present = values.notna().to_numpy()
    if isinstance(values.dtype, pd.CategoricalDtype) or (values.dtype != object and _is_textual(values)):
        return Coerced(values.astype("str"), np.zeros(len(values), bool))
    bad = present & ~values.map(lambda v: isinstance(v, str)).to_numpy(bool)
    return Coerced(values.astype(object).mask(bad | ~present).astype("str"), bad)


def _to_boolean(values: pd.Series) -> Coerced:
    if values.dtype == bool:
        return Coerced(values, np.zeros(len(values), bool))
    present = values.notna().to_numpy() & (values.astype(object) != "").to_numpy(bool)
    plain = values.astype(object).map(lambda v: v.strip().lower() if isinstance(v, str) else v)
    flags = plain.map({True: True, False: False, "true": True, "false": False}).astype("boolean")
    bad = present & flags.isna().to_numpy()
    return Coerced(flags if flags.hasnans else flags.astype(bool), bad)


def _to_datetime(values: pd.Series) -> Coerced:
    present = values.notna().to_numpy()
    if _is_textual(values):
        blank = values.map(lambda v: isinstance(v, str) and not v.strip()).to_numpy(bool)
        strange = values.map(lambda v: isinstance(v, int | float | bool | np.number)).to_numpy(bool) & present
        times = pd.to_datetime(values.astype(object).mask(strange | blank), errors="coerce", utc=True, format="ISO8601")
        return Coerced(times.astype("datetime64[us, UTC]"), present & ~blank & times.isna().to_numpy())
    if kind_of_dtype(values.dtype) != "datetime":
        return Coerced(pd.Series(pd.NaT, index=values.index, dtype="datetime64[us, UTC]"), present)
    times = pd.to_datetime(values, utc=True)
    return Coerced(times.astype("datetime64[us, UTC]"), np.zeros(len(values), bool))


def _is_textual(values: pd.Series) -> bool:
    return values.dtype == object or (
        pd.api.types.is_string_dtype(values.dtype) and not isinstance(values.dtype, pd.CategoricalDtype)
    )


def _any_text(values: pd.Series) -> bool:
    return values.dtype != object or bool(values.map(lambda v: isinstance(v, str)).any())
