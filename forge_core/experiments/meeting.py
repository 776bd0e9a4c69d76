"""A user meets a variant: which one, and what is to be noted of it."""

from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from forge_core.errors import Conflict
from forge_core.experiments.assignment import Segments, assign, segments_of, unit_id, unit_point
from forge_core.experiments.records import Exposure, Record


class Meeting(NamedTuple):
    """The variant of a user; the exposure is None where nothing is to be noted."""

    variant: str
    exposure: Exposure | None


def meet(record: Record, user: str) -> Meeting:
    """Return which variant a user gets.

    While an experiment is paused everybody gets the control; once it has stopped, the winner that was named, else the
    control. Nothing is noted then, nor of users whose variant was set by hand.

    Raises
    ------
    Conflict
        When the experiment was never started.
    """
    definition = record.definition
    if record.status == "created":
        raise Conflict(f"experiment {record.id!r} was not started; start it first")
    if record.status != "running":
        return Meeting(record.winner or definition.control, None)
    if user in definition.overrides:
        return Meeting(definition.overrides[user], None)
    variant = assign(_segments(tuple(definition.shares.items())), unit_point(definition.salt, user))
    exposure = Exposure(unit_id(definition.salt, user), variant, definition.shares[variant], datetime.now(UTC))
    return Meeting(variant, exposure)


@lru_cache(maxsize=256)
def _segments(shares: tuple[tuple[str, float], ...]) -> Segments:
    return segments_of(dict(shares))
