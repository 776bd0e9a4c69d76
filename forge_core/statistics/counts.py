"""Counts of rows on a reference's grid: they add up, exactly, whatever the order."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forge_core.statistics.pair_moments import PairMoments


@dataclass(frozen=True, eq=False)
class FeatureCounts:
    """Rows of one feature: per cell (int64, shape (n_cells,)), missing, unseen, below and above the reference's range.

    Unseen means a level outside the grid's, or something that is no number in a numeric feature. `far` are those of
    the values beyond the range that are ten times as large as any in the reference: another unit, most likely.
    """

    cells: NDArray[np.int64]
    missing: int = 0
    unseen: int = 0
    below: int = 0
    above: int = 0
    far: int = 0

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
            self.far + other.far,
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
    pairs: PairMoments | None = None

    def __getitem__(self, feature: str) -> FeatureCounts:
        return self.features[feature]

    def __add__(self, other: "GridCounts") -> "GridCounts":
        if self.grid_digest != other.grid_digest:
            raise ValueError(
                f"expected counts on grid {self.grid_digest}, found grid {other.grid_digest}; only counts on the "
                "same reference add up, so count the rows again on one grid"
            )
        merged = {name: counts + other.features[name] for name, counts in self.features.items()}
        pairs = self.pairs + other.pairs if self.pairs is not None and other.pairs is not None else None
        return GridCounts(self.grid_digest, self.n_rows + other.n_rows, merged, pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        features = {name: counts.to_dict() for name, counts in self.features.items()}
        pairs = None if self.pairs is None else self.pairs.to_dict()
        return {"grid": self.grid_digest, "n_rows": self.n_rows, "features": features, "pairs": pairs}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "GridCounts":
        """Return the counts that `to_dict` gave away."""
        features = {
            name: FeatureCounts(**{**counts, "cells": np.asarray(counts["cells"], np.int64)})
            for name, counts in value["features"].items()
        }
        pairs = None if value["pairs"] is None else PairMoments.from_dict(value["pairs"])
        return cls(value["grid"], value["n_rows"], features, pairs)
