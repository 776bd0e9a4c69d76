"""A batch of Arrow columns as a frame that a version may score, and the faults of the rows that it may not.

Most batches are right in every cell, which their types and extremes tell at a glance; only the others are looked at
cell by cell, as ingest does it. Both ways give the model the same values.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pandera.pandas as pandera
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from forge_core.data.checking import Checker
from forge_core.data.coercion import LONGEST
from forge_core.data.contracts import Contract
from forge_core.data.row_checks import FieldRule, field_rule
from forge_core.data.table_files import pandas_column

# A dictionary of more texts is no help: its texts are looked at for each batch, whether they are in it or not.
_MANY = 1000


# A column's array, of NumPy or of pandas.
Cells = Any


class Checked(NamedTuple):
    """The good rows, their places in the batch (None: all of them), and one line for each fault of the others."""

    good: pd.DataFrame
    places: NDArray[np.intp] | None
    faults: pd.DataFrame | None


class FeatureCheck:
    """Holds batches of features against a contract, as the API holds requests: neither target nor keys are asked for.

    Parameters
    ----------
    contract : Contract
        A version's contract.
    """

    def __init__(self, contract: Contract) -> None:
        self.columns = contract.feature_columns
        self.texts = [name for name in self.columns if contract.kinds[name] == "category"]
        self._contract = contract

    def check(self, batch: pa.RecordBatch) -> Checked:
        """Return what holds of a batch that has the contract's features; `row_number` of faults counts from 0."""
        if (frame := self.at_a_glance(batch)) is not None:
            return Checked(frame, None, None)
        return self.cell_by_cell(batch)

    def at_a_glance(self, batch: pa.RecordBatch) -> pd.DataFrame | None:
        """Return the features where all cells surely hold, else None."""
        columns = {}
        for name in self.columns:
            array = batch.column(name)
            column = _sure(array.storage if isinstance(array, pa.ExtensionArray) else array, self._rules[name])
            if column is None:
                return None
            columns[name] = column
        return pd.DataFrame(columns, copy=False)

    def cell_by_cell(self, batch: pa.RecordBatch) -> Checked:
        """Return the good rows and the faults."""
        frame = pd.DataFrame({name: pandas_column(batch.column(name)) for name in self.columns})
        found = Checker(self._features).check(frame)
        return Checked(found.good, found.good.index.to_numpy(np.intp), found.faults)

    @cached_property
    def _rules(self) -> Mapping[str, FieldRule]:
        columns = self._contract.schema.columns
        return {name: field_rule(name, self._contract.kinds[name], columns[name]) for name in self.columns}

    @cached_property
    def _features(self) -> Contract:
        columns = self._contract.schema.columns
        return Contract(
            pandera.DataFrameSchema(
                {
                    name: pandera.Column(columns[name].dtype, columns[name].checks, nullable=columns[name].nullable)
                    for name in self.columns
                }
            )
        )


def tell_faults(faults: pd.DataFrame, n_rows: int) -> pa.Array:
    """Return one text a row: its faults, column by column, or null where it has none."""
    told: list[str | None] = [None] * n_rows
    for number, column, reason in zip(faults["row_number"], faults["column"], faults["reason"], strict=True):
        before = told[number]
        told[number] = f"{column}: {reason}" if before is None else f"{before}; {column}: {reason}"
    return pa.array(told, pa.string())


def _sure(array: pa.Array, rule: FieldRule) -> Cells | None:
    if not rule.nullable and array.null_count:
        return None
    if rule.kind == "category":
        return _sure_texts(array, rule)
    if rule.allowed is not None or rule.forbidden:
        return None
    kind = array.type
    if rule.kind == "boolean":
        return pandas_column(array).array if pa.types.is_boolean(kind) else None
    if rule.kind == "datetime":
        return _sure_times(array) if pa.types.is_timestamp(kind) else None
    if pa.types.is_integer(kind) or (rule.kind == "number" and kind in (pa.float32(), pa.float64())):
        return _sure_numbers(array, rule)
    return None


def _sure_numbers(array: pa.Array, rule: FieldRule) -> Cells | None:
    cells = array.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
    if len(cells):
        least, most = np.fmin.reduce(cells), np.fmax.reduce(cells)  # NaN where there are only missing cells
        if not ((rule.low <= least and most <= rule.high) or np.isnan(least)):
            return None
    if not rule.nullable and np.isnan(cells).any():
        return None
    return pandas_column(array).array if rule.kind == "integer" else cells


def _sure_times(array: pa.Array) -> Cells | None:
    try:
        return array.cast(pa.timestamp("us", "UTC")).to_pandas().array
    except pa.ArrowInvalid:  # nanoseconds that microseconds would lose
        return None


def _sure_texts(array: pa.Array, rule: FieldRule) -> Cells | None:
    coded = pa.types.is_dictionary(array.type)
    texts = array.dictionary if coded else array
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        return None
    if coded and (texts.null_count or len(texts) > _MANY):
        return _sure_texts(array.dictionary_decode(), rule)
    if (pc.max(pc.utf8_length(texts)).as_py() or 0) > LONGEST:
        return None
    if rule.allowed is not None or rule.forbidden:
        found = set(texts.unique().to_pylist()) - {None}
        if (rule.allowed is not None and not found <= rule.allowed) or found & rule.forbidden:
            return None
    if not coded:
        return pandas_column(array).array
    # Plain text is read faster, level by level, than what Arrow keeps.
    levels = pd.Index(texts.to_pylist(), dtype=object)
    if not levels.is_unique:
        return pandas_column(array).array
    codes = array.indices.fill_null(-1).to_numpy()
    return pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(levels), validate=False)
