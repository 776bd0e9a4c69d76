"""128-bit hashes of rows by what they contain, whatever the order of rows and columns or the index.

The base of dataset ids and of splits that do not move when rows are added.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forge_core.data.coercion import Kind, kind_of_dtype

# Two keys for pandas' text hash (16 characters each), so that both halves of a row's hash are independent.
_KEYS = ("forge-dataset-k1", "forge-dataset-k2")


def row_hashes(frame: pd.DataFrame) -> NDArray[np.uint64]:
    """Return two independent 64-bit hashes a row, shape (n_rows, 2).

    Text, object and category columns hash alike, all missing values hash alike, -0.0 as 0.0, and times by
    their moment in UTC microseconds.
    """
    columns = sorted(frame.columns, key=str)
    hashes = np.empty((len(frame), 2), np.uint64)
    for side, key in enumerate(_KEYS):
        state = np.full(len(frame), side + 1, np.uint64)
        for name in columns:
            cells = pd.util.hash_pandas_object(_canonical(frame[name]), index=False, hash_key=key).to_numpy(np.uint64)
            state = _mix(state * np.uint64(0x9E3779B97F4A7C15) + cells)
        hashes[:, side] = state
    return hashes


def sum_of_hashes(hashes: NDArray[np.uint64]) -> int:
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


def _canonical(values: pd.Series) -> pd.Series:
    kind = kind_of_dtype(values.dtype)
    if kind == "category":
        return values.astype("str")
    if kind == "datetime":
        return pd.to_datetime(values, utc=True).astype("datetime64[us, UTC]")
    if kind == "number":
        return values.astype("float64") + 0.0
    if kind == "boolean":
        return values.astype("boolean")
    return values if values.hasnans else values.astype("int64")


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the finaliser of splitmix64 (Steele, Lea, Flood 2014); wraps around on purpose."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
