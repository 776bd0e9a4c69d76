"""Rollouts in the ledger: where each stands, changed by compare-and-set together with the event that tells why.

A model has at most one that has not ended. Where a step changes the desired serving state too, both are committed in
one transaction: whoever is killed in the middle leaves the one or the other, never something between.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from forge_core.deployment.routing_table import Shadow, Split
from forge_core.errors import Conflict, ModelNotFound
from forge_core.experiments.assignment import segments_of
from forge_core.ledger import Also, Event, Ledger, record_event

Status = Literal["running", "held", "ended"]
Outcome = Literal["", "promoted", "rolled back", "aborted", "overtaken"]

_tables = sa.MetaData()
_rollouts = sa.Table(
    "rollouts",
    _tables,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("id", sa.String(80), primary_key=True),
    sa.Column("version", sa.String(64), nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("state", sa.JSON, nullable=False),
)

CHAMPION, CANARY = "champion", "canary"
# Looks that are kept for the picture; when there are more, every other one goes.
_MOST_LOOKS = 200


@dataclass(frozen=True)
class Rollout:
    """One rollout.

    Attributes
    ----------
    id : str
        `rollout:4`; a second rollout of a version is `rollout:4.2`.
    champion : str
        What it is compared with, and what has the traffic again after a rollback.
    steps : tuple of float
        Shares of the traffic; 0 at the beginning is the shadow.
    step : int
        Which of them it is at.
    started_at, step_at : datetime
        Wall clock.
    event_time : datetime or None
        Where history is replayed, the event time of the start.
    looks : tuple of mapping
        What was seen so far, as `rollout_verdict.Look.short` tells it, the oldest thinned out.
    evidence : mapping
        Of this step: the largest log evidence of each guard so far, and counts of labels by look.
    revision : int
        Of the record, for compare-and-set.
    """

    model: str
    id: str
    version: str
    champion: str
    steps: tuple[float, ...]
    started_at: datetime
    step_at: datetime
    step: int = 0
    status: Status = "running"
    outcome: Outcome = ""
    reason: str = ""
    actor: str = ""
    event_time: datetime | None = None
    shadow_share: float = 0.0
    keep_warm: bool = True
    looks: tuple[Mapping[str, Any], ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)
    revision: int = 0

    @property
    def share(self) -> float:
        """Return the share of the traffic that the version has now."""
        return self.steps[self.step]

    @property
    def in_shadow(self) -> bool:
        """Tell whether nobody sees its answers yet."""
        return self.share == 0

    @property
    def told_step(self) -> str:
        """Return where it stands in a word."""
        return "shadow" if self.in_shadow else f"{100 * self.share:g} %"

    @property
    def split(self) -> Split:
        """Return how this step shares the traffic out."""
        segments = segments_of({CHAMPION: 1 - self.share, CANARY: self.share})
        return {
            "id": self.id,
            "salt": f"{self.model}:{self.id}",
            "key": "user",
            "variants": {CHAMPION: self.champion, CANARY: self.version},
            "segments": list(segments),
        }

    @property
    def shadow(self) -> Shadow:
        """Return what the shadow gets."""
        return {"version": self.version, "share": self.shadow_share}

    def with_look(self, look: Mapping[str, Any], evidence: Mapping[str, Any]) -> "Rollout":
        """Return the rollout after another look."""
        looks = (*self.looks, look)
        if len(looks) > _MOST_LOOKS:
            looks = (*looks[: _MOST_LOOKS // 2 : 2], *looks[_MOST_LOOKS // 2 :])
        return replace(self, looks=looks, evidence=dict(evidence))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        times = {name: moment and moment.isoformat() for name, moment in self._times().items()}
        return {**asdict(self), **times, "steps": list(self.steps), "looks": list(self.looks)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Rollout":
        """Return the rollout that `to_dict` gave away."""
        names = ("started_at", "step_at", "event_time")
        times = {name: datetime.fromisoformat(value[name]) if value[name] else None for name in names}
        return cls(**{**value, **times, "steps": tuple(value["steps"]), "looks": tuple(value["looks"])})

    def _times(self) -> dict[str, datetime | None]:
        return {"started_at": self.started_at, "step_at": self.step_at, "event_time": self.event_time}


class RolloutRecords:
    """The rollouts in a ledger.

    Parameters
    ----------
    ledger : Ledger
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        _tables.create_all(ledger.engine)

    def all(self) -> list[Rollout]:
        """Return the newest rollout of each model, by model."""
        newest: dict[str, Rollout] = {}
        for rollout in self._read(sa.select(_rollouts).order_by(_rollouts.c.started_at)):
            newest[rollout.model] = rollout
        return [newest[model] for model in sorted(newest)]

    def newest(self, model: str) -> Rollout | None:
        """Return a model's newest rollout, or None."""
        found = self._read(_of(model).order_by(_rollouts.c.started_at.desc()).limit(1))
        return found[0] if found else None

    def under_way(self, model: str) -> Rollout | None:
        """Return a model's rollout that has not ended, or None."""
        newest = self.newest(model)
        return newest if newest is not None and newest.status != "ended" else None

    def wanted(self, model: str, step: int | None = None) -> Rollout:
        """Return the rollout that somebody wants to change.

        Parameters
        ----------
        step : int, optional
            Where the caller saw it.

        Raises
        ------
        ModelNotFound
            When none is under way.
        Conflict
            When it is at another step by now; says who brought it there.
        """
        found = self.under_way(model)
        if found is None:
            ended = self.newest(model)
            last = f"; the last one ({ended.id}) was {ended.outcome}: {ended.reason}" if ended else ""
            raise ModelNotFound(f"no rollout of {model!r} is under way{last}")
        if step is not None and found.step != step:
            raise Conflict(
                f"expected {found.id} of {model!r} at step {step}, found it at step {found.step} ({found.told_step}): "
                f"meanwhile {found.actor} brought it there ({found.reason}); look at it again",
                context={"step": found.step},
            )
        return found

    def new_id(self, model: str, version: str) -> str:
        """Return the id of a version's next rollout."""
        with self.ledger.engine.connect() as connection:
            of_version = sa.and_(_rollouts.c.model == model, _rollouts.c.version == version)
            number = connection.execute(sa.select(sa.func.count()).where(of_version)).scalar_one() + 1
        return f"rollout:{version}" if number == 1 else f"rollout:{version}.{number}"

    def put(self, rollout: Rollout, event: Event | None = None) -> Rollout:
        """Commit a rollout that was read, and changed, at its revision; raises Conflict where somebody was quicker."""
        with self.ledger.engine.begin() as connection:
            self.writing(rollout, event)(connection)
        return replace(rollout, revision=rollout.revision + 1)

    def writing(self, rollout: Rollout, event: Event | None = None) -> Also:
        """Return what `put` does, to be done within another transaction."""
        revision = rollout.revision + 1
        values = {
            "revision": revision,
            "status": rollout.status,
            "state": replace(rollout, revision=revision).to_dict(),
        }
        key = sa.and_(_rollouts.c.model == rollout.model, _rollouts.c.id == rollout.id)

        def write(connection: sa.Connection) -> None:
            if rollout.revision == 0:
                fixed = {name: getattr(rollout, name) for name in ("model", "id", "version", "started_at")}
                try:
                    connection.execute(sa.insert(_rollouts).values(**fixed, **values))
                except IntegrityError as error:
                    raise Conflict(f"{rollout.id} of {rollout.model!r} is there already; look at it again") from error
            else:
                unchanged = sa.and_(key, _rollouts.c.revision == rollout.revision)
                if not connection.execute(sa.update(_rollouts).where(unchanged).values(**values)).rowcount:
                    row = connection.execute(sa.select(_rollouts.c.state).where(key)).scalar_one_or_none()
                    raise _overtaken(Rollout.from_dict(row) if row else rollout, rollout.revision)
            if event is not None:
                record_event(connection, event)

        return write

    def _read(self, query: Any) -> list[Rollout]:
        with self.ledger.engine.connect() as connection:
            return [Rollout.from_dict(row.state) for row in connection.execute(query)]


def _of(model: str) -> Any:
    return sa.select(_rollouts).where(_rollouts.c.model == model)


def _overtaken(found: Rollout, revision: int) -> Conflict:
    return Conflict(
        f"expected revision {revision} of {found.id} of {found.model!r}, found {found.revision}: by now it is "
        f"{found.outcome or found.status} at {found.told_step} ({found.actor}: {found.reason}); look at it again",
        context={"revision": found.revision},
    )
