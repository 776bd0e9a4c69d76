"""The guard rails of a rollout: what a version may not do, each with evidence that holds at every look.

A guard is *harm* when its limit is broken beyond doubt: the chance that this ever happens to a version within all
limits is at most the policy's alpha, which all guards of all steps share. It is *doubt* when the figure so far is
beyond the limit and may be chance; then a rollout waits. Each guard's evidence is an e-process
(`statistics.paired_evidence`, `confidence_sequences`), or an interval that holds at all looks together.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from forge_core.statistics.confidence_sequences import MIN_UNITS, difference_sequence, higher_mean_evidence
from forge_core.statistics.paired_evidence import level_evidence, rate_evidence, superiority_evidence

Floats = NDArray[np.float64]
State = Literal["fine", "doubt", "harm", "unknown"]

# Guards that share alpha: errors, latency, distance or disagreement, estimated quality, labelled quality.
N_GUARDS = 5
# Slower than the champion's 95th percentile is one answer in twenty, by definition.
_SLOW = 0.05
_MIN_SECONDS = 10


@dataclass(frozen=True)
class Guard:
    """One guard: what was found, what is allowed, on how many rows, and the largest log evidence of harm so far."""

    name: str
    state: State
    reason: str
    value: float | None = None
    limit: float | None = None
    n_rows: int = 0
    log_e: float = 0.0
    better: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Bar:
    """What evidence must reach: log(1/alpha) of one guard of one step, and the largest so far of each."""

    alpha: float
    so_far: dict[str, float]

    def guard(
        self, name: str, log_e: float, *, value: float, limit: float, n_rows: int, told: str, better: bool = False
    ) -> Guard:
        """Return the guard: harm where the evidence ever got there, doubt where the figure is beyond the limit."""
        largest = max(float(log_e), self.so_far.get(name, 0.0))
        harm, beyond = largest >= -math.log(self.alpha), value > limit
        words = "beyond doubt too much" if harm else "which may be chance" if beyond else "within the limit"
        state: State = "harm" if harm else "doubt" if beyond else "fine"
        return Guard(name, state, f"{told}, {words}", float(value), float(limit), int(n_rows), largest, better)


def unknown(name: str, reason: str) -> Guard:
    """Return a guard that has nothing to go by."""
    return Guard(name, "unknown", reason)


def errors_guard(bar: Bar, n_errors: int, n_rows: int, limit: float) -> Guard:
    """Judge how often the version gave no answer."""
    if not n_rows:
        return unknown("errors", "errors: no rows yet")
    share = n_errors / n_rows
    log_e = float(level_evidence(n_errors, n_rows, limit)[0])
    told = f"errors in {_percent(share)} of {n_rows:,} rows (allowed {_percent(limit)})"
    return bar.guard("errors", log_e, value=share, limit=limit, n_rows=n_rows, told=told)


def latency_guard(
    bar: Bar, new: pd.DataFrame, old: pd.DataFrame, *, ratio: float, least_ms: float, floor: float | None = None
) -> Guard:
    """Judge whether the version answers slower than allowed.

    Rows of one second stall together, so a second counts once: it is slow when its median is beyond what the champion's
    p95 allows, and the champion did not stall in it too. A version as fast as allowed is so in 5 % of seconds at most.

    Parameters
    ----------
    new, old : DataFrame
        Columns received_at (datetime) and latency_ms.
    ratio, least_ms : float
        Allowed: `ratio` times the champion's p95, and at least `least_ms` more.
    floor : float, optional
        The champion's p95 from before, where it answers nothing now.
    """
    base = float(old["latency_ms"].quantile(0.95)) if len(old) >= MIN_UNITS else floor
    seconds = new.groupby(new["received_at"].dt.floor("s"))["latency_ms"].median()
    if base is None or len(seconds) < _MIN_SECONDS:
        return unknown("latency", f"latency: {len(seconds)} seconds with answers are too few")
    allowed = max(ratio * base, base + least_ms)
    champion = old.groupby(old["received_at"].dt.floor("s"))["latency_ms"].median().reindex(seconds.index).fillna(0.0)
    slow = int((seconds > np.maximum(allowed, ratio * champion)).sum())
    p95 = float(new["latency_ms"].quantile(0.95))
    told = (
        f"p95 latency {p95:.1f} ms, the champion's {base:.1f} (allowed {allowed:.1f}); slow in {slow} of "
        f"{len(seconds):,} seconds"
    )
    log_e = float(level_evidence(slow, len(seconds), _SLOW)[0])
    return bar.guard("latency", log_e, value=p95, limit=allowed, n_rows=len(new), told=told)


def disagreement_guard(bar: Bar, apart: ArrayLike, limit: float, *, vouched: bool) -> Guard:
    """Judge how often the version answers the same row otherwise; labels that show it to be better excuse it.

    Parameters
    ----------
    apart : array_like of bool, shape (n_rows,)
    vouched : bool
        Labels show beyond doubt that the version is better.
    """
    n_apart, n_rows = int(np.sum(apart)), int(np.size(apart))
    if not n_rows:
        return unknown("answers", "answers: no row compared yet")
    share = n_apart / n_rows
    told = f"answers unlike the champion's in {_percent(share)} of {n_rows:,} rows (allowed {_percent(limit)})"
    if vouched:
        return Guard("answers", "fine", f"{told}, and better by the labels", share, limit, n_rows)
    log_e = float(level_evidence(n_apart, n_rows, limit)[0])
    return bar.guard("answers", log_e, value=share, limit=limit, n_rows=n_rows, told=told)


def distance_guard(bar: Bar, new: ArrayLike, old: ArrayLike, limit: float, *, vouched: bool = False) -> Guard:
    """Judge how far the distribution of the version's answers is from that of the champion's, on other rows.

    The distance is Kolmogorov and Smirnov's. Its doubt is that of two distribution functions at all times together:
    each is within 0.85 sqrt((log log(e n) + 0.8 log(1612 / alpha)) / n) of the truth (Howard, Ramdas 2022, "Sequential
    estimation of quantiles with applications to A/B testing and best-arm identification", corollary 2). Labels that
    show the version to be better excuse it.
    """
    a, b = np.sort(np.asarray(old, float)), np.sort(np.asarray(new, float))
    if min(len(a), len(b)) < MIN_UNITS:
        return unknown("answers", f"answers: {len(b)} and {len(a)} rows are too few to compare distributions")
    points = np.concatenate([a, b])
    below = np.searchsorted(b, points, side="right") / len(b) - np.searchsorted(a, points, side="right") / len(a)
    distance = float(np.abs(below).max())
    least = distance - _radius(len(a), bar.alpha / 2) - _radius(len(b), bar.alpha / 2)
    told = f"answers' distance from the champion's {distance:.2f} on {len(b):,} rows (allowed {limit:g})"
    if vouched:
        return Guard("answers", "fine", f"{told}, and better by the labels", distance, limit, len(b))
    # Either the interval excludes the limit or it does not: evidence of all or nothing.
    log_e = -math.log(bar.alpha) if least > limit else 0.0
    return bar.guard("answers", log_e, value=distance, limit=limit, n_rows=len(b), told=told)


def estimate_guard(bar: Bar, new: ArrayLike, old: ArrayLike, limit: float) -> Guard:
    """Judge the quality that each version's own, calibrated confidence lets expect.

    Parameters
    ----------
    new, old : array_like of shape (n_rows,)
        Expected chance of a wrong answer, row by row.
    """
    a, b = np.asarray(old, float), np.asarray(new, float)
    if min(len(a), len(b)) < MIN_UNITS:
        return unknown("estimated quality", f"estimated quality: {len(b)} and {len(a)} rows are too few")
    # One look as an array of one; what the interval is tuned to must not move from look to look.
    found = difference_sequence(*_moments(a), *_moments(b), alpha=bar.alpha)
    value = float(found.value[0])
    told = (
        f"estimated wrong answers {_points(value)} ({_percent(b.mean())} of {len(b):,} rows, allowed +{100 * limit:g})"
    )
    log_e = -math.log(bar.alpha) if found.low[0] > limit else 0.0
    return bar.guard("estimated quality", log_e, value=value, limit=limit, n_rows=len(b), told=told)


def paired_labels_guard(
    bar: Bar, new_loss: ArrayLike, old_loss: ArrayLike, limit: float, *, alpha: float = 0.05
) -> Guard:
    """Judge labelled quality on the same rows: only those on which one of the two is better count.

    Parameters
    ----------
    new_loss, old_loss : array_like of shape (n_rows,)
        0 or 1 for a class, the distance from the label for a number.
    alpha : float
        Chance that a version that is no better is ever called better.
    """
    mine, theirs = np.asarray(new_loss, float), np.asarray(old_loss, float)
    if not len(mine):
        return unknown("labelled quality", "labelled quality: no labels yet")
    wins, losses = int((mine < theirs).sum()), int((mine > theirs).sum())
    better, worse = (float(e[0]) for e in superiority_evidence(wins, losses))
    value = float(mine.mean() - theirs.mean())
    proven = better >= -math.log(alpha)
    told = f"better in {wins:,} and worse in {losses:,} of {len(mine):,} labelled rows"
    told += ", better beyond doubt" if proven else ""
    return bar.guard("labelled quality", worse, value=value, limit=limit, n_rows=len(mine), told=told, better=proven)


def labels_guard(
    bar: Bar, counts: ArrayLike | None, new_loss: ArrayLike, old_loss: ArrayLike, limit: float, *, alpha: float = 0.05
) -> Guard:
    """Judge labelled quality on other rows.

    Parameters
    ----------
    counts : array_like of shape (n_looks, 4), or None
        Until each look: wrong and labelled rows of the version, wrong and labelled rows of the champion; for classes.
        None for numbers, which are judged by their mean loss.
    new_loss, old_loss, alpha
        As for `paired_labels_guard`.
    """
    mine, theirs = np.asarray(new_loss, float), np.asarray(old_loss, float)
    if not len(mine) or not len(theirs):
        return unknown("labelled quality", "labelled quality: no labels of both yet")
    value = float(mine.mean() - theirs.mean())
    if counts is None:
        worse = float(higher_mean_evidence(*_moments(theirs), *_moments(mine), alpha=bar.alpha)[0])
        better = float(higher_mean_evidence(*_moments(mine), *_moments(theirs), alpha=alpha)[0])
        unit = f"mean error {value:+.4g}"
    else:
        looks = np.asarray(counts, float).reshape(-1, 4)
        both = [rate_evidence(*looks.T[order]) for order in ([0, 1, 2, 3], [2, 3, 0, 1])]
        worse, better = (float(log_e[-1]) if len(looks) else 0.0 for log_e in both)
        unit = f"wrong answers {_points(value)}"
    proven = better >= -math.log(alpha)
    told = f"labelled: {unit} on {len(mine):,} rows against {len(theirs):,}" + (", better beyond doubt" * proven)
    return bar.guard("labelled quality", worse, value=value, limit=limit, n_rows=len(mine), told=told, better=proven)


def _moments(values: Floats) -> tuple[list[float], list[float], list[float]]:
    return [len(values)], [float(values.mean())], [float(values.var())]


def _radius(n: int, alpha: float) -> float:
    return 0.85 * math.sqrt((math.log(math.log(math.e * n)) + 0.8 * math.log(1612 / alpha)) / n)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f} points"
