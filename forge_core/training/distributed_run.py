"""Ray Train around the workers: start them, start them again when they die, and tell how far they are."""

import os
import threading
import uuid
from collections.abc import Callable
from typing import Any

from forge_core.errors import ModelError
from forge_core.storage import Storage
from forge_core.training.distributed_cluster import Room
from forge_core.training.distributed_worker import Job, run_worker

Progress = Callable[[dict[str, Any]], None]


def run_workers(storage: Storage, job: Job, workers: int, room: Room, failures: int, progress: Progress | None) -> None:
    """Let Ray Train run the workers until all epochs are done."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    # How often Ray Train asks its workers; each report waits for that, 2 s by default, also after an epoch of 0.2 s.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    trainer = TorchTrainer(
        run_worker,
        train_loop_config=job.to_dict(),
        torch_config=TorchConfig(backend="nccl" if room.use_gpu else "gloo", timeout_s=300),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=room.use_gpu, resources_per_worker=room.resources),
        run_config=RunConfig(
            # Each call is a run of its own to Ray; what has to last lies in our own checkpoints.
            name=f"attempt-{uuid.uuid4().hex[:12]}",
            storage_path=storage.path(f"{job.folder}/ray"),
            storage_filesystem=PyFileSystem(FSSpecHandler(storage.fs)),
            failure_config=FailureConfig(max_failures=failures),
        ),
    )
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(storage, job, progress, over), daemon=True)
    watcher.start()
    try:
        trainer.fit()
    except TrainingFailedError as error:
        text = str(getattr(error, "worker_failures", "") or error).strip()
        raise ModelError(
            f"expected {workers} workers to finish, which failed more than {failures} times: {text[-600:]}; "
            f"start the same training again to go on from its last checkpoint"
        ) from error
    finally:
        over.set()
        watcher.join()


def _watch(storage: Storage, job: Job, progress: Progress | None, over: threading.Event) -> None:
    """Hand each epoch's metrics on as soon as they are stored."""
    epoch = 1
    while progress is not None and epoch <= job.epochs:
        ended = over.is_set()
        key = f"{job.folder}/epochs/{epoch:06d}.json"
        if storage.exists(key):
            progress(storage.read_json(key))
            epoch += 1
        elif ended:
            return
        else:
            over.wait(0.5)
