"""The command line of distributed training, with its progress on the terminal and in MLflow."""

import argparse
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from forge_core.errors import ForgeError
from forge_core.training.distributed_trainer import train_distributed


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m forge_core.training.distributed_trainer",
        description="Train over several processes, GPUs or machines.",
    )
    parser.add_argument("--dataset", required=True, help="ds-… id, or path, URL or pattern of CSV or Parquet files")
    parser.add_argument("--target", default="target", help="column to predict")
    parser.add_argument("--features", help="columns to learn from, with commas between; by default all others")
    parser.add_argument("--task", choices=("classification", "regression"), default="classification")
    parser.add_argument("--num-workers", type=int, default=1, help="processes, one a GPU where there are any")
    parser.add_argument("--batch-size", type=int, default=64, help="rows a step, over all workers")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the rows")
    parser.add_argument("--hidden", default="64,32", help="units of the hidden layers")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--checkpoint-every", type=int, default=1000, help="batches between checkpoints")
    parser.add_argument("--memory-mb", type=int, default=1024, help="rows in a worker's memory; more are streamed")
    parser.add_argument("--run-name", help="name of the run; the same name goes on where it was")
    parser.add_argument("--experiment", default="distributed-training", help="MLflow experiment")
    parser.add_argument(
        "--master", action="store_true", help="be the driver: join the cluster at RAY_ADDRESS, or start one here"
    )
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        hidden = tuple(int(width) for width in chosen.hidden.split(",") if width)
        return _train(chosen, hidden)
    except (ForgeError, ValueError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1


def _train(chosen: argparse.Namespace, hidden: tuple[int, ...]) -> int:
    started = time.monotonic()
    tracker = _tracker(chosen.experiment)
    with tracker or nullcontext():
        if tracker is not None:
            tracker.log_params({k: v for k, v in vars(chosen).items() if v is not None})

        def show(metrics: dict[str, Any]) -> None:
            numbers = "  ".join(f"{k} {v:.5g}" for k, v in metrics.items() if k != "epoch" and math.isfinite(v))
            sys.stdout.write(f"epoch {metrics['epoch']}/{chosen.epochs}  {numbers}\n")
            sys.stdout.flush()
            if tracker is not None:
                values = {k: float(v) for k, v in metrics.items() if math.isfinite(v)}
                tracker.log_metrics(values, step=metrics["epoch"])

        result = train_distributed(
            chosen.dataset, target=chosen.target,
            features=chosen.features.split(",") if chosen.features else None, task=chosen.task,
            num_workers=chosen.num_workers,
            batch_size=chosen.batch_size, epochs=chosen.epochs, hidden_sizes=hidden,
            learning_rate=chosen.learning_rate, dropout=chosen.dropout, random_state=chosen.seed,
            checkpoint_every=chosen.checkpoint_every, memory_bytes=chosen.memory_mb * 2**20,
            run_name=chosen.run_name, address=os.environ.get("RAY_ADDRESS"), progress=show,
        )  # fmt: skip
        if tracker is not None:
            tracker.log_metrics({f"final_{k}": v for k, v in result.metrics.items() if k != "epoch"})
    numbers = "  ".join(f"{k} {v:.5g}" for k, v in result.metrics.items() if k not in ("epoch", "seconds"))
    went_on = (
        f", gone on from epoch {result.resumed_from[0]} batch {result.resumed_from[1]}" if result.resumed_from else ""
    )
    sys.stdout.write(
        f"run {result.run}: {result.train_rows} rows, {result.workers} workers, {time.monotonic() - started:.1f} s"
        f"{went_on}\nvalidation ({result.validation_rows} rows): {numbers}\nmodel: {result.key}\n"
    )
    return 0


def _tracker(experiment: str) -> Any:
    """Return a tracker where MLFLOW_TRACKING_URI is set, else None."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    from forge_core.tracking.mlflow_extensions import ExperimentTracker

    return ExperimentTracker(experiment)
