"""The Open Inference Protocol V2 in the OpenAPI document: its paths and the forms of its requests and replies."""

import re
from typing import Any

from serve_app.live_version import LiveVersion
from serve_app.open_inference import LONGEST_ID
from serve_app.operations import MODEL, USER, VERSION_IN_PATH, operation, ref
from serve_app.schemas import COUNT, TEXT, Schema, an_object
from serve_app.tensors import DATATYPES, LONGEST_NAME, OF_KIND

_PARAMETERS: Schema = {"type": ["object", "null"]}
_FLAG: Schema = {"type": "boolean"}
_READ_ERRORS = (401, 403, 404, 429, 503)


def v2_paths(prefix: str, live: LiveVersion | None, tag: str) -> dict[str, Any]:
    """Return the protocol's paths: the server's, and those of a model below its prefix."""
    paths = _server_paths()
    key = re.sub(r"\W", "_", prefix.strip("/"))
    model = [MODEL] if "{" in prefix else []
    for path, of, parameters in (
        (prefix, key, model),
        (f"{prefix}/versions/{{version}}", f"{key}_version", [*model, VERSION_IN_PATH]),
    ):
        read: dict[str, Any] = {"tag": tag, "parameters": parameters, "errors": _READ_ERRORS}
        infer = operation(
            f"infer_{of}", "Rows as tensors", schema=ref("InferReply"), tag=tag,
            parameters=[*parameters, USER], body=ref("InferRequest"), example=infer_example(live) if live else None,
        )  # fmt: skip
        binary = {"schema": {"description": "The reply's JSON, and the outputs' bytes after it."}}
        infer["responses"]["200"]["content"]["application/octet-stream"] = binary
        paths |= {
            path: {"get": operation(f"metadata_{of}", "Inputs and outputs", schema=ref("ModelMetadata"), **read)},
            f"{path}/ready": {"get": operation(f"ready_{of}", "Answers", schema=ref("ModelReady"), **read)},
            f"{path}/infer": {"post": infer},
        }
    return paths


def infer_example(live: LiveVersion) -> dict[str, Any]:
    """Return the version's stored example as a request."""
    kinds = live.contract.kinds
    return {
        "id": "my-request-1",
        "inputs": [
            {"name": name, "datatype": OF_KIND[kinds[name]][0], "shape": [1], "data": [value]}
            for name, value in live.example.items()
            if value is not None
        ],
    }


def v2_schemas() -> dict[str, Schema]:
    """Return the forms of requests and replies by name."""
    names = {"type": "array", "items": TEXT}
    shape = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "maxItems": 2}
    tensor = {
        "name": {**TEXT, "maxLength": LONGEST_NAME},
        "datatype": {"enum": list(DATATYPES)},
        "shape": shape,
        "parameters": _PARAMETERS,
    }
    data = {"type": "array", "description": "Flat in row-major order or nested; null is missing."}
    output = {"name": TEXT, "parameters": _PARAMETERS}
    said = an_object({"name": TEXT, "datatype": TEXT, "shape": {"type": "array", "items": {"type": "integer"}}})
    answered = an_object(
        {"name": TEXT, "datatype": TEXT, "shape": {"type": "array", "items": COUNT}, "data": {"type": "array"}}
    )
    return {
        "ServerMetadata": an_object({"name": TEXT, "version": TEXT, "extensions": names}),
        "ModelMetadata": an_object(
            {
                "name": TEXT,
                "versions": names,
                "platform": TEXT,
                "inputs": {"type": "array", "items": said},
                "outputs": {"type": "array", "items": said},
            }
        ),
        "ModelReady": an_object({"name": TEXT, "ready": _FLAG}),
        "InferRequest": an_object(
            {
                "id": {"type": ["string", "null"], "maxLength": LONGEST_ID},
                "parameters": _PARAMETERS,
                "inputs": {
                    "type": "array",
                    "minItems": 1,
                    "items": an_object({**tensor, "data": data}, ["name", "datatype", "shape"]),
                },
                "outputs": {"type": ["array", "null"], "items": an_object(output, ["name"])},
            },
            ["inputs"],
        ),
        "InferReply": an_object(
            {
                "model_name": TEXT,
                "model_version": TEXT,
                "id": TEXT,
                "parameters": an_object({"variant": TEXT, "experiment": TEXT}),
                "outputs": {"type": "array", "items": answered},
            },
            ["model_name", "model_version", "outputs"],
        ),
    }


def _server_paths() -> dict[str, Any]:
    common: dict[str, Any] = {"tag": "server"}
    live = an_object({"live": _FLAG})
    ready = an_object({"live": _FLAG, "ready": _FLAG})
    return {
        "/v2": {
            "get": operation("v2_server", "This server", schema=ref("ServerMetadata"), errors=(401, 403, 429), **common)
        },
        "/v2/health/live": {"get": operation("v2_live", "Alive", schema=live, errors=(), open_to_all=True, **common)},
        "/v2/health/ready": {
            "get": operation(
                "v2_ready", "The default model answers", schema=ready, errors=(503,), open_to_all=True, **common
            )
        },
    }
