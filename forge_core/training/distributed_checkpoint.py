"""Checkpoints of a distributed training: arrays and JSON behind their own hash, whole or not at all.

A file is 32 bytes of SHA-256 and then a numpy archive without pickles. It appears by rename (or one PUT), so a
cut-short one is rare; where one is found none the less, its hash tells, and the one before it is used.
"""

import hashlib
import io
import json
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forge_core.errors import DataNotFound
from forge_core.storage import Storage

logger = logging.getLogger(__name__)

KEPT = 3
_HASH_BYTES = 32


@dataclass(frozen=True)
class Checkpoint:
    """Where a training was: `step` batches done in all, facts as JSON, and model and optimiser as arrays."""

    step: int
    facts: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        archive = io.BytesIO()
        facts = json.dumps({"step": self.step, "facts": self.facts}).encode()
        np.savez(archive, allow_pickle=False, **{"": np.frombuffer(facts, np.uint8), **self.arrays})
        body = archive.getvalue()
        return hashlib.sha256(body).digest() + body

    @classmethod
    def from_bytes(cls, data: bytes) -> "Checkpoint | None":
        """Return the checkpoint, or None where the bytes are not all there or were changed."""
        body = data[_HASH_BYTES:]
        if not body or hashlib.sha256(body).digest() != data[:_HASH_BYTES]:
            return None
        with np.load(io.BytesIO(body), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        head = json.loads(arrays.pop("").tobytes())
        return cls(head["step"], head["facts"], arrays)


def save_checkpoint(storage: Storage, folder: str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint below `folder`, and remove all but the newest `KEPT`."""
    storage.write_bytes(f"{folder}/{checkpoint.step:012d}.checkpoint", checkpoint.to_bytes())
    for key in storage.list(folder, suffix=".checkpoint")[:-KEPT]:
        try:
            storage.fs.rm_file(storage.path(key))
        except FileNotFoundError:
            continue


def load_newest(storage: Storage, folder: str) -> Checkpoint | None:
    """Return the newest whole checkpoint below `folder`, or None; cut-short ones are passed over with a warning."""
    if not storage.fs.exists(storage.path(folder)):
        return None
    for key in reversed(storage.list(folder, suffix=".checkpoint")):
        try:
            checkpoint = Checkpoint.from_bytes(storage.read_bytes(key))
        except DataNotFound:
            continue
        if checkpoint is not None:
            return checkpoint
        logger.warning("checkpoint=%s/%s reason=not_whole, using the one before", storage.url, key)
    return None


def pack(network: Any, optimiser: Any) -> dict[str, NDArray[Any]]:
    """Return a torch network's parameters and its optimiser's state as arrays."""
    arrays = {f"model/{name}": value.detach().cpu().numpy() for name, value in network.state_dict().items()}
    for place, state in optimiser.state_dict()["state"].items():
        arrays |= {f"optimiser/{place}/{name}": value.detach().cpu().numpy() for name, value in state.items()}
    return arrays


def unpack(arrays: dict[str, NDArray[Any]], network: Any, optimiser: Any) -> None:
    """Put what `pack` returned back into a network and an optimiser of the same shape."""
    import torch

    model = {k.removeprefix("model/"): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("model/")}
    network.load_state_dict(model)
    states: dict[int, dict[str, Any]] = {}
    for key, value in arrays.items():
        if key.startswith("optimiser/"):
            _, place, name = key.split("/")
            states.setdefault(int(place), {})[name] = torch.from_numpy(value.copy())
    optimiser.load_state_dict({**optimiser.state_dict(), "state": states})
