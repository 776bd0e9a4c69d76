"""What rows must look like: a Pandera schema, the roles of its special columns, and the two ways to check.

`Contract.check` takes a frame (ingest): bad rows are set aside with the reason, good ones go on with the
contract's types. `Contract.check_row` takes one request's features (serving).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pandera.io.pandas_io as pandera_io
import pandera.pandas as pa
import yaml

from forge_core.data.coercion import LARGEST, Coerced, Kind, coerce, found_type, kind_of_column, kind_of_dtype
from forge_core.data.quarantine import QUARANTINE_COLUMNS, CheckedRows, list_faults, spend_budget
from forge_core.data.row_checks import FieldRule, check_fields, describe_check, field_rule
from forge_core.errors import ConfigurationError, SchemaViolation

# From this share of cells of another kind on, the column changed; below it, single cells are bad.
WHOLESALE = 0.5

DTYPES: dict[Kind, str] = {
    "number": "float64",
    "integer": "int64",
    "category": "str",
    "boolean": "bool",
    "datetime": "datetime64[us, UTC]",
}


@dataclass(frozen=True, eq=False)
class Contract:
    """A schema, and which of its columns are the target, the key, the event time and the label's time.

    Parameters
    ----------
    schema : pandera DataFrameSchema
        Types, nullability, uniqueness and built-in checks (bounds, `isin`, `notin`) of each column.
    target, key, time, label_time : str or None
        Columns with a role; none of them is a feature.

    Examples
    --------
    >>> rows = pd.DataFrame({"age": [31.0, 45.0], "town": ["Oslo", "Bergen"], "late": [0, 1]})
    >>> contract = infer_contract(rows, target="late")
    >>> contract.kinds
    {'age': 'number', 'town': 'category', 'late': 'integer'}
    >>> contract.check_row({"age": 30, "town": "Oslo"})
    {'age': 30.0, 'town': 'Oslo'}
    """

    schema: pa.DataFrameSchema
    target: str | None = None
    key: str | None = None
    time: str | None = None
    label_time: str | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self._special) - set(self.schema.columns)):
            raise ConfigurationError(
                f"the contract gives a role to {', '.join(unknown)}, which its schema lacks; "
                f"the schema has {', '.join(self.schema.columns)}"
            )
        _ = self._rules  # an unknown check is found here and not at the first request

    @property
    def feature_columns(self) -> list[str]:
        """The columns that a model may see, in the schema's order."""
        return [c for c in self.schema.columns if c not in self._special]

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """Kind of each column: number, integer, category, boolean or datetime."""
        return {name: kind_of_dtype(column.dtype) for name, column in self.schema.columns.items()}

    @cached_property
    def digest(self) -> str:
        """Content address of the contract: 16 hexadecimal digits of the YAML's SHA-256."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """Return the contract as YAML with two parts: `roles`, and `schema` in Pandera's own format."""
        roles = {"target": self.target, "key": self.key, "time": self.time, "label_time": self.label_time}
        schema = yaml.safe_load(pandera_io.to_yaml(self.schema))
        return yaml.safe_dump({"roles": roles, "schema": schema}, sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> "Contract":
        """Return the contract written by `to_yaml`, or by hand in the same form.

        Raises
        ------
        ConfigurationError
            When the text is no such YAML, or a role or check is unknown.
        """
        try:
            content = yaml.safe_load(text)
            schema = pandera_io.from_yaml(yaml.safe_dump(content["schema"], sort_keys=False))
            return cls(schema, **(content.get("roles") or {}))
        except (yaml.YAMLError, KeyError, TypeError, AttributeError, pa.errors.SchemaDefinitionError) as error:
            raise ConfigurationError(
                f"expected a contract in YAML with the parts `roles` and `schema`, found: {str(error)[:200]}"
            ) from error

    def check_row(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """Return one request's features with the contract's types; see `check_fields`.

        Raises
        ------
        SchemaViolation
            With all faults in `context["faults"]`.
        """
        return check_fields(self._feature_rules, features)

    def check(self, frame: pd.DataFrame, max_bad_share: float) -> CheckedRows:
        """Return the good rows, typed, and every fault of the others.

        Parameters
        ----------
        frame : DataFrame, shape (n_rows, n_columns)
            Columns that the contract does not know stay as they are.
        max_bad_share : float
            Largest share of rows, in [0, 1], that may be set aside.

        Raises
        ------
        SchemaViolation
            A column is missing, there twice, or of another type in most of its cells.
        TooManyBadRows
            Names the counts and the worst columns.
        """
        rows = frame.reset_index(drop=True)
        coerced = self._coerce(rows)
        typed = pd.DataFrame({name: column.values for name, column in coerced.items()}, index=rows.index)
        faults = pd.concat(
            [*self._type_faults(rows, coerced), self._rule_faults(rows, typed)], ignore_index=True
        ).drop_duplicates(["row_number", "column"])
        faults = faults.sort_values(["row_number", "column"], kind="stable", ignore_index=True)
        keys = rows[self.key] if self.key else rows.index.to_series()
        faults.insert(0, "row_key", keys.iloc[faults["row_number"]].astype(str).to_numpy())
        bad = np.zeros(len(rows), bool)
        bad[faults["row_number"]] = True
        spend_budget(faults, int(bad.sum()), len(rows), max_bad_share)
        good = rows.assign(**typed)[~bad]
        for name, column in self.schema.columns.items():
            if not column.nullable and name in good:
                good[name] = good[name].astype(DTYPES[self.kinds[name]])
        good.index = frame.index[~bad]
        return CheckedRows(good, faults[QUARANTINE_COLUMNS], len(rows), int(bad.sum()))

    @property
    def _special(self) -> list[str]:
        return [c for c in (self.target, self.key, self.time, self.label_time) if c]

    @cached_property
    def _rules(self) -> dict[str, FieldRule]:
        return {name: field_rule(name, self.kinds[name], column) for name, column in self.schema.columns.items()}

    @cached_property
    def _feature_rules(self) -> list[FieldRule]:
        return [self._rules[name] for name in self.feature_columns]

    @cached_property
    def _checker(self) -> pa.DataFrameSchema:
        # Types are settled cell by cell before Pandera looks, so it has only values to judge.
        return pa.DataFrameSchema(
            {
                name: pa.Column(None, c.checks, nullable=c.nullable, unique=c.unique, required=c.required)
                for name, c in self.schema.columns.items()
            }
        )

    def _coerce(self, rows: pd.DataFrame) -> dict[str, Coerced]:
        faults = [
            {"column": c, "expected": self.kinds[c], "found": "twice", "count": int((rows.columns == c).sum())}
            for c in self.schema.columns
            if (rows.columns == c).sum() > 1
        ]
        faults += [
            {"column": name, "expected": self.kinds[name], "found": "missing", "count": len(rows)}
            for name, column in self.schema.columns.items()
            if column.required and name not in rows
        ]
        coerced: dict[str, Coerced] = {}
        for name in self.schema.columns if not faults else []:
            if name in rows:
                column = coerced[name] = coerce(rows[name], self.kinds[name])
                n_bad, present = int(column.bad.sum()), int(rows[name].notna().sum())
                if present and n_bad / present > WHOLESALE:
                    found = found_type(rows[name], column.bad)
                    faults.append({"column": name, "expected": self.kinds[name], "found": found, "count": n_bad})
        if faults:
            told = "; ".join(
                f"column {f['column']!r}: expected {f['expected']}, found {f['found']} ({f['count']:,} rows)"
                for f in faults
            )
            raise SchemaViolation(
                f"{told}; repair the source, or change the contract on purpose", context={"faults": faults}
            )
        return coerced

    def _type_faults(self, rows: pd.DataFrame, coerced: Mapping[str, Coerced]) -> list[pd.DataFrame]:
        found = []
        for name, (values, bad) in coerced.items():
            kind = self.kinds[name]
            found.append(list_faults(rows, name, np.flatnonzero(bad), f"is_{kind}", f"expected {kind}"))
            if kind == "number":
                infinite = np.flatnonzero(values.abs().to_numpy() > LARGEST)
                found.append(list_faults(rows, name, infinite, "is_finite", "expected a finite number"))
        return found

    def _rule_faults(self, rows: pd.DataFrame, typed: pd.DataFrame) -> pd.DataFrame:
        try:
            self._checker.validate(typed, lazy=True)
            return list_faults(rows, "", np.array([], int), "", "")
        except pa.errors.SchemaErrors as error:
            cases = error.failure_cases
        found = []
        for (name, check), group in cases.groupby(["column", "check"], sort=False):
            numbers = group["index"].to_numpy(int)
            if check == "field_uniqueness":
                # The first row of a key stays, as everywhere in the house.
                numbers = np.flatnonzero(typed[name].duplicated() & typed[name].notna())
            words = {str(c.error): describe_check(c) for c in self.schema.columns[name].checks}
            words |= {"not_nullable": "a value", "field_uniqueness": "a value that no earlier row has"}
            found.append(list_faults(rows, name, numbers, check, f"expected {words.get(check, check)}"))
        return pd.concat(found, ignore_index=True)


def infer_contract(
    frame: pd.DataFrame,
    *,
    target: str | None = None,
    key: str | None = None,
    time: str | None = None,
    label_time: str | None = None,
) -> Contract:
    """Return the contract that the rows show: each column's kind, and whether a cell may be missing.

    Numbers get no bounds and categories stay open, since what a sample lacks is not wrong. The target is
    required, the key required and unique.

    Raises
    ------
    SchemaViolation
        When a column with a role is not in the frame.
    """
    special = {"target": target, "key": key, "time": time, "label_time": label_time}
    if missing := {role: c for role, c in special.items() if c and c not in frame}:
        told = ", ".join(f"{c!r} ({role})" for role, c in missing.items())
        raise SchemaViolation(
            f"expected the columns {told}, found {', '.join(map(str, frame.columns))}; correct the names in the policy",
            context={"missing": sorted(missing.values())},
        )
    kinds: dict[str, Kind] = {str(name): kind_of_column(frame[name]) for name in frame.columns}
    kinds |= {name: "datetime" for name in (time, label_time) if name}
    columns = {}
    for name, kind in kinds.items():
        nullable = bool(frame[name].isna().any()) and name not in (target, key, time)
        dtype = "float64" if nullable and kind == "integer" else "boolean" if nullable and kind == "boolean" else None
        columns[name] = pa.Column(dtype or DTYPES[kind], nullable=nullable, unique=name == key)
    return Contract(pa.DataFrameSchema(columns), **special)
