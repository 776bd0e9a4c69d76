"""Rows on their way between replicas: column by column, and moments as microseconds.

A datetime is pickled as an object that is taken apart and made anew: one column of them took longer than eleven others.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np

Row = tuple[Any, ...]

_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)


class Moments(NamedTuple):
    """A column of datetimes: microseconds since 1970 in UTC, None where one is missing."""

    microseconds: list[int | None]


Packed = list[Sequence[Any] | Moments]


def packed(rows: Sequence[Row]) -> Packed:
    """Return rows of one length as columns that pickle quickly; see `unpacked`."""
    return [_packed(column) for column in zip(*rows, strict=True)]


def unpacked(columns: Packed) -> list[Any]:
    """Return the columns; datetimes as an array of datetime64[us] in UTC, missing ones NaT."""
    return [np.array(c.microseconds, "datetime64[us]") if isinstance(c, Moments) else c for c in columns]


def n_rows(columns: Packed) -> int:
    """Return how many rows the columns have."""
    first = columns[0]
    return len(first.microseconds) if isinstance(first, Moments) else len(first)


def _packed(column: Sequence[Any]) -> Sequence[Any] | Moments:
    if not isinstance(next((value for value in column if value is not None), None), datetime):
        return column
    return Moments([None if value is None else (value - _EPOCH) // _MICROSECOND for value in column])
