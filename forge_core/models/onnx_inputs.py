"""What an ONNX graph of ours takes for one raw column: from plain values, as requests bring them, or from a frame.

Both give the same tensor to the last bit.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from forge_core.data.encoding import (
    PARTS,
    InputKind,
    cell_text,
    coded_texts,
    distinct_texts,
    moment_parts,
    number_column,
    time_columns,
    time_parts,
)

Tensor = NDArray[Any]

_TEXT = {str, type(None)}


class Filler(NamedTuple):
    """How an input's tensor, shape (n_rows, 1) or of times (n_rows, 3), is made, and of which kind its column is."""

    kind: InputKind
    from_values: Callable[[Sequence[Any]], Tensor]
    from_column: Callable[[pd.Series], Tensor]


def filler(given: Any) -> Filler:
    """Return what makes the tensor of one of a session's inputs."""
    if given.type == "tensor(string)":
        return Filler("category", _texts, _text_column)
    if given.shape[1] == len(PARTS):
        return Filler("datetime", _times, time_columns)
    return Filler("number", _numbers, number_column)


def plain_columns(rows: pd.DataFrame) -> dict[str, list[Any]]:
    """Return a frame's columns as lists of plain values, missing ones None."""
    return {name: rows[name].astype(object).where(rows[name].notna(), None).tolist() for name in rows.columns}


def _texts(values: Sequence[Any] | pa.Array) -> Tensor:
    if isinstance(values, pa.Array):
        if not pa.types.is_string(values.type):
            return _of_codes(*coded_texts(values))
        texts = values.fill_null("") if values.null_count else values
        return texts.to_numpy(zero_copy_only=False).reshape(-1, 1)
    if set(map(type, values)) <= _TEXT:
        return np.array([v or "" for v in values], dtype=object).reshape(-1, 1)
    return np.array(["" if v is None or v != v else cell_text(v) for v in values], dtype=object).reshape(-1, 1)


def _text_column(values: pd.Series) -> Tensor:
    return _of_codes(*distinct_texts(values))


def _of_codes(codes: NDArray[np.intp], texts: list[str]) -> Tensor:
    # A missing cell's code of -1 meets the last entry.
    return np.array([*texts, ""], dtype=object)[codes].reshape(-1, 1)


def _times(values: Sequence[Any]) -> NDArray[np.float32]:
    if isinstance(values, np.ndarray):
        return moment_parts(values)
    return np.array([time_parts(v) for v in values], np.float32).reshape(-1, len(PARTS))


def _numbers(values: Sequence[Any] | pa.Array) -> NDArray[np.float32]:
    if isinstance(values, pa.Array):  # by way of float64, as number_column goes; a null becomes NaN
        values = values.to_numpy(zero_copy_only=False).astype(np.float64)
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which the graph takes as missing
        return np.array(values, dtype=np.float32).reshape(-1, 1)  # None becomes NaN
