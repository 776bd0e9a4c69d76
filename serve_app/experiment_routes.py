"""The routes of experiments; what happens is in `experiment_desk.ExperimentDesk`."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from forge_core.errors import ServiceUnavailable
from forge_core.experiments.records import Status
from serve_app.bodies import Limits, not_the_form, read_body, read_json
from serve_app.door import Caller
from serve_app.experiment_desk import ExperimentDesk
from serve_app.experiment_forms import (
    Conversion,
    Conversions,
    Measurement,
    Measurements,
    NewExperiment,
    StopRequest,
    read_form,
)
from serve_app.protocol import json_reply

# Returns who calls; raises where the caller lacks the scope.
Admit = Callable[[Request, str], Caller]
Spend = Callable[[Caller, int], None]
Moment = Callable[[Request], datetime | None]
Handler = Callable[[Request], Awaitable[Response]]
Counted = Callable[[str, Handler], Handler]

_LONGEST_USER = 128


def experiment_routes(
    desk: ExperimentDesk | None,
    admit: Admit,
    spend: Spend,
    *,
    counted: Counted,
    moment: Moment,
    limits: Limits,
) -> list[Route]:
    """Return the routes below `/experiments`; parameters are those of `v2_routes`, with a desk that may be missing."""
    routes = _ExperimentRoutes(desk, admit, spend, moment, limits)

    def route(path: str, handler: Handler, method: str = "GET") -> Route:
        return Route(path, counted(path, handler), methods=[method])

    one = "/experiments/{experiment}"
    return [
        Route("/experiments", counted("/experiments", routes.collection), methods=["GET", "POST"]),
        route(one, routes.look),
        route(f"{one}/picture", routes.picture),
        route(f"{one}/start", routes.mover("running"), "POST"),
        route(f"{one}/pause", routes.mover("paused"), "POST"),
        route(f"{one}/stop", routes.stop, "POST"),
        route(f"{one}/variant", routes.variant),
        route(f"{one}/conversions", routes.conversions, "POST"),
        route(f"{one}/metrics", routes.metrics, "POST"),
    ]


class _ExperimentRoutes:
    """One method a route."""

    def __init__(self, desk: ExperimentDesk | None, admit: Admit, spend: Spend, moment: Moment, limits: Limits) -> None:
        self._desk, self.admit, self.spend, self.moment, self.limits = desk, admit, spend, moment, limits

    @property
    def desk(self) -> ExperimentDesk:
        """Return who keeps experiments."""
        if self._desk is None:
            raise ServiceUnavailable("a model file alone keeps no experiments; serve it from the registry: make up")
        return self._desk

    async def collection(self, request: Request) -> Response:
        """Make an experiment, or tell of all."""
        return await (self.create if request.method == "POST" else self.all)(request)

    async def create(self, request: Request) -> Response:
        """Make an experiment."""
        caller = self.admit(request, "admin")
        form = read_form(NewExperiment, await read_json(request, self.limits))
        return json_reply(await self.desk.create(form.definition, form.auto_start, _actor(caller)))

    async def all(self, request: Request) -> Response:
        """Tell every experiment in short."""
        self.admit(request, "metrics")
        return json_reply({"experiments": await self.desk.all()})

    async def look(self, request: Request) -> Response:
        """Tell an experiment with its verdict."""
        self.admit(request, "metrics")
        return json_reply(await self.desk.look(_id(request)))

    async def picture(self, request: Request) -> Response:
        """Draw the verdict over time."""
        self.admit(request, "metrics")
        return Response(await self.desk.picture(_id(request)), media_type="image/png")

    def mover(self, status: Status) -> Handler:
        """Return the handler that brings an experiment to a state."""

        async def move(request: Request) -> Response:
            caller = self.admit(request, "admin")
            return json_reply(await self.desk.move(_id(request), status, actor=_actor(caller)))

        return move

    async def stop(self, request: Request) -> Response:
        """End an experiment; without a body the verdict names the winner."""
        caller = self.admit(request, "admin")
        sent = await read_body(request, self.limits) if _has_no_body(request) else b"?"
        form = StopRequest() if not sent else read_form(StopRequest, await read_json(request, self.limits))
        return json_reply(
            await self.desk.move(_id(request), "stopped", actor=_actor(caller), reason=form.reason, winner=form.winner)
        )

    async def variant(self, request: Request) -> Response:
        """Tell a user's variant."""
        caller = self.admit(request, "predict")
        user = request.query_params.get("user", "")
        if not 0 < len(user) <= _LONGEST_USER:
            raise not_the_form("user", f"expected a user key of 1 to {_LONGEST_USER} characters, found {len(user)}")
        self.spend(caller, 1)
        return json_reply(await self.desk.variant(_id(request), user))

    async def conversions(self, request: Request) -> Response:
        """Commit conversions, one or many."""
        self.admit(request, "feedback")
        data = await read_json(request, self.limits)
        many = isinstance(data, dict) and "conversions" in data
        sent = read_form(Conversions, data).conversions if many else [read_form(Conversion, data)]
        return await self._recorded(request, sent)

    async def metrics(self, request: Request) -> Response:
        """Commit values of metrics, one or many."""
        self.admit(request, "feedback")
        data = await read_json(request, self.limits)
        many = isinstance(data, dict) and "metrics" in data
        sent = read_form(Measurements, data).metrics if many else [read_form(Measurement, data)]
        return await self._recorded(request, sent)

    async def _recorded(self, request: Request, sent: Sequence[Conversion]) -> Response:
        recorded: list[dict[str, Any]] = await self.desk.record(_id(request), sent, self.moment(request))
        return json_reply({"counted": sum(one["counted"] for one in recorded), "recorded": recorded})


def _id(request: Request) -> str:
    name: str = request.path_params["experiment"]
    return name[:_LONGEST_USER]


def _actor(caller: Caller) -> str:
    return caller.owner or "api"


def _has_no_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers
