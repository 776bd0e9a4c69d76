"""The verdict on an experiment: one object that says who won or what is missing, why, and what to do."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forge_core.experiments.definition import Definition, Metric
from forge_core.experiments.evidence import Course, Standing, course, looks_of, standing
from forge_core.experiments.joined import Joined
from forge_core.experiments.looks import look
from forge_core.experiments.words import in_words
from forge_core.statistics.ratio_mismatch import mismatch_evidence

State = Literal[
    "no users yet", "not yet", "winner", "control is best", "no difference that matters", "undecided at the end",
    "guard rail broken", "frozen",
]  # fmt: skip
RailState = Literal["kept", "open", "broken"]

# Evidence against the shares from which a verdict is frozen: chance brings it in at most 1 of 100 experiments.
MISMATCH_ALARM = 100.0
_MOST_POINTS = 20_000


@dataclass(frozen=True)
class Candidate:
    """One variant: users, mean, what speaks for it, and how it differs from the control.

    `p` belongs to "this variant is not the best" and may be read at any time: the chance that it ever falls to `alpha`
    for any variant that is not the best is at most `alpha`. `e` is the evidence of the exact or asymptotic process that
    it is better than every other. `value`, `low` and `high` are the difference to the control with its interval.
    """

    variant: str
    n: int
    mean: float | None
    p: float
    e: float | None
    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Mismatch:
    """Whether users came in the declared shares (sample-ratio mismatch); `alarm` freezes the verdict for good."""

    e: float
    alarm: bool
    counts: dict[str, int]
    shares: dict[str, float]


@dataclass(frozen=True)
class GuardRail:
    """One guard rail of one variant: kept (harm beyond `max_harm` ruled out), broken (certain), or still open."""

    metric: str
    variant: str
    state: RailState
    value: float | None
    low: float | None
    high: float | None
    max_harm: float


@dataclass(frozen=True)
class Verdict:
    """What is known of an experiment at a moment.

    `winner` is whom the traffic should go to, None as long as nobody knows; `stop` says that waiting brings nothing
    more. `e` and `p` are those of the variant that most speaks for. `not_counted` has the outcomes that do not count,
    by reason.
    """

    experiment: str
    at: datetime
    state: State
    winner: str | None
    stop: bool
    metric: str
    method: str
    e: float | None
    p: float
    variants: tuple[Candidate, ...]
    mismatch: Mismatch
    guard_rails: tuple[GuardRail, ...]
    users: dict[str, int]
    waiting: int
    not_counted: dict[str, int]
    sentence: str = ""
    advice: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "at": self.at.isoformat()}

    def __str__(self) -> str:
        return f"{self.sentence} {self.advice}"


@dataclass(frozen=True, eq=False)
class History:
    """How a verdict came about, for pictures.

    `courses` has the difference of each variant to the control; `mismatch` one value a user of `mismatch_at` (thinned
    out where there are very many).
    """

    standing: Standing
    courses: tuple[Course, ...]
    mismatch_at: pd.DatetimeIndex
    mismatch: NDArray[np.float64]


@dataclass(frozen=True)
class Judgement:
    """A verdict and its history."""

    definition: Definition
    verdict: Verdict
    history: History = field(repr=False)


def judge(definition: Definition, joined: Joined, *, now: datetime | None = None) -> Judgement:
    """Return the verdict on what was seen so far; judging again, as often as one likes, changes no error rate.

    Examples
    --------
    >>> from forge_core.experiments.definition import define
    >>> from forge_core.experiments.joined import join_outcomes
    >>> variants = {"old": {"model": "flights", "version": "1"}, "new": {"model": "flights", "version": "2"}}
    >>> half = define({"id": "demo", "variants": variants, "traffic_allocation": {"old": 0.5, "new": 0.5}})
    >>> at = pd.to_datetime(["2024-01-01"] * 4, utc=True)
    >>> met = pd.DataFrame({"unit": list("abcd"), "variant": ["old", "new"] * 2, "propensity": 0.5, "at": at})
    >>> none = {name: [] for name in ("id", "metric", "unit", "key", "variant", "value", "repeats")}
    >>> outcomes = pd.DataFrame({**none, "at": at[:0]})
    >>> judge(half, join_outcomes(half, met, outcomes)).verdict.state
    'not yet'
    """
    looks = looks_of(definition, joined)
    rails = []
    for metric in definition.guard_rails:
        seen = look(joined, metric, looks.variants, looks.at)
        rails += [_rail(metric, course(definition, metric, seen, name)) for name in definition.treatments]
    names = [name for name, share in definition.shares.items() if share > 0]
    broken = {rail.variant for rail in rails if rail.state == "broken"}
    sound = [name for name in names if name not in broken]
    everybody = standing(definition, looks, names)
    best = everybody if not broken or len(sound) < 2 else standing(definition, looks, sound)
    courses = tuple(
        course(definition, definition.primary, looks, name, everybody.bound) for name in definition.treatments
    )
    history = History(everybody, courses, *_mismatch(definition, joined))
    users = {name: int((joined.exposures["variant"] == name).sum()) for name in definition.variants}
    evidence = float(np.exp(min(history.mismatch.max(initial=0.0), 700.0)))
    mismatch = Mismatch(evidence, evidence >= MISMATCH_ALARM, users, definition.shares)
    candidates = tuple(_candidate(definition, everybody, courses, name) for name in names)
    state, winner = _decide(definition, candidates, best, mismatch, sound, sum(users.values()))
    leading = min(candidates, key=lambda c: (c.p, -(c.e or 0.0)))
    verdict = Verdict(
        experiment=definition.id,
        at=now or datetime.now(UTC),
        state=state,
        winner=winner,
        stop=state not in ("no users yet", "not yet"),
        metric=definition.primary.name,
        method=everybody.method,
        e=leading.e,
        p=leading.p,
        variants=candidates,
        mismatch=mismatch,
        guard_rails=tuple(rails),
        users=users,
        waiting=joined.waiting,
        not_counted=joined.not_counted,
    )
    return Judgement(definition, in_words(definition, verdict), history)


def _mismatch(definition: Definition, joined: Joined) -> tuple[pd.DatetimeIndex, NDArray[np.float64]]:
    names = [name for name, share in definition.shares.items() if share > 0]
    variant = joined.exposures["variant"].to_numpy()
    counts = np.cumsum(np.column_stack([variant == name for name in names]).astype(float), axis=0)
    chosen = np.unique(np.linspace(0, len(variant) - 1, min(len(variant), _MOST_POINTS)).round().astype(int))
    shares = [definition.shares[name] for name in names]
    log_e = mismatch_evidence(counts[chosen], shares) if len(chosen) else np.zeros(0)
    return pd.DatetimeIndex(joined.exposures["at"])[chosen], np.asarray(log_e, float)


def _candidate(definition: Definition, found: Standing, courses: Sequence[Course], name: str) -> Candidate:
    looks = found.looks
    if not len(looks.at):
        return Candidate(name, 0, None, 1.0, None)
    # With a declared maximum everything told is of the latest declared look, if there was any.
    planned = np.flatnonzero(np.isfinite(found.bound)) if found.bound is not None else np.zeros(0, int)
    row = int(planned[-1]) if len(planned) else len(looks.at) - 1
    column, control, place = looks.column(name), looks.column(definition.control), found.names.index(name)
    mine = next((made for made in courses if made.variant == name), None)
    low, high = (mine.low[-1], mine.high[-1]) if mine is not None and len(mine.at) else (np.nan, np.nan)
    return Candidate(
        variant=name,
        n=int(looks.n[row, column]),
        mean=_number(looks.mean[row, column]),
        p=float(found.p[row, place]),
        e=float(np.exp(min(found.log_e[row, place], 700.0))),
        value=None if mine is None else _number(looks.mean[row, column] - looks.mean[row, control]),
        low=_number(low),
        high=_number(high),
    )


def _rail(metric: Metric, made: Course) -> GuardRail:
    """Judge the worst that the interval leaves against what is borne."""
    if not len(made.at) or not np.isfinite(made.low[-1]):
        return GuardRail(metric.name, made.variant, "open", None, None, None, metric.max_harm)
    value, low, high = float(made.value[-1]), float(made.low[-1]), float(made.high[-1])
    least, most = (low, high) if metric.better == "lower" else (-high, -low)
    # Once certain is certain: an interval that has been beyond the bound at any look was so with all looks in mind.
    ever = made.low if metric.better == "lower" else -made.high
    broken = bool(np.nanmax(ever) > metric.max_harm) or least > metric.max_harm
    state: RailState = "broken" if broken else "kept" if most < metric.max_harm else "open"
    return GuardRail(metric.name, made.variant, state, value, low, high, metric.max_harm)


def _decide(
    definition: Definition,
    candidates: Sequence[Candidate],
    best: Standing,
    mismatch: Mismatch,
    sound: Sequence[str],
    n_users: int,
) -> tuple[State, str | None]:
    control = definition.control
    if mismatch.alarm:
        return "frozen", None
    if n_users == 0:
        return "no users yet", None
    if len(sound) < 2:
        return "guard rail broken", control
    others = [c for c in candidates if c.variant in sound and c.variant != control]
    small = {c.variant for c in others if _too_small(definition, c)}
    if len(small) == len(others):
        return "no difference that matters", control
    if best.winner is not None and best.winner not in small:
        return ("control is best" if best.winner == control else "winner"), best.winner
    if best.ended or (definition.max_units is not None and n_users >= definition.max_units):
        return "undecided at the end", None
    return "not yet", None


def _too_small(definition: Definition, found: Candidate) -> bool:
    """Tell whether an improvement of `min_effect` is ruled out, while harm is not certain."""
    ends = (found.low, found.high) if definition.primary.better == "higher" else (found.high, found.low)
    least, most = (None if end is None else end * (1 if definition.primary.better == "higher" else -1) for end in ends)
    if definition.min_effect is None or most is None or least is None:
        return False
    return 0 <= most < definition.min_effect


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
