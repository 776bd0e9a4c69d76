"""JSON Schemas of what a contract accepts and of what the API answers.

What the features' schema accepts, the contract accepts too, where a checker asserts `format`. The other way
round three things differ: a contract also takes other forms of ISO 8601 and years outside 1000 to 8999; lists
of `columns` must have one length and `request_ids` one a row; and a key must not stand twice in an object.
"""

import math
from typing import Any

from forge_core.data.coercion import LARGEST
from forge_core.data.contracts import Contract
from forge_core.data.row_checks import FieldRule, field_rule
from serve_app.bodies import USUAL
from serve_app.live_version import LiveVersion

Schema = dict[str, Any]

_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]"
TIME = rf"^[1-8][0-9]{{3}}-[0-9]{{2}}-[0-9]{{2}}T{_CLOCK}:[0-5][0-9](\.[0-9]{{1,6}})?(Z|[+-]{_CLOCK})$"
_TYPES = {"number": "number", "integer": "integer", "category": "string", "boolean": "boolean", "datetime": "string"}
REQUEST_ID: Schema = {"type": "string", "minLength": 1, "maxLength": 128}
USER_ID: Schema = {**REQUEST_ID, "type": ["string", "null"], "description": "Whose it is; the header comes first."}
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}


def an_object(properties: dict[str, Schema], required: list[str] | None = None, **more: Any) -> Schema:
    """Return the schema of an object; all of its properties are required unless said otherwise."""
    needed = list(properties) if required is None else required
    return {"type": "object", "properties": properties, **({"required": needed} if needed else {}), **more}


def feature_schemas(contract: Contract) -> dict[str, Schema]:
    """Return one schema a feature, in the contract's order."""
    return {c: _feature_schema(contract, c) for c in contract.feature_columns}


def record_schema(contract: Contract) -> Schema:
    """Return the schema of one row's features."""
    return an_object(feature_schemas(contract), _needed(contract), additionalProperties=False)


def columns_schema(contract: Contract) -> Schema:
    """Return the schema of many rows as one list a feature."""
    lists = {n: {**_rows_list(), "items": schema} for n, schema in feature_schemas(contract).items()}
    return an_object(lists, _needed(contract), minProperties=1, additionalProperties=False)


def batch_schema(record: Schema, columns: Schema) -> Schema:
    """Return the schema of a request of many rows, given one row's and the columns' schema."""
    ids: Schema = {"type": ["array", "null"], "items": REQUEST_ID, "uniqueItems": True, "description": "One a row."}
    users: Schema = {"type": ["array", "null"], "items": REQUEST_ID, "description": "Whose each row is; one a row."}
    reply: Schema = {"enum": ["records", "columns", None], "description": "Predictions as objects, or a list a field."}
    records = {**_rows_list(), "items": record}
    forms = (("records", records), ("columns", columns))
    more = {"request_ids": ids, "users": users, "reply": reply}
    return {"oneOf": [an_object({n: s, **more}, [n], additionalProperties=False) for n, s in forms]}


_ALWAYS = (
    "prediction", "prediction_probability", "model_version", "processing_time_ms", "model", "request_id",
)  # fmt: skip


def prediction_schema(live: LiveVersion | None) -> Schema:
    """Return the schema of one row's answer."""
    prediction: Schema = {}
    probability: Schema = {"type": ["number", "null"]}
    if live is not None and live.task == "regression":
        told = "null where the features are so large that the model's number is infinite"
        prediction, probability = {"type": ["number", "null"], "description": told}, {"type": "null"}
    elif live is not None:
        prediction = {"enum": live.classes}
        probability = {"type": "number", "minimum": 0, "maximum": 1, "description": "Of the predicted class."}
    return an_object(
        {
            "prediction": prediction,
            "prediction_probability": probability,
            "model_version": TEXT,
            "processing_time_ms": NUMBER,
            "model": TEXT,
            "request_id": TEXT,
            "variant": {**TEXT, "description": "Who answered."},
            "experiment": {**TEXT, "description": "The rollout or experiment that shared the traffic out, if any."},
        },
        [*_ALWAYS, "variant"],
    )


def predictions_schema(prediction: Schema, live: LiveVersion | None) -> Schema:
    """Return the schema of many rows' answers: objects as referred to, or one list a field."""
    told = prediction_schema(live)
    lists = {name: {"type": "array", "items": field} for name, field in told["properties"].items()}
    forms = [{"type": "array", "items": prediction}, an_object(lists, told["required"])]
    return an_object({"predictions": {"oneOf": forms}})


def problem_schema() -> Schema:
    """Return the schema of a problem document (RFC 9457) as we send it."""
    fault = an_object({"field": TEXT, "reason": TEXT, "row": COUNT}, ["field", "reason"])
    return an_object(
        {
            "type": TEXT,
            "title": TEXT,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": TEXT,
            "error": {"type": "string", "description": "The detail again, for clients of the V2 protocol."},
            "errors": {"type": "array", "items": fault, "description": "Every fault of the request."},
            "held": {"type": "array", "items": TEXT, "description": "Versions that can be asked."},
        },
        ["type", "title", "status", "detail", "error"],
    )


def _needed(contract: Contract) -> list[str]:
    return [c for c in contract.feature_columns if not contract.schema.columns[c].nullable]


def _rows_list() -> Schema:
    return {"type": "array", "minItems": 1, "maxItems": USUAL.rows}


def _feature_schema(contract: Contract, name: str) -> Schema:
    column, kind = contract.schema.columns[name], contract.kinds[name]
    rule = field_rule(name, kind, column)
    type_ = _TYPES[kind]
    schema: Schema = {"type": [type_, "null"] if rule.nullable else type_, "description": contract.describe(name)}
    if kind in ("number", "integer"):
        schema |= _bounds(rule, column)
    if kind == "datetime":
        schema |= {"format": "date-time", "pattern": TIME}
    if rule.allowed is not None:
        schema["enum"] = [*sorted(rule.allowed, key=_order), *([None] if rule.nullable else [])]
    if rule.forbidden:
        schema["not"] = {"enum": sorted(rule.forbidden, key=_order)}
    return schema


def _bounds(rule: FieldRule, column: Any) -> Schema:
    """Return a rule's range; an open bound stands in the rule as the next float inside."""
    above = {math.nextafter(v, math.inf): v for v in _facts(column, "greater_than", "min_value")}
    below = {math.nextafter(v, -math.inf): v for v in _facts(column, "less_than", "max_value")}
    return {
        **({"exclusiveMinimum": above[rule.low]} if rule.low in above else {"minimum": max(rule.low, -LARGEST)}),
        **({"exclusiveMaximum": below[rule.high]} if rule.high in below else {"maximum": min(rule.high, LARGEST)}),
    }


def _facts(column: Any, check: str, fact: str) -> list[float]:
    return [c.statistics[fact] for c in column.checks if c.name == check]


def _order(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value if isinstance(value, str | int | float) else str(value)
