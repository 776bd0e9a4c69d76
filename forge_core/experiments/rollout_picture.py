"""The picture of a rollout's verdict over time: the evidence of harm by guard, the steps, and how it ended."""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from matplotlib.axes import Axes

from forge_core.experiments.rollout_guards import N_GUARDS
from forge_core.experiments.rollout_records import Rollout
from forge_core.pictures import CURRENT, GREEN, INK, ORANGE, REFERENCE, SKY, VERMILION, png, small_multiples, tidy_axes
from forge_core.policy import RolloutPolicy

_COLOURS = {
    "errors": VERMILION,
    "latency": ORANGE,
    "answers": CURRENT,
    "estimated quality": SKY,
    "labelled quality": GREEN,
}
_MARKS = {"hold": (REFERENCE, "."), "promote": (GREEN, "^"), "roll back": (VERMILION, "v")}


def rollout_figure(rollout: Rollout, policy: RolloutPolicy) -> bytes:
    """Return a PNG of a rollout's looks.

    Left the log evidence of harm of each guard, which sends the version back where it reaches the dotted line; in the
    middle each guard's figure in parts of what is allowed; right the share of the traffic and the rows of each step.
    """
    figure, (harm, figures, share) = small_multiples(3)
    looks = list(rollout.looks)
    minutes = [_minutes(rollout, look) for look in looks]
    bar = math.log(N_GUARDS * len(rollout.steps) / policy.alpha)
    for name, colour in _COLOURS.items():
        known = [(at, look["guards"][name]) for at, look in zip(minutes, looks, strict=True) if name in look["guards"]]
        told = [(at, figures_) for at, figures_ in known if figures_[0] != "unknown"]
        harm.plot([at for at, _ in told], [g[3] for _, g in told], color=colour, label=name, **_LINE)
        parts = [(at, g[1] / g[2]) for at, g in told if g[2]]
        figures.plot([at for at, _ in parts], [p for _, p in parts], color=colour, label=name, **_LINE)
    harm.axhline(bar, color=INK, linewidth=0.8, linestyle=":")
    harm.set(title="evidence of harm, log e", ylim=(min(0.0, *harm.get_ylim()), max(bar * 1.25, harm.get_ylim()[1])))
    harm.annotate("back", (0.01, bar), xycoords=("axes fraction", "data"), fontsize=7, color=INK, va="bottom")
    figures.axhline(1.0, color=INK, linewidth=0.8, linestyle=":")
    figures.set(title="found, in parts of what is allowed", ylim=(min(0.0, *figures.get_ylim()), None))
    handles, labels = harm.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(_COLOURS), frameon=False, fontsize=8)
    _draw_share(share, rollout, minutes, looks)
    for axes in (harm, figures, share):
        tidy_axes(axes)
        axes.set_xlabel("minutes")
        _draw_steps(axes, minutes, looks)
    ended = f", {rollout.outcome}" if rollout.outcome else f", {rollout.status} at {rollout.told_step}"
    figure.suptitle(f"{rollout.id} of {rollout.model}: v{rollout.version} for v{rollout.champion}{ended}", fontsize=10)
    return png(figure)


def _draw_share(axes: Axes, rollout: Rollout, minutes: list[float], looks: list[Mapping[str, Any]]) -> None:
    shares = [100 * rollout.steps[look["step"]] for look in looks]
    axes.step(minutes, shares, where="post", color=INK)
    for at, look, value in zip(minutes, looks, shares, strict=True):
        colour, mark = _MARKS[look["action"]]
        axes.plot([at], [value], mark, color=colour, markersize=8 if mark != "." else 5)
    for action, (colour, mark) in _MARKS.items():
        axes.plot([], [], mark, color=colour, label=action)
    axes.legend(frameon=False, fontsize=7, loc="best")
    axes.set(title="share of the traffic, %", ylim=(-4, 108))


def _draw_steps(axes: Axes, minutes: list[float], looks: list[Mapping[str, Any]]) -> None:
    before = looks[0]["step"] if looks else 0
    for at, look in zip(minutes, looks, strict=True):
        if look["step"] != before:
            axes.axvline(at, color=REFERENCE, linewidth=0.6)
        before = look["step"]


def _minutes(rollout: Rollout, look: Mapping[str, Any]) -> float:
    return (datetime.fromisoformat(look["at"]) - rollout.started_at).total_seconds() / 60


_LINE: dict[str, Any] = {"linewidth": 1.3, "marker": ".", "markersize": 3}
