"""Training over several processes, GPUs or machines: torch and Ray Train, from files larger than memory.

python -m forge_core.training.distributed_trainer --num-workers=4 --dataset=rows.parquet --batch-size=64 --epochs=10
"""

import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from forge_core.errors import ConfigurationError
from forge_core.models.target import Learning
from forge_core.models.version import dump_pipeline
from forge_core.settings import get_settings
from forge_core.storage import Storage
from forge_core.training.distributed_blocks import Blocks
from forge_core.training.distributed_checkpoint import load_newest
from forge_core.training.distributed_cluster import join_ray, room_for
from forge_core.training.distributed_data import Parts, Survey, prepare, survey
from forge_core.training.distributed_result import DistributedResult, final_metrics, pipeline_of
from forge_core.training.distributed_run import Progress, run_workers
from forge_core.training.distributed_source import Source, find_source
from forge_core.training.distributed_worker import Job

logger = logging.getLogger(__name__)


def train_distributed(
    dataset: str,
    *,
    target: str = "target",
    features: Sequence[str] | None = None,
    task: Learning = "classification",
    num_workers: int = 1,
    batch_size: int = 64,
    epochs: int = 10,
    hidden_sizes: Sequence[int] = (64, 32),
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    dropout: float = 0.0,
    validation_share: float = 0.15,
    test_share: float = 0.0,
    random_state: int = 0,
    checkpoint_every: int = 1000,
    max_failures: int = 3,
    memory_bytes: int = 2**30,
    gpu: bool | None = None,
    run_name: str | None = None,
    storage_url: str | None = None,
    address: str | None = None,
    progress: Progress | None = None,
) -> DistributedResult:
    """Return a pipeline trained by several workers; called again with the same arguments it goes on where it was.

    Parameters
    ----------
    dataset : str
        A dataset version `ds-…`, or a path, URL or pattern of CSV or Parquet files.
    features : sequence of str, optional
        Columns to learn from; by default the contract's, or all but the target.
    num_workers : int
        Processes, each with a GPU where the cluster has them. Another number goes on from the same checkpoints.
    batch_size : int
        Rows a step over all workers; rounded to a multiple of `num_workers`, with a warning.
    validation_share, test_share : float
        Shares of rows to validate on, and to leave alone, chosen by hash as `split_frame` does.
    checkpoint_every : int
        Batches between checkpoints; there is one after each epoch too.
    max_failures : int
        How often workers may die before the training gives up.
    memory_bytes : int
        What the rows may take in a worker's memory; above, they are streamed through Ray Data in every epoch.
    run_name : str, optional
        Where the run's state lies, `training/{run_name}/` at the storage; by default a hash of data and arguments.
    address : str, optional
        Ray's address; None starts a cluster of this machine, for this process.
    progress : callable, optional
        Called with each epoch's metrics, from a thread of its own.

    Raises
    ------
    ConfigurationError
        For arguments out of range, more workers than the cluster has room for, or a run name of another training.
    DataError
        When the data cannot be learnt from; see `find_source` and `survey`.
    ModelError
        When workers died too often, or the loss is not finite.
    """
    if min(num_workers, batch_size, epochs, checkpoint_every) < 1 or not 0 <= dropout < 1 or learning_rate <= 0:
        raise ConfigurationError(
            "expected num_workers, batch_size, epochs and checkpoint_every of 1 and more, dropout in [0, 1) and "
            f"a positive learning_rate, found {num_workers}, {batch_size}, {epochs}, {checkpoint_every}, {dropout} "
            f"and {learning_rate}"
        )
    if min(validation_share, test_share) < 0 or validation_share + test_share >= 1:
        raise ConfigurationError(
            f"expected shares from 0 on that add up to less than 1, found {validation_share} and {test_share}"
        )
    storage = Storage(storage_url or get_settings().storage)
    source = find_source(storage, dataset, target, features)
    rows_a_step = nearest_multiple(batch_size, num_workers)
    parts = Parts(validation_share, test_share, random_state)
    facts = {
        "source": asdict(source), "task": task, "batch_size": rows_a_step, "epochs": epochs, "parts": asdict(parts),
        "hidden_sizes": list(hidden_sizes), "learning_rate": learning_rate, "weight_decay": weight_decay,
        "dropout": dropout, "random_state": random_state,
    }  # fmt: skip
    run = run_name or f"run-{_hash(facts)[:16]}"
    folder = f"training/{run}"
    _claim(storage, folder, facts)
    join_ray(address)
    room = room_for(num_workers, gpu=gpu)
    found, blocks = _prepared(storage, folder, source, parts, task, rows_a_step, random_state)
    stream = blocks.train_bytes / num_workers > memory_bytes
    job = Job(
        storage.url, folder, blocks.to_dict(), len(found.classes), tuple(hidden_sizes), learning_rate, weight_decay,
        dropout, epochs, checkpoint_every, stream, random_state,
    )  # fmt: skip
    before = load_newest(storage, f"{folder}/checkpoints")
    if before is None or before.step < blocks.steps * epochs:
        run_workers(storage, job, num_workers, room, max_failures, progress)
    pipeline = pipeline_of(storage, job, found, blocks)
    history = [storage.read_json(key) for key in storage.list(f"{folder}/epochs", suffix=".json")]
    storage.write_bytes(f"{folder}/model.skops", dump_pipeline(pipeline))
    metrics = {**history[-1], **final_metrics(storage, blocks, pipeline, found, task)}
    storage.write_json(f"{folder}/result.json", {"metrics": metrics, "facts": facts, "workers": num_workers})
    resumed = (before.step // blocks.steps, before.step % blocks.steps) if before else None
    return DistributedResult(
        run, pipeline, metrics, history, blocks.train_rows, blocks.validation_rows, num_workers, rows_a_step,
        resumed, f"{folder}/model.skops", asdict(parts),
    )  # fmt: skip


def nearest_multiple(batch_size: int, workers: int) -> int:
    """Return the multiple of the number of workers that is nearest to the batch size, with a warning if it differs."""
    chosen = max(1, round(batch_size / workers)) * workers
    if chosen != batch_size:
        logger.warning("batch_size=%d workers=%d chosen=%d, each worker gets equally many", batch_size, workers, chosen)
    return chosen


def _claim(storage: Storage, folder: str, facts: dict[str, Any]) -> None:
    """Write down what the run trains, or check that it is the same as before."""
    wanted = json.loads(json.dumps(facts))
    if not storage.exists(f"{folder}/run.json"):
        storage.write_json(f"{folder}/run.json", wanted)
        return
    stored = storage.read_json(f"{folder}/run.json")
    if changed := sorted(name for name in wanted if stored.get(name) != wanted[name]):
        raise ConfigurationError(
            f"expected {storage.url}/{folder} to be the same training, found another {', '.join(changed)}; "
            "take another run name (--run-name), or remove that folder"
        )


def _prepared(
    storage: Storage, folder: str, source: Source, parts: Parts, task: Learning, batch_size: int, random_state: int
) -> tuple[Survey, Blocks]:
    """Return survey and blocks, made now or found as an earlier call left them."""
    key = f"{folder}/prepared.json"
    if storage.exists(key):
        stored = storage.read_json(key)
        return Survey(**stored["survey"]), Blocks(**stored["blocks"])
    found = survey(source, parts, task)
    blocks = prepare(storage, f"{folder}/rows", source, parts, found, batch_size=batch_size, random_state=random_state)
    storage.write_json(key, {"survey": asdict(found), "blocks": blocks.to_dict()})
    return found, blocks


def _hash(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


if __name__ == "__main__":
    from forge_core.training.distributed_command import main

    sys.exit(main())
