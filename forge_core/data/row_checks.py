"""One row against a contract, in plain Python: what the API does for every request, in microseconds."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pandas as pd
import pandera.pandas as pa

from forge_core.data.coercion import LARGEST, Kind
from forge_core.errors import ConfigurationError, SchemaViolation

_EXACT = {float, int, str, bool, type(None)}
_USUAL: dict[Kind, Any] = {"number": float, "category": str, "boolean": bool}


class FieldRule(NamedTuple):
    """What one field must be; bounds are finite, inclusive floats (an open bound is the next float inside).

    A value of the `usual` type needs no look beyond its bounds; None where the field has a list of values, too.
    """

    name: str
    kind: Kind
    nullable: bool
    low: float
    high: float
    allowed: frozenset[Any] | None
    forbidden: frozenset[Any]
    words: str
    usual: Any


def describe_check(check: pa.Check) -> str:
    """Return in words what a check asks for, as in "at least 0".

    Raises
    ------
    ConfigurationError
        For a check that a single row cannot be held against.
    """
    facts = check.statistics or {}
    if check.name not in _WORDS:
        raise ConfigurationError(f"a contract cannot hold the check {check.name!r}; known: {', '.join(sorted(_WORDS))}")
    return _WORDS[check.name](facts)


def field_rule(name: str, kind: Kind, column: pa.Column) -> FieldRule:
    """Return a Pandera column's checks as one rule."""
    low, high = -LARGEST, LARGEST
    allowed: frozenset[Any] | None = None
    forbidden: frozenset[Any] = frozenset()
    for check in column.checks:
        facts = check.statistics
        match check.name:
            case "greater_than_or_equal_to":
                low = max(low, facts["min_value"])
            case "greater_than":
                low = max(low, math.nextafter(facts["min_value"], math.inf))
            case "less_than_or_equal_to":
                high = min(high, facts["max_value"])
            case "less_than":
                high = min(high, math.nextafter(facts["max_value"], -math.inf))
            case "in_range":
                least, most = facts["min_value"], facts["max_value"]
                low = max(low, least if facts.get("include_min", True) else math.nextafter(least, math.inf))
                high = min(high, most if facts.get("include_max", True) else math.nextafter(most, -math.inf))
            case "isin":
                allowed = frozenset(facts["allowed_values"])
            case "notin":
                forbidden = frozenset(facts["forbidden_values"])
    words = " and ".join(describe_check(check) for check in column.checks)
    usual = _USUAL.get(kind) if allowed is None and not forbidden else None
    return FieldRule(name, kind, bool(column.nullable), float(low), float(high), allowed, forbidden, words, usual)


def check_fields(rules: Sequence[FieldRule], features: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row with one value a rule, in the rules' order.

    Numbers come back as float, integers as int, missing ones as NaN; missing categories, booleans and
    datetimes as None. A nullable field may be left out.

    Raises
    ------
    SchemaViolation
        With every fault of the row in `context["faults"]`: a list of {"field", "reason"}.
    """
    row: dict[str, Any] = {}
    faults: list[dict[str, str]] = []
    found = 0
    for name, kind, nullable, low, high, allowed, forbidden, words, usual in rules:
        value: Any = features.get(name)
        if value is not None or name in features:
            found += 1
            if type(value) is usual and (usual is not float or low <= value <= high):
                row[name] = value
                continue
            if type(value) not in _EXACT:
                value = _plain(value)
        numeric = kind == "number" or kind == "integer"
        if value is None or value != value:
            if nullable:
                row[name] = math.nan if numeric else None
            else:
                faults.append({"field": name, "reason": "is required and was missing"})
            continue
        if numeric:
            reason = _number_fault(value, kind)
            if reason is None:
                value = float(value) if kind == "number" else int(value)
                if not low <= value <= high:
                    reason = f"expected {words}, found {value:g}"
        else:
            value, reason = _other(value, kind)
        if reason is None and (value in forbidden or (allowed is not None and value not in allowed)):
            reason = f"expected {words}, found {str(value)[:40]!r}"
        if reason is None:
            row[name] = value
        else:
            faults.append({"field": name, "reason": reason})
    if found != len(features):
        known = {rule.name for rule in rules}
        faults += [{"field": str(f)[:80], "reason": "is no feature of this model"} for f in features if f not in known]
    if faults:
        told = "; ".join(f"{f['field']}: {f['reason']}" for f in faults[:5])
        raise SchemaViolation(
            f"{len(faults)} fields are not as the contract says: {told}; expected {', '.join(r.name for r in rules)}",
            context={"faults": faults},
        )
    return row


def surely_holds(rule: FieldRule, values: pd.Series) -> bool:
    """Tell at a glance that a whole typed column keeps its rule; False where somebody has to look at the cells."""
    if not rule.nullable and values.hasnans:
        return False
    present = values.dropna() if values.hasnans else values
    if not len(present):
        return True
    numeric = rule.kind in ("number", "integer")
    if numeric and not (rule.low <= present.min() and present.max() <= rule.high):
        return False
    if rule.allowed is None and not rule.forbidden:
        return True
    levels = set(present.unique())
    return (rule.allowed is None or levels <= rule.allowed) and not levels & rule.forbidden


_WORDS: dict[str, Any] = {
    "greater_than_or_equal_to": lambda f: f"at least {f['min_value']}",
    "greater_than": lambda f: f"more than {f['min_value']}",
    "less_than_or_equal_to": lambda f: f"at most {f['max_value']}",
    "less_than": lambda f: f"less than {f['max_value']}",
    "in_range": lambda f: f"between {f['min_value']} and {f['max_value']}",
    "isin": lambda f: f"one of {', '.join(map(str, f['allowed_values']))}",
    "notin": lambda f: f"none of {', '.join(map(str, f['forbidden_values']))}",
}


def _number_fault(value: Any, kind: Kind) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"expected {'a number' if kind == 'number' else 'an integer'}, found {_name(value)}"
    if not -LARGEST <= value <= LARGEST:
        return "expected a finite number"
    if kind == "integer" and value != int(value):
        return f"expected an integer, found {value:g}"
    return None


def _other(value: Any, kind: Kind) -> tuple[Any, str | None]:
    if kind == "category":
        return value, None if isinstance(value, str) else f"expected text, found {_name(value)}"
    if kind == "boolean":
        return value, None if isinstance(value, bool) else f"expected true or false, found {_name(value)}"
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return value, f"expected an ISO 8601 time, found {value[:40]!r}"
    if not isinstance(value, datetime):
        return value, f"expected an ISO 8601 time, found {_name(value)}"
    try:
        return (value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)), None
    except OverflowError:  # the first or the last day of the calendar, in another zone
        return value, "expected an ISO 8601 time that exists in UTC"


def _plain(value: Any) -> Any:
    """Return a NumPy or pandas scalar as the Python value it stands for."""
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    return value.item() if hasattr(value, "item") else value


def _name(value: Any) -> str:
    names = {"str": "text", "bool": "a boolean", "list": "a list", "dict": "an object", "int": "a number"}
    return names.get(type(value).__name__, "a number" if isinstance(value, float) else type(value).__name__)
