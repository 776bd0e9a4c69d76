"""Headers, replies and errors on the wire (RFC 9457 problem documents), and the forms of what is not rows."""

from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from starlette.responses import Response
from starlette.types import Scope

from forge_core.errors import (
    ConfigurationError,
    Conflict,
    ExperimentNotFound,
    ForgeError,
    ModelError,
    ModelNotFound,
    NotEnoughSamples,
    SchemaViolation,
    ServiceUnavailable,
)


class NotJson(ForgeError):
    """The body is no JSON."""


class NotTheForm(ForgeError):
    """The body is JSON, and not what the route expects."""


class WrongContentType(ForgeError):
    """The body is said to be something else than JSON."""


class BodyTooLarge(ForgeError):
    """More bytes or rows than one request may have."""


class SlowRequest(ForgeError):
    """The body did not arrive in time."""


class Unauthorized(ForgeError):
    """No key that works."""


class Forbidden(ForgeError):
    """The key lacks the scope."""


class TooManyRequests(ForgeError):
    """The key's rate is used up."""


# The one place where our errors meet HTTP; the nearest class in an error's ancestry counts.
STATUS: dict[type[BaseException], tuple[int, str]] = {
    Unauthorized: (401, "A key is needed"),
    Forbidden: (403, "The key may not do this"),
    TooManyRequests: (429, "Too many rows a minute"),
    NotJson: (400, "The body is no JSON"),
    NotTheForm: (422, "The request is not of the expected form"),
    WrongContentType: (415, "The body is not said to be JSON"),
    BodyTooLarge: (413, "The request is too large"),
    SlowRequest: (408, "The request took too long to arrive"),
    SchemaViolation: (422, "The features do not fit the model"),
    ModelNotFound: (404, "No such model"),
    ModelError: (409, "The version cannot be used so"),
    ExperimentNotFound: (404, "No such experiment"),
    ConfigurationError: (422, "It cannot be made so"),
    Conflict: (409, "Something else is in the way"),
    NotEnoughSamples: (409, "Not enough rows yet"),
    ServiceUnavailable: (503, "Not ready"),
    ForgeError: (500, "Internal error"),
}


# So many faults of one request are told.
_SHOWN = 100


class Label(BaseModel):
    """What really happened after one prediction."""

    model_config = ConfigDict(extra="forbid", strict=True)

    request_id: str = Field(min_length=1, max_length=128)
    label: float = Field(allow_inf_nan=False)


class FeedbackRequest(BaseModel):
    """Labels for earlier predictions."""

    model_config = ConfigDict(extra="forbid", strict=True)

    feedback: list[Label] = Field(min_length=1, max_length=100_000)


FEEDBACK: TypeAdapter[FeedbackRequest] = TypeAdapter(FeedbackRequest)
LABEL: TypeAdapter[Label] = TypeAdapter(Label)


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """Return a request's headers by their lower-case names; of several of one name the first counts.

    Starlette's own lookup goes through all headers each time, and a request asks for eight of them.
    """
    named: dict[bytes, bytes] | None = scope.get("forge.headers")
    if named is None:
        named = scope["forge.headers"] = dict(reversed(scope["headers"]))
    return named


def json_reply(data: Any, status: int = 200) -> Response:
    """Return plain values as a JSON response."""
    return Response(orjson.dumps(data), status, media_type="application/json")


def problem(
    status: int, title: str, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any
) -> Response:
    """Return a problem document; `error` repeats the detail for clients of the V2 protocol."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "error": detail, **members}
    more = {"Retry-After": "5"} if status == 503 else {}
    return Response(
        orjson.dumps(body, default=str),
        status,
        media_type="application/problem+json",
        headers={**more, **(headers or {})},
    )


def problem_of(error: ForgeError) -> Response:
    """Return the problem document of one of our errors."""
    status, title = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    names = {"faults": "errors", "held": "held"}
    members = {name: error.context[key][:_SHOWN] for key, name in names.items() if key in error.context}
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if "retry_after" in error.context:
        headers["Retry-After"] = str(error.context["retry_after"])
    return problem(status, title, str(error), headers=headers, **members)
