"""Many rows against a contract: whole columns at a glance, and row by row only where something is wrong."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from forge_core.data.row_checks import FieldRule, check_fields
from forge_core.errors import SchemaViolation

Records = Sequence[Mapping[str, Any]]
Columns = Mapping[str, list[Any]]
Rows = Records | Columns
_FIRST, _LAST = np.datetime64("0001-01-01", "us"), np.datetime64("9999-12-31T23:59:59.999999", "us")
_TEXT, _TRUTH = {pa.string(), pa.null()}, {pa.bool_(), pa.null()}
_WHOLE = {pa.int64(), pa.null()}
_NUMBER = {pa.float64(), *_WHOLE}


def check_many(rules: Sequence[FieldRule], given: Rows) -> list[tuple[Any, ...]]:
    """Return the rows with one value a rule, in the rules' order, as `check_fields` gives them.

    Parameters
    ----------
    rules : sequence of FieldRule
    given : sequence of mappings, or mapping of lists
        Records, or columns of one length.

    Raises
    ------
    SchemaViolation
        With every fault of every row in `context["faults"]` (the first hundred): {"row", "field", "reason"}.
    """
    columns = _typed_columns(rules, given) if len(given) > 1 or isinstance(given, Mapping) else None
    if columns is None:
        return _check_each(rules, given)
    return list(zip(*map(plain_values, columns), strict=True))


def check_columns(rules: Sequence[FieldRule], given: Rows) -> list[Any]:
    """Return what `check_many` does, a sequence a rule.

    That of numbers may be an array of float64, of moments an array of datetime64[us] in UTC; that of whole numbers,
    truth values or texts an Arrow array.
    """
    columns = _typed_columns(rules, given)
    return list(zip(*_check_each(rules, given), strict=True)) if columns is None else columns


def plain_values(column: Any) -> Sequence[Any]:
    """Return the Python values of a column as `check_columns` gives it."""
    if isinstance(column, pa.Array):
        values = column.to_pylist()
        is_gappy = column.null_count and pa.types.is_integer(column.type)
        return [math.nan if v is None else v for v in values] if is_gappy else values
    if not isinstance(column, np.ndarray):
        return column
    values = column.tolist()
    return [v if v is None else v.replace(tzinfo=UTC) for v in values] if column.dtype.kind == "M" else values


def as_pandas(column: Any) -> Any:
    """Return what a frame takes for a column as `check_columns` gives it."""
    if isinstance(column, pa.Array):
        return column.to_pandas()
    is_time = isinstance(column, np.ndarray) and column.dtype.kind == "M"
    return pd.to_datetime(column, utc=True) if is_time else column


def _check_each(rules: Sequence[FieldRule], given: Rows) -> list[tuple[Any, ...]]:
    records = as_records(given) if isinstance(given, Mapping) else given
    rows: list[tuple[Any, ...]] = []
    faults: list[dict[str, Any]] = []
    for number, record in enumerate(records):
        try:
            rows.append(tuple(check_fields(rules, record).values()))
        except SchemaViolation as error:
            if len(records) == 1:
                raise
            faults += [{**fault, "row": number} for fault in error.context["faults"]]
    if faults:
        shown = "; ".join(f"row {f['row']}, {f['field']}: {f['reason']}" for f in faults[:5])
        raise SchemaViolation(f"{len(faults)} faults: {shown}", context={"faults": faults[:100]})
    return rows


def as_records(columns: Columns) -> Records:
    """Return columns of one length as records."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _typed_columns(rules: Sequence[FieldRule], given: Rows) -> list[Any] | None:
    """Return the columns where surely every cell keeps its rule, else None."""
    if isinstance(given, Mapping):
        absent = [None] * len(next(iter(given.values()), []))
        found = [given.get(rule.name, absent) for rule in rules]
        if sum(rule.name in given for rule in rules) < len(given):
            return None
    else:
        found = [[record.get(rule.name) for record in given] for rule in rules]
        known = sum(
            sum(rule.name in record for record in given) if None in values else len(values)
            for rule, values in zip(rules, found, strict=True)
        )
        if known != sum(map(len, given)):
            return None
    typed: list[Any] = []
    for rule, values in zip(rules, found, strict=True):
        column = _typed(rule, values)
        if column is None:
            return None
        typed.append(column)
    return typed


def _typed(rule: FieldRule, values: list[Any]) -> Any:
    given = _as_arrow(values)
    if given is None or (given.null_count and not rule.nullable):
        return None
    typed: Any
    match rule.kind:
        case "number" | "integer":
            typed = _numbers(rule, given)
        case "category":
            typed = given.cast(pa.string()) if given.type in _TEXT else None
        case "boolean":
            typed = given.cast(pa.bool_()) if given.type in _TRUTH else None
        case _:
            typed = _times(given)
    if typed is None or (rule.allowed is None and not rule.forbidden):
        return typed
    levels = {v for v in plain_values(typed) if v is not None and v == v}
    return typed if (rule.allowed is None or levels <= rule.allowed) and not levels & rule.forbidden else None


def _as_arrow(values: list[Any]) -> pa.Array | None:
    """Return values of one type, missing ones null, or None where they are of several or of none that Arrow knows."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return None


def _numbers(rule: FieldRule, given: pa.Array) -> pa.Array | NDArray[np.float64] | None:
    whole = rule.kind == "integer"
    if given.type not in (_WHOLE if whole else _NUMBER):
        return None
    numbers = given.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
    if not rule.nullable and np.isnan(numbers).any():
        return None
    # Both leave NaN out.
    least, most = np.fmin.reduce(numbers, initial=np.nan), np.fmax.reduce(numbers, initial=np.nan)
    if not np.isnan(least) and not rule.low <= least <= most <= rule.high:
        return None
    return given.cast(pa.int64()) if whole else numbers


def _times(given: pa.Array) -> list[Any] | NDArray[np.datetime64] | None:
    """Return the moments; Arrow reads them in a third of the time where all say their zone, or none does."""
    if given.type not in _TEXT:
        return None
    for zone in ("UTC", None):
        with contextlib.suppress(pa.ArrowInvalid):
            read = given.cast(pa.timestamp("us", zone)).to_numpy(zero_copy_only=False)
            present = read[~np.isnat(read)]
            # Arrow knows years that Python does not.
            return read if not len(present) or _FIRST <= present.min() <= present.max() <= _LAST else None
    try:
        moments = [datetime.fromisoformat(v) if v is not None else None for v in given.to_pylist()]
        return [m if m is None else m.replace(tzinfo=UTC) if m.tzinfo is None else m.astimezone(UTC) for m in moments]
    except (ValueError, OverflowError):
        return None
