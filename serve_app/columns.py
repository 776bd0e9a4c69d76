"""Rows column by column: on their way between replicas, and a batch from its check to its log.

A datetime is pickled as an object that is taken apart and made anew: one column of them took longer than eleven others.
So columns of datetimes, which are in UTC here, travel as arrays of datetime64[us]. Many texts travel as an Arrow array,
which the other side takes as it lies there.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forge_core.data.many_row_checks import as_texts, plain_values

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


# Each a sequence, an array of numbers or of datetimes, an Arrow array of texts, or `Same`.
Packed = list[Any]

# From so many texts on an Arrow array of them is the quicker one.
_MANY = 64
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_NOT_A_TIME = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that are held by column: neither put together as tuples nor taken apart again.

    Attributes
    ----------
    columns : list
        As `packed` gives them.
    """

    columns: Packed

    @classmethod
    def of(cls, columns: Iterable[Any]) -> "Table":
        """Return the table of columns of one length, whatever they hold."""
        return cls([_packed(column) for column in columns])

    def __len__(self) -> int:
        return len(self.columns[0])

    def __iter__(self) -> Iterator[Row]:
        return zip(*map(_unpacked, self.columns), strict=True)

    def __getitem__(self, part: slice) -> "Table":
        return Table([_part(column, part) for column in self.columns])


def packed(rows: Sequence[Row] | Table) -> Packed:
    """Return rows of one length as columns that pickle quickly: datetimes as arrays, missing ones NaT."""
    return rows.columns if isinstance(rows, Table) else [_packed(column) for column in zip(*rows, strict=True)]


def values_of(column: Any) -> Sequence[Any] | NDArray[Any]:
    """Return the values of a packed column one by one."""
    if not isinstance(column, Same):
        return column.to_pylist() if isinstance(column, pa.Array) else column
    value = column.value
    return np.full(len(column), value) if isinstance(value, np.datetime64) else [value] * len(column)


def n_rows(columns: Packed) -> int:
    """Return how many rows the columns have."""
    return len(columns[0])


def _packed(column: Any) -> Any:
    if isinstance(column, np.ndarray | pa.Array):
        return column
    if isinstance(column, Same):
        return Same(_moments([column.value])[0], column.n) if isinstance(column.value, datetime) else column
    found = next((value for value in column if value is not None), None)
    if isinstance(found, datetime):
        return _moments(column)
    return as_texts(column) if isinstance(found, str) and len(column) >= _MANY else column


def _part(column: Any, part: slice) -> Any:
    # A slice of an Arrow array is pickled with all of the array, unless it is put down anew.
    return pa.concat_arrays([column[part]]) if isinstance(column, pa.Array) else column[part]


def _moments(values: Sequence[datetime | None]) -> NDArray[np.datetime64]:
    # NumPy's own way from datetimes takes ten times as long.
    numbers = [_NOT_A_TIME if value is None else (value - _EPOCH) // _MICROSECOND for value in values]
    return np.array(numbers, np.int64).view("datetime64[us]")


def _unpacked(column: Any) -> Sequence[Any]:
    return plain_values(values_of(column))
