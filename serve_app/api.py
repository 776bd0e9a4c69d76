"""The HTTP routes. They translate and delegate; what happens is in `router.Switchboard`."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import ORJSONResponse
from starlette.exceptions import HTTPException

from forge_core import __version__
from forge_core.errors import ForgeError, ServiceUnavailable
from serve_app.protocol import BatchRequest, FeedbackRequest, Label, PredictRequest, problem, problem_of
from serve_app.router import Switchboard

EventTime = Annotated[datetime | None, Header(alias="X-Forge-Event-Time", description="Honoured in the local profile.")]
Version = Annotated[
    str | None,
    Header(alias="X-Forge-Version", min_length=1, max_length=64, description="Ask this version; see docs/serving.md."),
]
RequestId = Annotated[str | None, Header(alias="X-Request-ID", max_length=128)]


def build_api(board: Switchboard, *, trust_event_time: bool) -> FastAPI:
    """Return the application over a switchboard.

    Parameters
    ----------
    trust_event_time : bool
        Honour the header `X-Forge-Event-Time` (replaying history), else use the time of receipt.
    """
    api = FastAPI(title="MLOps-Forge", version=__version__, default_response_class=ORJSONResponse)

    def moment(header: datetime | None) -> datetime | None:
        if header is None or not trust_event_time:
            return None
        return header.replace(tzinfo=UTC) if header.tzinfo is None else header.astimezone(UTC)

    @api.get("/health")
    async def health() -> dict[str, Any]:
        return board.health()

    @api.get("/health/ready")
    async def ready() -> dict[str, Any]:
        board.version_of(None)
        return board.health()

    @api.get("/model/info")
    async def model_info(version: Version = None) -> dict[str, Any]:
        return board.version_of(None, version).info

    @api.get("/models/{model}")
    async def named_model_info(model: str, version: Version = None) -> dict[str, Any]:
        return board.version_of(model, version).info

    @api.post("/predict")
    async def predict(
        body: PredictRequest, event: EventTime = None, request_id: RequestId = None, version: Version = None
    ) -> ORJSONResponse:
        return await one(None, body, event, request_id, version)

    @api.post("/models/{model}/predict")
    async def named_predict(
        model: str, body: PredictRequest, event: EventTime = None, request_id: RequestId = None, version: Version = None
    ) -> ORJSONResponse:
        return await one(model, body, event, request_id, version)

    async def one(
        model: str | None, body: PredictRequest, event: datetime | None, request_id: str | None, version: str | None
    ) -> ORJSONResponse:
        ids = [request_id] if request_id else None
        replies = await board.predict(model, [body.features], ids, moment(event), version)
        return ORJSONResponse(replies[0])

    @api.post("/predict/batch")
    async def predict_batch(body: BatchRequest, event: EventTime = None, version: Version = None) -> ORJSONResponse:
        return await many(None, body, event, version)

    @api.post("/models/{model}/predict/batch")
    async def named_predict_batch(
        model: str, body: BatchRequest, event: EventTime = None, version: Version = None
    ) -> ORJSONResponse:
        return await many(model, body, event, version)

    async def many(
        model: str | None, body: BatchRequest, event: datetime | None, version: str | None
    ) -> ORJSONResponse:
        replies = await board.predict(model, body.records, body.request_ids, moment(event), version)
        return ORJSONResponse({"predictions": replies})

    @api.post("/feedback")
    async def feedback(body: FeedbackRequest | Label, event: EventTime = None) -> dict[str, int]:
        return await labels(None, body, event)

    @api.post("/models/{model}/feedback")
    async def named_feedback(model: str, body: FeedbackRequest | Label, event: EventTime = None) -> dict[str, int]:
        return await labels(model, body, event)

    async def labels(model: str | None, body: FeedbackRequest | Label, event: datetime | None) -> dict[str, int]:
        rows = body.feedback if isinstance(body, FeedbackRequest) else [body]
        return {"committed": await board.record(model, [(r.request_id, r.label) for r in rows], moment(event))}

    @api.get("/monitoring")
    async def monitoring(
        flush: Annotated[bool, Query(description="Write what waits first.")] = False,
    ) -> dict[str, Any]:
        return await board.monitoring(flush)

    @api.exception_handler(ForgeError)
    async def ours(request: Request, error: ForgeError) -> Any:
        return problem_of(error)

    @api.exception_handler(RequestValidationError)
    async def not_understood(request: Request, error: RequestValidationError) -> Any:
        faults = [
            {"field": ".".join(str(p) for p in e["loc"] if p != "body"), "reason": e["msg"]} for e in error.errors()
        ]
        detail = "; ".join(f"{f['field'] or 'body'}: {f['reason']}" for f in faults[:5])
        return problem(422, "The request is not of the expected form", detail, errors=faults)

    @api.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Any:
        return problem(error.status_code, str(error.detail), f"{request.method} {request.url.path}: {error.detail}")

    @api.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Any:
        if type(error).__name__ in (
            "BackPressureError",
            "DeploymentUnavailableError",
            "RayActorError",
            "ActorDiedError",
        ):
            return problem_of(ServiceUnavailable("the variant is busy or restarting; retry in a few seconds"))
        return problem(500, "Internal error", "something went wrong on our side; the log has the details")

    return api
