"""Requests, replies and errors on the wire (RFC 9457 problem documents)."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from forge_core.errors import ForgeError, ModelNotFound, NotEnoughSamples, SchemaViolation, ServiceUnavailable

# The one place where our errors meet HTTP; the nearest class in an error's ancestry counts.
STATUS: dict[type[BaseException], tuple[int, str]] = {
    SchemaViolation: (422, "The features do not fit the model"),
    ModelNotFound: (404, "No such model"),
    NotEnoughSamples: (409, "Not enough rows yet"),
    ServiceUnavailable: (503, "Not ready"),
    ForgeError: (500, "Internal error"),
}


class PredictRequest(BaseModel):
    """One row."""

    model_config = ConfigDict(extra="forbid")

    features: dict[str, Any] = Field(description="Feature name to value; null where a value is missing.")


class BatchRequest(BaseModel):
    """Many rows."""

    model_config = ConfigDict(extra="forbid")

    records: list[dict[str, Any]] = Field(min_length=1, max_length=10_000, description="One mapping a row.")
    request_ids: list[str] | None = Field(None, description="One id a row, for feedback; made up when absent.")


class Label(BaseModel):
    """What really happened after one prediction."""

    model_config = ConfigDict(extra="forbid")

    request_id: str = Field(min_length=1, max_length=128)
    label: float = Field(allow_inf_nan=False)


class FeedbackRequest(BaseModel):
    """Labels for earlier predictions."""

    model_config = ConfigDict(extra="forbid")

    feedback: list[Label] = Field(min_length=1, max_length=100_000)


def problem(status: int, title: str, detail: str, **members: Any) -> JSONResponse:
    """Return a problem document; `error` repeats the detail for clients of the V2 protocol."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "error": detail, **members}
    headers = {"Retry-After": "5"} if status == 503 else None
    return JSONResponse(body, status_code=status, media_type="application/problem+json", headers=headers)


def problem_of(error: ForgeError) -> JSONResponse:
    """Return the problem document of one of our errors."""
    status, title = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    names = {"faults": "errors", "held": "held"}
    members = {name: error.context[key] for key, name in names.items() if key in error.context}
    return problem(status, title, str(error), **members)
