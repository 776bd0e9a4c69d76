"""What rows must look like: a Pandera schema, the roles of its special columns, and the two ways to check.

`Contract.check` takes a frame (ingest): bad rows are set aside with the reason, good ones go on with the
contract's types. `Contract.check_row` takes one request's features (serving).
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import pandera.io.pandas_io as pandera_io
import pandera.pandas as pa
import yaml

from forge_core.data.checking import DTYPES, Checker
from forge_core.data.coercion import Kind, kind_of_dtype
from forge_core.data.kinds import tally_kinds
from forge_core.data.many_row_checks import Rows, check_columns, check_many
from forge_core.data.quarantine import BadRowBudget, CheckedRows
from forge_core.data.row_checks import FieldRule, check_fields, describe_check, field_rule
from forge_core.errors import ConfigurationError, EmptyData, SchemaViolation

ROLES = ("target", "key", "time", "label_time")


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
        roles = {role: getattr(self, role) for role in ROLES}
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

    def check_rows(self, records: Rows) -> list[tuple[Any, ...]]:
        """Return requests' features as rows, values in the order of `feature_columns`; see `check_many`.

        Raises
        ------
        SchemaViolation
            With the faults of all rows in `context["faults"]`.
        """
        return check_many(self._feature_rules, records)

    def check_columns(self, records: Rows) -> list[Any]:
        """Return what `check_rows` does, column by column; that of a number may be an array of float64."""
        return check_columns(self._feature_rules, records)

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
        checker = Checker(self)
        batch = checker.check(frame)
        checker.finish(BadRowBudget(max_bad_share))
        return CheckedRows(batch.good, batch.faults, checker.n_rows, checker.n_bad)

    def changes_since(self, before: "Contract") -> list[str]:
        """Return in words what is asked now and was not before, and the other way round; empty for no change."""
        told = [
            f"{role}: {_named(old)} became {_named(new)}"
            for role in ROLES
            if (old := getattr(before, role)) != (new := getattr(self, role))
        ]
        ours, theirs = self.schema.columns, before.schema.columns
        told += [f"{name}: no longer asked for (was {before.describe(name)})" for name in theirs if name not in ours]
        told += [f"{name}: new, {self.describe(name)}" for name in ours if name not in theirs]
        for name in ours:
            if name in theirs and (old := before.describe(name)) != (new := self.describe(name)):
                told.append(f"{name}: {old} became {new}")
        return told

    def describe(self, column: str) -> str:
        """Return in words what one column must be, as in "number, at least 0, may be missing"."""
        asked = self.schema.columns[column]
        parts = [self.kinds[column], *(describe_check(check) for check in asked.checks)]
        parts += ["may be missing"] * asked.nullable + ["no value twice"] * asked.unique
        parts += ["column may be absent"] * (not asked.required)
        return ", ".join(parts)

    @property
    def _special(self) -> list[str]:
        return [column for role in ROLES if (column := getattr(self, role))]

    @cached_property
    def _rules(self) -> dict[str, FieldRule]:
        return {name: field_rule(name, self.kinds[name], column) for name, column in self.schema.columns.items()}

    @cached_property
    def _feature_rules(self) -> list[FieldRule]:
        return [self._rules[name] for name in self.feature_columns]


def infer_contract(
    rows: pd.DataFrame | Iterable[pd.DataFrame],
    *,
    target: str | None = None,
    key: str | None = None,
    time: str | None = None,
    label_time: str | None = None,
    untyped: bool = False,
) -> Contract:
    """Return the contract that the rows show: each column's kind, and whether a cell may be missing.

    Numbers get no bounds and categories stay open, since what a sample lacks is not wrong. The target is
    required, the key required and unique.

    Parameters
    ----------
    rows : DataFrame or iterable of DataFrames
        All rows, at once or in batches.
    untyped : bool
        Every cell is text, as CSV has it, and is judged by what it reads as.

    Raises
    ------
    SchemaViolation
        When a column with a role is not in the rows, or a column is there twice.
    EmptyData
        When there are no rows.
    """
    special = {"target": target, "key": key, "time": time, "label_time": label_time}
    batches = [rows] if isinstance(rows, pd.DataFrame) else rows
    tallies = tally_kinds(map(_without_twins, batches), untyped=untyped)
    if not tallies:
        raise EmptyData("expected rows to infer a contract from, found none")
    if missing := {role: c for role, c in special.items() if c and c not in tallies}:
        told = ", ".join(f"{c!r} ({role})" for role, c in missing.items())
        raise SchemaViolation(
            f"expected the columns {told}, found {', '.join(tallies)}; correct the names in the policy",
            context={"missing": sorted(missing.values())},
        )
    columns = {}
    for name, tally in tallies.items():
        kind: Kind = "datetime" if name in (time, label_time) else tally.kind
        nullable = tally.nullable and name not in (target, key, time)
        dtype = "float64" if nullable and kind == "integer" else "boolean" if nullable and kind == "boolean" else None
        columns[name] = pa.Column(dtype or DTYPES[kind], nullable=nullable, unique=name == key)
    return Contract(pa.DataFrameSchema(columns), **special)


def _without_twins(batch: pd.DataFrame) -> pd.DataFrame:
    if twins := sorted({str(c) for c in batch.columns[batch.columns.duplicated()]}):
        raise SchemaViolation(
            f"expected every column once, found {', '.join(twins)} more than once; rename them in the source",
            context={"columns": twins},
        )
    return batch


def _named(column: str | None) -> str:
    return repr(column) if column else "none"
