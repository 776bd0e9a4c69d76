"""Experiments in the ledger: definitions, states, who met what, and what came of it.

A state is changed by compare-and-set, together with the event that tells who and why. Exposures and outcomes are
idempotent: sent twice they count once. What cannot be counted is kept all the same, and told of at once.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from forge_core.errors import Conflict, ExperimentNotFound
from forge_core.experiments.definition import Definition, differences
from forge_core.ledger import Event, Ledger, record_event

Status = Literal["created", "running", "paused", "stopped"]
STATUSES: tuple[Status, ...] = ("created", "running", "paused", "stopped")
_FROM: dict[Status, tuple[Status, ...]] = {
    "running": ("created", "paused"),
    "paused": ("running",),
    "stopped": ("created", "running", "paused"),
}
NOBODY = ""

_tables = sa.MetaData()
_experiments = sa.Table(
    "experiments",
    _tables,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("definition", sa.JSON, nullable=False),
    sa.Column("winner", sa.String(64)),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("started_at", sa.DateTime(timezone=True)),
    sa.Column("stopped_at", sa.DateTime(timezone=True)),
)
_exposures = sa.Table(
    "exposures",
    _tables,
    sa.Column("experiment", sa.String(64), primary_key=True),
    sa.Column("unit", sa.String(16), primary_key=True),
    sa.Column("variant", sa.String(64), nullable=False),
    sa.Column("propensity", sa.Float, nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
)
_outcomes = sa.Table(
    "outcomes",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("experiment", sa.String(64), nullable=False),
    sa.Column("metric", sa.String(64), nullable=False),
    sa.Column("unit", sa.String(16), nullable=False),
    sa.Column("key", sa.String(128), nullable=False),
    sa.Column("variant", sa.String(64), nullable=False),
    sa.Column("value", sa.Float, nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("repeats", sa.Integer, nullable=False, default=0),
    sa.UniqueConstraint("experiment", "metric", "unit", "key", "variant", "value", name="outcome_once"),
)


@dataclass(frozen=True)
class Record:
    """An experiment as the ledger has it; `winner` is whom everybody gets once it has stopped."""

    definition: Definition
    status: Status
    revision: int
    created_at: datetime
    started_at: datetime | None = None
    stopped_at: datetime | None = None
    winner: str | None = None

    @property
    def id(self) -> str:
        """Return the experiment's id."""
        return self.definition.id


class Exposure(NamedTuple):
    """A user's first meeting with a variant: hashed user, variant, its share at that moment, when (UTC)."""

    unit: str
    variant: str
    propensity: float
    at: datetime


class Outcome(NamedTuple):
    """What came of a meeting.

    `unit` is the hashed user, empty where nobody knows which; `variant` is what the caller says it was, empty for
    "whatever it was". One value counts for each unit, metric and key; give keys where a user has many (orders, say).
    """

    metric: str
    unit: str
    variant: str
    value: float
    at: datetime
    key: str = ""


class ExperimentRecords:
    """The experiments in a ledger.

    Parameters
    ----------
    ledger : Ledger
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.engine = ledger, ledger.engine
        ledger.make_tables(_tables)

    def create(self, definition: Definition, *, actor: str, at: datetime | None = None) -> Record:
        """Return the experiment, made now or before with the same definition.

        Raises
        ------
        Conflict
            Where the id has another definition; says in words what differs.
        """
        now = at or datetime.now(UTC)
        row = {"id": definition.id, "revision": 1, "status": "created", "created_at": now}
        made = _event("experiment_created", definition, actor, definition.description or "created", now)
        try:
            with self.engine.begin() as connection:
                connection.execute(sa.insert(_experiments).values(**row, definition=definition.model_dump(mode="json")))
                record_event(connection, made)
        except IntegrityError:
            kept = self.get(definition.id)
            if told := differences(kept.definition, definition):
                raise Conflict(
                    f"experiment {definition.id!r} is there with another definition: {'; '.join(told)}; "
                    "give the same definition, or another id",
                    context={"differences": told},
                ) from None
            return kept
        return self.get(definition.id)

    def get(self, experiment_id: str) -> Record:
        """Return an experiment.

        Raises
        ------
        ExperimentNotFound
            Lists the known ones.
        """
        with self.engine.connect() as connection:
            row = connection.execute(sa.select(_experiments).where(_experiments.c.id == experiment_id)).one_or_none()
        if row is None:
            known = ", ".join(record.id for record in self.all()[-20:])
            raise ExperimentNotFound(f"no experiment {str(experiment_id)[:80]!r}; known: {known or 'none, create one'}")
        return _record(row)

    def all(self, *statuses: Status) -> list[Record]:
        """Return experiments in the order they were created, all or those in a state."""
        query = sa.select(_experiments).order_by(_experiments.c.created_at, _experiments.c.id)
        if statuses:
            query = query.where(_experiments.c.status.in_(statuses))
        with self.engine.connect() as connection:
            return [_record(row) for row in connection.execute(query)]

    def move(
        self,
        record: Record,
        status: Status,
        *,
        actor: str,
        reason: str,
        winner: str | None = None,
        details: Mapping[str, Any] | None = None,
        at: datetime | None = None,
    ) -> Record:
        """Bring an experiment from the state it was read in to another one; where it is there already, nothing is done.

        Raises
        ------
        Conflict
            Where it was changed since it was read, or cannot go from its state to this one.
        """
        if record.status == status:
            return record
        check_move(record, status)
        now = at or datetime.now(UTC)
        values: dict[str, Any] = {"revision": record.revision + 1, "status": status}
        if status == "running" and record.started_at is None:
            values["started_at"] = now
        if status == "stopped":
            values |= {"stopped_at": now, "winner": winner}
        unchanged = sa.and_(_experiments.c.id == record.id, _experiments.c.revision == record.revision)
        with self.engine.begin() as connection:
            changed = connection.execute(sa.update(_experiments).where(unchanged).values(**values)).rowcount
            if changed:
                record_event(connection, _event(f"experiment_{status}", record.definition, actor, reason, now, details))
        found = self.get(record.id)
        if not changed:
            raise Conflict(
                f"expected revision {record.revision} of experiment {record.id!r}, found {found.revision} "
                f"({found.status}); look at it again and retry"
            )
        return found

    def expose(self, experiment_id: str, exposures: Iterable[Exposure]) -> None:
        """Commit meetings; of a user who has met a variant before, the first one stays."""
        if rows := [{"experiment": experiment_id, **exposure._asdict()} for exposure in exposures]:
            insert = self.ledger.insert(_exposures).on_conflict_do_nothing()
            with self.engine.begin() as connection:
                connection.execute(insert, rows)

    def exposure_of(self, experiment_id: str, units: Sequence[str]) -> dict[str, str]:
        """Return the variant of each of these units that has met one."""
        found: dict[str, str] = {}
        with self.engine.connect() as connection:
            for start in range(0, len(units), 500):
                some = _exposures.c.unit.in_(units[start : start + 500])
                query = sa.select(_exposures.c.unit, _exposures.c.variant).where(
                    _exposures.c.experiment == experiment_id, some
                )
                found |= {row.unit: row.variant for row in connection.execute(query)}
        return found

    def outcome_keys(self, experiment_id: str, units: Sequence[str]) -> set[tuple[str, str, str, str]]:
        """Return (metric, unit, key, variant as it was told) of every outcome that these units have."""
        found: set[tuple[str, str, str, str]] = set()
        columns = [_outcomes.c[name] for name in ("metric", "unit", "key", "variant")]
        with self.engine.connect() as connection:
            for start in range(0, len(units), 500):
                some = _outcomes.c.unit.in_(units[start : start + 500])
                query = sa.select(*columns).where(_outcomes.c.experiment == experiment_id, some)
                found |= {(row.metric, row.unit, row.key, row.variant) for row in connection.execute(query)}
        return found

    def numbers(self, experiment_id: str, metric: str, variant: str) -> tuple[int, int]:
        """Return (users that met a variant, users and anonymous outcomes that a metric has for it)."""
        met = sa.select(sa.func.count()).where(
            _exposures.c.experiment == experiment_id, _exposures.c.variant == variant
        )
        mine = sa.and_(
            _outcomes.c.experiment == experiment_id, _outcomes.c.metric == metric, _outcomes.c.variant == variant
        )
        nameless = sa.select(sa.func.count()).where(mine, _outcomes.c.unit == NOBODY)
        named = sa.select(sa.func.count(sa.distinct(_outcomes.c.unit))).where(mine, _outcomes.c.unit != NOBODY)
        with self.engine.connect() as connection:
            n_met, n_nameless, n_named = (connection.execute(q).scalar_one() for q in (met, nameless, named))
        return n_met, n_nameless + n_named

    def add_outcomes(self, experiment_id: str, outcomes: Sequence[Outcome]) -> None:
        """Commit outcomes; what is there already, word for word, is counted as repeated."""
        now = datetime.now(UTC)
        rows = [
            {
                **outcome._asdict(),
                "experiment": experiment_id,
                "received_at": now,
                "repeats": 0,
                "key": outcome.key or ("" if outcome.unit else uuid.uuid4().hex),
            }
            for outcome in outcomes
        ]
        if rows:
            insert = self.ledger.insert(_outcomes)
            once = insert.on_conflict_do_update(
                index_elements=["experiment", "metric", "unit", "key", "variant", "value"],
                set_={"repeats": _outcomes.c.repeats + 1},
            )
            with self.engine.begin() as connection:
                connection.execute(once, rows)

    def exposures(self, experiment_id: str) -> pd.DataFrame:
        """Return meetings in order of time: unit, variant, propensity, at (UTC)."""
        columns = [_exposures.c[name] for name in ("unit", "variant", "propensity", "at")]
        return self._frame(sa.select(*columns).where(_exposures.c.experiment == experiment_id), ["at", "unit"])

    def outcomes(self, experiment_id: str) -> pd.DataFrame:
        """Return outcomes in the order they came: id, metric, unit, key, variant, value, at (UTC), repeats."""
        columns = [_outcomes.c[name] for name in ("id", "metric", "unit", "key", "variant", "value", "at", "repeats")]
        return self._frame(sa.select(*columns).where(_outcomes.c.experiment == experiment_id), ["at", "id"])

    def _frame(self, query: Any, order: list[str]) -> pd.DataFrame:
        with self.engine.connect() as connection:
            result = connection.execute(query)
            frame = pd.DataFrame(result.fetchall(), columns=list(result.keys()))
        frame["at"] = pd.to_datetime(frame["at"], utc=True).astype("datetime64[us, UTC]")
        return frame.sort_values(order, kind="stable", ignore_index=True)


def check_move(record: Record, status: Status) -> None:
    """Raise Conflict where an experiment cannot go from its state to another one."""
    if record.status not in _FROM[status]:
        raise Conflict(
            f"experiment {record.id!r} is {record.status} and cannot be {status}; "
            f"it can be from: {', '.join(_FROM[status])}" + ("; stopped is final" * (record.status == "stopped"))
        )


def _event(
    kind: str, definition: Definition, actor: str, reason: str, at: datetime, details: Mapping[str, Any] | None = None
) -> Event:
    model = definition.live_model or next(iter(definition.variants.values())).model
    return Event(kind, model, None, actor, reason, at, {"experiment": definition.id, **(details or {})})


def _record(row: Any) -> Record:
    times = {name: _utc(getattr(row, name)) for name in ("created_at", "started_at", "stopped_at")}
    definition = Definition.model_validate(row.definition)
    return Record(definition, row.status, row.revision, winner=row.winner, **times)


def _utc(moment: datetime | None) -> Any:
    return moment if moment is None else moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
