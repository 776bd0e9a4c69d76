"""One live version: rows in, scores out. Nothing else happens here."""

import asyncio
import time

from forge_core.deployment.mirror import mirrored_version
from forge_core.models.crossover import fastest_form, serving_threads
from forge_core.storage import Storage
from serve_app.columns import Packed, n_rows, packed

# A thread for less than that costs more, in hand-overs between it and the loop, than the loop's other work can gain.
_SHORT_SECONDS = 0.003
# So many that what a call costs whatever its rows counts little.
_WARM_ROWS = 1024


class Variant:
    """Loads one version's model, warms it with the stored example, and scores batches.

    Parameters
    ----------
    storage_url, model, version : str
        Where the version's mirror lies, and which one.
    """

    def __init__(self, storage_url: str, model: str, version: str) -> None:
        with mirrored_version(Storage(storage_url), model, version) as folder:
            self.columns = folder.contract.feature_columns
            self.model = fastest_form(folder, threads=serving_threads())
            example = folder.contract.check_row(folder.input_example)
        row = tuple(example[c] for c in self.columns)
        for _ in range(3):
            self._score(packed([row]))
        many = packed([row] * _WARM_ROWS)
        self._row_seconds = min(self._seconds(many) for _ in range(3)) / _WARM_ROWS

    async def score(self, columns: Packed) -> list[float]:
        """Return one score a row: the probability of class 1, or the predicted number.

        Columns come in the order of the contract's feature columns.
        """
        if n_rows(columns) * self._row_seconds <= _SHORT_SECONDS:
            return self._score(columns)
        return await asyncio.to_thread(self._score, columns)

    def _seconds(self, columns: Packed) -> float:
        started = time.perf_counter()
        self._score(columns)
        return time.perf_counter() - started

    def _score(self, columns: Packed) -> list[float]:
        return self.model.score(dict(zip(self.columns, columns, strict=True))).tolist()
