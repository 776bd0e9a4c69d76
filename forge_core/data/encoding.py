"""How one column is learnt, named and turned into float32 outputs; `FeatureEngineer` describes the layout."""

from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from forge_core.data.coercion import coerce
from forge_core.data.kinds import kind_of_column
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
        counts = _level_counts(values)
        if len(counts) <= max_one_hot:
            return {"name": name, "kind": kind, "encoding": "one_hot", "levels": sorted(counts)}
        known = sorted(((-n, level) for level, n in counts.items() if level))[:max_levels]
        levels = [level for _, level in known]
        shares = as_floats([-n / len(values) for n, _ in known])
        return {"name": name, "kind": kind, "encoding": "ordinal", "levels": levels, "shares": shares}
    numbers = number_column(values) if kind == "number" else time_columns(values)
    missing = not np.isfinite(numbers).all()
    fill = as_floats([_median(output) for output in numbers.T])
    return {"name": name, "kind": kind, "fill": fill[0] if kind == "number" else fill, "missing": missing}


def encode_column(values: pd.Series, column: dict[str, Any], out: NDArray[np.float32]) -> None:
    """Write a column's outputs into `out`, shape (n_rows, `n_outputs(column)`), which holds zeros before."""
    if column["kind"] == "category":
        codes = _level_codes(values, column["levels"])
        if column["encoding"] == "one_hot":
            known = np.flatnonzero(codes >= 0)
            out[known, codes[known]] = 1.0
        else:
            out[:, 0] = codes
            out[:, 1] = np.array([*column["shares"], 0.0], np.float32)[codes]  # code -1 meets the last entry
        return
    numbers = number_column(values) if column["kind"] == "number" else time_columns(values)
    missing = ~np.isfinite(numbers)
    width = numbers.shape[1]
    out[:, :width] = np.where(missing, np.asarray(column["fill"], np.float32), numbers)
    if column["missing"]:
        out[:, width] = missing[:, 0]


def n_outputs(column: dict[str, Any]) -> int:
    """Return the number of a column's outputs."""
    if column["kind"] == "category":
        return len(column["levels"]) if column["encoding"] == "one_hot" else 2
    return (1 if column["kind"] == "number" else len(PARTS)) + int(column["missing"])


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


def cell_text(value: Any) -> str:
    """Return the text of one cell that is there: whole numbers without a decimal point, whatever their type."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def time_parts(moment: datetime | None) -> tuple[float, float, float]:
    """Return the parts of one moment, as `FeatureEngineer` has them: hour, weekday and month in UTC, NaN for none."""
    if moment is None or moment != moment:
        return np.nan, np.nan, np.nan
    if moment.tzinfo is not UTC:
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.hour, moment.weekday(), moment.month


def moment_parts(moments: NDArray[np.datetime64]) -> NDArray[np.float32]:
    """Return what `time_parts` gives for moments in UTC, as float32 with NaN for missing, shape (n_rows, 3)."""
    parts = np.empty((len(moments), len(PARTS)), np.float32)
    hours = moments.astype("datetime64[h]").view(np.int64)
    days = hours // 24
    parts[:, 0] = hours - 24 * days
    parts[:, 1] = (days + 3) % 7  # day 0 was a Thursday
    parts[:, 2] = moments.astype("datetime64[M]").view(np.int64) % 12 + 1
    parts[np.isnat(moments)] = np.nan
    return parts


def distinct_texts(values: pd.Series) -> tuple[NDArray[np.intp], list[str]]:
    """Return each cell's position among the texts returned with it, -1 for a missing cell; a text may be there twice.

    Each distinct cell is looked at once: a million rows of twenty towns cost twenty look-ups.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.cat.codes.to_numpy(np.intp), [cell_text(v) for v in values.dtype.categories]
    if (texts := _arrow_texts(values)) is not None:
        return coded_texts(texts)
    cells = values.array
    if values.dtype == object:
        # As texts first, since Python finds True, 1 and 1.0 equal.
        cells, present = np.full(len(values), None, object), values.notna().to_numpy()
        cells[present] = [cell_text(v) for v in values[present]]
    codes, levels = pd.factorize(cells)
    return codes, [cell_text(v) for v in levels]


def coded_texts(cells: pa.Array) -> tuple[NDArray[np.intp], list[str]]:
    """Return what `distinct_texts` does for an Arrow array of texts, whole numbers or truth values."""
    coded = cells.dictionary_encode()
    levels = coded.dictionary.to_pylist()
    is_text = pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type)
    texts = levels if is_text else [cell_text(level) for level in levels]
    return coded.indices.fill_null(-1).to_numpy(zero_copy_only=False), texts


def _arrow_texts(values: pd.Series) -> pa.Array | None:
    """Return a column of nothing but text as Arrow holds it; None for any other."""
    if values.dtype == object:
        if pd.api.types.infer_dtype(values, skipna=True) != "string":
            return None
    elif not pd.api.types.is_string_dtype(values.dtype):
        return None
    try:
        texts = pa.array(values, from_pandas=True)
    except (pa.ArrowException, UnicodeEncodeError):  # half a character, which Python's text may hold
        return None
    return texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts


def _level_counts(values: pd.Series) -> dict[str, int]:
    """Return how many cells have each text, missing ones counted as ""."""
    codes, texts = distinct_texts(values)
    counts: dict[str, int] = {}
    for text, count in zip(["", *texts], np.bincount(codes + 1, minlength=len(texts) + 1).tolist(), strict=True):
        if count:
            counts[text] = counts.get(text, 0) + count
    return counts


def _level_codes(values: pd.Series, levels: list[str]) -> NDArray[np.intp]:
    """Return each cell's position among the levels, -1 where it is none of them."""
    codes, texts = distinct_texts(values)
    position = {level: i for i, level in enumerate(levels)}
    # A missing cell's code of -1 meets the last entry.
    return np.array([*(position.get(text, -1) for text in texts), position.get("", -1)], np.intp)[codes]


def _median(numbers: NDArray[np.float32]) -> float:
    """Return the median of the finite numbers, 0.0 where there are none; in float64, where no sum overflows."""
    finite = numbers[np.isfinite(numbers)].astype(np.float64)
    return float(np.median(finite)) if len(finite) else 0.0


def number_column(values: pd.Series) -> NDArray[np.float32]:
    """Return a number column as float32, missing cells not finite, shape (n_rows, 1)."""
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "iufb":
        numbers = values.to_numpy()
    elif pd.api.types.is_numeric_dtype(values.dtype):
        numbers = values.to_numpy(np.float64, na_value=np.nan)
    else:
        numbers = _read_numbers(values)
    if numbers.dtype.kind in "iu":
        numbers = numbers.astype(np.float64)  # as a request's integers go; else large ones differ in the last bit
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32, copy=False).reshape(-1, 1)


def _read_numbers(values: pd.Series) -> NDArray[np.float64]:
    try:
        numbers = pd.to_numeric(values.astype(object).where(values.notna(), np.nan), errors="raise")
        return numbers.to_numpy(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise SchemaViolation(
            f"column {values.name!r}: expected numbers, found text ({error}); check the rows against their contract",
            context={"faults": [{"field": str(values.name), "reason": "expected a number"}]},
        ) from error


def time_columns(values: pd.Series) -> NDArray[np.float32]:
    """Return a column's hour, weekday and month in UTC; see `moment_parts`."""
    return moment_parts(_moments(values))


def _moments(values: pd.Series) -> NDArray[np.datetime64]:
    """Return times in UTC, in the unit they come in."""
    if isinstance(values.dtype, pd.DatetimeTZDtype):
        return values.to_numpy(f"datetime64[{values.dtype.unit}]")
    if isinstance(values.dtype, np.dtype) and values.dtype.kind == "M":
        return values.to_numpy()
    times, bad = coerce(values, "datetime")
    if bad.any():
        raise SchemaViolation(
            f"column {values.name!r}: expected times, found {values[bad].iloc[0]!r}; check the rows first",
            context={"faults": [{"field": str(values.name), "reason": "expected a time"}]},
        )
    return times.to_numpy("datetime64[us]")
