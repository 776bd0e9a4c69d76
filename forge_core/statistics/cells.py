"""The cells of one feature, and which of them a value falls into.

A numeric feature gets up to 64 cells at the reference's quantiles, each closed on the right, `(edge[i-1], edge[i]]`,
so that a value which holds much of the mass (a zero, a constant) ends a cell of its own; what lies below the
reference's least or above its largest value is counted apart. A categorical feature gets its 200 most frequent
levels and one count for the rest.
"""

import math
import numbers
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

MAX_CELLS = 64
MAX_LEVELS = 200
FAR = 10.0


@dataclass(frozen=True)
class NumericCells:
    """The cells of a number: the least reference value, and each cell's upper end (the last is the largest value).

    A column without a finite value has no cells; every value of it counts as unseen.
    """

    minimum: float
    edges: tuple[float, ...]

    @property
    def far(self) -> float:
        """Return the size from which a value is of another order than all in the reference."""
        largest = max(abs(self.minimum), abs(self.edges[-1])) if self.edges else 0.0
        return FAR * largest or math.inf

    def places(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return each value's cell; one past the cells for below the range, two for above, -1 for missing."""
        inside = np.searchsorted(self.edges, values, side="left")
        n = len(self.edges)
        place = np.where(values < self.minimum, n, np.where(inside == n, n + 1, inside))
        return np.where(np.isnan(values), -1, place)


@dataclass(frozen=True)
class CategoryCells:
    """The cells of a category: its levels as text, the most frequent first."""

    levels: tuple[str, ...]

    @cached_property
    def index(self) -> dict[str, int]:
        """Return each level's cell number."""
        return {level: number for number, level in enumerate(self.levels)}


def fit_numeric(column: pd.Series) -> NumericCells:
    """Return the cells that a reference column of numbers fixes."""
    values, _ = to_numbers(column)
    values = values[np.isfinite(values)]
    if not values.size:
        return NumericCells(math.nan, ())
    distinct = np.unique(values)
    if distinct.size > MAX_CELLS:
        shares = np.arange(1, MAX_CELLS + 1) / MAX_CELLS
        distinct = np.unique(np.quantile(values, shares, method="inverted_cdf"))
    return NumericCells(float(values.min()), tuple(distinct.tolist()))


def fit_category(column: pd.Series) -> CategoryCells:
    """Return the cells that a reference column of levels fixes."""
    codes, uniques = pd.factorize(column)
    totals: dict[str, int] = {}
    for value, n in zip(uniques, np.bincount(codes[codes >= 0], minlength=len(uniques)).tolist(), strict=True):
        totals[level_name(value)] = totals.get(level_name(value), 0) + n
    ranked = sorted(totals, key=lambda level: (-totals[level], level))
    return CategoryCells(tuple(ranked[:MAX_LEVELS]))


def to_numbers(column: pd.Series) -> tuple[NDArray[np.float64], int]:
    """Return values as float64 with NaN for missing, and how many of those NaN are values that are no number."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan), 0
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return values, int((np.isnan(values) & column.notna().to_numpy()).sum())


def level_name(value: Hashable) -> str:
    """Return a level's name; 3, 3.0 and numpy's 3 are one level, because a missing value turns integers to floats."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        return str(value)
    number = float(value)
    return str(int(value)) if number.is_integer() else repr(number)
