"""The routes of rollouts: where they stand, and what a person does to them."""

from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from forge_core.deployment.routing import roll_back
from forge_core.errors import ModelNotFound, ServiceUnavailable
from forge_core.experiments.rollout import abort, advance, hold, resume
from forge_core.experiments.rollout_records import Rollout, RolloutRecords
from forge_core.experiments.rollout_run import flip_back
from forge_core.ledger import Ledger
from serve_app.bodies import Limits, parsed, read_json
from serve_app.door import Caller
from serve_app.operations import MODEL, operation, ref
from serve_app.protocol import json_reply
from serve_app.schemas import COUNT, NUMBER, TEXT, Schema, an_object
from serve_app.steering import Steering

Admit = Callable[[Request, str], Caller]
Handler = Callable[[Request], Awaitable[Response]]
Counted = Callable[[str, Handler], Handler]

_ACTIONS: dict[str, Callable[..., Rollout]] = {"hold": hold, "resume": resume, "advance": advance, "abort": abort}
_CHANGE_ERRORS = (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503)


class Why(BaseModel):
    """Why the traffic goes back."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: str = Field(min_length=1, max_length=500)


class Back(Why):
    """Why the traffic goes back, and which champion it leaves; where another one is live by now, nothing changes."""

    from_version: str | None = Field(
        None, min_length=1, max_length=64, description="So a repeated call goes back once."
    )


class Steer(Why):
    """Why a rollout is changed, and the step at which the caller saw it."""

    step: int | None = Field(None, ge=0, description="At another step by now it is a conflict.")


class Advance(Why):
    """Why a rollout goes on, and from which step: of two callers at once one is told."""

    step: int = Field(ge=0)


_STEER: TypeAdapter[Steer] = TypeAdapter(Steer)
_ADVANCE: TypeAdapter[Advance] = TypeAdapter(Advance)
_BACK: TypeAdapter[Back] = TypeAdapter(Back)


def rollout_routes(steering: Steering | None, admit: Admit, *, counted: Counted, limits: Limits) -> list[Route]:
    """Return the routes below `/rollouts`, and `/models/{model}/rollback`.

    Parameters
    ----------
    steering : Steering, optional
        None for a server without a ledger, which says so.
    admit : callable
        Called with the request and the scope: `metrics` to read, `admin` to change.
    """
    routes = _RolloutRoutes(steering, admit, limits)

    def route(path: str, handler: Handler, method: str = "GET") -> Route:
        return Route(path, counted(path, handler), methods=[method])

    return [
        route("/rollouts", routes.all),
        route("/rollouts/{model}", routes.one),
        *(route(f"/rollouts/{{model}}/{name}", routes.action(name), "POST") for name in _ACTIONS),
        route("/models/{model}/rollback", routes.rollback, "POST"),
    ]


class _RolloutRoutes:
    """One method a route."""

    def __init__(self, steering: Steering | None, admit: Admit, limits: Limits) -> None:
        self._steering, self.admit, self.limits = steering, admit, limits

    @property
    def steering(self) -> Steering:
        """What changes the serving state."""
        if self._steering is None:
            raise ServiceUnavailable("this server has no ledger: it serves one file, and nothing is rolled out")
        return self._steering

    async def all(self, request: Request) -> Response:
        """Tell where the newest rollout of each model stands."""
        self.admit(request, "metrics")
        found = await self.steering.read(lambda ledger: RolloutRecords(ledger).all())
        return json_reply({"rollouts": [_told(rollout) for rollout in found]})

    async def one(self, request: Request) -> Response:
        """Tell where a model's newest rollout stands, with its looks."""
        self.admit(request, "metrics")
        model = request.path_params["model"]
        found = await self.steering.read(lambda ledger: RolloutRecords(ledger).newest(model))
        if found is None:
            raise ModelNotFound(f"no version of {model!r} was rolled out yet")
        return json_reply({**_told(found), "looks": list(found.looks)})

    def action(self, name: str) -> Handler:
        """Return the handler of one thing that persons do."""

        async def act(request: Request) -> Response:
            caller = self.admit(request, "admin")
            form: TypeAdapter[Any] = _ADVANCE if name == "advance" else _STEER
            asked = parsed(form, await read_json(request, self.limits))
            model = request.path_params["model"]

            def change(ledger: Ledger) -> Rollout:
                return _ACTIONS[name](ledger, model, step=asked.step, actor=_who(caller), reason=asked.reason)

            return json_reply(_told(await self.steering.change(model, change)))

        return act

    async def rollback(self, request: Request) -> Response:
        """Give the traffic to the last good champion."""
        caller = self.admit(request, "admin")
        asked = parsed(_BACK, await read_json(request, self.limits))
        who: dict[str, Any] = {"actor": _who(caller), "reason": asked.reason}
        model = request.path_params["model"]

        def change(ledger: Ledger) -> str:
            restored = flip_back(ledger, model, **who)
            return restored or roll_back(ledger, model, from_version=asked.from_version, **who)

        return json_reply({"model": model, "champion": await self.steering.change(model, change)})


def _who(caller: Caller) -> str:
    return caller.owner or "somebody without a key"


def _told(rollout: Rollout) -> dict[str, Any]:
    told = rollout.to_dict()
    names = ("model", "id", "version", "champion", "status", "outcome", "step", "steps", "started_at", "step_at",
             "actor", "reason")  # fmt: skip
    return {**{name: told[name] for name in names}, "share": rollout.share, "told_step": rollout.told_step}


def rollout_schemas() -> dict[str, Schema]:
    """Return the schemas of the document."""
    moment: Schema = {"type": "string", "format": "date-time"}
    rollout = {
        **dict.fromkeys(("model", "id", "version", "champion", "actor", "reason", "told_step"), TEXT),
        "status": {"enum": ["running", "held", "ended"]},
        "outcome": {"enum": ["", "promoted", "rolled back", "aborted", "overtaken"]},
        "step": COUNT,
        "steps": {"type": "array", "items": NUMBER},
        "share": NUMBER,
        "started_at": moment,
        "step_at": moment,
    }
    return {
        "Rollout": an_object(rollout),
        "RolloutWithLooks": an_object({**rollout, "looks": {"type": "array", "items": {"type": "object"}}}),
        "Advance": Advance.model_json_schema(),
        "Steer": Steer.model_json_schema(),
        "Back": Back.model_json_schema(),
    }


def rollout_paths() -> dict[str, Any]:
    """Return the paths of the document."""
    read: dict[str, Any] = {"tag": "rollouts", "errors": (401, 403, 404, 422, 429, 503)}
    many = an_object({"rollouts": {"type": "array", "items": ref("Rollout")}})
    change: dict[str, Any] = {"tag": "rollouts", "errors": _CHANGE_ERRORS, "parameters": [MODEL]}
    actions = {
        f"/rollouts/{{model}}/{name}": {
            "post": operation(
                f"rollout_{name}", (_ACTIONS[name].__doc__ or name).splitlines()[0], schema=ref("Rollout"),
                body=ref("Advance" if name == "advance" else "Steer"),
                example={"reason": "looks fine", "step": 1}, **change,
            )
        }
        for name in _ACTIONS
    }  # fmt: skip
    champion = an_object({"model": TEXT, "champion": TEXT})
    return {
        "/rollouts": {"get": operation("rollouts", "Each model's newest rollout", schema=many, **read)},
        "/rollouts/{model}": {
            "get": operation(
                "rollout", "A model's newest rollout, with its looks", schema=ref("RolloutWithLooks"),
                parameters=[MODEL], **read,
            )
        },
        **actions,
        "/models/{model}/rollback": {
            "post": operation(
                "rollback", "All traffic to the last good champion, at once", schema=champion, body=ref("Back"),
                example={"reason": "answers look wrong"}, **change,
            )
        },
    }  # fmt: skip
