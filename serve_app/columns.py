"""Rows column by column: on their way between replicas, and a batch from its check to its log.

A datetime is pickled as an object that is taken apart and made anew: one column of them took longer than eleven others.
So columns of datetimes, which are in UTC here, travel as arrays of datetime64[us].
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Same:
    """A column in which all `n` rows have one value."""

    value: Any
    n: int

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, part: slice) -> "Same":
        return Same(self.value, len(range(*part.indices(self.n))))

    def __iter__(self) -> Iterator[Any]:
        return iter([self.value] * self.n)


# Each a sequence, an array of datetimes, or `Same`.
Packed = list[Any]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that are held by column: neither put together as tuples nor taken apart again."""

    columns: Sequence[Sequence[Any] | Same]

    def __len__(self) -> int:
        return len(self.columns[0])

    def __iter__(self) -> Iterator[Row]:
        return zip(*self.columns, strict=True)

    def __getitem__(self, part: slice) -> "Table":
        return Table([column[part] for column in self.columns])


def packed(rows: Sequence[Row] | Table) -> Packed:
    """Return rows of one length as columns that pickle quickly: datetimes as arrays, missing ones NaT."""
    columns = rows.columns if isinstance(rows, Table) else zip(*rows, strict=True)
    return [_packed(column) for column in columns]


def values_of(column: Any) -> Sequence[Any] | NDArray[np.datetime64]:
    """Return the values of a packed column one by one."""
    if not isinstance(column, Same):
        return column
    value = column.value
    return np.full(len(column), value) if isinstance(value, np.datetime64) else [value] * len(column)


def n_rows(columns: Packed) -> int:
    """Return how many rows the columns have."""
    return len(columns[0])


def _packed(column: Sequence[Any] | Same) -> Sequence[Any] | Same | NDArray[np.datetime64]:
    if isinstance(column, Same):
        return Same(_naive(column.value), column.n) if isinstance(column.value, datetime) else column
    if not isinstance(next((value for value in column if value is not None), None), datetime):
        return column
    return np.array([None if value is None else value.replace(tzinfo=None) for value in column], "datetime64[us]")


def _naive(moment: datetime) -> np.datetime64:
    return np.datetime64(moment.replace(tzinfo=None), "us")
