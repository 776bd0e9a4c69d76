"""One worker's share on a GPU: what a CPU gives, within what bfloat16 loses, and checkpoints that either may take up.

Neither Ray nor servers, so that it runs on a bare machine with a GPU: `python -m pytest -m gpu`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forge_core.storage import Storage
from forge_core.training.distributed_blocks import Blocks, BlockWriter, Share
from forge_core.training.distributed_checkpoint import load_newest
from forge_core.training.distributed_worker import Job, train_share

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use"),
]
FEATURES, ROWS, BATCH = 24, 60_000, 512


def _blocks(root: Path) -> Blocks:
    random = np.random.default_rng(0)
    X = random.standard_normal((ROWS, FEATURES)).astype(np.float32)
    y = (X[:, :3].sum(axis=1) + random.standard_normal(ROWS) > 0).astype(np.float32)
    rows = np.column_stack([X, y, np.ones(ROWS)]).astype(np.float32)
    writer = BlockWriter(Storage(str(root)), "rows", width=FEATURES + 2, batch_size=BATCH, random_state=0)
    writer.add("train", rows[:50_000])
    writer.add("validation", rows[50_000:])
    return writer.finish()


def _train(root: Path, blocks: Blocks, folder: str, device: str, epochs: int) -> list[dict[str, Any]]:
    job = Job(str(root), folder, blocks.to_dict(), 2, (64, 32), 1e-3, 1e-4, 0.0, epochs, 1000, False, 0)
    history: list[dict[str, Any]] = []
    train_share(job, Share(0, 1), torch.device(device), report=history.append)
    return history


def test_a_gpu_gives_what_a_cpu_gives(tmp_path: Path) -> None:
    blocks = _blocks(tmp_path)
    cpu = _train(tmp_path, blocks, "cpu", "cpu", 4)
    gpu = _train(tmp_path, blocks, "gpu", "cuda:0", 4)
    assert [epoch["log_loss"] for epoch in gpu] == pytest.approx([epoch["log_loss"] for epoch in cpu], abs=5e-3)
    assert gpu[-1]["accuracy"] == pytest.approx(cpu[-1]["accuracy"], abs=5e-3)
    print(f"log loss cpu {cpu[-1]['log_loss']:.5f} gpu {gpu[-1]['log_loss']:.5f}; rows/s cpu "
          f"{cpu[-1]['rows_per_second']:,.0f} gpu {gpu[-1]['rows_per_second']:,.0f}")  # fmt: skip


def test_a_checkpoint_of_a_gpu_goes_on_there_and_on_a_cpu(tmp_path: Path) -> None:
    blocks = _blocks(tmp_path)
    whole = _train(tmp_path, blocks, "whole", "cuda:0", 3)
    for device in ("cuda:0", "cpu"):
        folder = f"cut-{device.partition(':')[0]}"
        _cut(tmp_path, blocks, folder)
        rest = _train(tmp_path, blocks, folder, device, 3)
        assert [epoch["epoch"] for epoch in rest] == [3]
        close = 1e-6 if device == "cuda:0" else 5e-3
        assert rest[-1]["log_loss"] == pytest.approx(whole[-1]["log_loss"], abs=close)


def _cut(root: Path, blocks: Blocks, folder: str) -> None:
    """Leave a run of three epochs as a death after its second would: later checkpoints and epochs are not there."""
    _train(root, blocks, folder, "cuda:0", 3)
    storage = Storage(str(root))
    for key in storage.list(f"{folder}/checkpoints"):
        if int(Path(key).stem) > 2 * blocks.steps:
            storage.fs.rm(storage.path(key))
    storage.fs.rm(storage.path(f"{folder}/epochs/000003.json"))
    newest = load_newest(storage, f"{folder}/checkpoints")
    assert newest is not None and newest.step == 2 * blocks.steps
