"""The OpenAPI 3.1 document of the routes, with the fields of the models that are live and examples that work."""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel

from forge_core import __version__
from serve_app.experiment_schemas import experiment_paths, experiment_schemas
from serve_app.live_version import LiveVersion
from serve_app.open_inference_schemas import v2_paths, v2_schemas
from serve_app.operations import EVENT_TIME, FLUSH, MODEL, REQUEST_ID, USER, VERSION, components, operation, ref
from serve_app.protocol import FeedbackRequest, Label
from serve_app.rollout_routes import rollout_paths, rollout_schemas
from serve_app.schemas import (
    COUNT,
    TEXT,
    USER_ID,
    Schema,
    an_object,
    batch_schema,
    columns_schema,
    prediction_schema,
    predictions_schema,
    record_schema,
)

_TOLD = """One row: `POST /predict`. Many: `POST /predict/batch`. The routes without a name ask the default model.
Send the `request_id` of a reply back with the label once it is known. Errors are problem documents (RFC 9457)."""
_ANYTHING: Schema = {"type": "object"}


def openapi_document(versions: Sequence[LiveVersion], default_model: str) -> dict[str, Any]:
    """Return the document.

    Parameters
    ----------
    versions : sequence of LiveVersion
        One a live model. Each has paths of its own with its real fields; without any, the paths have a parameter.
    default_model : str
        The model of the routes without a name.
    """
    live = {version.model: version for version in versions}
    default = live.get(default_model)
    schemas = {**_shared_schemas(), **v2_schemas(), **experiment_schemas(), **rollout_schemas()}
    paths = _model_paths("", default, f"{default_model} (default)")  # pages show it first
    shown: list[LiveVersion | None] = [*(live[model] for model in sorted(live))] or [None]
    for version in shown:
        prefix = f"/models/{quote(version.model, safe='') if version else '{model}'}"
        tag = version.model if version else "any model"
        paths |= _model_paths(prefix, version, tag)
        paths |= v2_paths(f"/v2{prefix}", version, tag)
        schemas |= _model_schemas(version)
    paths |= {**experiment_paths(), **rollout_paths(), **_house_paths()}
    schemas |= _model_schemas(default)
    return {
        "openapi": "3.1.0",
        "info": {"title": "MLOps-Forge", "version": __version__, "description": _TOLD},
        "paths": paths,
        "components": {"schemas": schemas, **components()},
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _house_paths() -> dict[str, Any]:
    health: dict[str, Any] = {"schema": ref("Health"), "open_to_all": True, "tag": "server"}
    return {
        "/health": {"get": operation("health", "Alive, and which versions are live", errors=(), **health)},
        "/health/ready": {"get": operation("ready", "503 until the default model is live", errors=(503,), **health)},
        "/monitoring": {
            "get": operation(
                "monitoring", "Rows profiled, logged, waiting, dropped", schema=_ANYTHING, tag="server",
                parameters=[FLUSH], errors=(401, 403, 422, 429, 503),
            )
        },
        "/metrics": {
            "get": operation(
                "metrics", "Counts and latencies of all routers, for Prometheus", schema=TEXT, tag="server",
                media="text/plain", errors=(401, 403, 429, 503),
            )
        },
    }  # fmt: skip


def _model_paths(prefix: str, live: LiveVersion | None, tag: str) -> dict[str, Any]:
    """Return the routes of one model; the empty prefix is the default one."""
    name, key = _component(live), re.sub(r"\W", "_", prefix.strip("/")) or "default"
    path = [MODEL] if "{" in prefix else []
    example = live.example if live else {}
    prediction = ref(f"{name}Prediction")
    common: dict[str, Any] = {"tag": tag}

    def post(what: str, summary: str, body: Schema, schema: Schema, sent: Any, headers: Sequence[Schema]) -> Any:
        told: dict[str, Any] = {"body": body, "schema": schema, "example": sent, "parameters": [*path, *headers]}
        return {"post": operation(f"{what}_{key}", summary, **told, **common)}

    info = operation(
        f"info_{key}", "Features, metrics, which form serves and why, an example", schema=_ANYTHING,
        parameters=[*path, VERSION], errors=(401, 403, 404, 422, 429, 503), **common,
    )  # fmt: skip
    return {
        prefix or "/model/info": {"get": info},
        f"{prefix}/predict": post(
            "predict", "One row", ref(f"{name}Request"), prediction,
            {"features": example} if live else None, [REQUEST_ID, USER, VERSION, EVENT_TIME],
        ),
        f"{prefix}/predict/batch": post(
            "predict_batch", "Many rows", ref(f"{name}Batch"),
            predictions_schema(prediction, live),
            {"records": [example]} if live else None, [USER, VERSION, EVENT_TIME],
        ),
        f"{prefix}/feedback": post(
            "feedback", "What really happened", {"oneOf": [ref("Label"), ref("FeedbackRequest")]},
            an_object({"committed": COUNT}), {"request_id": "my-request-1", "label": 1}, [EVENT_TIME],
        ),
    }  # fmt: skip


def _model_schemas(live: LiveVersion | None) -> dict[str, Schema]:
    name = _component(live)
    record = record_schema(live.contract) if live else _ANYTHING
    columns = columns_schema(live.contract) if live else _ANYTHING
    features = f"{name}Features"
    return {
        features: record,
        f"{name}Request": an_object(
            {"features": ref(features), "user": USER_ID}, ["features"], additionalProperties=False
        ),
        f"{name}Batch": batch_schema(ref(features), columns),
        f"{name}Prediction": prediction_schema(live),
    }


def _shared_schemas() -> dict[str, Schema]:
    versions = {"type": "object", "additionalProperties": TEXT}
    forms: dict[str, type[BaseModel]] = {"Label": Label, "FeedbackRequest": FeedbackRequest}
    told = {name: form.model_json_schema(ref_template="#/components/schemas/{model}") for name, form in forms.items()}
    health = {"status": {"const": "ok"}, "version": TEXT, "models": versions, "candidates": versions}
    return {"Health": an_object(health), **{name: _without(schema, "$defs") for name, schema in told.items()}}


def _without(schema: Mapping[str, Any], key: str) -> Schema:
    return {name: value for name, value in schema.items() if name != key}


def _component(live: LiveVersion | None) -> str:
    """Return the start of the names of a model's schemas."""
    return re.sub(r"[^a-zA-Z0-9._-]", "_", live.model) + "." if live else "Any"
