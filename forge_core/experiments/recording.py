"""Outcomes on their way into the ledger: each is kept, and its caller hears at once whether it counts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from forge_core.errors import ConfigurationError
from forge_core.experiments.assignment import unit_id
from forge_core.experiments.definition import CONVERSION, Definition
from forge_core.experiments.joined import BY_HAND, NO_EXPOSURE, OTHER_VARIANT, TOO_MANY, TWICE, UNKNOWN_METRIC
from forge_core.experiments.records import NOBODY, ExperimentRecords, Outcome

_LONGEST_KEY = 512
PENDING = "pending"
_TOLD = {
    "": "counted",
    PENDING: "kept; it counts once the user's prediction is in the prediction log",
    NO_EXPOSURE: "kept and not counted: this user has met no variant of the experiment",
    OTHER_VARIANT: "kept and not counted: this user met another variant",
    TWICE: "kept and not counted: this user has this outcome already; give a key where several are meant",
    TOO_MANY: "kept and not counted: more conversions than users that met the variant",
    UNKNOWN_METRIC: "kept and not counted: the experiment does not declare this metric",
    BY_HAND: "kept and not counted: this user's variant was set by hand",
}


@dataclass(frozen=True)
class Recorded:
    """What became of an outcome: `counted`, or why not (`reason`), and both in words (`told`)."""

    counted: bool
    reason: str
    told: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def user_key(user: Any) -> str:
    """Return a user's key as text.

    Raises
    ------
    ConfigurationError
        For no key, an empty one, or one that is neither text nor a whole number.
    """
    key = str(user) if isinstance(user, int) and not isinstance(user, bool) else user
    if not isinstance(key, str) or not 0 < len(key) <= _LONGEST_KEY:
        found = "none" if user is None else f"{type(user).__name__} {str(user)[:40]!r}"
        raise ConfigurationError(
            f"expected a user key, text of 1 to {_LONGEST_KEY} characters or a whole number, found {found}; "
            "give what stays the same when the user comes again (an account, a cookie)"
        )
    return key


def outcome(
    definition: Definition,
    metric: str,
    value: float,
    *,
    user: Any = None,
    variant: str | None = None,
    key: str | None = None,
    at: datetime | None = None,
) -> Outcome:
    """Return an outcome of an experiment.

    Raises
    ------
    ConfigurationError
        When the variant is not one, is missing where the user is too, or the value is no finite number; for a
        conversion, neither 0 nor 1.
    """
    if variant is not None and variant not in definition.variants:
        raise ConfigurationError(
            f"experiment {definition.id!r} has no variant {str(variant)[:80]!r}; "
            f"variants: {', '.join(definition.variants)}"
        )
    if variant is None and user is None:
        raise ConfigurationError("expected a user or a variant to count this for, found neither")
    number = float(value)
    declared = definition.metrics.get(metric)
    if not abs(number) < 1e300:
        raise ConfigurationError(f"expected a finite number for {metric[:80]!r}, found {value}")
    if (metric == CONVERSION or (declared and declared.kind == "conversion")) and number not in (0.0, 1.0):
        raise ConfigurationError(f"expected 1 (or 0) for the conversion {metric[:80]!r}, found {value}")
    unit = NOBODY if user is None else unit_id(definition.salt, user_key(user))
    return Outcome(metric, unit, variant or "", number, at or datetime.now(UTC), key or "")


def record_outcomes(
    records: ExperimentRecords, definition: Definition, outcomes: Sequence[Outcome], *, in_log: bool = False
) -> list[Recorded]:
    """Commit outcomes and return what becomes of each.

    What is answered is what is known now; the verdict joins again, with all that came meanwhile.

    Parameters
    ----------
    in_log : bool
        Users may have met their variant in the prediction log, which is written later than outcomes may come.
    """
    units = list({o.unit for o in outcomes if o.unit != NOBODY})
    met, seen = records.exposure_of(definition.id, units), records.outcome_keys(definition.id, units)
    by_hand = {unit_id(definition.salt, user) for user in definition.overrides}
    room = _room(records, definition, outcomes)
    reasons = []
    for told in outcomes:
        reason = _reason(definition, told, met, seen, by_hand, in_log)
        if told.unit != NOBODY:
            seen.add((told.metric, told.unit, told.key, told.variant))
        if reason == "" and (place := (told.metric, told.variant or met.get(told.unit, ""))) in room:
            room[place] -= 1
            if told.unit == NOBODY and room[place] < 0 and not in_log:
                reason = TOO_MANY
        reasons.append(reason)
    records.add_outcomes(definition.id, outcomes)
    return [Recorded(reason == "", reason, _TOLD[reason]) for reason in reasons]


def _reason(
    definition: Definition,
    told: Outcome,
    met: Mapping[str, str],
    seen: set[tuple[str, str, str, str]],
    by_hand: set[str],
    in_log: bool,
) -> str:
    if told.metric not in definition.metrics:
        return UNKNOWN_METRIC
    if told.unit == NOBODY:
        return ""
    if told.unit in by_hand:
        return BY_HAND
    if told.unit in met and told.variant not in ("", met[told.unit]):
        return OTHER_VARIANT
    # One that named another variant did not count, and takes no place.
    right = {"", told.variant, met.get(told.unit, "")}
    if any((told.metric, told.unit, told.key, variant) in seen for variant in right):
        return TWICE
    if told.unit not in met:
        return PENDING if in_log else NO_EXPOSURE
    return ""


def _room(
    records: ExperimentRecords, definition: Definition, outcomes: Sequence[Outcome]
) -> dict[tuple[str, str], int]:
    """Return how many more conversions each variant can have, where there are anonymous ones among the outcomes."""
    places = {(o.metric, o.variant) for o in outcomes if o.unit == NOBODY and o.metric in definition.metrics}
    room = {}
    for metric, variant in places:
        if definition.metrics[metric].kind == "conversion":
            n_met, n_had = records.numbers(definition.id, metric, variant)
            room[metric, variant] = n_met - n_had
    return room
