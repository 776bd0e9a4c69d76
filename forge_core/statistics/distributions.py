"""Counts on a grid that the reference fixed: the one form in which rows are compared.

Missing values are counted, never dropped. Counts of one grid add up: merging is exact, whatever the order.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forge_core.errors import EmptyData, SchemaViolation
from forge_core.statistics.cells import (
    CategoryCells,
    NumericCells,
    fit_category,
    fit_numeric,
    level_name,
    to_numbers,
)
from forge_core.statistics.counts import FeatureCounts, GridCounts
from forge_core.statistics.pair_moments import NormalScores, PairMoments


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
    scores: NormalScores = field(default_factory=lambda: NormalScores({}))

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
        numeric = {name: fit_numeric(frame[name]) for name in numerical}
        held = {name: _count_numbers(frame[name], cells)[0].cells for name, cells in numeric.items()}
        levels = {name: fit_category(frame[name]) for name in categorical}
        return cls({**numeric, **levels}, NormalScores.fit(held))

    @cached_property
    def digest(self) -> str:
        """Return 16 hex digits that tell grids apart."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def count(self, frame: pd.DataFrame) -> GridCounts:
        """Return the rows counted on this grid; further columns are ignored, a missing one is a SchemaViolation."""
        _require_columns(frame, self.features)
        counts, places = {}, {}
        for name, cells in self.features.items():
            if isinstance(cells, NumericCells):
                counts[name], places[name] = _count_numbers(frame[name], cells)
            else:
                counts[name] = _count_levels(frame[name], cells)
        return GridCounts(self.digest, len(frame), counts, self.scores.moments(places))

    def empty(self) -> GridCounts:
        """Return the counts of no rows."""
        sizes = {n: len(c.edges if isinstance(c, NumericCells) else c.levels) for n, c in self.features.items()}
        none = {name: FeatureCounts(np.zeros(size, np.int64)) for name, size in sizes.items()}
        return GridCounts(self.digest, 0, none, PairMoments.none(self.scores))

    def of(self, names: Sequence[str]) -> "ReferenceGrid":
        """Return the grid of some features; pairs are kept where all of theirs are among them."""
        kept = {name: self.features[name] for name in names}
        return ReferenceGrid(kept, self.scores if set(self.scores.scores) <= set(kept) else NormalScores({}))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; numbers survive exactly."""
        ranges = {n: c for n, c in self.features.items() if isinstance(c, NumericCells)}
        numeric = {n: [c.minimum, *c.edges] for n, c in ranges.items() if c.edges}
        blank = [n for n, c in ranges.items() if not c.edges]
        levels = {n: list(c.levels) for n, c in self.features.items() if isinstance(c, CategoryCells)}
        scores = {name: list(places) for name, places in self.scores.scores.items()}
        return {"numerical": numeric, "blank": blank, "categorical": levels, "scores": scores}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "ReferenceGrid":
        """Return the grid that `to_dict` gave away."""
        numeric = {name: NumericCells(ends[0], tuple(ends[1:])) for name, ends in value["numerical"].items()}
        blank = {name: NumericCells(math.nan, ()) for name in value["blank"]}
        levels = {name: CategoryCells(tuple(found)) for name, found in value["categorical"].items()}
        scores = NormalScores({name: tuple(places) for name, places in value["scores"].items()})
        return cls({**numeric, **blank, **levels}, scores)


def _require_columns(frame: pd.DataFrame, wanted: Iterable[str]) -> None:
    absent = [name for name in wanted if name not in frame.columns]
    if absent:
        raise SchemaViolation(
            f"expected columns {', '.join(absent)}, found {', '.join(map(str, frame.columns))}; "
            "hand over every watched feature, or watch fewer",
            context={"columns": absent},
        )


def _count_numbers(column: pd.Series, grid: NumericCells) -> tuple[FeatureCounts, NDArray[np.int64]]:
    values, unreadable = to_numbers(column)
    places, n = grid.places(values), len(grid.edges)
    held = np.bincount(places + 1, minlength=n + 3)[1:].tolist()
    missing = int((places < 0).sum()) - unreadable
    if not n:
        return FeatureCounts(np.zeros(0, np.int64), missing, unreadable + sum(held)), places
    far = int((np.abs(values) > grid.far).sum())
    return FeatureCounts(np.array(held[:n], np.int64), missing, unreadable, held[n], held[n + 1], far), places


def _count_levels(column: pd.Series, grid: CategoryCells) -> FeatureCounts:
    codes, uniques = pd.factorize(column)
    present = codes[codes >= 0]
    cell_of = np.array([grid.index.get(level_name(value), len(grid.levels)) for value in uniques], np.int64)
    cells = np.bincount(cell_of[present], minlength=len(grid.levels) + 1).astype(np.int64)
    return FeatureCounts(cells[:-1], len(codes) - len(present), int(cells[-1]))
