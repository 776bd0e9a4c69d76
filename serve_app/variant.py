"""One live version: rows in, scores out. Nothing else happens here."""

import asyncio
from typing import Any

from forge_core.deployment.mirror import mirrored_version
from forge_core.models.crossover import fastest_form
from forge_core.storage import Storage


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
            self.model = fastest_form(folder)
            example = folder.contract.check_row(folder.input_example)
        for _ in range(3):
            self._score([tuple(example[c] for c in self.columns)])

    async def score(self, rows: list[tuple[Any, ...]]) -> list[float]:
        """Return one score a row: the probability of class 1, or the predicted number.

        Rows are tuples in the order of the contract's feature columns.
        """
        if len(rows) <= 64:  # shorter than the switch to a thread
            return self._score(rows)
        return await asyncio.to_thread(self._score, rows)

    def _score(self, rows: list[tuple[Any, ...]]) -> list[float]:
        columns = dict(zip(self.columns, map(list, zip(*rows, strict=True)), strict=True))
        return self.model.score(columns).tolist()
