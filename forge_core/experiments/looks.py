"""Counts of users, sums and squares by variant, as they stood at each of many moments."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forge_core.experiments.definition import Metric
from forge_core.experiments.joined import COUNTED, Joined

Floats = NDArray[np.float64]
MOST_LOOKS = 400


@dataclass(frozen=True, eq=False)
class Looks:
    """What was known of one metric at each look.

    Attributes
    ----------
    at : DatetimeIndex of length n_looks
    variants : list of str
    n, mean, variance : ndarray of shape (n_looks, n_variants)
        Users that count, and mean and variance over them; NaN where there are none (for the variance, fewer than two).
    total : ndarray of shape (n_looks, n_variants)
        Sums: conversions, where the metric is one.
    exposed : ndarray of shape (n_looks, n_variants)
        Users that have met the variant and entered the verdict.
    """

    at: pd.DatetimeIndex
    variants: list[str]
    n: Floats
    mean: Floats
    variance: Floats
    total: Floats
    exposed: Floats

    def column(self, variant: str) -> int:
        """Return a variant's column."""
        return self.variants.index(variant)

    def until(self, n_looks: int) -> "Looks":
        """Return the first looks only."""
        arrays = {name: getattr(self, name)[:n_looks] for name in ("at", "n", "mean", "variance", "total", "exposed")}
        return Looks(variants=self.variants, **arrays)


def moments_of_looks(joined: Joined, n_units: NDArray[np.int64] | None = None) -> pd.DatetimeIndex:
    """Return when to look: at these numbers of users, or evenly over users and outcomes, always at the last."""
    times = joined.exposures["counts_at"].sort_values()
    if n_units is None:
        counted = joined.outcomes.loc[joined.outcomes["why"] == COUNTED, "counts_at"]
        times = pd.concat([times, counted]).sort_values()
        n_units = np.unique(np.linspace(1, len(times), min(len(times), MOST_LOOKS)).round().astype(int))
    return pd.DatetimeIndex(times.iloc[n_units[n_units <= len(times)] - 1])


def look(joined: Joined, metric: Metric, variants: list[str], at: pd.DatetimeIndex) -> Looks:
    """Return a metric's figures at each of these moments.

    Values of a user are added up; a conversion is whether there is any above 0. A ratio's variance is that of
    the delta method (Deng, Knoblich, Lu, KDD 2018, section 3).
    """
    exposed = _at(joined.exposures["counts_at"], joined.exposures["variant"], None, variants, at)
    counted = joined.outcomes[joined.outcomes["why"] == COUNTED]
    steps = _steps(counted, metric)
    sums = {
        name: _at(steps["counts_at"], steps["variant"], steps[name], variants, at)
        for name in ("n", "y", "yy", "x", "xx", "xy")
    }
    whole = metric.kind == "conversion" or (metric.kind == "mean" and metric.absent == "zero")
    n = exposed if whole else sums["n"]
    with np.errstate(invalid="ignore", divide="ignore"):
        y, x = sums["y"] / n, sums["x"] / n
        bessel = n / (n - 1)
        if metric.kind == "ratio":
            mean = y / x
            spread = sums["yy"] / n - 2 * mean * sums["xy"] / n + mean**2 * sums["xx"] / n
            variance = spread * bessel / x**2
        else:
            mean, variance = y, (sums["yy"] / n - y**2) * bessel
    variance = np.where(n > 1, np.maximum(variance, 0.0), np.nan)
    return Looks(at, variants, n, np.where(n > 0, mean, np.nan), variance, sums["y"], exposed)


def _steps(counted: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Return by how much each outcome moves the sums: users, values, their squares, and the products of a ratio."""
    mine = counted[counted["metric"].isin(metric.recorded)].sort_values(["counts_at", "id"], kind="stable")
    # Nobody's outcomes stand each for a user of its own.
    unit = mine["unit"].where(mine["unit"] != "", "#" + mine["id"].astype(str))
    is_x = (mine["metric"] == metric.per).to_numpy()
    value = mine["value"].to_numpy(float)
    dy, dx = np.where(is_x, 0.0, value), np.where(is_x, value, 0.0)
    sums = pd.DataFrame({"y": dy, "x": dx}).groupby(unit.to_numpy()).cumsum().to_numpy()
    after_y, after_x = sums[:, 0], sums[:, 1]
    before_y, before_x = after_y - dy, after_x - dx
    if metric.kind == "conversion":
        after_y, before_y = (after_y > 0).astype(float), (before_y > 0).astype(float)
    return pd.DataFrame(
        {
            "counts_at": mine["counts_at"].to_numpy(),
            "variant": mine["variant"].to_numpy(),
            "n": (~unit.duplicated()).to_numpy(float),
            "y": after_y - before_y,
            "yy": after_y**2 - before_y**2,
            "x": after_x - before_x,
            "xx": after_x**2 - before_x**2,
            "xy": after_x * after_y - before_x * before_y,
        }
    )


def _at(
    times: pd.Series, names: pd.Series, steps: pd.Series | None, variants: list[str], at: pd.DatetimeIndex
) -> Floats:
    """Return the sums of steps (ones, where there are none) up to each moment, by variant."""
    # Times are compared as whole microseconds: pandas' own comparison is slow for a million of them.
    moments = np.asarray(at.as_unit("us").asi8)
    when = pd.DatetimeIndex(times).as_unit("us").asi8
    order = np.argsort(when, kind="stable")
    name = names.to_numpy()[order]
    step = np.ones(len(when)) if steps is None else steps.to_numpy(float)[order]
    upto = np.searchsorted(when[order], moments, side="right")
    columns = [np.r_[0.0, np.cumsum(np.where(name == variant, step, 0.0))][upto] for variant in variants]
    return np.column_stack(columns)
