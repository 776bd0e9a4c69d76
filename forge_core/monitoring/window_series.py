"""Many windows of one version as arrays, so that a test is asked of all of them at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forge_core.statistics.cells import NumericCells
from forge_core.statistics.counts import GridCounts
from forge_core.statistics.distributions import ReferenceGrid
from forge_core.statistics.pair_moments import PairMoments

Ints = NDArray[np.int64]

BESIDE = ("missing", "unseen", "below", "above", "far")


@dataclass(frozen=True, eq=False)
class FeatureSeries:
    """One feature over windows: cells of shape (n_windows, n_cells); the other counts of shape (n_windows,).

    `beside` has missing, unseen, below, above and far, in that order, shape (n_windows, 5).
    """

    cells: Ints
    beside: Ints

    def last(self, n_windows: int) -> "FeatureSeries":
        """Return for each window the sum of it and those before it, `n_windows` in all."""
        return FeatureSeries(_last(self.cells, n_windows), _last(self.beside, n_windows))

    def count(self, name: str) -> Ints:
        """Return one of the counts beside the cells, shape (n_windows,)."""
        return self.beside[:, BESIDE.index(name)]

    @property
    def held(self) -> Ints:
        """Return the rows that fall into cells, shape (n_windows,)."""
        return self.cells.sum(axis=1)

    @property
    def present(self) -> Ints:
        """Return the rows with a value, shape (n_windows,)."""
        return self.held + self.beside[:, 1:4].sum(axis=1)

    @property
    def n_rows(self) -> Ints:
        """Return all rows, shape (n_windows,)."""
        return self.present + self.count("missing")

    def everything(self) -> Ints:
        """Return cells, missing, unseen, below and above side by side: all rows, each once."""
        return np.c_[self.cells, self.beside[:, :4]]


@dataclass(frozen=True, eq=False)
class WindowSeries:
    """Windows in order of time, on one grid."""

    grid: ReferenceGrid
    features: Mapping[str, FeatureSeries]
    pairs: PairMoments
    n_rows: Ints

    @classmethod
    def of(cls, grid: ReferenceGrid, windows: Sequence[GridCounts]) -> "WindowSeries":
        """Return windows' counts as arrays; none gives arrays of no rows.

        Raises
        ------
        ValueError
            When a window was counted on another grid.
        """
        if strange := {w.grid_digest for w in windows} - {grid.digest}:
            raise ValueError(f"expected windows on grid {grid.digest}, found {', '.join(sorted(strange))}")
        features = {name: _feature_series(name, windows, grid) for name in grid.features}
        moments = [w.pairs or PairMoments.none(grid.scores) for w in windows]
        shape = (len(windows), len(grid.scores.pairs))
        pairs = PairMoments(*(_stack([vars(m)[part] for m in moments], shape) for part in ("n", "products", "squares")))
        return cls(grid, features, pairs, np.array([w.n_rows for w in windows], np.int64))

    def __len__(self) -> int:
        return len(self.n_rows)

    def last(self, n_windows: int) -> "WindowSeries":
        """Return for each window the sum of it and those before it, `n_windows` in all."""
        features = {name: series.last(n_windows) for name, series in self.features.items()}
        pairs = PairMoments(*(_last(part, n_windows) for part in vars(self.pairs).values()))
        return WindowSeries(self.grid, features, pairs, _last(self.n_rows, n_windows))

    def part(self, chosen: slice) -> "WindowSeries":
        """Return some of the windows."""
        features = {n: FeatureSeries(s.cells[chosen], s.beside[chosen]) for n, s in self.features.items()}
        pairs = PairMoments(*(part[chosen] for part in vars(self.pairs).values()))
        return WindowSeries(self.grid, features, pairs, self.n_rows[chosen])

    def is_number(self, name: str) -> bool:
        """Whether a feature's cells are in order."""
        return isinstance(self.grid.features[name], NumericCells)


def _feature_series(name: str, windows: Sequence[GridCounts], grid: ReferenceGrid) -> FeatureSeries:
    cells = grid.features[name]
    n_cells = len(cells.edges if isinstance(cells, NumericCells) else cells.levels)
    counts = [w.features[name] for w in windows]
    beside = [[getattr(c, part) for part in BESIDE] for c in counts]
    return FeatureSeries(
        _stack([c.cells for c in counts], (len(windows), n_cells)).astype(np.int64),
        np.array(beside, np.int64).reshape(-1, len(BESIDE)),
    )


def _stack(rows: Sequence[NDArray[Any]], shape: tuple[int, int]) -> NDArray[Any]:
    return np.stack(rows) if rows else np.zeros(shape)


def _last(counts: NDArray[Any], n_windows: int) -> NDArray[Any]:
    total = np.cumsum(counts, axis=0)
    before = np.zeros_like(total)
    before[n_windows:] = total[:-n_windows]
    return total - before
