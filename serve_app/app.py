"""The Serve applications that `deployments/serve.yaml` names: wiring, no logic."""

from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from starlette.applications import Starlette

from forge_core.errors import ServiceUnavailable
from forge_core.experiments.recording import Recorded
from forge_core.experiments.records import Exposure, Outcome
from forge_core.experiments.traffic import Traffic, get_traffic
from forge_core.keys import Key, KeyStore, only_key
from forge_core.ledger import Ledger
from forge_core.settings import get_settings
from serve_app.api import build_api
from serve_app.door import Door
from serve_app.experiment_desk import ExperimentDesk
from serve_app.ingress import answer_here
from serve_app.model_file import FileBoard, load_model_file
from serve_app.profiler import Profiler
from serve_app.rates import Spent
from serve_app.recorder import Recorder
from serve_app.router import Switchboard
from serve_app.steering import Steering
from serve_app.variant import Variant


class Arguments(BaseModel):
    """What every application gets: addresses (where none are given, those of its own host), profile, default model."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    storage_url: str = Field(default_factory=lambda: get_settings().storage)
    ledger_url: str = Field(default_factory=lambda: get_settings().ledger)
    profile: str
    default_model: str
    open_without_key: bool


class RouterArguments(Arguments):
    """Whether Serve counts a router's requests, to choose the number of routers."""

    counted_by_serve: bool = False


class VariantArguments(Arguments):
    """Which version a variant serves."""

    model: str
    version: str


class Router:
    """The ingress: HTTP routes over a switchboard that `user_config` sets."""

    def __init__(self, arguments: RouterArguments) -> None:
        self.board = Switchboard(arguments.storage_url, arguments.default_model)
        self.board.counting.start()
        self.trust_event_time = arguments.profile == "local"
        self.door = Door(self._keys, open_without_key=arguments.open_without_key, exchange=_balance)
        self._ledger_url, self._counted_by_serve = arguments.ledger_url, arguments.counted_by_serve
        self.board.experiments = ExperimentDesk(
            lambda: Ledger(arguments.ledger_url), self.board.storage, RecorderHandle, lambda: _traffic(arguments)
        )
        self._store: KeyStore | None = None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take a new routing table; requests go on meanwhile."""
        await self.door.start()
        await self.board.route(user_config["models"], user_config["watch"])
        if not self._counted_by_serve:
            answer_here(self.api)

    def __serve_build_asgi_app__(self) -> Starlette:
        return self.api

    @cached_property
    def api(self) -> Starlette:
        """The HTTP routes."""
        steering = Steering(self._ledger_url)
        return build_api(self.board, self.door, trust_event_time=self.trust_event_time, steering=steering)

    def _keys(self) -> list[Key]:
        if self._store is None:
            self._store = KeyStore(Ledger(self._ledger_url))
        return self._store.all()


class RecorderHandle:
    """What commits exposures and outcomes, by way of Serve."""

    _handle: Any = None

    def __init__(self) -> None:
        if RecorderHandle._handle is None:  # asking for a handle waits for the controller
            RecorderHandle._handle = serve.get_app_handle("recorder")

    async def expose(self, experiment_id: str, exposure: Exposure) -> None:
        """Return once a meeting is committed."""
        await RecorderHandle._handle.expose.remote(experiment_id, exposure)

    async def record_outcomes(self, experiment_id: str, outcomes: list[Outcome]) -> list[Recorded]:
        """Return what became of outcomes, once they are committed."""
        return await RecorderHandle._handle.record_outcomes.remote(experiment_id, outcomes)


def _traffic(arguments: Arguments) -> Traffic:
    """Return what gives live traffic, where this process's settings are those of the stack that it serves.

    Raises
    ------
    ServiceUnavailable
        Where they are not: what would be composed of them would replace the running configuration by another one.
    """
    settings = get_settings()
    if (settings.ledger, settings.storage) != (arguments.ledger_url, arguments.storage_url):
        raise ServiceUnavailable(
            "this replica's settings are not those of the stack; give the live traffic from where the stack's settings "
            "are: `prefect deployment run 'experiment/…'`"
        )
    return get_traffic(settings)


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


def router(arguments: RouterArguments) -> Application:
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
