"""Encoded rows as blocks of float32, laid out so that each worker reads its share of every batch in one piece.

A row is its features, its target (class number, or standardised number) and its weight (0 for rows that fill up
the last batch). A training block holds `n_batches * batch_size` rows as `batch_size` lanes of `n_batches` rows; a
batch takes one row of every lane, in an order that seed, epoch and block decide. Worker r of n owns the lanes from
r / n to (r + 1) / n, a contiguous part of the file. So the rows of each batch are the same for any number of workers,
every row is read by one worker only, and an epoch can be entered at any batch.
"""

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forge_core.storage import Storage

Rows = NDArray[np.float32]

EXTRA = 2
BLOCK_BYTES = 16 * 2**20
BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class Blocks:
    """What the manifest of prepared rows says; `train` and `validation` have the rows of each block."""

    folder: str
    n_features: int
    batch_size: int
    train: list[int]
    validation: list[int]
    train_rows: int
    validation_rows: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @property
    def width(self) -> int:
        """Floats a row."""
        return self.n_features + EXTRA

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return sum(self.train) // self.batch_size

    @property
    def train_bytes(self) -> int:
        """Size of the training rows."""
        return 4 * self.width * sum(self.train)

    def key(self, part: str, number: int) -> str:
        """Return the storage key of a block."""
        return f"{self.folder}/{part}-{number:06d}.f32"


@dataclass(frozen=True)
class Share:
    """Which worker of how many."""

    rank: int
    workers: int

    def of(self, n: int) -> tuple[int, int]:
        """Return the worker's part of n places, from the first to before the second."""
        return n * self.rank // self.workers, n * (self.rank + 1) // self.workers


def block_rows(width: int, batch_size: int) -> int:
    """Return how many rows a block has: whole batches, of about `BLOCK_BYTES`."""
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * width)) // batch_size) * batch_size


class BlockWriter:
    """Writes rows as they come into blocks, mixed by chance over a few blocks, in bounded memory.

    Parameters
    ----------
    storage, folder
        Where blocks go.
    width : int
        Floats a row.
    batch_size : int
    random_state : int
    mixed : int
        Blocks whose rows are mixed with each other.
    """

    def __init__(
        self, storage: Storage, folder: str, *, width: int, batch_size: int, random_state: int, mixed: int = 4
    ) -> None:
        self._storage, self._width, self._batch = storage, width, batch_size
        self._rows, self._mixed = block_rows(width, batch_size), mixed
        self._random = np.random.default_rng(random_state)
        self._pool: dict[str, list[Rows]] = {"train": [], "validation": []}
        self.blocks = Blocks(folder, width - EXTRA, batch_size, [], [], 0, 0)
        self._sizes: dict[str, list[int]] = {"train": self.blocks.train, "validation": self.blocks.validation}
        self._counts = {"train": 0, "validation": 0}

    def add(self, part: str, rows: Rows) -> None:
        """Take rows of a part, shape (n_rows, width)."""
        self._pool[part].append(rows)
        self._counts[part] += len(rows)
        waiting = sum(map(len, self._pool[part]))
        if waiting >= (self._mixed + 1) * self._rows:
            self._mix(part)
            while len(self._pool[part][0]) > self._mixed * self._rows:
                self._write(part, self._pool[part][0][: self._rows])
                self._pool[part][0] = self._pool[part][0][self._rows :]

    def finish(self) -> Blocks:
        """Write what waits and return the layout."""
        for part in ("train", "validation"):
            self._mix(part)
            rest = self._pool[part][0]
            for start in range(0, len(rest), self._rows):
                self._write(part, rest[start : start + self._rows])
        values = self.blocks.to_dict() | {f"{part}_rows": count for part, count in self._counts.items()}
        return Blocks(**values)

    def _mix(self, part: str) -> None:
        rows = np.concatenate([*self._pool[part], np.empty((0, self._width), np.float32)])
        self._pool[part] = [rows[self._random.permutation(len(rows))]]

    def _write(self, part: str, rows: Rows) -> None:
        missing = -len(rows) % self._batch if part == "train" else 0
        if missing:
            rows = np.concatenate([rows, np.zeros((missing, self._width), np.float32)])
        self._storage.write_bytes(self.blocks.key(part, len(self._sizes[part])), rows.astype("<f4").tobytes())
        self._sizes[part].append(len(rows))


def epoch_order(blocks: Blocks, epoch: int, seed: int) -> list[int]:
    """Return the epoch's order of training blocks."""
    return np.random.default_rng((seed, epoch)).permutation(len(blocks.train)).tolist()


def read_batches(
    storage: Storage, blocks: Blocks, number: int, share: Share, *, epoch: int, seed: int, raw: Rows | None = None
) -> Rows:
    """Return a worker's share of a block's batches, shape (n_batches, batch_size / workers, width).

    `raw` is what `read_lanes` returned, where it was kept.
    """
    lanes = read_lanes(storage, blocks, number, share) if raw is None else raw
    n_batches = lanes.shape[1]
    first, last = share.of(blocks.batch_size)
    chance = np.random.default_rng((seed, epoch, number)).random((blocks.batch_size, n_batches), np.float32)
    order = chance[first:last].argsort(axis=1, kind="stable")
    return np.ascontiguousarray(lanes[np.arange(len(lanes)), order.T])


def read_lanes(storage: Storage, blocks: Blocks, number: int, share: Share) -> Rows:
    """Return a worker's lanes of a training block, shape (batch_size / workers, n_batches, width)."""
    n_batches = blocks.train[number] // blocks.batch_size
    first, last = share.of(blocks.batch_size)
    rows = _read_rows(storage, blocks, blocks.key("train", number), first * n_batches, last * n_batches)
    return rows.reshape(last - first, n_batches, blocks.width)


def read_validation(storage: Storage, blocks: Blocks, share: Share) -> Iterator[Rows]:
    """Give a worker's share of the validation rows, block by block."""
    for number, n_rows in enumerate(blocks.validation):
        yield _read_rows(storage, blocks, blocks.key("validation", number), *share.of(n_rows))


def _read_rows(storage: Storage, blocks: Blocks, key: str, first: int, last: int) -> Rows:
    size = 4 * blocks.width
    data = storage.fs.cat_file(storage.path(key), start=first * size, end=last * size) if last > first else b""
    return np.frombuffer(data, "<f4").reshape(-1, blocks.width)


class StreamedRows:
    """A worker's share of the training blocks, read while it trains: three blocks are in memory at a time.

    A thread of the worker reads ahead. Ray Data did it before: its executor runs without a pause while it waits for the
    worker, which took a third of two cores. Train's shared split hands blocks to whoever is free, so its order could
    not be repeated after a fault.
    """

    def __init__(self, storage: Storage, blocks: Blocks, share: Share) -> None:
        self._storage, self._blocks, self._share = storage, blocks, share

    def batches(self, *, epochs: int, seed: int, step: int) -> Iterator[Any]:
        """Give the worker's batches from a step to the end, as torch tensors (batch_size / workers, width)."""
        import torch

        waiting: queue.Queue[Rows | BaseException | None] = queue.Queue(maxsize=1)
        over = threading.Event()

        def put(item: Rows | BaseException | None) -> None:
            while not over.is_set():
                with contextlib.suppress(queue.Full):
                    return waiting.put(item, timeout=0.5)

        def read() -> None:
            try:
                for epoch, number, skipped in _still_to_come(self._blocks, epochs, seed, step):
                    rows = read_batches(self._storage, self._blocks, number, self._share, epoch=epoch, seed=seed)
                    put(rows[skipped:])
                    if over.is_set():
                        return
                put(None)
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=read, name="read-ahead", daemon=True)
        thread.start()
        try:
            while (item := waiting.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield from torch.from_numpy(item)
        finally:
            over.set()


class KeptRows:
    """A worker's share of all training blocks in memory."""

    def __init__(self, storage: Storage, blocks: Blocks, share: Share) -> None:
        self._storage, self._blocks, self._share = storage, blocks, share
        self._lanes = [read_lanes(storage, blocks, number, share) for number in range(len(blocks.train))]

    def batches(self, *, epochs: int, seed: int, step: int) -> Iterator[Any]:
        """Give what `StreamedRows` gives."""
        import torch

        for epoch, number, skipped in _still_to_come(self._blocks, epochs, seed, step):
            raw = self._lanes[number]
            batches = read_batches(self._storage, self._blocks, number, self._share, epoch=epoch, seed=seed, raw=raw)
            yield from torch.from_numpy(batches[skipped:])


def _still_to_come(blocks: Blocks, epochs: int, seed: int, step: int) -> Iterator[tuple[int, int, int]]:
    """Give (epoch, block, its batches that were done before) from a step to the end."""
    for epoch in range(step // blocks.steps, epochs):
        done, first = 0, max(0, step - epoch * blocks.steps)
        for number in epoch_order(blocks, epoch, seed):
            n_batches = blocks.train[number] // blocks.batch_size
            if done + n_batches > first:
                yield epoch, number, max(0, first - done)
            done += n_batches
