"""Counts on a grid that the reference fixed: the one form in which rows are compared.

A numeric feature gets up to 64 cells at the reference's quantiles, each closed on the right, `(edge[i-1], edge[i]]`,
so that a value which holds much of the mass (a zero, a constant) ends a cell of its own; what lies below the
reference's least or above its largest value is counted apart. A categorical feature gets its 200 most frequent
levels and one count for the rest. Missing values are counted, never dropped. Counts of one grid add up: merging is
exact, whatever the order.
"""

import hashlib
import json
import math
import numbers
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forge_core.errors import EmptyData, SchemaViolation

MAX_CELLS = 64
MAX_LEVELS = 200


@dataclass(frozen=True)
class NumericCells:
    """The cells of a number: the least reference value, and each cell's upper end (the last is the largest value).

    A column without a finite value has no cells; every value of it counts as unseen.
    """

    minimum: float
    edges: tuple[float, ...]


@dataclass(frozen=True)
class CategoryCells:
    """The cells of a category: its levels as text, the most frequent first."""

    levels: tuple[str, ...]

    @cached_property
    def index(self) -> dict[str, int]:
        """Return each level's cell number."""
        return {level: number for number, level in enumerate(self.levels)}


@dataclass(frozen=True, eq=False)
class FeatureCounts:
    """Rows of one feature: per cell (int64, shape (n_cells,)), missing, unseen, below and above the reference's range.

    Unseen means a level outside the grid's, or something that is no number in a numeric feature.
    """

    cells: NDArray[np.int64]
    missing: int = 0
    unseen: int = 0
    below: int = 0
    above: int = 0

    @property
    def n_rows(self) -> int:
        """Return all rows, missing ones included."""
        return int(self.cells.sum()) + self.missing + self.unseen + self.below + self.above

    def __add__(self, other: "FeatureCounts") -> "FeatureCounts":
        return FeatureCounts(
            self.cells + other.cells,
            self.missing + other.missing,
            self.unseen + other.unseen,
            self.below + other.below,
            self.above + other.above,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "cells": self.cells.tolist()}


@dataclass(frozen=True, eq=False)
class GridCounts:
    """What a set of rows looks like on a grid; `a + b` is what both together look like."""

    grid_digest: str
    n_rows: int
    features: Mapping[str, FeatureCounts] = field(default_factory=dict)

    def __getitem__(self, feature: str) -> FeatureCounts:
        return self.features[feature]

    def __add__(self, other: "GridCounts") -> "GridCounts":
        if self.grid_digest != other.grid_digest:
            raise ValueError(
                f"expected counts on grid {self.grid_digest}, found grid {other.grid_digest}; only counts on the "
                "same reference add up, so count the rows again on one grid"
            )
        merged = {name: counts + other.features[name] for name, counts in self.features.items()}
        return GridCounts(self.grid_digest, self.n_rows + other.n_rows, merged)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        features = {name: counts.to_dict() for name, counts in self.features.items()}
        return {"grid": self.grid_digest, "n_rows": self.n_rows, "features": features}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "GridCounts":
        """Return the counts that `to_dict` gave away."""
        features = {
            name: FeatureCounts(**{**counts, "cells": np.asarray(counts["cells"], np.int64)})
            for name, counts in value["features"].items()
        }
        return cls(value["grid"], value["n_rows"], features)


@dataclass(frozen=True)
class ReferenceGrid:
    """The cells of every watched feature.

    Examples
    --------
    >>> reference = pd.DataFrame({"age": [20, 30, 40, None], "city": ["a", "a", "b", "c"]})
    >>> grid = ReferenceGrid.fit(reference, categorical=["city"], numerical=["age"])
    >>> counts = grid.count(pd.DataFrame({"age": [25, 99], "city": ["b", "z"]}))
    >>> counts["age"].cells.tolist(), counts["age"].above, counts["city"].unseen
    ([0, 1, 0], 1, 1)
    """

    features: Mapping[str, NumericCells | CategoryCells]

    @classmethod
    def fit(cls, frame: pd.DataFrame, categorical: Sequence[str], numerical: Sequence[str]) -> "ReferenceGrid":
        """Return the grid that these rows fix.

        Raises
        ------
        SchemaViolation
            When a named column is not there.
        EmptyData
            When there are no rows.
        """
        _require_columns(frame, [*categorical, *numerical])
        if not len(frame):
            raise EmptyData("expected reference rows, found none; a grid cannot be fixed on an empty frame")
        numeric = {name: _numeric_cells(frame[name]) for name in numerical}
        return cls({**numeric, **{name: _category_cells(frame[name]) for name in categorical}})

    @cached_property
    def digest(self) -> str:
        """Return 16 hex digits that tell grids apart."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def count(self, frame: pd.DataFrame) -> GridCounts:
        """Return the rows counted on this grid; further columns are ignored, a missing one is a SchemaViolation."""
        _require_columns(frame, self.features)
        counts = {
            name: _count_numbers(frame[name], cells)
            if isinstance(cells, NumericCells)
            else _count_levels(frame[name], cells)
            for name, cells in self.features.items()
        }
        return GridCounts(self.digest, len(frame), counts)

    def empty(self) -> GridCounts:
        """Return the counts of no rows."""
        sizes = {n: len(c.edges if isinstance(c, NumericCells) else c.levels) for n, c in self.features.items()}
        return GridCounts(self.digest, 0, {n: FeatureCounts(np.zeros(size, np.int64)) for n, size in sizes.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; numbers survive exactly."""
        ranges = {n: c for n, c in self.features.items() if isinstance(c, NumericCells)}
        numeric = {n: [c.minimum, *c.edges] for n, c in ranges.items() if c.edges}
        blank = [n for n, c in ranges.items() if not c.edges]
        levels = {n: list(c.levels) for n, c in self.features.items() if isinstance(c, CategoryCells)}
        return {"numerical": numeric, "blank": blank, "categorical": levels}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "ReferenceGrid":
        """Return the grid that `to_dict` gave away."""
        numeric = {name: NumericCells(ends[0], tuple(ends[1:])) for name, ends in value["numerical"].items()}
        blank = {name: NumericCells(math.nan, ()) for name in value["blank"]}
        levels = {name: CategoryCells(tuple(found)) for name, found in value["categorical"].items()}
        return cls({**numeric, **blank, **levels})


def _require_columns(frame: pd.DataFrame, wanted: Iterable[str]) -> None:
    absent = [name for name in wanted if name not in frame.columns]
    if absent:
        raise SchemaViolation(
            f"expected columns {', '.join(absent)}, found {', '.join(map(str, frame.columns))}; "
            "hand over every watched feature, or watch fewer",
            context={"columns": absent},
        )


def _numeric_cells(column: pd.Series) -> NumericCells:
    values, _ = _numbers(column)
    values = values[np.isfinite(values)]
    if not values.size:
        return NumericCells(math.nan, ())
    distinct = np.unique(values)
    if distinct.size > MAX_CELLS:
        shares = np.arange(1, MAX_CELLS + 1) / MAX_CELLS
        distinct = np.unique(np.quantile(values, shares, method="inverted_cdf"))
    return NumericCells(float(values.min()), tuple(distinct.tolist()))


def _category_cells(column: pd.Series) -> CategoryCells:
    codes, uniques = pd.factorize(column)
    totals: dict[str, int] = {}
    for value, n in zip(uniques, np.bincount(codes[codes >= 0], minlength=len(uniques)).tolist(), strict=True):
        totals[_level(value)] = totals.get(_level(value), 0) + n
    ranked = sorted(totals, key=lambda level: (-totals[level], level))
    return CategoryCells(tuple(ranked[:MAX_LEVELS]))


def _count_numbers(column: pd.Series, grid: NumericCells) -> FeatureCounts:
    values, unreadable = _numbers(column)
    missing = int(np.isnan(values).sum()) - unreadable
    values = values[~np.isnan(values)]
    if not grid.edges:
        return FeatureCounts(np.zeros(0, np.int64), missing, unreadable + values.size)
    below, above = values < grid.minimum, values > grid.edges[-1]
    inside = np.searchsorted(grid.edges, values[~(below | above)], side="left")
    cells = np.bincount(inside, minlength=len(grid.edges)).astype(np.int64)
    return FeatureCounts(cells, missing, unreadable, int(below.sum()), int(above.sum()))


def _count_levels(column: pd.Series, grid: CategoryCells) -> FeatureCounts:
    codes, uniques = pd.factorize(column)
    present = codes[codes >= 0]
    cell_of = np.array([grid.index.get(_level(value), len(grid.levels)) for value in uniques], np.int64)
    cells = np.bincount(cell_of[present], minlength=len(grid.levels) + 1).astype(np.int64)
    return FeatureCounts(cells[:-1], len(codes) - len(present), int(cells[-1]))


def _numbers(column: pd.Series) -> tuple[NDArray[np.float64], int]:
    """Return values as float64 with NaN for missing, and how many of those NaN are values that are no number."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan), 0
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return values, int((np.isnan(values) & column.notna().to_numpy()).sum())


def _level(value: Hashable) -> str:
    """Return a level's name; 3, 3.0 and numpy's 3 are one level, because a missing value turns integers to floats."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        return str(value)
    number = float(value)
    return str(int(value)) if number.is_integer() else repr(number)
