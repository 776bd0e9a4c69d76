"""Many rows against a contract: whole columns at a glance, and row by row only where something is wrong."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from forge_core.data.coercion import LARGEST
from forge_core.data.row_checks import FieldRule, check_fields
from forge_core.errors import SchemaViolation

Records = Sequence[Mapping[str, Any]]
_MISSING = type(None)
_TEXT, _TRUTH, _NUMBER, _WHOLE = ({str, _MISSING}, {bool, _MISSING}, {float, int, _MISSING}, {int, _MISSING})


def check_many(rules: Sequence[FieldRule], records: Records) -> list[tuple[Any, ...]]:
    """Return the rows with one value a rule, in the rules' order, as `check_fields` gives them.

    Raises
    ------
    SchemaViolation
        With every fault of every row in `context["faults"]` (the first hundred): {"row", "field", "reason"}.
    """
    columns = _typed_columns(rules, records) if len(records) > 1 else None
    if columns is not None:
        return list(zip(*columns, strict=True))
    rows: list[tuple[Any, ...]] = []
    faults: list[dict[str, Any]] = []
    for number, record in enumerate(records):
        try:
            rows.append(tuple(check_fields(rules, record).values()))
        except SchemaViolation as error:
            if len(records) == 1:
                raise
            faults += [{**fault, "row": number} for fault in error.context["faults"]]
    if faults:
        shown = "; ".join(f"row {f['row']}, {f['field']}: {f['reason']}" for f in faults[:5])
        raise SchemaViolation(f"{len(faults)} faults: {shown}", context={"faults": faults[:100]})
    return rows


def _typed_columns(rules: Sequence[FieldRule], records: Records) -> list[list[Any]] | None:
    """Return the columns where surely every cell keeps its rule, else None."""
    columns: list[list[Any]] = []
    n_known = 0
    for rule in rules:
        values = [record.get(rule.name) for record in records]
        n_known += sum(rule.name in record for record in records) if None in values else len(values)
        typed = _typed(rule, values)
        if typed is None:
            return None
        columns.append(typed)
    return columns if n_known == sum(map(len, records)) else None


def _typed(rule: FieldRule, values: list[Any]) -> list[Any] | None:
    found = set(map(type, values))
    if _MISSING in found and not rule.nullable:
        return None
    match rule.kind:
        case "number" | "integer":
            typed = _numbers(rule, values, found)
        case "category":
            typed = values if found <= _TEXT else None
        case "boolean":
            typed = values if found <= _TRUTH else None
        case _:
            typed = _times(values)
    if typed is None or (rule.allowed is None and not rule.forbidden):
        return typed
    levels = {v for v in typed if v is not None and v == v}
    return typed if (rule.allowed is None or levels <= rule.allowed) and not levels & rule.forbidden else None


def _numbers(rule: FieldRule, values: list[Any], found: set[type]) -> list[Any] | None:
    whole = rule.kind == "integer"
    if not found <= (_WHOLE if whole else _NUMBER):
        return None
    try:
        numbers = np.array(values, dtype=float)
    except OverflowError:
        return None
    present = numbers[~np.isnan(numbers)]
    if len(present) < len(values) and not rule.nullable:
        return None
    if len(present) and not max(rule.low, -LARGEST) <= present.min() <= present.max() <= min(rule.high, LARGEST):
        return None
    if not whole:
        return numbers.tolist()
    return [math.nan if v is None else v for v in values] if _MISSING in found else values


def _times(values: list[Any]) -> list[Any] | None:
    try:
        moments = [datetime.fromisoformat(v) if v is not None else None for v in values]
        return [m if m is None else m.replace(tzinfo=UTC) if m.tzinfo is None else m.astimezone(UTC) for m in moments]
    except (ValueError, TypeError, OverflowError):
        return None
