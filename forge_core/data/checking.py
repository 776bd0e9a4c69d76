"""Rows against a contract, batch by batch: what holds goes on, what does not is told with its reason."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pandera.pandas as pa
from numpy.typing import NDArray

from forge_core.data.coercion import LARGEST, Coerced, Kind, coerce, found_type
from forge_core.data.hashing import Cells, Hashes, combine_cells, hash_cells
from forge_core.data.quarantine import QUARANTINE_COLUMNS, BadRowBudget, list_faults, no_faults
from forge_core.data.row_checks import FieldRule, describe_check, field_rule, surely_holds
from forge_core.data.seen import SeenHashes
from forge_core.errors import SchemaViolation

if TYPE_CHECKING:
    from forge_core.data.contracts import Contract

# From this share of cells of another kind on, the column changed; below it, single cells are bad.
WHOLESALE = 0.5

DTYPES: dict[Kind, str] = {
    "number": "float64",
    "integer": "int64",
    "category": "str",
    "boolean": "bool",
    "datetime": "datetime64[us, UTC]",
}
_NULLABLE_DTYPES: dict[Kind, str] = {**DTYPES, "integer": "Int64", "boolean": "boolean"}


@dataclass(frozen=True)
class CheckedBatch:
    """The good rows of a batch, typed, with their hashes, and one line for each fault of the others."""

    good: pd.DataFrame
    faults: pd.DataFrame
    hashes: Hashes | None


@dataclass
class Checker:
    """Holds one batch after another against a contract; knows what came before, so that keys stay unique.

    Parameters
    ----------
    contract : Contract
    drop_duplicates : bool
        Leave out rows that an earlier good row equals in all columns of the contract, and count them.

    Attributes
    ----------
    n_rows, n_bad, n_duplicates : int
        Rows seen, set aside, and left out.
    counts : Counter
        Rows set aside by (column, check).
    """

    contract: "Contract"
    drop_duplicates: bool = False
    n_rows: int = 0
    n_bad: int = 0
    n_duplicates: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    _present: Counter[str] = field(default_factory=Counter)
    _of_other_kind: Counter[str] = field(default_factory=Counter)
    _found_kind: dict[str, str] = field(default_factory=dict)
    _seen: dict[str, SeenHashes] = field(default_factory=dict)

    def check(self, frame: pd.DataFrame) -> CheckedBatch:
        """Return a batch's good rows and faults; columns that the contract does not know stay as they are.

        Raises
        ------
        SchemaViolation
            A column is missing, or there twice.
        """
        rows = frame.reset_index(drop=True)
        self._check_columns(rows)
        coerced = {name: self._coerce(rows, name) for name in self.contract.schema.columns}
        typed = pd.DataFrame({name: column.values for name, column in coerced.items()}, index=rows.index)
        faults = [*self._type_faults(rows, coerced), *self._rule_faults(rows, typed)]
        bad = np.zeros(len(rows), bool)
        for lines in faults:
            bad[lines["row_number"]] = True
        good = self._typed(rows.assign(**typed)[~bad])
        cells = hash_cells(good[list(typed) if self.drop_duplicates else self._unique], self.contract.kinds)
        hashes = combine_cells(cells) if self.drop_duplicates else None
        first, fresh = self._first_of_their_kind(len(good), cells, hashes)
        self.n_duplicates += int((~first).sum())
        repeated, lines = self._repeated_keys(rows, good, {name: first & ~new for name, new in fresh.items()})
        keep = first & ~repeated
        bad[lines["row_number"]] = True
        told = self._told(rows, [*faults, lines])
        self.n_rows += len(rows)
        self.n_bad += int(bad.sum())
        if not keep.all():
            good, hashes = good[keep], None if hashes is None else hashes[keep]
        good.index = frame.index[good.index]
        return CheckedBatch(good, told, hashes)

    def reject(self, lines: pd.DataFrame) -> pd.DataFrame:
        """Count lines of a source that were no rows at all, and return them as faults."""
        self.n_rows += len(lines)
        self.n_bad += len(lines)
        self.counts.update(zip(lines["column"], lines["check"], strict=True))
        return lines.assign(row_key=pd.Series("", index=lines.index, dtype="str"))[QUARANTINE_COLUMNS]

    def finish(self, budget: BadRowBudget) -> None:
        """Judge what was seen.

        Raises
        ------
        SchemaViolation
            A column has another type in most of its cells.
        TooManyBadRows
            Names the counts and the worst columns.
        """
        faults = [
            {"column": name, "expected": self.contract.kinds[name], "found": self._found_kind[name], "count": count}
            for name, count in self._of_other_kind.items()
            if count > WHOLESALE * self._present[name]
        ]
        if faults:
            raise SchemaViolation(_tell_columns(faults), context={"faults": faults})
        budget.spend(self.counts, self.n_bad, self.n_rows)

    def _check_columns(self, rows: pd.DataFrame) -> None:
        kinds = self.contract.kinds
        faults = [
            {"column": c, "expected": kinds[c], "found": "twice", "count": int((rows.columns == c).sum())}
            for c in kinds
            if (rows.columns == c).sum() > 1
        ]
        if not self.n_rows:  # later batches may lack a column that none of their rows fills
            faults += [
                {"column": name, "expected": kinds[name], "found": "missing", "count": len(rows)}
                for name, column in self.contract.schema.columns.items()
                if column.required and name not in rows
            ]
        if faults:
            raise SchemaViolation(_tell_columns(faults), context={"faults": faults})

    def _coerce(self, rows: pd.DataFrame, name: str) -> Coerced:
        kind = self.contract.kinds[name]
        if name not in rows:
            return coerce(pd.Series(np.nan, index=rows.index, dtype=object), kind)
        column = coerce(rows[name], kind)
        self._present[name] += int(rows[name].notna().sum())
        if n_bad := int(column.bad.sum()):
            self._of_other_kind[name] += n_bad
            self._found_kind.setdefault(name, found_type(rows[name], column.bad))
        return column

    def _type_faults(self, rows: pd.DataFrame, coerced: dict[str, Coerced]) -> list[pd.DataFrame]:
        found = []
        for name, (values, bad) in coerced.items():
            kind = self.contract.kinds[name]
            if bad.any():
                found.append(list_faults(rows, name, np.flatnonzero(bad), f"is_{kind}", f"expected {kind}"))
            if kind == "number":
                infinite = np.flatnonzero(np.abs(values.to_numpy()) > LARGEST)
                if len(infinite):
                    found.append(list_faults(rows, name, infinite, "is_finite", "expected a finite number"))
        return found

    def _rule_faults(self, rows: pd.DataFrame, typed: pd.DataFrame) -> list[pd.DataFrame]:
        doubtful = [rule.name for rule in self._rules if not surely_holds(rule, typed[rule.name])]
        if not doubtful:
            return []
        try:
            self._schema.select_columns(doubtful).validate(typed[doubtful], lazy=True)
            return []
        except pa.errors.SchemaErrors as error:
            cases = error.failure_cases
        found = []
        for (name, check), group in cases.groupby(["column", "check"], sort=False):
            words = {str(c.error): describe_check(c) for c in self.contract.schema.columns[name].checks}
            words |= {"not_nullable": "a value"}
            given = rows if name in rows else typed
            numbers = group["index"].to_numpy(int)
            found.append(list_faults(given, name, numbers, check, f"expected {words.get(check, check)}"))
        return found

    @cached_property
    def _rules(self) -> list[FieldRule]:
        columns = self.contract.schema.columns
        return [field_rule(name, self.contract.kinds[name], column) for name, column in columns.items()]

    @cached_property
    def _schema(self) -> pa.DataFrameSchema:
        # Types are settled cell by cell before Pandera looks, and keys are compared over all batches.
        return pa.DataFrameSchema(
            {
                name: pa.Column(None, c.checks, nullable=c.nullable, required=c.required)
                for name, c in self.contract.schema.columns.items()
            }
        )

    def _typed(self, good: pd.DataFrame) -> pd.DataFrame:
        for name, column in self.contract.schema.columns.items():
            dtype = (_NULLABLE_DTYPES if column.nullable else DTYPES)[self.contract.kinds[name]]
            if str(good[name].dtype) != dtype:
                good[name] = good[name].astype(dtype)
        return good

    def _first_of_their_kind(
        self, n_rows: int, cells: Cells, hashes: Hashes | None
    ) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.bool_]]]:
        """Return which good rows no earlier one equals, and for each unique column which keys are new."""
        fresh: dict[str, NDArray[np.bool_]] = {}
        first = None
        for name in self._unique:
            seen, keys = self._seen.setdefault(name, SeenHashes()), combine_cells({name: cells[name]})
            if first is None and hashes is not None:
                fresh[name], first = seen.add_keyed(keys, hashes)
            else:
                fresh[name] = seen.add(keys)
        if first is None and hashes is not None:
            first = self._seen.setdefault("", SeenHashes()).add(hashes)
        return np.ones(n_rows, bool) if first is None else first, fresh

    def _repeated_keys(
        self, rows: pd.DataFrame, good: pd.DataFrame, repeats: dict[str, NDArray[np.bool_]]
    ) -> tuple[NDArray[np.bool_], pd.DataFrame]:
        """Return which good rows repeat a key; the first good row of a key stays, as everywhere in the house."""
        repeated = np.zeros(len(good), bool)
        lines = [no_faults()]
        for name, again in repeats.items():
            again = again & good[name].notna().to_numpy()
            if again.any():
                numbers = good.index.to_numpy()[again]
                reason = "expected a value that no earlier row has"
                lines.append(list_faults(rows, name, numbers, "field_uniqueness", reason))
                repeated |= again
        return repeated, pd.concat(lines, ignore_index=True)

    @cached_property
    def _unique(self) -> list[str]:
        return [name for name, column in self.contract.schema.columns.items() if column.unique]

    def _told(self, rows: pd.DataFrame, faults: list[pd.DataFrame]) -> pd.DataFrame:
        told = pd.concat([no_faults(), *faults], ignore_index=True).drop_duplicates(["row_number", "column"])
        told = told.sort_values(["row_number", "column"], kind="stable", ignore_index=True)
        numbers = told["row_number"].to_numpy()
        keys = rows[self.contract.key].iloc[numbers].astype(str).to_numpy() if self.contract.key in rows else None
        told["row_number"] = numbers + self.n_rows
        told.insert(0, "row_key", told["row_number"].astype("str") if keys is None else pd.array(keys, dtype="str"))
        self.counts.update(zip(told["column"], told["check"], strict=True))
        return told[QUARANTINE_COLUMNS]


def _tell_columns(faults: list[dict[str, object]]) -> str:
    told = "; ".join(
        f"column {f['column']!r}: expected {f['expected']}, found {f['found']} ({f['count']:,} rows)" for f in faults
    )
    return f"{told}; repair the source, or change the contract on purpose"
