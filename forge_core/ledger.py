"""What must never be lost, in one SQL database: feedback, the serving state, and who changed what, when and why.

SQLite by default (WAL, busy timeout), PostgreSQL by URL, through the same code. A method returns
only after its transaction is committed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from forge_core.errors import Conflict, ServiceUnavailable

_tables = sa.MetaData()

_feedback = sa.Table(
    "feedback",
    _tables,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("request_id", sa.String(128), primary_key=True),
    sa.Column("label", sa.Float, nullable=False),
    sa.Column("event_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
)
_serving = sa.Table(
    "serving",
    _tables,
    sa.Column("router", sa.String(128), primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("state", sa.JSON, nullable=False),
)
_events = sa.Table(
    "events",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False, index=True),
    sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("kind", sa.String(64), nullable=False, index=True),
    sa.Column("model", sa.String(128), nullable=False, index=True),
    sa.Column("version", sa.String(64)),
    sa.Column("actor", sa.String(128), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("details", sa.JSON, nullable=False),
)


@dataclass(frozen=True)
class Feedback:
    """The truth about one prediction: its request id, the label (a number), and when it became known (UTC)."""

    request_id: str
    label: float
    event_time: datetime


@dataclass(frozen=True)
class Event:
    """Who did what to which version of a model, why, and when (`at`: event time in UTC, now by default)."""

    kind: str
    model: str
    version: str | None
    actor: str
    reason: str
    at: datetime | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def _row(self) -> dict[str, Any]:
        now = datetime.now(UTC)
        return {**vars(self), "at": self.at or now, "recorded_at": now, "details": dict(self.details)}


# Writes more within the same transaction; an error that it raises undoes all of it.
Also = Callable[[sa.Connection], None]


class Ledger:
    """The database behind a SQLAlchemy URL; its tables are made on first use.

    Examples
    --------
    >>> ledger = Ledger("sqlite://")
    >>> now = datetime(2013, 4, 1, tzinfo=UTC)
    >>> ledger.record_feedback("flights", [Feedback("r1", 1.0, now), Feedback("r1", 0.0, now)])
    1
    >>> ledger.append_event("checked", "flights", version="7", actor="monitor flow", reason="no drift", at=now)
    >>> [event["reason"] for event in ledger.events("flights")]
    ['no drift']
    """

    def __init__(self, url: str) -> None:
        self.url = url
        memory = url in ("sqlite://", "sqlite:///:memory:")
        extra: dict[str, Any] = {"poolclass": sa.StaticPool} if memory else {}
        self.engine = sa.create_engine(url, **extra)
        if self.engine.dialect.name == "sqlite":
            sa.event.listen(self.engine, "connect", _tune_sqlite)
        try:
            if url.startswith("sqlite:///") and not memory:
                Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self.make_tables(_tables)
        except (OperationalError, OSError) as error:
            raise ServiceUnavailable(
                f"expected the ledger at {self.engine.url.render_as_string(hide_password=True)}, "
                f"found: {getattr(error, 'orig', error)}; start that database or set FORGE_LEDGER_URL"
            ) from error

    def make_tables(self, tables: sa.MetaData) -> None:
        """Make the tables that are not there yet; others may make them at the same time."""
        for _ in tables.tables:  # each race that is lost leaves one table fewer to make
            try:
                tables.create_all(self.engine)
                return
            except (OperationalError, ProgrammingError, IntegrityError) as error:
                # PostgreSQL tells of such a race by its own catalogue's unique indexes.
                if "already exists" not in str(error) and "pg_" not in str(error):
                    raise
        tables.create_all(self.engine)

    def record_feedback(self, model: str, rows: Iterable[Feedback]) -> int:
        """Commit labels and return how many were new; for a request id seen before the first label stays."""
        now = datetime.now(UTC)
        values = [
            {
                "model": model,
                "request_id": r.request_id,
                "label": r.label,
                "event_time": r.event_time,
                "received_at": now,
            }
            for r in rows
        ]
        if not values:
            return 0
        count = sa.select(sa.func.count()).select_from(_feedback).where(_feedback.c.model == model)
        insert = self.insert(_feedback).on_conflict_do_nothing()
        with self.engine.begin() as connection:
            before = connection.execute(count).scalar_one()
            connection.execute(insert, values)
            return connection.execute(count).scalar_one() - before

    def feedback(self, model: str, since: datetime | None = None) -> list[Feedback]:
        """Return a model's labels in order of event time."""
        query = sa.select(_feedback.c.request_id, _feedback.c.label, _feedback.c.event_time).where(
            _feedback.c.model == model
        )
        if since is not None:
            query = query.where(_feedback.c.event_time >= since)
        with self.engine.connect() as connection:
            rows = connection.execute(query.order_by(_feedback.c.event_time)).all()
        return [Feedback(r.request_id, r.label, _utc(r.event_time)) for r in rows]

    def serving_state(self, router: str) -> tuple[int, dict[str, Any]]:
        """Return (revision, state) of a router; (0, {}) before anything was deployed."""
        with self.engine.connect() as connection:
            row = connection.execute(sa.select(_serving).where(_serving.c.router == router)).one_or_none()
        return (row.revision, dict(row.state)) if row else (0, {})

    def put_serving_state(
        self,
        router: str,
        state: Mapping[str, Any],
        *,
        expected_revision: int,
        event: Event | None = None,
        also: Also | None = None,
    ) -> int:
        """Replace a router's state if nobody else did since `expected_revision`; return the new revision.

        The event that tells why, and whatever `also` writes, are committed with it, or nothing is.

        Raises
        ------
        Conflict
            When the stored revision is another one.
        """
        revision = expected_revision + 1
        values = {"revision": revision, "state": dict(state)}
        change = sa.update(_serving).where(_serving.c.router == router, _serving.c.revision == expected_revision)
        try:
            with self.engine.begin() as connection:
                if expected_revision == 0:
                    connection.execute(sa.insert(_serving).values(router=router, **values))
                    changed = 1
                else:
                    changed = connection.execute(change.values(**values)).rowcount
                if changed and event is not None:
                    record_event(connection, event)
                if changed and also is not None:
                    also(connection)
                if changed:
                    return revision
        except IntegrityError:
            pass
        found, _ = self.serving_state(router)
        raise Conflict(
            f"expected revision {expected_revision} of router {router!r}, found {found}; read the state again and retry"
        )

    def append_event(
        self,
        kind: str,
        model: str,
        *,
        version: str | None = None,
        actor: str,
        reason: str,
        details: Mapping[str, Any] | None = None,
        at: datetime | None = None,
    ) -> None:
        """Append an `Event`."""
        event = Event(kind, model, version, actor, reason, at, details or {})
        with self.engine.begin() as connection:
            record_event(connection, event)

    def events(self, model: str, *kinds: str) -> list[dict[str, Any]]:
        """Return a model's events in the order they were recorded, all kinds or only the given ones."""
        query = sa.select(_events).where(_events.c.model == model).order_by(_events.c.id)
        if kinds:
            query = query.where(_events.c.kind.in_(kinds))
        with self.engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [{**row, "at": _utc(row["at"]), "recorded_at": _utc(row["recorded_at"])} for row in rows]

    def newest_events(self, kind: str) -> list[dict[str, Any]]:
        """Return the newest event of a kind of each model, by model."""
        newest = sa.select(sa.func.max(_events.c.id)).where(_events.c.kind == kind).group_by(_events.c.model)
        query = sa.select(_events).where(_events.c.id.in_(newest)).order_by(_events.c.model)
        with self.engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [{**row, "at": _utc(row["at"]), "recorded_at": _utc(row["recorded_at"])} for row in rows]

    def insert(self, table: sa.Table) -> Any:
        """Return an INSERT in this database's dialect, which knows what to do about a row that is there already."""
        from sqlalchemy.dialects import postgresql, sqlite

        return {"sqlite": sqlite, "postgresql": postgresql}[self.engine.dialect.name].insert(table)


def record_event(connection: sa.Connection, event: Event) -> None:
    """Append an event within a transaction, so that it is committed with what it tells of, or neither is."""
    connection.execute(sa.insert(_events).values(event._row()))


def _tune_sqlite(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA busy_timeout=30000")
    connection.execute("PRAGMA synchronous=FULL")


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
