"""The HTTP routes. They translate and delegate; what happens is in `router.Switchboard`."""

import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from forge_core.errors import ForgeError, ServiceUnavailable
from forge_core.monitoring.metric_names import REQUEST_SECONDS, REQUESTS
from serve_app.bodies import USUAL, Limits, header, many_rows, not_the_form, one_row, parsed, read_json, told
from serve_app.docs_page import docs_routes
from serve_app.door import Caller, Door
from serve_app.experiment_routes import experiment_routes
from serve_app.openapi import openapi_document
from serve_app.protocol import FEEDBACK, LABEL, Unauthorized, json_reply, problem, problem_of
from serve_app.rollout_routes import rollout_routes
from serve_app.router import Switchboard
from serve_app.steering import Steering
from serve_app.v2_routes import v2_routes

logger = logging.getLogger(__name__)

# What Serve raises while a replica is busy or comes back.
_PASSING = {"BackPressureError", "DeploymentUnavailableError", "RayActorError", "ActorDiedError"}

Handler = Callable[[Request], Awaitable[Response]]


def build_api(
    board: Switchboard,
    door: Door,
    *,
    trust_event_time: bool,
    limits: Limits = USUAL,
    steering: Steering | None = None,
) -> Starlette:
    """Return the application over a switchboard.

    Parameters
    ----------
    door : Door
        Who may come in.
    trust_event_time : bool
        Honour the header `X-Forge-Event-Time` (replaying history), else use the time of receipt.
    limits : Limits
        What one request may cost.
    steering : Steering, optional
        What changes the serving state; None for a server without a ledger.
    """
    routes = _Routes(board, door, trust_event_time, limits)

    def route(path: str, handler: Handler, method: str = "GET") -> Route:
        return Route(path, routes.counted(path, handler), methods=[method])

    return _Api(
        routes.counted("/predict", routes.predict),
        routes=[
            route("/predict", routes.predict, "POST"),
            route("/predict/batch", routes.predict_batch, "POST"),
            route("/feedback", routes.feedback, "POST"),
            route("/health", routes.health),
            route("/health/ready", routes.ready),
            route("/model/info", routes.model_info),
            route("/monitoring", routes.monitoring),
            route("/metrics", routes.metrics),
            route("/models/{model}", routes.model_info),
            route("/models/{model}/predict", routes.predict, "POST"),
            route("/models/{model}/predict/batch", routes.predict_batch, "POST"),
            route("/models/{model}/feedback", routes.feedback, "POST"),
            *v2_routes(board, routes.admit, door.spend, counted=routes.counted, moment=routes.moment, limits=limits),
            *experiment_routes(
                board.experiments, routes.admit, door.spend, counted=routes.counted, moment=routes.moment, limits=limits
            ),
            *rollout_routes(steering, routes.admit, counted=routes.counted, limits=limits),
            *docs_routes(routes.document, routes.admit, counted=routes.counted),
        ],
        exception_handlers={HTTPException: _http_error},
    )


class _Api(Starlette):
    """The application; the one route that gets nearly all requests goes past the layers that the others need."""

    def __init__(self, predict: Handler, **options: Any) -> None:
        super().__init__(**options)
        self._predict = predict

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"] == "/predict" and scope["method"] == "POST":
            response = await self._predict(Request(scope, receive))
            await response(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class _Routes:
    """One method a route."""

    def __init__(self, board: Switchboard, door: Door, trust_event_time: bool, limits: Limits) -> None:
        self.board, self.door, self.trust_event_time, self.limits = board, door, trust_event_time, limits

    def counted(self, path: str, handler: Handler) -> Handler:
        """Return the handler with its answers counted and timed, and its errors as problem documents."""
        counting, timed = self.board.counting, (path,)

        async def answer(request: Request) -> Response:
            started = time.perf_counter()
            try:
                response = await handler(request)
            except ForgeError as error:
                response = problem_of(error)
            except Exception as error:
                response = _unexpected(request, error)
            counting.count(REQUESTS, (path, str(response.status_code)))
            counting.observe(REQUEST_SECONDS, timed, time.perf_counter() - started)
            return response

        return answer

    async def predict(self, request: Request) -> Response:
        """Answer one row."""
        caller = self.admit(request, "predict")
        features, user = one_row(await read_json(request, self.limits))
        self.door.spend(caller, 1)
        request_id = header(request, b"x-request-id")
        user = header(request, b"x-forge-user") or user
        replies = await self.board.predict(
            _model(request),
            [features],
            [request_id] if request_id else None,
            self.moment(request),
            _version(request),
            caller.owner,
            [user] if user else None,
        )
        return json_reply(replies.records()[0])

    async def predict_batch(self, request: Request) -> Response:
        """Answer many rows."""
        caller = self.admit(request, "predict")
        asked = many_rows(await read_json(request, self.limits), self.limits)
        self.door.spend(caller, asked.n_rows)
        user = header(request, b"x-forge-user")
        replies = await self.board.predict(
            _model(request),
            asked.rows,
            asked.request_ids,
            self.moment(request),
            _version(request),
            caller.owner,
            [user] * asked.n_rows if user else asked.users,
        )
        return json_reply({"predictions": replies.columns() if asked.by_column else replies.records()})

    async def feedback(self, request: Request) -> Response:
        """Commit labels, one or many."""
        self.admit(request, "feedback")
        data = await read_json(request, self.limits)
        many = isinstance(data, dict) and "feedback" in data
        labels = parsed(FEEDBACK, data).feedback if many else [parsed(LABEL, data)]
        rows = [(label.request_id, label.label) for label in labels]
        return json_reply({"committed": await self.board.record(_model(request), rows, self.moment(request))})

    async def health(self, request: Request) -> Response:
        """Tell that we are alive, and to who has a key what is live."""
        return json_reply(self._told(request))

    async def ready(self, request: Request) -> Response:
        """Tell that the default model answers."""
        self.board.version_of(None)
        return json_reply(self._told(request))

    async def model_info(self, request: Request) -> Response:
        """Tell what a version is."""
        self.admit(request, "predict")
        return json_reply(self.board.version_of(_model(request), _version(request)).info)

    async def monitoring(self, request: Request) -> Response:
        """Tell what became of the served rows."""
        self.admit(request, "metrics")
        flush = request.query_params.get("flush", "false").lower()
        if flush not in ("true", "false", "1", "0"):
            raise not_the_form("flush", "expected true or false")
        return json_reply(await self.board.monitoring(flush in ("true", "1")))

    async def metrics(self, request: Request) -> Response:
        """Give Prometheus the counts of all routers."""
        self.admit(request, "metrics")
        return Response(await self.board.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def document(self) -> dict[str, Any]:
        """Return the OpenAPI document of what is live now."""
        return openapi_document(list(self.board.live.values()), self.board.default_model)

    def admit(self, request: Request, scope: str | None) -> Caller:
        """Return who calls; see `Door.admit`."""
        return self.door.admit(told(request, b"authorization"), told(request, b"x-api-key"), scope)

    def _told(self, request: Request) -> dict[str, Any]:
        health = self.board.health()
        try:
            self.admit(request, None)
        except Unauthorized:
            return {name: health[name] for name in ("status", "version")}
        return health

    def moment(self, request: Request) -> datetime | None:
        """Return the event time that a request tells, where it is trusted."""
        text = header(request, b"x-forge-event-time") if self.trust_event_time else None
        if text is None:
            return None
        try:
            moment = datetime.fromisoformat(text)
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        except (ValueError, OverflowError):  # the latter at the edges of the calendar
            raise not_the_form("X-Forge-Event-Time", "expected an ISO 8601 time") from None


def _model(request: Request) -> str | None:
    return request.path_params.get("model")


def _version(request: Request) -> str | None:
    return header(request, b"x-forge-version")


async def _http_error(request: Request, error: Any) -> Response:
    detail = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return problem(error.status_code, str(error.detail), detail, headers=error.headers)


def _unexpected(request: Request, error: Exception) -> Response:
    if type(error).__name__ in _PASSING:
        return problem_of(ServiceUnavailable("the variant is busy or restarting; retry in a few seconds"))
    logger.exception("request failed path=%s", request.url.path, exc_info=error)
    return problem(500, "Internal error", "something went wrong on our side; the log has the details")
