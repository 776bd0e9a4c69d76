"""Rows column by column: on their way between replicas, and a batch from its check to its log.

A datetime is pickled as an object that is taken apart and made anew: one column of them took longer than eleven others.
So columns of datetimes, which are in UTC here, travel as arrays of datetime64[us]. Many texts, whole numbers and truth
values travel as an Arrow array, which the other side takes as it lies there.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forge_core.data.many_row_checks import plain_values

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


# Each a sequence, an array of numbers or of datetimes, an Arrow array of anything else, or `Same`.
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

    @classmethod
    def joined(cls, tables: Sequence["Table"]) -> "Table":
        """Return the rows of several tables with the same columns, one table after the other."""
        return cls([joined(pieces) for pieces in zip(*(table.columns for table in tables), strict=True)])

    def __len__(self) -> int:
        return len(self.columns[0])

    def __iter__(self) -> Iterator[Row]:
        return zip(*map(_unpacked, self.columns), strict=True)

    def __getitem__(self, part: slice) -> "Table":
        return Table([_part(column, part) for column in self.columns])


def packed(rows: Sequence[Row] | Table) -> Packed:
    """Return rows of one length as columns that pickle quickly: datetimes as arrays, missing ones NaT."""
    return rows.columns if isinstance(rows, Table) else [_packed(column) for column in zip(*rows, strict=True)]


def values_of(column: Any) -> Any:
    """Return a packed column with a place for each row: a sequence, or an array of NumPy's or Arrow's."""
    if not isinstance(column, Same):
        return column
    match column.value:
        case str(text):
            return pa.repeat(pa.scalar(text), len(column))
        case np.datetime64() as moment:
            return np.full(len(column), moment)
        case value:
            return [value] * len(column)


def joined(pieces: Sequence[Any]) -> Any:
    """Return packed columns of the same name as one: pieces may be packed in different ways."""
    first = pieces[0]
    if isinstance(first, Same) and all(isinstance(p, Same) and p.value == first.value for p in pieces):
        return Same(first.value, sum(map(len, pieces)))
    columns = list(map(values_of, pieces))
    if (typed := next((column for column in columns if isinstance(column, pa.Array)), None)) is not None:
        with contextlib.suppress(pa.ArrowException, OverflowError, UnicodeEncodeError):  # what only Python holds
            return pa.concat_arrays([_as_typed(column, typed.type) for column in columns])
        return list(chain.from_iterable(map(plain_values, columns)))
    array = next((column for column in columns if isinstance(column, np.ndarray)), None)
    if array is None:
        return list(chain.from_iterable(columns))
    # Where some are moments, the others are too, or nothing but missing ones.
    return np.concatenate([np.asarray(column, array.dtype) for column in columns])


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
    if isinstance(found, str) and len(column) >= _MANY:
        with contextlib.suppress(UnicodeEncodeError):  # half a character, which Python's text may hold
            return pa.array(column, pa.string())
    return column


def _as_typed(column: Any, kind: pa.DataType) -> pa.Array:
    return column if isinstance(column, pa.Array) else pa.array(column, kind, from_pandas=True)


def _part(column: Any, part: slice) -> Any:
    # A slice of an Arrow array is pickled with all of the array, unless it is put down anew.
    return pa.concat_arrays([column[part]]) if isinstance(column, pa.Array) else column[part]


def _moments(values: Sequence[datetime | None]) -> NDArray[np.datetime64]:
    # NumPy's own way from datetimes takes ten times as long.
    numbers = [_NOT_A_TIME if value is None else (value - _EPOCH) // _MICROSECOND for value in values]
    return np.array(numbers, np.int64).view("datetime64[us]")


def _unpacked(column: Any) -> Sequence[Any]:
    return plain_values(values_of(column))
