"""128-bit hashes of rows by what they contain, whatever the order of rows and columns, the index or the file format.

The base of dataset ids, of exact duplicates, and of splits that do not move when rows are added.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forge_core.data.coercion import Kind, kind_of_dtype
from forge_core.data.text_hashing import FACTORS, hash_texts, mix_in

Hashes = NDArray[np.uint64]
Cells = dict[str, tuple[Hashes, Hashes]]

# What stands for a missing cell, beside the cells' own bits.
_MISSING = np.uint64(0xD6E8FEB86659FD93)


def row_hashes(frame: pd.DataFrame, kinds: Mapping[str, Kind] | None = None) -> Hashes:
    """Return two independent 64-bit hashes a row, shape (n_rows, 2).

    Parameters
    ----------
    kinds : mapping, optional
        The kind of each column, as a contract says it; by default what its dtype stands for. Only then do
        integers with and without missing cells, which pandas holds in different dtypes, hash alike.

    Text, object and category columns hash alike, all missing values hash alike, -0.0 as 0.0, and times by
    their moment in UTC microseconds.
    """
    return combine_cells(hash_cells(frame, kinds))


def hash_cells(frame: pd.DataFrame, kinds: Mapping[str, Kind] | None = None) -> Cells:
    """Return what each column adds to its rows' hashes, sorted by name; see `row_hashes`."""
    return {
        str(name): _cells(frame[name], (kinds or {}).get(str(name)) or kind_of_dtype(frame[name].dtype))
        for name in sorted(frame.columns, key=str)
    }


def combine_cells(cells: Cells) -> Hashes:
    """Return the row hashes that columns' cells make, shape (n_rows, 2)."""
    halves = []
    for side, factor in enumerate(FACTORS):
        state = np.full_like(next(iter(cells.values()))[side], side + 1)
        for both in cells.values():
            mix_in(state, both[side], factor)
        _mix(state)
        halves.append(state)
    return np.column_stack(halves)


def sum_of_hashes(hashes: Hashes) -> int:
    """Return the sum of 128-bit hashes modulo 2**128: the same for the same rows in any order."""
    total = 0
    for side, shift in ((0, 64), (1, 0)):
        low = int((hashes[:, side] & np.uint64(0xFFFFFFFF)).sum(dtype=np.uint64))
        high = int((hashes[:, side] >> np.uint64(32)).sum(dtype=np.uint64))
        total += ((high << 32) + low) << shift
    return total % 2**128


def column_kinds(frame: pd.DataFrame) -> dict[str, Kind]:
    """Return the kind of each column by its dtype, sorted by name."""
    return {str(name): kind_of_dtype(frame[name].dtype) for name in sorted(frame.columns, key=str)}


def _cells(values: pd.Series, kind: Kind) -> tuple[Hashes, Hashes]:
    """Return what a column adds to either half of its rows' hashes."""
    missing = values.isna().to_numpy()
    if kind == "category":
        first, second = hash_texts(values)
        first[missing] = second[missing] = _MISSING
        return first, second
    if kind == "datetime":
        moments = values if isinstance(values.dtype, pd.DatetimeTZDtype) else pd.to_datetime(values, utc=True)
        numbers = moments.dt.tz_convert(None).to_numpy("datetime64[us]").view(np.int64)
    elif kind == "integer":
        # Without a detour over floats, which hold whole numbers exactly only up to 2**53.
        exact = values if pd.api.types.is_integer_dtype(values.dtype) else values.astype("Int64")
        numbers = exact.to_numpy(np.int64, na_value=0) if missing.any() else exact.to_numpy(np.int64)
    elif kind == "boolean":
        numbers = values.astype("boolean").to_numpy(np.int64, na_value=0)
    else:
        numbers = (values.to_numpy(np.float64, na_value=np.nan) + 0.0).view(np.int64)
    bits = numbers.view(np.uint64)
    if missing.any():
        bits = np.where(missing, _MISSING, bits)
    return bits, bits


def _mix(state: Hashes) -> None:
    """Put each number through the finaliser of splitmix64 (Steele, Lea, Flood 2014); wraps around on purpose."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state ^= state >> np.uint64(shift)
        state *= np.uint64(factor)
    state ^= state >> np.uint64(31)
