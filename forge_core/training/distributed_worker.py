"""The loop that every worker runs: batches in an order that can be entered anywhere, checkpoints, metrics an epoch.

All that chance decides (first weights, order, dropout) is drawn from the seed and the position, so position, model
and optimiser are all there is to keep, and a run that goes on is the run that was not disturbed.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from forge_core.models.mlp import build_network, loss_of
from forge_core.storage import Storage
from forge_core.training.distributed_blocks import Blocks, KeptRows, Share, StreamedRows, read_validation
from forge_core.training.distributed_checkpoint import Checkpoint, load_newest, pack, save_checkpoint, unpack

_POSITION_SECONDS = 0.5
_VALIDATED_AT_ONCE = 4096


@dataclass(frozen=True)
class Job:
    """All that a worker needs; plain values, so that it crosses process borders."""

    storage_url: str
    folder: str
    blocks: dict[str, Any]
    n_classes: int
    hidden_sizes: tuple[int, ...]
    learning_rate: float
    weight_decay: float
    dropout: float
    epochs: int
    checkpoint_every: int
    stream: bool
    random_state: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def learning_rate_at(step: int, total: int, highest: float) -> float:
    """Return the rate of a step: rising over the first twentieth, then falling to a hundredth along a cosine."""
    rise = max(1, min(500, total // 20))
    if step < rise:
        return highest * (step + 1) / rise
    return highest * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise))))


def run_worker(config: dict[str, Any]) -> None:
    """Train this worker's share; Ray Train calls it in each worker."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    share = Share(context.get_world_rank(), context.get_world_size())
    train_share(
        Job(**config), share, ray.train.torch.get_device(), node=context.get_node_rank(), report=ray.train.report
    )


def train_share(
    job: Job,
    share: Share,
    device: Any,
    *,
    node: int = 0,
    report: Callable[[dict[str, Any]], None] = lambda metrics: None,
) -> None:
    """Train one worker's share from the newest checkpoint to the end.

    Parameters
    ----------
    device : torch.device
        On a GPU the network computes in bfloat16 where that is safe (`torch.autocast`); weights, losses and
        checkpoints stay float32, so that a run may go on where there is none.
    node : int
        For the record of who works where.
    report : callable
        Called with each epoch's metrics.
    """
    import torch

    storage, blocks = Storage(job.storage_url), Blocks(**job.blocks)
    if device.type == "cpu":
        torch.set_num_threads(1)
    storage.write_json(f"{job.folder}/workers/{share.rank}.json", {"pid": os.getpid(), "node": node})
    torch.manual_seed(job.random_state)
    network = build_network([blocks.n_features, *job.hidden_sizes, job.n_classes or 1], job.dropout).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=job.learning_rate, weight_decay=job.weight_decay)
    checkpoint = _agreed_checkpoint(storage, job, share, device)
    loss_so_far = 0.0
    if checkpoint is not None:
        unpack(checkpoint.arrays, network, optimiser)
        loss_so_far = checkpoint.facts["loss"] if share.rank == 0 else 0.0
    step = checkpoint.step if checkpoint else 0
    trainer = _Worker(job, share, storage, blocks, device, network, optimiser)
    rows = (StreamedRows if job.stream else KeptRows)(storage, blocks, share)
    batches = rows.batches(epochs=job.epochs, seed=job.random_state, step=step)
    for epoch in range(step // blocks.steps, job.epochs):
        step, loss = trainer.train_epoch(islice(batches, (epoch + 1) * blocks.steps - step), step, loss_so_far)
        loss_so_far = 0.0
        metrics = {"epoch": epoch + 1, "train_loss": loss / max(1, blocks.train_rows), **trainer.validate()}
        metrics["seconds"] = trainer.seconds
        metrics["rows_per_second"] = trainer.steps_here * blocks.batch_size / max(1e-9, trainer.seconds)
        if share.rank == 0:
            storage.write_json(f"{job.folder}/epochs/{epoch + 1:06d}.json", metrics)
        trainer.save(step, 0.0)
        report(metrics)
        if not math.isfinite(metrics["train_loss"]):
            return


class _Worker:
    """One worker's network and what it does with batches."""

    def __init__(
        self, job: Job, share: Share, storage: Storage, blocks: Blocks, device: Any, network: Any, optimiser: Any
    ) -> None:
        import torch

        self.job, self.share, self.storage, self.blocks = job, share, storage, blocks
        self.device, self.network, self.optimiser = device, network, optimiser
        self.wrapped = network
        if share.workers > 1:
            self.wrapped = torch.nn.parallel.DistributedDataParallel(
                network, device_ids=[device.index] if device.type == "cuda" else None
            )
        self.seconds, self.steps_here, self._told = 0.0, 0, 0.0

    def train_epoch(self, batches: Iterator[Any], step: int, loss_so_far: float) -> tuple[int, float]:
        """Do the epoch's batches; return the step after them, and the sum of all workers' losses in the epoch."""
        import torch

        job, width = self.job, self.blocks.n_features
        rows_here = self.share.of(self.blocks.batch_size)[1] - self.share.of(self.blocks.batch_size)[0]
        total = self.blocks.steps * job.epochs
        mixed = torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")
        loss = torch.full((), loss_so_far, dtype=torch.float64, device=self.device)
        started, first = time.perf_counter(), step
        self.wrapped.train()
        for rows in batches:
            rows = rows.to(self.device, non_blocking=True)
            if job.dropout:
                torch.manual_seed((job.random_state * 1_000_003 + step) * 4099 + self.share.rank)
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate_at(step, total, job.learning_rate)
            with mixed:
                outputs = self.wrapped(rows[:, :width])
            losses = (loss_of(outputs, rows[:, width], job.n_classes) * rows[:, width + 1]).sum()
            self.optimiser.zero_grad(set_to_none=True)
            # Workers' gradients are averaged, so dividing by this worker's rows gives the mean over the whole batch.
            (losses / rows_here).backward()
            self.optimiser.step()
            loss += losses.detach()
            step += 1
            if step % job.checkpoint_every == 0 and step % self.blocks.steps:
                self.save(step, self._sum(loss))
            if self.share.rank == 0 and time.monotonic() - self._told > _POSITION_SECONDS:
                self._tell(step)
        self.seconds, self.steps_here = time.perf_counter() - started, step - first
        return step, self._sum(loss)

    def validate(self) -> dict[str, float]:
        """Return the metrics of all workers' validation rows."""
        import torch

        width, sums = self.blocks.n_features, torch.zeros(3, dtype=torch.float64, device=self.device)
        self.wrapped.eval()
        with torch.no_grad():
            for block in read_validation(self.storage, self.blocks, self.share):
                # Little at a time: hidden layers of a whole block take many times its own memory.
                for rows in torch.from_numpy(np.array(block)).split(_VALIDATED_AT_ONCE):
                    rows = rows.to(self.device)
                    outputs, target = self.network(rows[:, :width]), rows[:, width]
                    hits = (outputs.argmax(1) == target).sum() if self.job.n_classes else torch.zeros(())
                    losses = loss_of(outputs, target, self.job.n_classes).double().sum()
                    n_rows = torch.tensor(float(len(rows)), dtype=torch.float64)
                    sums += torch.stack([part.double().to(self.device) for part in (losses, hits, n_rows)])
        sums = self._sum_tensor(sums)
        if not float(sums[2]):
            return {}
        loss, hits = float(sums[0] / sums[2]), float(sums[1] / sums[2])
        return {"log_loss": loss, "accuracy": hits} if self.job.n_classes else {"mse_standardised": loss}

    def save(self, step: int, loss: float) -> None:
        """Keep a checkpoint; the first worker writes it."""
        if self.share.rank == 0:
            facts = {"loss": loss, "epoch": step // self.blocks.steps, "batch": step % self.blocks.steps}
            arrays = pack(self.network, self.optimiser)
            save_checkpoint(self.storage, f"{self.job.folder}/checkpoints", Checkpoint(step, facts, arrays))
            self._tell(step)

    def _tell(self, step: int) -> None:
        self._told = time.monotonic()
        self.storage.write_json(f"{self.job.folder}/position.json", {"step": step})

    def _sum(self, value: Any) -> float:
        return float(self._sum_tensor(value.clone()))

    def _sum_tensor(self, value: Any) -> Any:
        import torch.distributed

        if self.share.workers > 1:
            torch.distributed.all_reduce(value)
        return value


def _agreed_checkpoint(storage: Storage, job: Job, share: Share, device: Any) -> Checkpoint | None:
    """Return the newest whole checkpoint, the same for all workers: the first one's choice."""
    import torch

    checkpoint = load_newest(storage, f"{job.folder}/checkpoints")
    if share.workers == 1:
        return checkpoint
    chosen = torch.tensor([checkpoint.step if checkpoint else 0], device=device)
    torch.distributed.broadcast(chosen, 0)
    if (checkpoint.step if checkpoint else 0) == int(chosen):
        return checkpoint
    data = storage.read_bytes(f"{job.folder}/checkpoints/{int(chosen):012d}.checkpoint") if int(chosen) else b""
    return Checkpoint.from_bytes(data) if data else None
