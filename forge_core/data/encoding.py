"""How one column is learnt, named and turned into float32 outputs; `FeatureEngineer` describes the layout."""

from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from forge_core.data.coercion import coerce, kind_of_column
from forge_core.errors import SchemaViolation

InputKind = Literal["number", "category", "datetime"]
PARTS = ("hour", "weekday", "month")


def input_kind(values: pd.Series) -> InputKind:
    """Return how a column is encoded where nobody said it: flags count as numbers."""
    if values.dtype != object and pd.api.types.is_string_dtype(values.dtype):
        return "category"
    if values.dtype == object and any(isinstance(v, str) for v in values):
        # Text that could be read as numbers stays text: the contract settles types, not the features.
        return "category"
    kind = kind_of_column(values)
    return kind if kind in ("category", "datetime") else "number"


def learn_column(values: pd.Series, kind: InputKind, max_one_hot: int, max_levels: int) -> dict[str, Any]:
    """Return what a column's training cells teach, as JSON values."""
    name = str(values.name)
    if kind == "category":
        texts = pd.Series(as_text(values))
        counts = texts.value_counts()
        if len(counts) <= max_one_hot:
            return {"name": name, "kind": kind, "encoding": "one_hot", "levels": sorted(counts.index)}
        known = sorted(((-n, level) for level, n in counts.items() if level))[:max_levels]
        levels = [level for _, level in known]
        shares = as_floats([-n / len(texts) for n, _ in known])
        return {"name": name, "kind": kind, "encoding": "ordinal", "levels": levels, "shares": shares}
    numbers = _numbers(values) if kind == "number" else _parts(values)
    missing = bool(np.isnan(numbers).any())
    fill = as_floats([np.median(c[~np.isnan(c)]) if not np.isnan(c).all() else 0.0 for c in numbers.T])
    return {"name": name, "kind": kind, "fill": fill[0] if kind == "number" else fill, "missing": missing}


def encode_column(values: pd.Series, column: dict[str, Any]) -> NDArray[np.float32]:
    """Return a column's outputs, float32, shape (n_rows, n_outputs of the column), without missing values."""
    if column["kind"] == "category":
        codes = pd.Index(column["levels"], dtype=object).get_indexer(as_text(values))
        if column["encoding"] == "one_hot":
            return (codes[:, None] == np.arange(len(column["levels"]))).astype(np.float32)
        shares = np.array([*column["shares"], 0.0], np.float32)  # code -1 meets the last entry
        return np.column_stack([codes.astype(np.float32), shares[codes]])
    numbers = _numbers(values) if column["kind"] == "number" else _parts(values)
    missing = np.isnan(numbers)
    filled = np.where(missing, np.asarray(column["fill"], np.float32), numbers)
    if column["missing"]:
        filled = np.column_stack([filled, missing[:, 0].astype(np.float32)])
    return filled.astype(np.float32, copy=False)


def output_names(column: dict[str, Any]) -> list[str]:
    """Return the names of a column's outputs."""
    name = column["name"]
    if column["kind"] == "category":
        if column["encoding"] == "one_hot":
            return [f"{name}={level}" for level in column["levels"]]
        return [f"{name}__code", f"{name}__share"]
    names = [name] if column["kind"] == "number" else [f"{name}__{part}" for part in PARTS]
    return [*names, f"{name}__missing"] if column["missing"] else names


def scaled_outputs(column: dict[str, Any]) -> list[bool]:
    """Return which of a column's outputs `scale` standardises: all that are not 0/1 by construction."""
    flags = column.get("encoding") == "one_hot"
    return [not flags and not output.endswith("__missing") for output in output_names(column)]


def as_floats(values: ArrayLike) -> list[float]:
    """Return numbers as Python floats that are exact in float32."""
    return [float(v) for v in np.asarray(values, np.float32)]


def as_text(values: pd.Series) -> NDArray[np.object_]:
    """Return cells as text, missing ones as ""; whole numbers without a decimal point, whatever their dtype."""
    if pd.api.types.is_float_dtype(values.dtype):
        numbers = values.astype("float64")
        whole = numbers.notna() & (numbers % 1 == 0)
        texts = numbers.astype(str)
        texts[whole] = numbers[whole].astype("int64").astype(str)
        return texts.where(numbers.notna(), "").to_numpy(object)
    cells = values.astype(object)
    return cells.where(values.notna(), "").map(lambda v: v if type(v) is str else str(v)).to_numpy(object)


def _numbers(values: pd.Series) -> NDArray[np.float32]:
    """Return a number column as float32 with NaN for missing, shape (n_rows, 1)."""
    if values.dtype.kind in "iufb" and isinstance(values.dtype, np.dtype):
        return values.to_numpy(np.float32).reshape(-1, 1)
    try:
        numbers = pd.to_numeric(values.astype(object).where(values.notna(), np.nan), errors="raise")
    except (TypeError, ValueError) as error:
        raise SchemaViolation(
            f"column {values.name!r}: expected numbers, found text ({error}); check the rows against their contract",
            context={"faults": [{"field": str(values.name), "reason": "expected a number"}]},
        ) from error
    return numbers.astype("float64").to_numpy(np.float32).reshape(-1, 1)


def _parts(values: pd.Series) -> NDArray[np.float32]:
    """Return hour, weekday and month in UTC as float32 with NaN for missing, shape (n_rows, 3)."""
    times, bad = coerce(values, "datetime")
    if bad.any():
        raise SchemaViolation(
            f"column {values.name!r}: expected times, found {values[bad].iloc[0]!r}; check the rows first",
            context={"faults": [{"field": str(values.name), "reason": "expected a time"}]},
        )
    parts = [times.dt.hour, times.dt.day_of_week, times.dt.month]
    return np.column_stack([part.to_numpy(np.float32, na_value=np.nan) for part in parts])
