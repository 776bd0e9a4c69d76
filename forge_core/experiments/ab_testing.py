"""A/B tests from Python: create an experiment, ask for a user's variant, record what came of it, read the verdict.

Everything but the models themselves is in the ledger, so every process that opens the same ledger sees the same
experiments, before and after any restart.
"""

import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from forge_core.errors import Conflict, ExperimentNotFound
from forge_core.experiments.definition import CONVERSION, define
from forge_core.experiments.meeting import meet
from forge_core.experiments.models import ModelVariants, as_variant
from forge_core.experiments.recording import Recorded, outcome, record_outcomes, user_key
from forge_core.experiments.records import ExperimentRecords, Exposure, Record, Status
from forge_core.experiments.results import judge_experiment
from forge_core.experiments.verdict import Judgement, Verdict
from forge_core.ledger import Ledger
from forge_core.settings import get_settings
from forge_core.storage import Storage

if TYPE_CHECKING:
    from forge_core.experiments.traffic import Traffic

_REMEMBERED = 200_000


class Assigned(NamedTuple):
    """Which variant of which experiment a user gets."""

    experiment_id: str
    variant_name: str


class Experiment:
    """An experiment as this process sees it.

    Attributes
    ----------
    variants : mapping from name to model
        A model given here as an object is that object; a registered version is loaded when it is first asked for.
    """

    def __init__(self, record: Record, variants: Mapping[str, Any], judgement: Callable[[], Judgement]) -> None:
        self.definition, self.status, self.winner, self.variants = (
            record.definition, record.status, record.winner, variants,
        )  # fmt: skip
        self._judgement = judgement

    @property
    def id(self) -> str:
        """Return the experiment's id."""
        return self.definition.id

    def results(self) -> Verdict:
        """Return the verdict on what was seen so far."""
        return self._judgement().verdict

    def __repr__(self) -> str:
        return f"<experiment {self.id!r} {self.status}: {', '.join(self.variants)}>"


class ABTestManager:
    """Experiments over a ledger; `get_ab_test_manager()` gives that of the process.

    Parameters
    ----------
    ledger : Ledger
    storage : Storage, optional
        Where the prediction log is, for experiments that share out live traffic.
    traffic : callable, optional
        Returns what gives live traffic to variants; asked only for experiments that are `live`.
    tracking_uri : str, optional
        MLflow server of registered versions; default that of the settings.
    actor : str
        Who changes states, for the record.
    refresh_seconds : float
        For so long a state that was read is used again, so that asking for a variant costs no query each time.

    Examples
    --------
    >>> manager = ABTestManager(Ledger("sqlite://"))
    >>> _ = manager.create_experiment(
    ...     "model_comparison", {"model_v1": min, "model_v2": max}, {"model_v1": 0.5, "model_v2": 0.5}, auto_start=True
    ... )
    >>> experiment_id, variant_name = manager.get_variant(user_id="user123")
    >>> manager.get_experiment(experiment_id).variants[variant_name]([3, 5])
    3
    >>> manager.record_conversion(experiment_id, variant_name, user_id="user123").told
    'counted'
    >>> manager.results("model_comparison").state
    'not yet'
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        storage: Storage | None = None,
        traffic: Callable[[], "Traffic"] | None = None,
        tracking_uri: str | None = None,
        actor: str = "python",
        refresh_seconds: float = 1.0,
    ) -> None:
        self.records, self.storage, self.actor, self.refresh_seconds = (
            ExperimentRecords(ledger), storage, actor, refresh_seconds,
        )  # fmt: skip
        self._traffic, self._tracking_uri = traffic, tracking_uri
        self._models: dict[str, ModelVariants] = {}
        self._known: dict[str, Record] = {}
        self._read_at = -float("inf")
        self._exposed: set[tuple[str, str]] = set()
        self._lock = threading.RLock()

    def create_experiment(
        self,
        experiment_id: str,
        variants: Mapping[str, Any],
        traffic_allocation: Mapping[str, float],
        description: str = "",
        auto_start: bool = False,
        **rule: Any,
    ) -> Experiment:
        """Return a new experiment, or the one that is there with the same definition.

        Parameters
        ----------
        variants : mapping from name to model
            Models (any objects; they stay in this process, the ledger gets their type and a hash), or registered
            versions: `"models:/flights/3"`, `"models:/flights@champion"` (the version that it means now).
        traffic_allocation : mapping from name to share
            Adds up to 1.
        auto_start : bool
            Start at once.
        **rule
            How it is judged, before anybody looks: `control` (default the first variant), `primary` (a metric; default
            the conversion), `guard_rails`, `baseline`, `min_effect`, `alpha` (0.05), `max_units`, `looks`,
            `planned_units`, `window_hours`, `overrides`, and `live`: the router gives the model's live traffic to the
            variants, which are versions of one model. See `Definition` and `Metric`.

        Raises
        ------
        ConfigurationError
            Names everything that is wrong with the definition.
        Conflict
            When the id is there with another definition; says what differs.
        ModelNotFound
            For an alias that points nowhere.
        """
        told = {name: as_variant(model, self._tracking_uri) for name, model in dict(variants).items()}
        definition = define(
            {
                "id": experiment_id,
                "variants": told,
                "traffic_allocation": dict(traffic_allocation),
                "description": description,
                **rule,
            }
        )
        record = self.records.create(definition, actor=self.actor)
        with self._lock:
            self._models.setdefault(record.id, ModelVariants(record.definition, self._tracking_uri)).keep(variants)
            self._read_at = -float("inf")
        if auto_start and record.status == "created":
            return self.start(record.id)
        return self._experiment(record)

    def get_experiment(self, experiment_id: str) -> Experiment:
        """Return an experiment; an unknown id's error lists the known ones."""
        return self._experiment(self.records.get(experiment_id))

    def experiments(self, *statuses: Status) -> list[Experiment]:
        """Return all experiments, or those in a state, in the order they were created."""
        return [self._experiment(record) for record in self.records.all(*statuses)]

    def get_variant(self, user_id: str | int, experiment_id: str | None = None) -> Assigned:
        """Return which variant a user gets, always the same one, and note that the user has met it.

        While an experiment is paused everybody gets the control; once it has stopped, the winner that was named, else
        the control. Nothing is noted then, and callers need no other code.

        Parameters
        ----------
        user_id : str or int
            What stays the same when the user comes again.
        experiment_id : str, optional
            Needed where several experiments run.

        Raises
        ------
        ConfigurationError
            Without a user key.
        ExperimentNotFound
            For an unknown id; without an id, where none runs.
        Conflict
            Without an id where several run (lists them), and for one that was never started.
        """
        record = self._chosen(experiment_id)
        variant, exposure = meet(record, user_key(user_id))
        if exposure is not None:
            self._expose(record.id, exposure)
        return Assigned(record.id, variant)

    def record_conversion(
        self, experiment_id: str, variant_name: str, user_id: str | int | None = None, *, at: datetime | None = None
    ) -> Recorded:
        """Commit a conversion and return whether it counts.

        Without a user it is an anonymous count of the variant, never above the number of users that met it. A user
        converts once.

        Raises
        ------
        ConfigurationError
            For an unknown variant; lists the known ones.
        """
        return self.record_metric(experiment_id, variant_name, CONVERSION, 1.0, user_id, at=at)

    def record_metric(
        self,
        experiment_id: str,
        variant_name: str,
        metric: str,
        value: float,
        user_id: str | int | None = None,
        *,
        key: str | None = None,
        at: datetime | None = None,
    ) -> Recorded:
        """Commit a value of a metric and return whether it counts.

        Parameters
        ----------
        key : str, optional
            Tells several values of one user apart (an order's number, say); they are added up. Without it a user's
            first value counts.
        at : datetime, optional
            When it happened; default now.
        """
        record = self.records.get(experiment_id)
        told = outcome(record.definition, metric, value, user=user_id, variant=variant_name, key=key, at=at)
        return record_outcomes(self.records, record.definition, [told], in_log=record.definition.live)[0]

    def start(self, experiment_id: str) -> Experiment:
        """Start or resume an experiment; one that runs goes on."""
        record = self.records.get(experiment_id)
        if record.definition.live and record.status in ("created", "paused"):
            self._traffic_of(record).give(record.definition, actor=self.actor)
        return self._moved(record, "running", "started")

    def pause(self, experiment_id: str, reason: str = "paused") -> Experiment:
        """Give everybody the control for a while."""
        record = self.records.get(experiment_id)
        if record.definition.live and record.status == "running":
            self._traffic_of(record).take_back(record.definition, actor=self.actor)
        return self._moved(record, "paused", reason)

    def stop(self, experiment_id: str, winner: str | None = None, reason: str | None = None) -> Experiment:
        """End an experiment for good; from now on `get_variant` gives everybody the winner.

        Parameters
        ----------
        winner : str, optional
            Default whom the verdict names, if anybody, else the control.
        """
        record = self.records.get(experiment_id)
        if record.status == "stopped":
            return self._experiment(record)
        verdict = self._judged(record).verdict
        chosen = winner or verdict.winner
        if chosen is not None and chosen not in record.definition.variants:
            known = ", ".join(record.definition.variants)
            raise ExperimentNotFound(f"experiment {record.id!r} has no variant {chosen!r}; variants: {known}")
        if record.definition.live:
            self._traffic_of(record).take_back(record.definition, actor=self.actor)
        return self._moved(record, "stopped", reason or str(verdict), chosen, {"verdict": verdict.to_dict()})

    def results(self, experiment_id: str) -> Verdict:
        """Return the verdict on what was seen so far; see `Verdict`."""
        return self.judgement(experiment_id).verdict

    def judgement(self, experiment_id: str) -> Judgement:
        """Return the verdict with its history."""
        return self._judged(self.records.get(experiment_id))

    def picture(self, experiment_id: str) -> bytes:
        """Return the verdict over time as PNG bytes."""
        from forge_core.experiments.picture import verdict_figure

        return verdict_figure(self.judgement(experiment_id))

    def _chosen(self, experiment_id: str | None) -> Record:
        with self._lock:
            if time.monotonic() - self._read_at > self.refresh_seconds:
                self._known = {record.id: record for record in self.records.all()}
                self._read_at = time.monotonic()
            if experiment_id is not None:
                return self._known.get(experiment_id) or self.records.get(experiment_id)
            running = [record for record in self._known.values() if record.status == "running"]
        if len(running) == 1:
            return running[0]
        if running:
            names = ", ".join(record.id for record in running)
            raise Conflict(f"several experiments run: {names}; give the experiment_id of one of them")
        told = ", ".join(f"{record.id} ({record.status})" for record in self._known.values())
        raise ExperimentNotFound(f"no experiment runs; known: {told or 'none, create one'}")

    def _expose(self, experiment_id: str, exposure: Exposure) -> None:
        """Commit the meeting, unless this process did so before."""
        if (experiment_id, exposure.unit) in self._exposed:
            return
        self.records.expose(experiment_id, [exposure])
        with self._lock:
            if len(self._exposed) >= _REMEMBERED:
                self._exposed.clear()
            self._exposed.add((experiment_id, exposure.unit))

    def _moved(
        self,
        record: Record,
        status: Status,
        reason: str,
        winner: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> Experiment:
        moved = self.records.move(record, status, actor=self.actor, reason=reason, winner=winner, details=details)
        with self._lock:
            self._read_at = -float("inf")
        return self._experiment(moved)

    def _experiment(self, record: Record) -> Experiment:
        with self._lock:
            models = self._models.setdefault(record.id, ModelVariants(record.definition, self._tracking_uri))
        return Experiment(record, models, lambda: self.judgement(record.id))

    def _judged(self, record: Record) -> Judgement:
        return judge_experiment(self.records, record, self.storage)

    def _traffic_of(self, record: Record) -> "Traffic":
        if self._traffic is None:
            raise Conflict(
                f"experiment {record.id!r} shares out live traffic, which this manager cannot reach; "
                "use get_ab_test_manager() where the stack runs, or POST /experiments"
            )
        return self._traffic()


def get_ab_test_manager() -> ABTestManager:
    """Return the manager of this process, over the ledger of the settings."""
    settings = get_settings()
    return _manager_over(settings.ledger, settings.storage)


@lru_cache(maxsize=1)
def _manager_over(ledger: str, storage: str) -> ABTestManager:
    settings = get_settings()

    def traffic() -> "Traffic":
        # It brings Serve and the registry along, which only experiments on live traffic need.
        from forge_core.experiments.traffic import get_traffic

        return get_traffic(settings)

    return ABTestManager(Ledger(ledger), storage=Storage(storage), traffic=traffic, tracking_uri=settings.mlflow_url)
