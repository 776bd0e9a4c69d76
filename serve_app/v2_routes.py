"""The routes of the Open Inference Protocol V2; what happens is in `router.Switchboard`."""

from collections.abc import Awaitable, Callable
from datetime import datetime

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.bodies import Limits, header, not_the_form, read_body
from serve_app.door import Caller
from serve_app.open_inference import infer_body, model_metadata, parse_infer, server_metadata
from serve_app.protocol import WrongContentType, json_reply
from serve_app.router import Switchboard

# Returns who calls; raises where the caller lacks the scope.
Admit = Callable[[Request, str], Caller]
Spend = Callable[[Caller, int], None]
Moment = Callable[[Request], datetime | None]
Handler = Callable[[Request], Awaitable[Response]]
Counted = Callable[[str, Handler], Handler]

_JSON_LENGTH = "Inference-Header-Content-Length"
_OCTETS = "application/octet-stream"


def v2_routes(
    board: Switchboard,
    admit: Admit,
    spend: Spend,
    *,
    counted: Counted,
    moment: Moment,
    limits: Limits,
) -> list[Route]:
    """Return the routes below `/v2`.

    Parameters
    ----------
    admit : callable
        Called with the request and the scope "predict" before anything else; not for the health routes.
    spend : callable
        Called with the caller and the number of rows.
    counted : callable
        Takes a path and its handler, and returns the handler that is to run.
    moment : callable
        The event time of a request, None for the time of receipt.
    limits : Limits
        What one request may cost.
    """
    routes = _V2Routes(board, admit, spend, moment, limits)

    def route(path: str, handler: Handler, method: str = "GET") -> Route:
        return Route(path, counted(path, handler), methods=[method])

    of_model = [
        made
        for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        for made in (
            route(path, routes.model),
            route(f"{path}/ready", routes.model_ready),
            route(f"{path}/infer", routes.infer, "POST"),
        )
    ]
    return [
        route("/v2", routes.server),
        route("/v2/health/live", routes.live),
        route("/v2/health/ready", routes.ready),
        *of_model,
    ]


class _V2Routes:
    """One method a route."""

    def __init__(self, board: Switchboard, admit: Admit, spend: Spend, moment: Moment, limits: Limits) -> None:
        self.board, self.admit, self.spend, self.moment, self.limits = board, admit, spend, moment, limits

    async def server(self, request: Request) -> Response:
        """Tell what this server is."""
        self.admit(request, "predict")
        return json_reply(server_metadata())

    async def live(self, request: Request) -> Response:
        """Tell that we are alive."""
        return json_reply({"live": True})

    async def ready(self, request: Request) -> Response:
        """Tell that the default model answers."""
        self.board.version_of(None)
        return json_reply({"live": True, "ready": True})

    async def model(self, request: Request) -> Response:
        """Tell a model's inputs and outputs."""
        self.admit(request, "predict")
        live = self.board.version_of(*_asked(request))
        return json_reply(
            model_metadata(
                live, sorted(self.board.held.get(live.model, {}), key=lambda version: (len(version), version))
            )
        )

    async def model_ready(self, request: Request) -> Response:
        """Tell that a model answers."""
        self.admit(request, "predict")
        live = self.board.version_of(*_asked(request))
        return json_reply({"name": live.model, "ready": True})

    async def infer(self, request: Request) -> Response:
        """Answer rows."""
        caller = self.admit(request, "predict")
        length = _json_length(request)
        body = await read_body(request, self.limits)
        model, version = _asked(request)
        live = self.board.version_of(model, version)
        asked = parse_infer(body, live, header_length=length, limits=self.limits)
        self.spend(caller, asked.n_rows)
        user = header(request, b"x-forge-user") or asked.id
        replies = await self.board.predict(
            model,
            asked.rows,
            asked.request_ids,
            self.moment(request),
            version,
            caller.owner,
            [user] * asked.n_rows if user else None,
        )
        data, json_length = infer_body(live, asked, replies.columns())
        if json_length is None:
            return Response(data, media_type="application/json")
        return Response(data, media_type=_OCTETS, headers={_JSON_LENGTH: str(json_length)})


def _asked(request: Request) -> tuple[str, str | None]:
    return request.path_params["model"], request.path_params.get("version")


def _json_length(request: Request) -> int | None:
    """Return how long the JSON is that binary tensors follow; None for a body of JSON alone."""
    told = request.headers.get(_JSON_LENGTH)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind not in ("application/json", *([_OCTETS] if told is not None else [])):
        raise WrongContentType(
            f"expected Content-Type: application/json, or {_OCTETS} with {_JSON_LENGTH}, found {kind[:80]!r}"
        )
    if told is None:
        return None
    if not (told.isascii() and told.isdigit() and len(told) < 12):
        raise not_the_form(_JSON_LENGTH, "expected a number of bytes")
    return int(told)
