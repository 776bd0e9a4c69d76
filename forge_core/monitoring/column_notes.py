"""What may be said of columns that are there on one side only."""

import numpy as np
import pandas as pd

from forge_core.statistics.cells import NumericCells
from forge_core.statistics.counts import GridCounts
from forge_core.statistics.distributions import ReferenceGrid
from forge_core.statistics.drift_tests import psi

_ALIKE = 0.1


def column_notes(
    grid: ReferenceGrid, reference: GridCounts, current: pd.DataFrame, watched: list[str]
) -> tuple[str, ...]:
    """Return a sentence for each watched column that is gone, with the new column that looks like it, if any does."""
    new = [str(name) for name in current.columns if str(name) not in grid.features]
    notes = []
    for name in watched:
        if name in current.columns:
            continue
        likeness = {other: _difference(grid, reference, name, current[other]) for other in new}
        nearest = min(likeness, key=lambda other: likeness[other], default=None)
        if nearest is not None and likeness[nearest] < _ALIKE:
            notes.append(f"column {name} is gone; {nearest}, which is new, looks like it: was it renamed?")
        else:
            notes.append(f"column {name} is gone")
    return tuple(notes)


def _difference(grid: ReferenceGrid, reference: GridCounts, name: str, column: pd.Series) -> float:
    """Return the PSI between a feature's reference and another column, infinite where they have no value in common."""
    counts = ReferenceGrid({name: grid.features[name]}).count(column.to_frame(name))[name]
    if counts.cells.sum() < max(1, counts.n_rows // 2):
        return np.inf
    return psi(reference[name].cells, counts.cells, ordered=isinstance(grid.features[name], NumericCells))
