"""A verdict in words, for people who are no statisticians."""

from dataclasses import replace
from typing import TYPE_CHECKING

from forge_core.experiments.definition import Definition, Metric

if TYPE_CHECKING:
    from forge_core.experiments.verdict import Candidate, GuardRail, Verdict


def in_words(definition: Definition, verdict: "Verdict") -> "Verdict":
    """Return the verdict with its sentence (what was seen) and its advice (what to do)."""
    return replace(verdict, sentence=_sentence(definition, verdict), advice=_advice(definition, verdict))


def candidate_told(metric: Metric, found: "Candidate") -> str:
    """Return one variant in words."""
    if found.mean is None:
        return f"{found.variant}: no values yet"
    told = f"{found.variant} {_level(metric, found.mean)}"
    if found.value is None:
        return told
    ends = (found.low, found.high)
    interval = f" [{', '.join(_step(metric, end, '') for end in ends if end is not None)}]" if None not in ends else ""
    return f"{told} ({_step(metric, found.value)}{interval})"


def p_told(p: float) -> str:
    """Return an anytime p value."""
    return "below 0.0001" if p < 1e-4 else f"{p:.2g}"


def _sentence(definition: Definition, verdict: "Verdict") -> str:
    n_users = sum(verdict.users.values())
    if verdict.state == "frozen":
        shares = ", ".join(
            f"{name} {n:,} ({n / max(n_users, 1):.1%}, declared {definition.shares[name]:.1%})"
            for name, n in verdict.mismatch.counts.items()
        )
        return f"Users did not come in the declared shares: {shares}."
    if verdict.state == "no users yet":
        return f"Nobody has met a variant of {definition.id} yet."
    first = [c for c in verdict.variants if c.variant == definition.control]
    rest = [c for c in verdict.variants if c.variant != definition.control]
    told = ", ".join(candidate_told(definition.primary, c) for c in [*first, *rest])
    return f"{definition.primary.name}, {n_users:,} users: {told}; p {p_told(verdict.p)}."


def _advice(definition: Definition, verdict: "Verdict") -> str:
    winner, control = verdict.winner, definition.control
    open_rails = [r for r in verdict.guard_rails if r.state == "open" and r.variant == winner]
    broken = [r for r in verdict.guard_rails if r.state == "broken"]
    told = {
        "no users yet": "Start it, and send users to it.",
        "not yet": "Go on: nothing is decided. Looking again does no harm.",
        "winner": f"Stop and give everybody {winner!r}.",
        "control is best": f"Stop and keep {control!r}: the others are worse.",
        "no difference that matters": (
            f"Stop and keep {control!r}: an improvement of {definition.min_effect or 0:g} is ruled out."
        ),
        "undecided at the end": (
            f"Stop: all {definition.max_units or 0:,} users came, and no difference showed. Keep {control!r}."
        ),
        "guard rail broken": f"Stop and keep {control!r}.",
        "frozen": (
            "Believe no figure of this experiment. Find out why users of one variant are lost or counted twice "
            "(crashes, redirects, bots, a filter after the assignment), mend it, and start a new experiment."
        ),
    }[verdict.state]
    more = [_broken_told(rail) for rail in broken]
    if verdict.state == "winner" and open_rails:
        names = ", ".join(sorted({r.metric for r in open_rails}))
        more.append(f"Not settled yet for it: {names}; go on where that matters more.")
    if verdict.waiting:
        more.append(f"{verdict.waiting:,} users are left out until their {definition.window_hours:g} hours are over.")
    if left := sum(verdict.not_counted.values()):
        reasons = ", ".join(f"{n:,} {why}" for why, n in sorted(verdict.not_counted.items()))
        more.append(f"{left:,} outcomes do not count ({reasons}).")
    return " ".join([told, *more])


def _broken_told(rail: "GuardRail") -> str:
    return (
        f"{rail.variant!r} breaks the guard rail {rail.metric}: {rail.value or 0:+.4g} "
        f"[{rail.low or 0:+.4g}, {rail.high or 0:+.4g}], {rail.max_harm:g} is borne."
    )


def _level(metric: Metric, value: float) -> str:
    return f"{value:.2%}" if metric.kind == "conversion" else f"{value:.4g}"


def _step(metric: Metric, value: float, unit: str = " points") -> str:
    return f"{100 * value:+.2f}{unit}" if metric.kind == "conversion" else f"{value:+.4g}"
