"""The Serve applications that `deployments/serve.yaml` names: wiring, no logic."""

from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application
from starlette.applications import Starlette

from forge_core.keys import Key, KeyStore, only_key
from forge_core.ledger import Ledger
from serve_app.api import build_api
from serve_app.door import Door
from serve_app.model_file import FileBoard, load_model_file
from serve_app.profiler import Profiler
from serve_app.rates import Spent
from serve_app.recorder import Recorder
from serve_app.router import Switchboard
from serve_app.steering import Steering
from serve_app.variant import Variant


class Arguments(BaseModel):
    """What every application gets: addresses, profile, default model."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    storage_url: str
    ledger_url: str
    profile: str
    default_model: str
    open_without_key: bool


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
        self.door = Door(self._keys, open_without_key=arguments.open_without_key, exchange=_balance)
        self._ledger_url = arguments.ledger_url
        self._store: KeyStore | None = None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take a new routing table; requests go on meanwhile."""
        await self.door.start()
        await self.board.route(user_config["models"], user_config["watch"])

    def __serve_build_asgi_app__(self) -> Starlette:
        steering = Steering(self._ledger_url)
        return build_api(self.board, self.door, trust_event_time=self.trust_event_time, steering=steering)

    def _keys(self) -> list[Key]:
        if self._store is None:
            self._store = KeyStore(Ledger(self._ledger_url))
        return self._store.all()


async def _balance(spent: Spent) -> dict[str, float]:
    return await serve.get_app_handle("recorder").balance.remote(spent)


class FileArguments(BaseModel):
    """Which file is served, whether it may be a pickle, and the one key that is needed; none leaves the door open."""

    path: str
    allow_pickle: bool = False
    api_key: str = ""


class FileRouter:
    """The same routes over one model file."""

    def __init__(self, arguments: FileArguments) -> None:
        self.board = FileBoard(load_model_file(arguments.path, allow_pickle=arguments.allow_pickle))
        keys = [only_key(arguments.api_key)] if arguments.api_key else []
        self.door = Door(lambda: keys, keys=keys, open_without_key=not keys)

    def __serve_build_asgi_app__(self) -> Starlette:
        return build_api(self.board, self.door, trust_event_time=False)


def model_file(arguments: FileArguments) -> Application:
    """Return the application of one model file."""
    options = {"name": "Router", "max_ongoing_requests": 2000, "ray_actor_options": {"num_cpus": 0}}
    return serve.deployment(serve.ingress()(FileRouter)).options(**options).bind(arguments)


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
