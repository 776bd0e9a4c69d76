"""What a distributed training leaves: a pipeline like any other, its metrics, and the candidate that it becomes."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from forge_core.data.feature_engineering import FeatureEngineer
from forge_core.errors import ConfigurationError, ModelError
from forge_core.models.mlp import TorchClassifier, TorchRegressor, build_network, layers_of
from forge_core.models.target import Learning
from forge_core.models.version import dump_pipeline
from forge_core.statistics.quality import classification_metrics, regression_metrics
from forge_core.storage import Storage
from forge_core.training.candidate import Recipe
from forge_core.training.distributed_blocks import Blocks, Share, read_validation
from forge_core.training.distributed_checkpoint import load_newest
from forge_core.training.distributed_data import Survey
from forge_core.training.distributed_worker import Job

_SCORED_ROWS = 200_000


@dataclass(frozen=True)
class DistributedResult:
    """A finished training: the pipeline, its metrics on the validation part, and how it went.

    `history` has one dict of metrics an epoch; `resumed_from` is the (epoch, batch) that this call went on from;
    the same pipeline lies at `key` of the storage. `parts` says how rows were split.
    """

    run: str
    pipeline: Pipeline
    metrics: dict[str, float]
    history: list[dict[str, Any]]
    train_rows: int
    validation_rows: int
    workers: int
    batch_size: int
    resumed_from: tuple[int, int] | None
    key: str
    parts: dict[str, Any]


def to_candidate(storage: Storage, recipe: Recipe, result: DistributedResult) -> str:
    """Keep the pipeline as the candidate of a recipe, in place of `candidate.fit`, and return the candidate's id.

    Raises
    ------
    ConfigurationError
        When the recipe splits otherwise than the training did, so that held-out rows would have been learnt from.
    """
    split = recipe.split
    wanted = {
        "validation_share": split.validation_share, "test_share": split.test_share, "random_state": split.random_state
    }  # fmt: skip
    if split.time_column is not None or wanted != result.parts:
        raise ConfigurationError(
            f"expected a recipe that splits by hash with {result.parts}, found {wanted}"
            f"{' by time' if split.time_column else ''}; train again with the recipe's shares, or change the recipe"
        )
    storage.write_bytes(recipe.key("model.skops"), dump_pipeline(result.pipeline))
    seconds = sum(epoch["seconds"] for epoch in result.history)
    storage.write_json(recipe.key("recipe.json"), asdict(recipe) | {"fit_seconds": seconds, "run": result.run})
    return recipe.candidate_id


def pipeline_of(storage: Storage, job: Job, found: Survey, blocks: Blocks) -> Pipeline:
    """Return features and estimator together, from the last checkpoint."""
    import torch

    checkpoint = load_newest(storage, f"{job.folder}/checkpoints")
    if checkpoint is None or any(not np.isfinite(v).all() for v in checkpoint.arrays.values()):
        raise ModelError("expected finite weights, found others; lower the learning rate and train again")
    network = build_network([blocks.n_features, *job.hidden_sizes, job.n_classes or 1])
    # Parameters are numbered without dropout layers here, so names are matched by their order.
    values = [torch.from_numpy(v) for k, v in checkpoint.arrays.items() if k.startswith("model/")]
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))
    kind = TorchClassifier if job.n_classes else TorchRegressor
    estimator = kind(
        hidden_sizes=job.hidden_sizes, learning_rate=job.learning_rate, batch_size=blocks.batch_size,
        epochs=job.epochs, weight_decay=job.weight_decay, dropout=job.dropout, random_state=job.random_state,
    )  # fmt: skip
    estimator.layers_, estimator.n_features_in_ = layers_of(network), blocks.n_features
    history = [storage.read_json(key) for key in storage.list(f"{job.folder}/epochs", suffix=".json")]
    estimator.loss_curve_ = [epoch["train_loss"] for epoch in history]
    if job.n_classes:
        estimator.classes_ = np.array(found.classes)
    else:
        estimator.target_mean_, estimator.target_scale_ = found.target_mean, found.target_scale
    return Pipeline([("features", FeatureEngineer.from_state(found.state)), ("estimator", estimator)])


def final_metrics(
    storage: Storage, blocks: Blocks, pipeline: Pipeline, found: Survey, task: Learning
) -> dict[str, float]:
    """Return the task's metrics on up to `_SCORED_ROWS` validation rows."""
    rows: list[Any] = []
    for block in read_validation(storage, blocks, Share(0, 1)):
        rows.append(block)
        if sum(map(len, rows)) >= _SCORED_ROWS:
            break
    if not rows:
        return {}
    matrix, estimator = np.concatenate(rows), pipeline.named_steps["estimator"]
    inputs, target = matrix[:, : blocks.n_features], matrix[:, blocks.n_features]
    if task == "regression":
        return regression_metrics(target * found.target_scale + found.target_mean, estimator.predict(inputs))
    if len(np.unique(target)) < len(found.classes):
        return {}
    scores = estimator.predict_proba(inputs).astype(float)
    return classification_metrics(target.astype(int), scores[:, 1] if len(found.classes) == 2 else scores)
