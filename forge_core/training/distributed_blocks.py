"""Encoded rows as blocks of float32, laid out so that each worker reads its share of every batch in one piece.

A row is its features, its target (class number, or standardised number) and its weight (0 for rows that fill up
the last batch). A training block holds `n_batches * batch_size` rows as `batch_size` lanes of `n_batches` rows; a
batch takes one row of every lane, in an order that seed, epoch and block decide. Worker r of n owns the lanes from
r / n to (r + 1) / n, a contiguous part of the file. So the rows of each batch are the same for any number of workers,
every row is read by one worker only, and an epoch can be entered at any batch.
"""

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
# So many blocks wait in Ray's object store for each worker.
_AHEAD = 6
# So many blocks are put into one stream; a stream's plan is kept in memory.
_SPECS = 2000


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


def stream_rows(storage: Storage, blocks: Blocks, share: Share, *, epochs: int, seed: int, step: int) -> Iterator[Any]:
    """Give a worker's batches from a step to the end, as torch tensors (batch_size / workers, width).

    A Ray Data actor reads ahead, in order and over the ends of epochs, and another one looks after it, so that the
    worker's own process has nothing to do with it. Each worker streams its own lanes: Train's shared split hands blocks
    to whoever is free, so its order could not be repeated after a fault.
    """
    import ray.data
    from ray.data import ExecutionResources
    from ray.data.context import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    # Blocks that wait to be read; without a bound Ray Data would read all epochs ahead into its object store.
    waiting = _AHEAD * blocks.train_bytes // max(1, len(blocks.train)) // share.workers
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=waiting)
    first, last = share.of(blocks.batch_size)
    at_once = max(1, _SPECS // len(blocks.train))
    for start in range(step // blocks.steps, epochs, at_once):
        specs = [
            {"epoch": epoch, "number": number, "skipped": skipped}
            for epoch in range(start, min(epochs, start + at_once))
            for number, skipped in _from_batch(
                blocks, epoch_order(blocks, epoch, seed), max(0, step - epoch * blocks.steps)
            )
        ]
        # One actor reads: Ray would end the processes of tasks beyond the cores, and start them again for each block.
        rows = ray.data.from_items(specs, override_num_blocks=len(specs)).map_batches(
            _Reader,
            fn_constructor_args=(storage.url, blocks, share, seed),
            batch_size=1,
            num_cpus=0.01,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        (stream,) = rows.streaming_split(1)
        for block in stream.iter_torch_batches(batch_size=None, prefetch_batches=1, device="cpu"):
            yield from block["rows"].split(last - first)


class _Reader:
    """What reads blocks, in a process of its own."""

    def __init__(self, url: str, blocks: Blocks, share: Share, seed: int) -> None:
        self._storage, self._blocks, self._share, self._seed = Storage(url), blocks, share, seed

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the rows of one block's batches in their order."""
        epoch, number, skipped = (int(batch[name][0]) for name in ("epoch", "number", "skipped"))
        rows = read_batches(self._storage, self._blocks, number, self._share, epoch=epoch, seed=self._seed)
        return {"rows": rows[skipped:].reshape(-1, self._blocks.width)}


class KeptRows:
    """A worker's share of all training blocks in memory."""

    def __init__(self, storage: Storage, blocks: Blocks, share: Share) -> None:
        self._storage, self._blocks, self._share = storage, blocks, share
        self._lanes = [read_lanes(storage, blocks, number, share) for number in range(len(blocks.train))]

    def batches(self, *, epochs: int, seed: int, step: int) -> Iterator[Any]:
        """Give what `stream_rows` gives."""
        import torch

        blocks = self._blocks
        for epoch in range(step // blocks.steps, epochs):
            order = epoch_order(blocks, epoch, seed)
            for number, skipped in _from_batch(blocks, order, max(0, step - epoch * blocks.steps)):
                raw = self._lanes[number]
                batches = read_batches(self._storage, blocks, number, self._share, epoch=epoch, seed=seed, raw=raw)
                yield from torch.from_numpy(batches[skipped:])


def _from_batch(blocks: Blocks, order: list[int], first_batch: int) -> Iterator[tuple[int, int]]:
    """Give each block that is still to come, and how many of its batches were done before."""
    done = 0
    for number in order:
        n_batches = blocks.train[number] // blocks.batch_size
        if done + n_batches > first_batch:
            yield number, max(0, first_batch - done)
        done += n_batches
