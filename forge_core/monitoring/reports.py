"""Drift and quality as pictures (PNG bytes) and as a Markdown table."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from forge_core.monitoring.drift_report import DriftReport, FeatureDrift
from forge_core.pictures import (
    CURRENT,
    INK,
    ORANGE,
    REFERENCE,
    SKY,
    VERMILION,
    png,
    short_number,
    short_text,
    small_multiples,
    tidy_axes,
)
from forge_core.statistics.cells import NumericCells
from forge_core.statistics.counts import GridCounts
from forge_core.statistics.distributions import ReferenceGrid

COLOURS = {"none": REFERENCE, "small but real": SKY, "warning": ORANGE, "drift": VERMILION}
_MOST_BARS = 25
_MOST_CELLS = 10


def drift_markdown(report: DriftReport) -> str:
    """Return a headline and a table, one line per significant finding and per feature without any."""
    state = f"**{_state(report)}**: score {report.score:.2f}" + (f" ({report.feature})" if report.feature else "")
    head = f"{state}, warning from {report.warning_threshold:g}, drift from {report.drift_threshold:g}; "
    lines = [
        f"{head}{report.n_current:,} rows.",
        "",
        "| feature | kind | PSI | 95 % interval | p | level | rows (reference / current) |",
        "|---|---|---:|---:|---:|---|---:|",
    ]
    calm = [report[name] for name in report if report[name].level == "none"]
    for found in [*report.significant, *calm]:
        level = f"**{found.level}**" if found.level in ("warning", "drift") else found.level
        lines.append(
            f"| {found.feature.replace('|', chr(92) + '|')} | {found.kind} | {found.psi:.3f} | "
            f"{found.psi_low:.3f} – {found.psi_high:.3f} | {_p_text(found.p_value)} | {level} | "
            f"{found.n_reference:,} / {found.n_current:,} |"
        )
    return "\n".join(lines) + "\n"


def drift_figure(report: DriftReport) -> bytes:
    """Return horizontal bars of PSI, the gravest finding of each feature, with intervals and both thresholds."""
    found = sorted((report[name] for name in report), key=lambda f: f.psi, reverse=True)
    hidden, found = len(found) - _MOST_BARS, found[:_MOST_BARS][::-1]
    figure = Figure(figsize=(8, 1.7 + 0.34 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    # A unit fault has a PSI of 10: the axis stops at 1, so that the thresholds stay readable.
    end = float(np.clip(1.15 * max((f.psi_high for f in found), default=0), 1.5 * report.drift_threshold + 0.01, 1.0))
    for row, entry in enumerate(found):
        _draw_bar(axes, row, entry, end)
    for limit, name in ((report.warning_threshold, "warning"), (report.drift_threshold, "drift")):
        axes.axvline(limit, color=COLOURS[name], linestyle="--", linewidth=1.2, zorder=0)
        axes.annotate(name, (limit, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                      ha="center", fontsize=8, color=COLOURS[name])  # fmt: skip
    axes.set_yticks(
        range(len(found)), [f.feature if f.kind == "distribution" else f"{f.feature} ({f.kind})" for f in found]
    )
    axes.set_ylim(-0.6, max(len(found), 1) - 0.4)
    axes.set_xlim(0, end)
    axes.set_xlabel("debiased PSI (line: 95 % interval)" + (f"; {hidden} more features below" if hidden > 0 else ""))
    name = f", most in {report.feature}" if report.feature else ""
    axes.set_title(f"{_state(report)}: score {report.score:.2f}{name} · {report.n_current:,} rows", loc="left", pad=18)
    tidy_axes(axes)
    return png(figure)


def distribution_figure(
    grid: ReferenceGrid, reference_counts: GridCounts, current_counts: GridCounts, features: list[str]
) -> bytes:
    """Return small multiples: shares per cell, reference as grey bars and current as blue points, one box a feature.

    Numbers are shown over about ten cells of equal reference share, labelled with their upper ends; categories by
    their most frequent levels. Missing, unseen and out-of-range values stand apart at the right where there are any.
    """
    figure, boxes = small_multiples(len(features))
    for number, (name, axes) in enumerate(zip(features, boxes, strict=True)):
        labels, was, now = _shares(grid, reference_counts, current_counts, name)
        place = np.arange(len(labels))
        axes.bar(place, was, width=0.8, color=REFERENCE, alpha=0.55, label="reference")
        axes.plot(place, now, "o", color=CURRENT, markersize=5, label="current")
        axes.vlines(place, np.minimum(was, now), np.maximum(was, now), color=CURRENT, linewidth=1.2)
        axes.set_xticks(place, labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=7)
        axes.set_title(_title(grid, name), loc="left", fontsize=10)
        axes.set_xlim(-0.6, max(len(labels), 4) - 0.4)
        axes.set_ylim(0, None)
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
        axes.tick_params(axis="y", labelsize=8)
        tidy_axes(axes)
        if number == 0:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    return png(figure)


def quality_figure(frame: pd.DataFrame, reference: float, metric: str) -> bytes:
    """Return quality over time (`quality_over_time`'s frame) with intervals, against the held-out figure."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.add_subplot()
    moments = frame["window"]
    axes.fill_between(
        moments, frame["low"], frame["high"], color=CURRENT, alpha=0.2, linewidth=0, label="95 % interval"
    )
    axes.plot(moments, frame["value"], color=CURRENT, marker="o", markersize=3.5, linewidth=1.5, label="live")
    axes.axhline(reference, color=INK, linestyle="--", linewidth=1.2, label=f"held-out {reference:.3f}")
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_ylabel(metric)
    axes.set_title(f"{metric} on {int(frame['n'].sum()):,} labelled rows", loc="left")
    tidy_axes(axes)
    figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    return png(figure)


def _draw_bar(axes: Axes, row: int, entry: FeatureDrift, end: float) -> None:
    axes.barh(row, min(entry.psi, end), height=0.62, color=COLOURS[entry.level])
    low, high = min(entry.psi_low, end), min(entry.psi_high, end)
    axes.plot([low, high], [row, row], color=INK, linewidth=1.2, solid_capstyle="butt")
    beyond = entry.psi > end
    axes.annotate(f"{entry.psi:.2f}" + (" →" if beyond else ""), (1, row), (6, 0), xycoords=("axes fraction", "data"),
                  textcoords="offset points", va="center", fontsize=8, color=INK)  # fmt: skip


def _shares(
    grid: ReferenceGrid, reference: GridCounts, current: GridCounts, name: str
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return labels and both sides' shares of all rows, few enough to be read."""
    cells, was, now = grid.features[name], reference[name], current[name]
    if isinstance(cells, NumericCells):
        upto = np.cumsum(was.cells) / max(was.cells.sum(), 1)
        group = np.minimum(np.ceil(upto * _MOST_CELLS - 1e-9), _MOST_CELLS).astype(int)
        group = np.unique(group, return_inverse=True)[1]
        ends = [cells.edges[np.flatnonzero(group == g)[-1]] for g in range(group.max(initial=-1) + 1)]
        labels = [f"≤ {short_number(end)}" for end in ends]
    else:
        group = np.arange(len(cells.levels))
        labels = [short_text(level) for level in cells.levels[:_MOST_CELLS]]
    sides = []
    for side in (was, now):
        held = np.bincount(group, side.cells)[: len(labels)]
        sides.append(np.r_[held, side.below, side.above, side.unseen, side.missing] / max(side.n_rows, 1))
    labels += ["below", "above", "unseen", "missing"]
    shown = [i for i in range(len(labels)) if i < len(labels) - 4 or sides[0][i] or sides[1][i]]
    return [labels[i] for i in shown], sides[0][shown], sides[1][shown]


def _title(grid: ReferenceGrid, name: str) -> str:
    cells = grid.features[name]
    n_levels = 0 if isinstance(cells, NumericCells) else len(cells.levels)
    return f"{name} ({_MOST_CELLS} of {n_levels} levels)" if n_levels > _MOST_CELLS else name


def _state(report: DriftReport) -> str:
    return "no drift" if report.level == "none" else report.level


def _p_text(p: float) -> str:
    return "< 1e-6" if p < 1e-6 else f"{p:.2g}"
