"""The verdict on an experiment: one object that says who won or what is missing, why, and what to do."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forge_core.experiments.definition import Definition, Metric
from forge_core.experiments.evidence import Course, course
from forge_core.experiments.joined import Joined
from forge_core.experiments.looks import Looks, look, moments_of_looks
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
class Comparison:
    """One variant against the control: users, means, the difference with its interval, and the evidence.

    `p` may be read at any time and counts all comparisons of the experiment; `e` is that of the exact process
    (conversions only): under "no difference" it exceeds 1/x with a chance of at most x.
    """

    variant: str
    n: int
    n_control: int
    mean: float | None
    mean_control: float | None
    value: float | None
    low: float | None
    high: float | None
    p: float
    e: float | None


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
    more. `not_counted` has the outcomes that do not count, by reason.
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
    comparisons: tuple[Comparison, ...]
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
    """How a verdict came about, for pictures: the courses of the primary metric, and the evidence against the shares.

    `mismatch` has one value a user of `mismatch_at` (thinned out where there are very many).
    """

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
    looks_at = moments_of_looks(joined)
    looks = look(joined, definition.primary, list(definition.variants), looks_at)
    history = History(
        tuple(course(definition, definition.primary, joined, variant, looks) for variant in definition.treatments),
        *_mismatch(definition, joined),
    )
    users = {name: int((joined.exposures["variant"] == name).sum()) for name in definition.variants}
    evidence = float(np.exp(min(history.mismatch.max(initial=0.0), 700.0)))
    mismatch = Mismatch(evidence, evidence >= MISMATCH_ALARM, users, definition.shares)
    rails = []
    for metric in definition.guard_rails:
        seen = look(joined, metric, looks.variants, looks_at)
        rails += [_rail(metric, course(definition, metric, joined, name, seen)) for name in definition.treatments]
    comparisons = tuple(_comparison(definition, made, joined, looks) for made in history.courses)
    state, winner = _decide(definition, comparisons, mismatch, rails, sum(users.values()))
    verdict = Verdict(
        experiment=definition.id,
        at=now or datetime.now(UTC),
        state=state,
        winner=winner,
        stop=state not in ("no users yet", "not yet"),
        metric=definition.primary.name,
        method=" and ".join(dict.fromkeys(made.method for made in history.courses)),
        e=max((c.e for c in comparisons if c.e is not None), default=None),
        p=min((c.p for c in comparisons), default=1.0),
        comparisons=comparisons,
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


def _comparison(definition: Definition, made: Course, joined: Joined, looks: Looks) -> Comparison:
    """Return where a course has come to; before its first look, the figures as they are, without an interval."""
    last = looks
    if len(made.at) and made.method == "group sequential":
        last = look(joined, definition.primary, looks.variants, made.at[-1:])
    if not len(last.at):
        return Comparison(made.variant, 0, 0, None, None, None, None, None, 1.0, None)
    a, b = last.column(definition.control), last.column(made.variant)
    low, high, p = (made.low[-1], made.high[-1], made.p[-1]) if len(made.at) else (np.nan, np.nan, 1.0)
    return Comparison(
        variant=made.variant,
        n=int(last.n[-1, b]),
        n_control=int(last.n[-1, a]),
        mean=_number(last.mean[-1, b]),
        mean_control=_number(last.mean[-1, a]),
        value=_number(last.mean[-1, b] - last.mean[-1, a]),
        low=_number(low),
        high=_number(high),
        p=float(p),
        e=None if made.log_e is None else float(np.exp(min(made.log_e[-1], 700.0))),
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
    comparisons: Sequence[Comparison],
    mismatch: Mismatch,
    rails: Sequence[GuardRail],
    n_users: int,
) -> tuple[State, str | None]:
    if mismatch.alarm:
        return "frozen", None
    if n_users == 0:
        return "no users yet", None
    broken = {rail.variant for rail in rails if rail.state == "broken"}
    sound = [c for c in comparisons if c.variant not in broken]
    if not sound:
        return "guard rail broken", definition.control
    sign = 1.0 if definition.primary.better == "higher" else -1.0
    sure = [c for c in sound if c.p <= definition.alpha and c.value is not None]
    better = {c.variant: sign * c.value for c in sure if c.value is not None and sign * c.value > 0}
    matters = {v: gain for v, gain in better.items() if not _too_small(definition, _of(sound, v), sign)}
    if matters:
        return "winner", max(matters, key=matters.__getitem__)
    if len(sure) == len(sound) and not better:
        return "control is best", definition.control
    if all(_too_small(definition, c, sign) or (c in sure and c.variant not in better) for c in sound):
        return "no difference that matters", definition.control
    if definition.max_units is not None and n_users >= definition.max_units:
        return "undecided at the end", None
    return "not yet", None


def _too_small(definition: Definition, found: Comparison, sign: float) -> bool:
    """Tell whether an improvement of `min_effect` is ruled out."""
    most = found.high if sign > 0 else (None if found.low is None else -found.low)
    return definition.min_effect is not None and most is not None and most < definition.min_effect


def _of(comparisons: Sequence[Comparison], variant: str) -> Comparison:
    return next(c for c in comparisons if c.variant == variant)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
