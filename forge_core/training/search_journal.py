"""What a search has done, trial by trial, below `searches/{key}/`: a search that was cut goes on from there."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from forge_core.storage import Storage
from forge_core.training.lineage import code_hash


class Journal:
    """Records of finished trials under a key that follows from everything that determines them.

    Parameters
    ----------
    asked : mapping
        What determines a trial besides its number; this package's code is added. Other code is another search.
    """

    def __init__(self, storage: Storage, asked: Mapping[str, Any]) -> None:
        text = json.dumps({**asked, "code": code_hash()}, sort_keys=True, default=str)
        self.storage = storage
        self.key = f"search-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def write(self, record: Mapping[str, Any]) -> None:
        """Keep a trial that ended by itself or was stopped; one that failed is tried again."""
        if record["state"] != "failed":
            self.storage.write_json(f"searches/{self.key}/trial-{record['number']:05d}.json", record)

    def read(self, n_trials: int) -> list[dict[str, Any]]:
        """Return the records of trials with numbers below `n_trials`, in order."""
        keys = self.storage.list(f"searches/{self.key}", suffix=".json")
        records = [self.storage.read_json(key) for key in keys]
        return [record for record in records if record["number"] < n_trials]
