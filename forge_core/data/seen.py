"""Which of millions of 128-bit hashes came before, in memory that stays bounded."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forge_core.data.hashing import Hashes

# One byte for each value of a hash's leading bits: a hash whose byte is empty was never seen.
_FILTER_BITS = 25
# A run of more numbers than this lies in a file and is mapped.
_IN_MEMORY = 2**22


class SeenHashes:
    """A set of 128-bit hashes that tells, batch by batch, which are new.

    Both halves are kept, each in sorted runs that are merged as they grow (O'Neil et al. 1996, "The log-structured
    merge-tree"); a table of leading bits answers for most new hashes without a search. A hash counts as seen when
    both its halves were: among a thousand million rows a wrong answer has a chance of about 1e-12.

    Examples
    --------
    >>> seen = SeenHashes()
    >>> seen.add(np.array([[1, 1], [2, 2], [1, 1]], np.uint64)).tolist()
    [True, True, False]
    >>> seen.add(np.array([[3, 3], [2, 2]], np.uint64)).tolist()
    [True, False]
    """

    def __init__(self) -> None:
        self._maybe = np.zeros(2**_FILTER_BITS, bool)
        self._halves = (_SortedRuns(), _SortedRuns())
        self._rows = _SortedRuns()

    def add(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Return which of these hashes, shape (n, 2), are the first of their value, and remember them all."""
        new = ~pd.Series(hashes[:, 0]).duplicated().to_numpy()
        if not new.all():
            new = ~pd.DataFrame(hashes).duplicated().to_numpy()
        places = hashes[:, 0] >> np.uint64(64 - _FILTER_BITS)
        doubtful = np.flatnonzero(self._maybe[places] & new)
        for side, runs in enumerate(self._halves):
            doubtful = doubtful[runs.contain(hashes[doubtful, side])]
        new[doubtful] = False
        self._maybe[places] = True
        for side, runs in enumerate(self._halves):
            runs.keep(hashes[new, side])
        return new

    def add_keyed(self, keys: Hashes, rows: Hashes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which keys, and which whole rows, are the first of their value; shapes (n, 2) both.

        Only a row whose key came before can have come before itself, so few rows are looked up.
        """
        new_key = self.add(keys)
        new_row = np.ones(len(keys), bool)
        again = np.flatnonzero(~new_key)
        if len(again):
            new_row = ~pd.Series(rows[:, 0]).duplicated().to_numpy()
            new_row[again[self._rows.contain(rows[again, 0])]] = False
        self._rows.keep(rows[new_row, 0])
        return new_key, new_row


class _SortedRuns:
    """Numbers in sorted arrays, each more than twice as long as the next."""

    def __init__(self) -> None:
        self.runs: list[Hashes] = []

    def contain(self, numbers: Hashes) -> NDArray[np.bool_]:
        found = np.zeros(len(numbers), bool)
        if len(numbers):
            for run in self.runs:
                places = np.searchsorted(run, numbers)
                found |= run[np.minimum(places, len(run) - 1)] == numbers
        return found

    def keep(self, numbers: Hashes) -> None:
        if len(numbers):
            self.runs.append(np.sort(numbers))
        while len(self.runs) > 1 and len(self.runs[-2]) <= 2 * len(self.runs[-1]):
            last, before = self.runs.pop(), self.runs.pop()
            # Two sorted runs are merged by the stable sort; the other one would sort them anew, three times as slow.
            self.runs.append(_placed(np.sort(np.concatenate([before, last]), kind="stable")))


def _placed(run: Hashes) -> Hashes:
    """Return a run, if it is a long one as a mapped file, which has no name and so goes with the process."""
    if len(run) <= _IN_MEMORY:
        return run
    with tempfile.NamedTemporaryFile(prefix="forge-seen-", suffix=".npy") as file:
        np.save(file, run)
        file.flush()
        mapped: Hashes = np.load(Path(file.name), mmap_mode="r")
        return mapped
