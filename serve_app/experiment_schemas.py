"""The experiments' part of the OpenAPI document."""

from typing import Any

from pydantic import BaseModel

from serve_app.experiment_forms import Conversion, Conversions, Measurement, Measurements, NewExperiment, StopRequest
from serve_app.operations import ASKED_USER, BODY_ERRORS, EVENT_TIME, EXPERIMENT, operation, ref
from serve_app.schemas import COUNT, TEXT, Schema, an_object

_FORMS: tuple[type[BaseModel], ...] = (
    NewExperiment, Conversion, Conversions, Measurement, Measurements, StopRequest,
)  # fmt: skip
_LOOK_ERRORS = (401, 403, 404, 429, 503)
_MOVE_ERRORS = (401, 403, 404, 409, 422, 429, 503)
_EXAMPLE: dict[str, Any] = {
    "id": "model-comparison",
    "variants": {
        "model_v1": {"model": "flights", "version": "1"},
        "model_v2": {"model": "flights", "version": "2"},
    },
    "traffic_allocation": {"model_v1": 0.5, "model_v2": 0.5},
    "description": "Comparing model performance",
    "auto_start": True,
}


def experiment_paths() -> dict[str, Any]:
    """Return the routes below `/experiments`."""
    common: dict[str, Any] = {"tag": "experiments"}
    told, one = ref("Experiment"), "/experiments/{experiment}"

    def post(name: str, summary: str, forms: Schema, example: Any) -> dict[str, Any]:
        sent: dict[str, Any] = {"body": forms, "schema": ref("Recorded"), "example": example}
        errors = (*BODY_ERRORS, 409)
        return {"post": operation(name, summary, parameters=[EXPERIMENT, EVENT_TIME], errors=errors, **sent, **common)}

    def move(name: str, summary: str) -> dict[str, Any]:
        return {"post": operation(name, summary, schema=told, parameters=[EXPERIMENT], errors=_MOVE_ERRORS, **common)}

    stop = operation(
        "stop_experiment", "End it; without a body the verdict names the winner", schema=told, body=ref("StopRequest"),
        parameters=[EXPERIMENT], errors=(*BODY_ERRORS, 409), example={"reason": "enough users"}, **common,
    )  # fmt: skip
    stop["requestBody"]["required"] = False
    return {
        "/experiments": {
            "post": operation(
                "create_experiment", "Create one; the same definition again is no error", schema=told,
                body=ref("NewExperiment"), example=_EXAMPLE, errors=(*BODY_ERRORS, 409), **common,
            ),
            "get": operation(
                "experiments", "All of them", errors=(401, 403, 429, 503), **common,
                schema=an_object({"experiments": {"type": "array", "items": told}}),
            ),
        },
        one: {
            "get": operation(
                "experiment", "One with its verdict", schema=told, parameters=[EXPERIMENT], errors=_LOOK_ERRORS,
                **common,
            )
        },
        f"{one}/picture": {
            "get": operation(
                "experiment_picture", "The verdict over time", schema={"type": "string", "format": "binary"},
                media="image/png", parameters=[EXPERIMENT], errors=_LOOK_ERRORS, **common,
            )
        },
        f"{one}/start": move("start_experiment", "Start or resume it"),
        f"{one}/pause": move("pause_experiment", "Everybody gets the control for a while"),
        f"{one}/stop": {"post": stop},
        f"{one}/variant": {
            "get": operation(
                "experiment_variant", "A user's variant; the meeting is committed before it is answered",
                schema=ref("MetVariant"), parameters=[EXPERIMENT, ASKED_USER], errors=_MOVE_ERRORS, **common,
            )
        },
        f"{one}/conversions": post(
            "record_conversions", "Conversions, one or many", {"oneOf": [ref("Conversion"), ref("Conversions")]},
            {"user": "user123", "variant": "model_v1"},
        ),
        f"{one}/metrics": post(
            "record_metrics", "Values of metrics, one or many", {"oneOf": [ref("Measurement"), ref("Measurements")]},
            {"user": "user123", "metric": "minutes", "value": 3.5},
        ),
    }  # fmt: skip


def experiment_schemas() -> dict[str, Schema]:
    """Return the schemas of what is sent and answered."""
    schemas: dict[str, Schema] = {}
    for form in _FORMS:
        told = form.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= told.pop("$defs", {})
        schemas[form.__name__] = told
    # An id that is no name makes no variant.
    schemas["NewExperiment"]["properties"]["variants"]["additionalProperties"] = False
    recorded = an_object({"counted": {"type": "boolean"}, "reason": TEXT, "told": TEXT})
    return {
        **schemas,
        "Experiment": an_object(
            {"id": TEXT, "status": {"enum": ["created", "running", "paused", "stopped"]}, "revision": COUNT,
             "variants": {"type": "object"}, "traffic_allocation": {"type": "object"}, "verdict": {"type": "object"},
             "changing_to": TEXT, "changing": {"type": "boolean"}, "trouble": TEXT},
            ["id", "status", "revision", "variants", "traffic_allocation"],
        ),
        "MetVariant": an_object({"experiment": TEXT, "variant": TEXT, "model": TEXT, "status": TEXT}),
        "Recorded": an_object({"counted": COUNT, "recorded": {"type": "array", "items": recorded}}),
    }  # fmt: skip
