"""The Serve applications that `deployments/serve.yaml` names: wiring, no logic."""

from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application
from starlette.applications import Starlette

from serve_app.api import build_api
from serve_app.profiler import Profiler
from serve_app.recorder import Recorder
from serve_app.router import Switchboard
from serve_app.variant import Variant


class Arguments(BaseModel):
    """What every application gets: addresses, profile, default model."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    storage_url: str
    ledger_url: str
    profile: str
    default_model: str


class VariantArguments(Arguments):
    """Which version a variant serves."""

    model: str
    version: str


class Router:
    """The ingress: HTTP routes over a switchboard that `user_config` sets."""

    def __init__(self, arguments: Arguments) -> None:
        self.board = Switchboard(arguments.storage_url, arguments.default_model)
        self.board.counting.start()
        self.trust_event_time = arguments.profile == "local"

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take a new routing table; requests go on meanwhile."""
        await self.board.route(user_config["models"], user_config["windows"])

    def __serve_build_asgi_app__(self) -> Starlette:
        return build_api(self.board, trust_event_time=self.trust_event_time)


def router(arguments: Arguments) -> Application:
    """Return the application in front of all models."""
    return serve.deployment(serve.ingress()(Router)).options(name="Router").bind(arguments)


def variant(arguments: VariantArguments) -> Application:
    """Return the application of one version."""
    return serve.deployment(Variant).bind(arguments.storage_url, arguments.model, arguments.version)


class FlushingProfiler(Profiler):
    """A profiler that writes what waits before its replica stops; Serve awaits its `__del__`."""

    async def __del__(self) -> None:
        await self.stop()


def profiler(arguments: Arguments) -> Application:
    """Return the application that writes windows and the prediction log."""
    return serve.deployment(FlushingProfiler).options(name="Profiler").bind(arguments.storage_url)


def recorder(arguments: Arguments) -> Application:
    """Return the application that commits feedback."""
    return serve.deployment(Recorder).bind(arguments.ledger_url)
