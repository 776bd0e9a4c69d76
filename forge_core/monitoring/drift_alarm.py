"""When drift is an alarm: one error budget over all features and all time, in two lanes.

*Independent rows*: every test of a check (distribution, missing, unseen, out of range, unit; pairs of features) on the
newest 1, 2, 3 … 64 windows, each at its share of the budget of one horizon (Bonferroni, so whatever depends on what).
Quick, and right only where the rows of a window are independent.

*Exchangeable windows*, for real traffic, whose rows come in days and batches: how far each window is from the first
ones, ranked among all windows before it. It needs `CALIBRATION_WINDOWS` windows and says nothing earlier.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from forge_core.monitoring.window_series import FeatureSeries, WindowSeries
from forge_core.monitoring.windows import ReferenceProfile
from forge_core.statistics.count_tests import chi_square, merged_cells, share_p_values, tail_p_values
from forge_core.statistics.counts import FeatureCounts, GridCounts
from forge_core.statistics.pair_moments import pair_p_values
from forge_core.statistics.sequential import conformal_p_values, rank_evidence

Floats = NDArray[np.float64]
Lane = Literal["independent rows", "exchangeable windows"]

SCALES = (1, 2, 3, 4, 6, 8, 16, 32, 64)
CALIBRATION_WINDOWS = 60
PAIRS = "pairs of features"
_SURELY_LARGER = 1e-3
# Mean chi-square over its degrees of freedom from which rows of a window are called alike.
_ALIKE = 1.25
_ENOUGH_TO_COMPARE = 20


@dataclass(frozen=True)
class DriftAlarm:
    """What one lane says of a run of windows.

    Attributes
    ----------
    lane : str
    enough : bool
        Whether the lane can decide yet.
    alarm : bool
        Whether it alarms at the newest window.
    first : int or None
        Number of the first window that alarmed, counted from 0 at the first window after calibration.
    features : tuple of str
        Those that alarm at the newest window (independent rows), or hold most of the evidence.
    reason : str
        One sentence with the figures.
    """

    lane: Lane
    enough: bool
    alarm: bool
    first: int | None
    features: tuple[str, ...]
    reason: str


def independent_p_values(reference: GridCounts, series: WindowSeries) -> tuple[list[str], Floats, int]:
    """Return what was asked of, the smallest p of each at each window over all scales and tests, and how many tests.

    Returns
    -------
    list of str, length n_asked
        Features, and `PAIRS` where there are any.
    ndarray of shape (n_windows, n_asked)
    int
        Tests at one window and scale.
    """
    names = list(series.features)
    n_pairs = series.pairs.n.shape[1] if reference.pairs is not None else 0
    n_tests = sum(len(_QUESTIONS[series.is_number(name)]) for name in names) + n_pairs
    asked = [*names, PAIRS] if n_pairs else names
    p = np.ones((len(series), len(asked)))
    for scale in SCALES:
        merged = series.last(scale)
        for place, name in enumerate(names):
            found = feature_p_values(reference[name], merged.features[name], numeric=series.is_number(name))
            p[:, place] = np.minimum(p[:, place], found)
        if reference.pairs is not None and n_pairs:
            p[:, -1] = np.minimum(p[:, -1], pair_p_values(reference.pairs, merged.pairs).min(axis=1))
    return asked, p, n_tests


def feature_p_values(was: FeatureCounts, now: FeatureSeries, *, numeric: bool) -> Floats:
    """Return the smallest p of a feature's tests at each window, shape (n_windows,); not yet corrected."""
    present = was.n_rows - was.missing
    p = chi_square(merged_cells(was.cells, now.cells, ordered=numeric))[2]
    for question in _QUESTIONS[numeric][1:]:
        hits, k = getattr(was, question), now.count(question)
        if question == "missing":
            found = share_p_values(hits, was.n_rows, k, now.n_rows, exact_below=_SURELY_LARGER)
        elif question == "unseen":
            found = share_p_values(hits, present, k, now.present, exact_below=_SURELY_LARGER)
        else:
            found = tail_p_values(hits, present, k, now.present, exact_below=_SURELY_LARGER)
        p = np.minimum(p, found)
    return p


def independent_alarm(
    reference: GridCounts, series: WindowSeries, *, horizon: int = 200, alpha: float = 0.05
) -> DriftAlarm:
    """Return the verdict of the lane of independent rows: P(any alarm in `horizon` windows without drift) <= alpha."""
    asked, p, n_tests = independent_p_values(reference, series)
    limit = alpha / (horizon * len(SCALES) * n_tests)
    over = p < limit
    steps = np.flatnonzero(over.any(axis=1))
    now = [name for name, alarms in zip(asked, over[-1], strict=True) if alarms] if len(p) else []
    smallest = float(p[-1].min()) if len(p) else 1.0
    reason = f"smallest p {smallest:.1g} in {asked[int(p[-1].argmin())] if len(p) else '-'}, alarm below {limit:.1g}"
    return DriftAlarm(
        "independent rows", len(p) > 0, bool(now), int(steps[0]) if steps.size else None, tuple(now), reason
    )


def exchangeable_alarm(
    series: WindowSeries,
    *,
    n_reference: int = 0,
    horizon: int = 200,
    alpha: float = 0.05,
    strata: Sequence[Hashable] | None = None,
) -> DriftAlarm:
    """Return the verdict of the lane of exchangeable windows.

    Parameters
    ----------
    series : WindowSeries
        In order of time; the first `n_reference` are windows of the training rows.
    n_reference : int
        With fewer than `CALIBRATION_WINDOWS` of them, the first live ones complete the calibration.
    strata : sequence, one a window, optional
        Windows are compared within their stratum (their weekday, say), each of which needs its own calibration.
    """
    kinds = ["all"] * len(series) if strata is None else [str(kind) for kind in strata]
    n_calibration = max(n_reference, CALIBRATION_WINDOWS * len(set(kinds)))
    if len(series) <= n_calibration:
        reason = f"needs {n_calibration} windows to compare with before the first verdict, has {len(series)}"
        return DriftAlarm("exchangeable windows", False, False, None, (), reason)
    asked, scores = strangeness(series, n_calibration // 2, kinds)
    p = conformal_p_values(scores, n_calibration, strata=kinds)
    evidence, by_feature = rank_evidence(p, horizon=horizon, alpha=alpha)
    alarm = bool(evidence.log_e[-1] >= evidence.threshold)
    top = by_feature[-1].argsort()[::-1][:3]
    named = [asked[i] for i in top if by_feature[-1, i] >= by_feature[-1, top[0]] - np.log(10.0)]
    reason = f"evidence {evidence.log_e[-1]:.1f} (logarithm), most in {named[0]}, alarm from {evidence.threshold:.1f}"
    return DriftAlarm("exchangeable windows", True, alarm, evidence.first_alarm, tuple(named) if alarm else (), reason)


def strangeness(series: WindowSeries, n_base: int, kinds: Sequence[str]) -> tuple[list[str], Floats]:
    """Return how far each window is from the first `n_base` of its kind, shape (n_windows, n_asked).

    Features: squared Hellinger distance over ten bins and the counts beside them. Pairs: the largest change of a mean
    product.
    """
    same = np.array([[a == b for b in kinds[:n_base]] for a in kinds], float)
    columns = {name: _hellinger(s, same, ordered=series.is_number(name)) for name, s in series.features.items()}
    if series.pairs.n.shape[1]:
        means = _base(series.pairs.products, same) / np.maximum(_base(series.pairs.n, same), 1)
        columns[PAIRS] = np.abs(series.pairs.means - means).max(axis=1)
    held = [name for name, column in columns.items() if not np.isnan(column).any()]
    return held, np.column_stack([columns[name] for name in held])


def rows_look_independent(windows: WindowSeries) -> bool:
    """Tell whether windows differ by no more than independent rows would: chi-square over df near 1 in all features."""
    ratios = []
    for name, series in windows.features.items():
        bins = _binned(series, series.everything().sum(axis=0, keepdims=True), ordered=windows.is_number(name))
        n, total = bins.sum(axis=1, keepdims=True), bins.sum()
        expected = n * bins.sum(axis=0) / max(total, 1)
        used = expected >= 1
        df = used.sum() - used.any(axis=0).sum()
        if df > 0:
            ratios.append(float(((bins - expected)[used] ** 2 / expected[used]).sum() / df))
    return bool(ratios) and max(ratios) < _ALIKE


def live_alarm(
    reference: ReferenceProfile,
    live: Mapping[datetime, GridCounts],
    *,
    lane: str = "auto",
    strata: str = "none",
    horizon: int = 200,
    alpha: float = 0.05,
) -> DriftAlarm:
    """Return the verdict on a version's windows, in the lane that is asked for or that its training windows call for.

    Parameters
    ----------
    live : mapping of window start (UTC) to counts
        Finished windows in order of time: half a day is not like a day.
    """
    known = WindowSeries.of(reference.grid, list(reference.windows.values()))
    if lane == "auto":
        independent = len(known) >= _ENOUGH_TO_COMPARE and rows_look_independent(known)
        lane = "independent rows" if independent else "exchangeable windows"
    if lane == "independent rows":
        series = WindowSeries.of(reference.grid, list(live.values()))
        return independent_alarm(reference.counts, series, horizon=horizon, alpha=alpha)
    starts = [*reference.windows, *live]
    series = WindowSeries.of(reference.grid, [*reference.windows.values(), *live.values()])
    kinds = [_STRATA[strata](start) for start in starts]
    return exchangeable_alarm(series, n_reference=len(known), horizon=horizon, alpha=alpha, strata=kinds)


_STRATA: Mapping[str, Callable[[datetime], Hashable]] = {
    "none": lambda _: "all",
    "hour": lambda start: start.hour,
    "weekday": lambda start: start.weekday(),
    "hour of the week": lambda start: (start.weekday(), start.hour),
}

_QUESTIONS = {
    True: ("distribution", "missing", "unseen", "below", "above", "far"),
    False: ("distribution", "missing", "unseen"),
}


def _base(counts: NDArray[np.float64], same: Floats) -> Floats:
    """Return for each window the sum over the base windows of its kind."""
    return same @ counts[: same.shape[1]]


def _hellinger(series: FeatureSeries, same: Floats, *, ordered: bool) -> Floats:
    base = _binned(series, _base(series.everything().astype(float), same).sum(axis=0, keepdims=True), ordered=ordered)
    was = _base(base, same)
    with np.errstate(invalid="ignore"):
        overlap = np.sqrt(base / base.sum(axis=1, keepdims=True) * (was / was.sum(axis=1, keepdims=True))).sum(axis=1)
    # An empty window tells nothing: it is as near as can be. A feature that the base does not have is not watched.
    return np.where(was.sum(axis=1) == 0, np.nan, np.where(base.sum(axis=1) == 0, 0.0, 1 - overlap))


def _binned(series: FeatureSeries, base: Floats, *, ordered: bool) -> Floats:
    """Return counts over about ten bins of equal base share (the ten largest levels and the rest), and those beside."""
    n_cells = series.cells.shape[1]
    cells, held = series.cells.astype(float), base[0, :n_cells]
    if not n_cells:
        return series.beside[:, :4].astype(float)
    if ordered:
        middle = (np.cumsum(held) - held / 2) / max(held.sum(), 1)
        group = np.minimum((middle * 10).astype(int), 9)
        edges = [*np.flatnonzero(np.r_[True, np.diff(group) > 0]).tolist(), n_cells]
        merged = np.column_stack([cells[:, a:b].sum(axis=1) for a, b in pairwise(edges)])
    else:
        largest = np.argsort(-held, kind="stable")
        merged = np.c_[cells[:, largest[:10]], cells[:, largest[10:]].sum(axis=1)]
    return np.c_[merged, series.beside[:, :4]]
