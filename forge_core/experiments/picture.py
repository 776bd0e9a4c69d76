"""A verdict over time in one picture (PNG bytes): the difference, the evidence, and whether users came as declared."""

from datetime import timedelta
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from forge_core.experiments.definition import Definition
from forge_core.experiments.evidence import Course, Standing
from forge_core.experiments.verdict import MISMATCH_ALARM, Judgement, Verdict
from forge_core.experiments.words import p_told
from forge_core.pictures import CURRENT, GREEN, INK, ORANGE, REFERENCE, SKY, VERMILION, png, short_text, tidy_axes

_LINES = (CURRENT, ORANGE, GREEN, SKY, "#CC79A7", "#F0E442")
_STATE_COLOURS = {"winner": GREEN, "frozen": VERMILION, "guard rail broken": VERMILION, "not yet": INK}
_MOST_ODDS = 1e6


def verdict_figure(judgement: Judgement) -> bytes:
    """Return three panels over time: difference to the control, evidence, and evidence against the shares."""
    definition, verdict, history = judgement.definition, judgement.verdict, judgement.history
    figure = Figure(figsize=(9.5, 8.2), layout="constrained")
    grid = figure.add_gridspec(3, 1, height_ratios=(3.2, 2.2, 1.5))
    top = figure.add_subplot(grid[0])
    boxes = [top, figure.add_subplot(grid[1], sharex=top), figure.add_subplot(grid[2], sharex=top)]
    _draw_title(figure, definition, verdict)
    # What is frozen is not to be believed, and does not look as if it were.
    lines = (REFERENCE,) * 20 if verdict.state == "frozen" else _LINES * 4
    colours = dict(zip(definition.treatments, lines, strict=False)) | {definition.control: INK}
    _draw_difference(boxes[0], definition, history.courses, colours)
    _draw_evidence(boxes[1], definition, history.standing, colours)
    _draw_mismatch(boxes[2], history.mismatch_at, history.mismatch, verdict)
    for axes in boxes:
        tidy_axes(axes)
        axes.grid(axis="y", color=REFERENCE, alpha=0.25, linewidth=0.6)
    _draw_time(boxes, history.mismatch_at)
    return png(figure)


def _draw_title(figure: Figure, definition: Definition, verdict: Verdict) -> None:
    users = ", ".join(f"{short_text(name, 24)} {n:,}" for name, n in verdict.users.items())
    figure.suptitle(
        f"{definition.id}: {_headline(verdict)}", x=0.012, ha="left", fontsize=15, fontweight="bold",
        color=_STATE_COLOURS.get(verdict.state, CURRENT),
    )  # fmt: skip
    text = f"users: {users}   ·   {verdict.method or 'no users yet'}   ·   {verdict.at:%Y-%m-%d %H:%M} UTC"
    figure.get_axes()[0].set_title(text, loc="left", fontsize=9, color=INK, pad=10)


def _headline(verdict: Verdict) -> str:
    if verdict.state == "winner":
        return f"{verdict.winner} wins (p {p_told(verdict.p)} at any time)"
    if verdict.state == "not yet":
        return f"nothing decided yet (p {p_told(verdict.p)})"
    if verdict.state == "frozen":
        return "frozen, users did not come in the declared shares"
    return verdict.state


def _draw_difference(axes: Axes, definition: Definition, courses: tuple[Course, ...], colours: dict[str, str]) -> None:
    scale = 100.0 if definition.primary.kind == "conversion" else 1.0
    shown = [np.zeros(1)]
    axes.axhline(0, color=INK, linewidth=1.1)
    _tell(axes, 0, f"control: {short_text(definition.control, 24)}", INK)
    for made in courses:
        if not len(made.at):
            continue
        colour, low, high = colours[made.variant], scale * made.low, scale * made.high
        known = np.isfinite(low) & np.isfinite(high)
        step: Literal["post"] | None = "post" if made.stepwise else None
        axes.fill_between(made.at, np.where(known, low, np.nan), np.where(known, high, np.nan), color=colour,
                          alpha=0.16, linewidth=0, step=step)  # fmt: skip
        style = "steps-post" if step else "default"
        axes.plot(made.at, scale * made.value, color=colour, linewidth=1.9, drawstyle=style, label=made.variant)
        _draw_end(axes, made, colour, scale)
        # The first intervals are as wide as the sky: what counts is where they come to.
        late = slice(len(low) // 3, None)
        shown += [low[late][known[late]], high[late][known[late]], scale * made.value[len(low) // 10 :]]
    if definition.min_effect is not None:
        effect = scale * definition.min_effect * (1 if definition.primary.better == "higher" else -1)
        axes.axhline(effect, color=REFERENCE, linestyle="--", linewidth=1.1)
        _tell(axes, effect, "smallest effect that matters", "#666666")
        shown.append(np.array([effect]))
    ends = np.concatenate(shown)
    ends = ends[np.isfinite(ends)]
    room = 0.08 * (ends.max() - ends.min()) or 1.0
    axes.set_ylim(ends.min() - room, ends.max() + room)
    unit = " (percentage points)" if scale > 1 else ""
    axes.set_ylabel(f"{definition.primary.name}: difference\nto the control{unit}", fontsize=9)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.4g}" if value else "0"))


def _draw_end(axes: Axes, made: Course, colour: str, scale: float) -> None:
    """Mark where the course has come to, with its figures beside it."""
    value, low, high = scale * made.value[-1], scale * made.low[-1], scale * made.high[-1]
    if not np.isfinite([value, low, high]).all():
        return
    number = (lambda x: f"{x:+.2f}") if scale > 1 else (lambda x: f"{x:+.4g}")
    axes.plot([made.at[-1]] * 2, [low, high], color=colour, linewidth=2.4, solid_capstyle="butt")
    axes.plot(made.at[-1:], [value], "o", color=colour, markersize=6)
    name = f"{short_text(made.variant, 18)}\n"
    axes.annotate(f"{name}{number(value)}\n[{number(low)}, {number(high)}]", (made.at[-1], value), (8, 0), va="center",
                  textcoords="offset points", fontsize=8.5, color=colour, annotation_clip=False,
                  bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.0})  # fmt: skip


def _draw_evidence(axes: Axes, definition: Definition, found: Standing, colours: dict[str, str]) -> None:
    needed = 1 / definition.alpha
    top = 5 * needed
    for column, name in enumerate(found.names):
        odds = 1 / np.maximum(found.p[:, column], 1 / _MOST_ODDS)
        style = {"linestyle": "--", "linewidth": 1.3} if name == definition.control else {"linewidth": 1.9}
        axes.plot(
            found.looks.at, odds, color=colours[name], drawstyle="steps-post", label=short_text(name, 24), **style
        )
        top = max(top, 2.0 * float(odds.max(initial=1.0)))
        reached = np.flatnonzero(found.p[:, column] <= definition.alpha)
        if reached.size:
            axes.plot(found.looks.at[reached[:1]], odds[reached[:1]], "o", color=colours[name], markersize=6)
    axes.axhline(needed, color=GREEN, linestyle="--", linewidth=1.2)
    _tell(axes, needed, f"decided from here (p ≤ {definition.alpha:g})", GREEN)
    axes.set_yscale("log")
    axes.set_ylim(0.8, top)
    _plain_powers(axes)
    axes.set_ylabel("evidence of being\nthe best (1 / p)", fontsize=9)
    if found.names:
        axes.legend(loc="upper left", ncols=4, frameon=False, fontsize=8)


def _draw_mismatch(axes: Axes, at: pd.DatetimeIndex, log_e: np.ndarray, verdict: Verdict) -> None:
    colour = VERMILION if verdict.mismatch.alarm else REFERENCE
    e = np.exp(np.clip(log_e, np.log(1e-3), np.log(_MOST_ODDS)))
    axes.plot(at, e, color=colour, linewidth=1.6)
    axes.axhline(MISMATCH_ALARM, color=VERMILION, linestyle="--", linewidth=1.2)
    _tell(axes, MISMATCH_ALARM, "frozen from here", VERMILION)
    axes.set_yscale("log")
    axes.set_ylim(min(0.05, float(e.min(initial=0.1)) / 1.5), max(1000.0, 2.0 * float(e.max(initial=1.0))))
    _plain_powers(axes)
    axes.set_ylabel("evidence against\nthe shares (SRM)", fontsize=9)


def _tell(axes: Axes, height: float, text: str, colour: str) -> None:
    """Write beside a line what it means, readable over whatever passes there."""
    axes.annotate(text, (0, height), (5, 4), xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=8,
                  color=colour, bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.0})  # fmt: skip


def _plain_powers(axes: Axes) -> None:
    axes.yaxis.set_major_locator(LogLocator(base=10, numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_time(boxes: list[Axes], at: pd.DatetimeIndex) -> None:
    for axes in boxes[:-1]:
        axes.tick_params(labelbottom=False)
    if not len(at):
        boxes[-1].set_xticks([])
        return
    span = max(at[-1] - at[0], timedelta(seconds=1))
    locator = AutoDateLocator(maxticks=9)
    ticks = locator.tick_values(at[0].to_pydatetime(), (at[0] + span).to_pydatetime())
    ends = date2num([at[0].to_pydatetime(), (at[0] + span).to_pydatetime()])
    boxes[-1].xaxis.set_major_locator(FixedLocator([tick for tick in ticks if ends[0] <= tick <= ends[1]]))
    boxes[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
    # Room at the right for the figures.
    boxes[0].set_xlim(at[0], at[0] + 1.2 * span)
