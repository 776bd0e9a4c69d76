"""The parts of an OpenAPI document that do not depend on a model: operations, headers, errors, keys."""

from collections.abc import Sequence
from typing import Any

from serve_app.schemas import REQUEST_ID as _REQUEST_ID
from serve_app.schemas import TEXT, TIME, Schema, problem_schema

# What a request with a body may hear; the others are told where they stand.
BODY_ERRORS = (400, 401, 403, 404, 408, 413, 415, 422, 429, 503)
_ERRORS = {
    400: "The body is no JSON",
    401: "No key, or one that is not known",
    403: "The key lacks the scope",
    404: "No such model or version",
    408: "The body took too long to arrive",
    409: "Something else is in the way: another definition, another state, another split",
    413: "More bytes or rows than one request may have",
    415: "The body is not said to be JSON",
    422: "Not of the expected form; every fault is in `errors`",
    429: "Too many requests with this key",
    503: "Not ready or busy; retry later",
}
_RETRY = {"Retry-After": {"schema": {"type": "string"}, "description": "Seconds to wait."}}


def ref(name: str) -> Schema:
    """Return a reference to one of the document's schemas."""
    return {"$ref": f"#/components/schemas/{name}"}


def _parameter(name: str, place: str, schema: Schema, told: str) -> Schema:
    return {"name": name, "in": place, "required": place == "path", "schema": schema, "description": told}


_MOMENT = {"type": "string", "format": "date-time", "pattern": TIME}
MODEL = _parameter("model", "path", TEXT, "The model's name.")
VERSION_IN_PATH = _parameter("version", "path", TEXT, "A version that is held: the champion, or the candidate.")
VERSION = _parameter("X-Forge-Version", "header", _REQUEST_ID, "Ask this version; its rows are a trial.")
EVENT_TIME = _parameter("X-Forge-Event-Time", "header", _MOMENT, "When it happened; honoured in the local profile.")
REQUEST_ID = _parameter("X-Request-ID", "header", _REQUEST_ID, "Your own id, for feedback.")
EXPERIMENT = _parameter("experiment", "path", TEXT, "The experiment's id.")
ASKED_USER = {
    **_parameter("user", "query", _REQUEST_ID, "What stays the same when the user comes again."),
    "required": True,
}
USER = _parameter(
    "X-Forge-User", "header", _REQUEST_ID, "Whose the request is: a user gets the same variant each time."
)
FLUSH = _parameter("flush", "query", {"type": "boolean", "default": False}, "Write what waits first.")


def operation(
    name: str,
    summary: str,
    *,
    schema: Schema,
    tag: str,
    body: Schema | None = None,
    example: Any = None,
    parameters: Sequence[Schema] = (),
    errors: Sequence[int] = BODY_ERRORS,
    media: str = "application/json",
    open_to_all: bool = False,
) -> dict[str, Any]:
    """Return one operation.

    Parameters
    ----------
    name : str
        Its id, once in the document.
    schema, body : dict
        JSON Schemas of the answer, and of what is sent.
    example : any
        What can be sent as it is.
    errors : sequence of int
        Statuses that are answered with a problem document.
    open_to_all : bool
        Needs no key anywhere.
    """
    told: dict[str, Any] = {"operationId": name, "summary": summary, "tags": [tag]}
    if open_to_all:
        told["security"] = []
    if parameters:
        told["parameters"] = list(parameters)
    if body is not None:
        sent = {"schema": body, **({"example": example} if example is not None else {})}
        told["requestBody"] = {"required": True, "content": {"application/json": sent}}
    told["responses"] = {
        "200": {"description": "Answered", "content": {media: {"schema": schema}}},
        **{str(status): {"$ref": f"#/components/responses/{status}"} for status in errors},
    }
    return told


def components() -> dict[str, Any]:
    """Return the shared parts: the responses of errors, and the ways to send a key."""
    content = {"application/problem+json": {"schema": problem_schema()}}
    responses = {
        str(status): {
            "description": told,
            "content": content,
            **({"headers": _RETRY} if status in (429, 503) else {}),
        }
        for status, told in _ERRORS.items()
    }
    keys = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    return {"responses": responses, "securitySchemes": keys}
