"""Streams of windows with and without drift, for what the alarm costs and finds.

Twenty features: twelve numbers (normal, skewed, bounded, heavy-tailed, counts, mostly zero; two with 5 % missing) and
eight categories (2 to 50 levels). Rows of numbers are drawn as the places of the reference's grid that they fall
into, by exact probabilities, so that a window of 10 000 rows costs milliseconds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from forge_core.monitoring.window_series import FeatureSeries, WindowSeries
from forge_core.statistics.cells import CategoryCells, NumericCells
from forge_core.statistics.counts import GridCounts
from forge_core.statistics.distributions import ReferenceGrid
from forge_core.statistics.pair_moments import PairMoments

Floats = NDArray[np.float64]
Cdf = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Number:
    """A number's distribution: P(X <= x), P(X < x), a sampler, and its share of missing values."""

    upto: Cdf
    below: Cdf
    draw: Callable[[np.random.Generator, int], Floats]
    missing: float = 0.0


def _continuous(distribution: stats.rv_continuous, missing: float = 0.0) -> Number:
    draw = lambda rng, n: distribution.rvs(size=n, random_state=rng)  # noqa: E731
    return Number(distribution.cdf, distribution.cdf, draw, missing)


def _zero_inflated(rng: np.random.Generator, n: int) -> Floats:
    return np.where(rng.random(n) < 0.7, 0.0, rng.exponential(size=n))


_POISSON = stats.poisson(3)
NUMBERS: dict[str, Number] = {
    **{f"normal{i}": _continuous(stats.norm(), 0.05 if i == 3 else 0.0) for i in range(4)},
    **{f"lognormal{i}": _continuous(stats.lognorm(1.0), 0.05 if i else 0.0) for i in range(2)},
    "exponential": _continuous(stats.expon()),
    "uniform": _continuous(stats.uniform()),
    "t3": _continuous(stats.t(3)),
    "poisson": Number(_POISSON.cdf, lambda x: _POISSON.cdf(x - 1), lambda g, n: g.poisson(3, n).astype(float)),
    "mostly_zero": Number(
        lambda x: np.where(x < 0, 0, 0.7 + 0.3 * stats.expon.cdf(x)),
        lambda x: np.where(x <= 0, 0, 0.7 + 0.3 * stats.expon.cdf(x)),
        _zero_inflated,
    ),
    "beta": _continuous(stats.beta(2, 5)),
}


def _zipf(n_levels: int) -> list[float]:
    weights = 1 / np.arange(1, n_levels + 1)
    return (weights / weights.sum()).tolist()


CATEGORIES: dict[str, list[float]] = {
    "two": [0.5, 0.5],
    "two_rare": [0.98, 0.02],
    "three": [0.5, 0.3, 0.2],
    "four": [0.4, 0.3, 0.2, 0.1],
    "five": [0.2] * 5,
    "eight": [0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05],
    "twenty": _zipf(20),
    "fifty": _zipf(50),
}


def draw_rows(rng: np.random.Generator, n: int) -> pd.DataFrame:
    """Return rows without drift."""
    rows: dict[str, NDArray] = {}
    for name, number in NUMBERS.items():
        rows[name] = np.where(rng.random(n) < number.missing, np.nan, number.draw(rng, n))
    for name, shares in CATEGORIES.items():
        rows[name] = np.array([f"{name}-{i}" for i in range(len(shares))])[rng.choice(len(shares), n, p=shares)]
    return pd.DataFrame(rows)


def draw_reference(rng: np.random.Generator, m: int) -> tuple[ReferenceGrid, GridCounts]:
    """Return the grid and counts of a reference of m rows."""
    rows = draw_rows(rng, m)
    grid = ReferenceGrid.fit(rows, list(CATEGORIES), list(NUMBERS))
    return grid, grid.count(rows)


def draw_windows(rng: np.random.Generator, grid: ReferenceGrid, n_windows: int, n: int) -> WindowSeries:
    """Return windows of n rows each without drift."""
    features: dict[str, FeatureSeries] = {}
    places: dict[str, NDArray[np.int64]] = {}
    for name, cells in grid.features.items():
        if isinstance(cells, NumericCells):
            features[name], places[name] = _numbers(rng, NUMBERS[name], cells, n_windows, n)
        else:
            features[name] = _levels(rng, name, cells, n_windows, n)
    moments = [
        grid.scores.moments({name: place[window] for name, place in places.items()}) for window in range(n_windows)
    ]
    pairs = PairMoments(*(np.stack([vars(m)[part] for m in moments]) for part in ("n", "products", "squares")))
    return WindowSeries(grid, features, pairs, np.full(n_windows, n))


def _numbers(
    rng: np.random.Generator, number: Number, cells: NumericCells, n_windows: int, n: int
) -> tuple[FeatureSeries, NDArray[np.int64]]:
    edges, least, n_cells = np.array(cells.edges), np.array([cells.minimum]), len(cells.edges)
    upto = number.upto(edges)
    low = float(number.below(least)[0])
    inside = np.diff(np.r_[low, upto])
    far = [float(number.below(np.array([-cells.far]))[0]), 1 - float(number.upto(np.array([cells.far]))[0])]
    shares = np.r_[inside, low - far[0], 1 - upto[-1] - far[1], far]  # …, below, above, far below, far above
    drawn = np.searchsorted(np.cumsum(shares / shares.sum()), rng.random((n_windows, n)), side="right")
    drawn = np.minimum(drawn, n_cells + 3)
    held = rng.random((n_windows, n)) >= number.missing
    counts = np.stack([np.bincount(row[keep], minlength=n_cells + 4) for row, keep in zip(drawn, held, strict=True)])
    below, above = counts[:, n_cells] + counts[:, n_cells + 2], counts[:, n_cells + 1] + counts[:, n_cells + 3]
    zero = np.zeros(n_windows, np.int64)
    beside = np.column_stack([n - held.sum(axis=1), zero, below, above, counts[:, n_cells + 2 :].sum(axis=1)])
    place = np.where(drawn >= n_cells + 2, drawn - 2, drawn)
    return FeatureSeries(counts[:, :n_cells], beside), np.where(held, place, -1)


def _levels(rng: np.random.Generator, name: str, cells: CategoryCells, n_windows: int, n: int) -> FeatureSeries:
    shares = {f"{name}-{i}": share for i, share in enumerate(CATEGORIES[name])}
    known = [shares.pop(level) for level in cells.levels]
    counts = rng.multinomial(n, [*known, sum(shares.values())], size=n_windows)
    zero = np.zeros(n_windows, np.int64)
    return FeatureSeries(counts[:, :-1], np.column_stack([zero, counts[:, -1], zero, zero, zero]))


def _some(rng: np.random.Generator, share: float, n: int) -> NDArray[np.bool_]:
    return rng.random(n) < share


SHIFTS: dict[str, tuple[int, Callable[[np.random.Generator, pd.DataFrame], pd.DataFrame]]] = {
    "mean 0.25 sigma": (1500, lambda g, r: r.assign(normal0=r["normal0"] + 0.25)),
    "mean 0.5 sigma": (400, lambda g, r: r.assign(normal0=r["normal0"] + 0.5)),
    "variance x 1.5": (2000, lambda g, r: r.assign(normal0=r["normal0"] * np.sqrt(1.5))),
    "category 10 pp": (
        600,
        lambda g, r: r.assign(four=r["four"].mask((r["four"] == "four-0") & _some(g, 0.25, len(r)), "four-3")),
    ),
    "missing 0 to 1 %": (1400, lambda g, r: r.assign(normal0=r["normal0"].mask(_some(g, 0.01, len(r))))),
    "new category 1 %": (1200, lambda g, r: r.assign(four=r["four"].mask(_some(g, 0.01, len(r)), "four-new"))),
    "unit x 1000": (200, lambda g, r: r.assign(normal0=r["normal0"] * 1000)),
    "unit x 1000 in 5 %": (
        400,
        lambda g, r: r.assign(normal0=r["normal0"].where(~_some(g, 0.05, len(r)), r["normal0"] * 1000)),
    ),
    "correlation 0 to 0.3": (
        600,
        lambda g, r: r.assign(normal1=0.3 * r["normal0"] + np.sqrt(1 - 0.09) * r["normal1"]),
    ),
}


def shifted_windows(rng: np.random.Generator, grid: ReferenceGrid, shift: str, n_windows: int, n: int) -> WindowSeries:
    """Return windows of n drawn rows each, all with a shift."""
    change = SHIFTS[shift][1]
    return WindowSeries.of(grid, [grid.count(change(rng, draw_rows(rng, n))) for _ in range(n_windows)])
