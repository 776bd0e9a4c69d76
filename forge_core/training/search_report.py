"""How a search went, to be looked at: a table of its trials, a picture, and lines on a terminal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from forge_core.pictures import CURRENT, INK, ORANGE, REFERENCE, png, tidy_axes

_COLOURS = {"complete": CURRENT, "stopped": REFERENCE}


def trials_table(trials: Sequence[Mapping[str, Any]], metric: str) -> pd.DataFrame:
    """Return one row a trial: its number, state, the metric, seconds, parameters, and why it failed."""
    rows = [
        {
            "trial": t["number"],
            "state": t["state"],
            metric: t[metric],
            "seconds": t["seconds"],
            **t["hyperparameters"],
            "reason": t["reason"],
        }
        for t in trials
    ]
    return pd.DataFrame(rows)


def search_figure(trials: Sequence[Mapping[str, Any]], metric: str, mode: str) -> bytes:
    """Return a PNG of the metric by trial, with the best so far; failed trials are crosses at the lower border."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    scored = [t for t in trials if t[metric] is not None]
    for state, colour in _COLOURS.items():
        some = [t for t in scored if t["state"] == state]
        if some:
            name = "complete" if state == "complete" else "stopped early"
            axes.scatter([t["number"] for t in some], [t[metric] for t in some], s=22, color=colour, label=name)
    complete = [t for t in scored if t["state"] == "complete"]
    if complete:
        best = np.minimum if mode == "min" else np.maximum
        so_far = best.accumulate([t[metric] for t in complete])
        axes.step([t["number"] for t in complete], so_far, where="post", color=ORANGE, label="best so far")
    if failed := [t["number"] for t in trials if t["state"] == "failed"]:
        axes.plot(
            failed, np.zeros(len(failed)), "x", color=INK, clip_on=False, label="failed",
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    axes.set_xlabel("trial")
    axes.set_ylabel(f"{metric} ({'lower' if mode == 'min' else 'higher'} is better)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)
    tidy_axes(axes)
    return png(figure)


def terminal_progress(trials: int) -> Callable[[int, dict[str, Any]], None]:
    """Return a callback for `search` that writes each trial as a line of one table."""
    from rich.console import Console

    console = Console()
    widths: dict[str, int] = {}

    def progress(done: int, result: dict[str, Any]) -> None:
        cells = {"trial": f"{done}/{trials}", **{k: _cell(v) for k, v in result.items()}}
        if not widths:
            widths.update({name: max(len(name), 10) for name in cells})
            console.print("  ".join(name.rjust(widths[name]) for name in widths), style="bold", soft_wrap=True)
        line = "  ".join(cells.get(name, "").rjust(width) for name, width in widths.items())
        console.print(line, soft_wrap=True, highlight=False)

    return progress


def _cell(value: Any) -> str:
    return "failed" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
