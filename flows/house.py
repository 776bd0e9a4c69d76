"""What every flow works with, opened once from the settings: policy, storage, ledger, registry, Serve."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from forge_core.deployment.serve_client import ServeClient, get_serve_client
from forge_core.ledger import Ledger
from forge_core.models.version import VersionFolder
from forge_core.policy import ModelPolicy, load_policy
from forge_core.settings import Settings, get_settings
from forge_core.storage import Storage
from forge_core.tracking.registry import Registry


@dataclass(frozen=True)
class House:
    """The rooms that a flow of one model needs."""

    model: str
    settings: Settings
    policy: ModelPolicy

    @cached_property
    def storage(self) -> Storage:
        """Datasets, candidates, windows, logs."""
        return Storage(self.settings.storage)

    @cached_property
    def ledger(self) -> Ledger:
        """Feedback, serving state, history."""
        return Ledger(self.settings.ledger)

    @cached_property
    def registry(self) -> Registry:
        """Versions."""
        return Registry(self.settings.mlflow_url)

    @cached_property
    def serve(self) -> ServeClient:
        """The running applications."""
        return get_serve_client(self.settings)

    @property
    def ray_address(self) -> str | None:
        """Ray's own variable; None starts a private Ray."""
        return os.environ.get("RAY_ADDRESS")

    @contextmanager
    def version(self, number: str | None) -> Iterator[VersionFolder | None]:
        """Give a registered version's folder, or None for None."""
        if number is None:
            yield None
            return
        with self.registry.open(self.registry.resolve(self.model, number)) as folder:
            yield folder


def open_house(model: str) -> House:
    """Return a model's house; an unknown model's error lists the known ones."""
    settings = get_settings()
    return House(model, settings, load_policy(settings.policy_file, model))


def utc(moment: str | None) -> datetime | None:
    """Return an ISO time in UTC; one without a zone is taken as UTC already."""
    if moment is None:
        return None
    parsed = datetime.fromisoformat(moment)
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
