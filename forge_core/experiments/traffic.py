"""Live traffic for the variants of an experiment: versions loaded, tried, and then given their shares at the router."""

import logging
from collections.abc import Callable
from typing import Protocol

from forge_core.deployment.mirror import mirror_version, mirrored_version
from forge_core.deployment.parity import check_parity
from forge_core.deployment.replay_rows import choose_rows
from forge_core.deployment.routing import read_history, read_state
from forge_core.deployment.routing_table import Split
from forge_core.deployment.serve_client import ServeClient, get_serve_client
from forge_core.deployment.served_path import ServedPath
from forge_core.deployment.splits import checked_split, drop_split, put_split
from forge_core.errors import ForgeError, ModelError
from forge_core.experiments.assignment import segments_of
from forge_core.experiments.definition import Definition
from forge_core.ledger import Event, Ledger
from forge_core.policy import load_policies
from forge_core.settings import Settings
from forge_core.storage import Storage
from forge_core.tracking.registry import Registry

logger = logging.getLogger(__name__)


class Traffic(Protocol):
    """What gives live traffic to variants, and takes it back."""

    def give(self, definition: Definition, *, actor: str) -> None:
        """Share the live traffic out by an experiment; again changes nothing."""

    def take_back(self, definition: Definition, *, actor: str) -> None:
        """Give all traffic to the champion again; again changes nothing."""


def split_of(definition: Definition, shares: dict[str, float] | None = None) -> Split:
    """Return how the router is to share a model's traffic out."""
    split: Split = {
        "id": definition.salt,
        "salt": definition.salt,
        "key": "user",
        "variants": {name: str(variant.version) for name, variant in definition.variants.items()},
        "segments": list(segments_of(shares or definition.shares)),
    }
    return {**split, "overrides": dict(definition.overrides)} if definition.overrides and not shares else split


class LiveTraffic:
    """Gives live traffic by the desired serving state, and brings Serve to it.

    Parameters
    ----------
    registry : callable
        Returns the registry; asked only for versions that were never mirrored, so that a router needs no MLflow.
    """

    def __init__(
        self,
        storage: Storage,
        ledger: Ledger,
        serve: ServeClient,
        registry: Callable[[], Registry],
        settings: Settings,
        progress: Callable[[str], None] = logger.info,
    ) -> None:
        self.storage, self.ledger, self.serve, self.registry = storage, ledger, serve, registry
        self.settings, self.progress = settings, progress

    def give(self, definition: Definition, *, actor: str) -> None:
        """Load every variant without traffic, replay held-out rows to each, and only then share the traffic out.

        Raises
        ------
        ModelError
            When a version was refused, does not start, or answers differently from its own pipeline; the champion has
            all traffic again.
        Conflict
            When a rollout or another experiment shares the model's traffic out.
        """
        model = definition.live_model or ""
        versions = list(dict.fromkeys(str(v.version) for v in definition.variants.values()))
        for version in versions:
            self._mirror(model, version)
        whole = checked_split(split_of(definition))
        if read_state(self.ledger)[1]["models"].get(model, {}).get("split") != whole:
            # The control alone first: its rows have a propensity of 1, which keeps them out of the verdict.
            tried = self._event("split_tried", definition, actor, "loading the variants")
            put_split(self.ledger, model, split_of(definition, {definition.control: 1.0}), event=tried)
            try:
                self.serve.reconcile(self.ledger, progress=self.progress)
                for version in versions:
                    self._try(model, version)
            except Exception:
                self._give_up(definition, actor)
                raise
            shared = self._event("split_changed", definition, actor, "the variants share the traffic")
            put_split(self.ledger, model, whole, event=shared)
        self.serve.reconcile(self.ledger, progress=self.progress)

    def _give_up(self, definition: Definition, actor: str) -> None:
        """Take the traffic back; the reason for it is what the caller must hear."""
        try:
            self.take_back(definition, actor=actor)
        except ForgeError as error:
            logger.warning("variants are still loaded, the next reconcile removes them: %s", error)

    def take_back(self, definition: Definition, *, actor: str) -> None:
        """Give all traffic to the champion again, and take what only the experiment needed off Serve."""
        event = self._event("split_dropped", definition, actor, "the champion has all traffic again")
        drop_split(self.ledger, definition.live_model or "", definition.salt, event=event)
        self.serve.reconcile(self.ledger, progress=self.progress)

    def _mirror(self, model: str, version: str) -> None:
        if f"versions/{model}/{version}/parts.json" in self.storage.list(f"versions/{model}/{version}"):
            return
        registry = self.registry()
        registered = registry.resolve(model, version)
        with registry.open(registered) as folder:
            if not registered.passed_gate:
                raise ModelError(f"version {version} of {model!r} was refused: {folder.verdict.reason}")
            mirror_version(self.storage, model, version, folder)

    def _try(self, model: str, version: str) -> None:
        """Raise ModelError where a version answers otherwise than its own pipeline; one that was live did not."""
        if version in read_history(self.ledger, model).line:
            return
        policy = load_policies(self.settings.policy_file)[model]
        with mirrored_version(self.storage, model, version) as folder:
            rows = choose_rows(
                self.storage,
                folder,
                data=policy.data,
                random_state=policy.training.random_state,
                n_rows=policy.gate.replay_rows,
            )
            with ServedPath(self.serve.api_url, model, version, api_key=self.serve.api_key) as path:
                report = check_parity(folder, rows, path, tolerance=policy.gate.parity_tolerance)
        self.progress(f"parity of version {version}: {report.told()}")
        if not report.passed:
            raise ModelError(
                f"version {version} of {model!r} gets no traffic: {report.told()}; train it again",
                context={"parity": report.to_dict()},
            )

    def _event(self, kind: str, definition: Definition, actor: str, reason: str) -> Event:
        return Event(kind, definition.live_model or "", None, actor, reason, details={"experiment": definition.id})


def get_traffic(settings: Settings) -> LiveTraffic:
    """Return what reaches the settings' Serve."""
    return LiveTraffic(
        Storage(settings.storage),
        Ledger(settings.ledger),
        get_serve_client(settings),
        lambda: Registry(settings.mlflow_url),
        settings,
    )
