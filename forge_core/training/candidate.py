"""A candidate, step by step: fit, evaluate, compile, assemble.

Each step's result lies below `candidates/{id}/` at the storage URL. The id is a hash of everything that went
in, so the same inputs give the same candidate and a repeated step overwrites itself with the same bytes.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forge_core.data.splits import DataSplit
from forge_core.data.versions import load_contract, load_manifest
from forge_core.errors import NotEnoughSamples
from forge_core.models.behaviour import check_behaviour, check_latency
from forge_core.models.compiled import CompiledModel, NativeModel, compile_pipeline, measure_parity
from forge_core.models.crossover import measure_crossover
from forge_core.models.evaluation import (
    Evaluation,
    Verdict,
    evaluate_predictions,
    judge,
)
from forge_core.models.evaluation_pictures import evaluation_figure
from forge_core.models.model_trainer import get_model_trainer, score
from forge_core.models.onnx_inputs import plain_columns
from forge_core.models.target import Learning, classes_of, labels_as_numbers, task_of
from forge_core.models.version import VersionFolder, dump_pipeline, load_pipeline, write_parts
from forge_core.monitoring.windows import ReferenceProfile
from forge_core.policy import GatePolicy
from forge_core.statistics.expectation import Expectation
from forge_core.statistics.quality import Floats
from forge_core.storage import Storage
from forge_core.training.datasets import SplitRequest, load_split


@dataclass(frozen=True)
class Recipe:
    """All that determines a candidate."""

    split: SplitRequest
    model_type: str
    task: Learning
    hyperparameters: tuple[tuple[str, Any], ...]

    @property
    def candidate_id(self) -> str:
        """Content address of the candidate."""
        text = json.dumps(asdict(self), sort_keys=True, default=str)
        return f"candidate-{_sha256(text.encode())[:16]}"

    def key(self, name: str) -> str:
        """Return the storage key of one of the candidate's files."""
        return f"candidates/{self.candidate_id}/{name}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fit(storage: Storage, recipe: Recipe) -> str:
    """Fit features and estimator on the training and validation part; return the candidate's id."""
    parts = load_split(storage, recipe.split)
    rows = pd.concat([parts.train, parts.validation], ignore_index=True)
    trainer = get_model_trainer(
        recipe.model_type, dict(recipe.hyperparameters), task=recipe.task, target=parts.target_column
    )
    started = time.perf_counter()
    trainer.train(rows[_features(storage, recipe)], rows[parts.target_column])
    storage.write_bytes(recipe.key("model.skops"), dump_pipeline(trainer.pipeline))
    storage.write_json(recipe.key("recipe.json"), asdict(recipe) | {"fit_seconds": time.perf_counter() - started})
    return recipe.candidate_id


def evaluate(
    storage: Storage, recipe: Recipe, *, policy: GatePolicy, champion: VersionFolder | None, champion_name: str
) -> tuple[Evaluation, Verdict]:
    """Score the held-out part, compare with the champion (or the training mean) on the same rows, and judge.

    Raises
    ------
    NotEnoughSamples
        When the held-out part has fewer than two rows, or one class only.
    """
    parts = load_split(storage, recipe.split)
    pipeline = _pipeline(storage, recipe)
    task, classes = task_of(pipeline), classes_of(pipeline) or []
    y = labels_as_numbers(parts.y_test, pipeline)
    if len(y) < 2 or (classes and len(np.unique(y)) < 2):
        found = parts.y_test.unique().tolist()
        raise NotEnoughSamples(
            f"expected held-out rows of at least two classes, found {len(y)} rows with {found}; widen the data"
        )
    times = parts.test[recipe.split.time_column] if recipe.split.time_column else None
    candidate = score(pipeline, parts.X_test)
    if champion is not None and classes_of(champion.pipeline) == classes_of(pipeline):
        incumbent = score(champion.pipeline, parts.test[champion.contract.feature_columns])
    else:  # a champion that says other things cannot be compared with
        champion_name = "the training mean"
        incumbent = _constant(labels_as_numbers(pd.concat([parts.y_train, parts.y_val]), pipeline), len(y), candidate)
    evaluation = evaluate_predictions(
        y,
        candidate,
        task=task,
        times=times,
        slices=parts.X_test.select_dtypes(exclude="number"),
        slice_metric=policy.metric,
        confidence=policy.confidence,
    )
    behaviour = check_behaviour(policy.behaviour, lambda rows: score(pipeline, rows), parts.X_test)
    if policy.max_latency_ms is not None:
        behaviour.append(check_latency(_ask_one(storage, recipe, policy, parts.X_test), policy.max_latency_ms))
    verdict = judge(
        evaluation, y, candidate, incumbent,
        policy=policy, incumbent_name=champion_name, times=times, behaviour=behaviour,
    )  # fmt: skip
    title = f"{recipe.model_type} on {len(y):,} held-out rows"
    storage.write_bytes(recipe.key("evaluation.png"), evaluation_figure(task, y, candidate, title, classes))
    storage.write_json(
        recipe.key("evaluation.json"), {"evaluation": evaluation.to_dict(), "verdict": verdict.to_dict()}
    )
    return evaluation, verdict


def _constant(y: Floats, n_rows: int, like: Floats) -> Floats:
    """Return what knows nothing: the training mean, or with many classes their shares."""
    if like.ndim == 1:
        return np.full(n_rows, y.mean())
    return np.tile(np.bincount(y.astype(int), minlength=like.shape[1]) / len(y), (n_rows, 1))


def _ask_one(storage: Storage, recipe: Recipe, policy: GatePolicy, rows: pd.DataFrame) -> Callable[[], Any]:
    """Return what answers one row as it will be served."""
    serves = compile_candidate(storage, recipe, tolerance=policy.parity_tolerance)["serves"]
    model: CompiledModel | NativeModel = (
        CompiledModel(storage.read_bytes(recipe.key("model.onnx")))
        if serves == "compiled"
        else NativeModel(_pipeline(storage, recipe), list(rows.columns))
    )
    columns = plain_columns(rows.head(1))
    return lambda: model.score(columns)


def compile_candidate(storage: Storage, recipe: Recipe, *, tolerance: float) -> dict[str, Any]:
    """Convert to ONNX, measure parity on held-out rows, and return which form will serve, and why.

    Where the compiled form serves, the number of rows from which the native one is faster is measured too. What an
    earlier call found for the same model and tolerance is returned as it is.
    """
    asked = {"tolerance": tolerance, "model_sha256": _sha256(storage.read_bytes(recipe.key("model.skops")))}
    if storage.exists(recipe.key("compiled.json")):
        known: dict[str, Any] = storage.read_json(recipe.key("compiled.json"))
        if asked.items() <= known.items():
            return known
    parts = load_split(storage, recipe.split)
    pipeline = _pipeline(storage, recipe)
    onnx, reason = compile_pipeline(pipeline)
    report: dict[str, Any] = {"serves": "native", "reason": reason, "parity": None, **asked}
    if onnx is not None:
        parity = measure_parity(pipeline, onnx, parity_rows(parts))
        good = parity.largest_difference <= tolerance
        report |= {
            "serves": "compiled" if good else "native",
            "reason": f"largest difference {parity.largest_difference:.2g}, tolerance {tolerance:g}",
            "parity": parity.to_dict(),
        }
        if good:
            report |= measure_crossover(pipeline, onnx, parts.X_test.head(2000)).to_dict()
        storage.write_bytes(recipe.key("model.onnx"), onnx)
    storage.write_json(recipe.key("compiled.json"), report)
    return report


def parity_rows(parts: DataSplit, n_rows: int = 2000) -> pd.DataFrame:
    """Return held-out rows, and after them the same with missing values and unknown categories planted."""
    rows = parts.X_test.head(n_rows).reset_index(drop=True)
    planted = rows.copy()
    for number, column in enumerate(rows.columns):
        hit = np.arange(len(rows)) % len(rows.columns) == number
        if pd.api.types.is_datetime64_any_dtype(rows[column]):
            planted[column] = planted[column].mask(hit)
        elif pd.api.types.is_numeric_dtype(rows[column]):
            planted[column] = planted[column].astype(float).mask(hit)
        elif pd.api.types.is_datetime64_any_dtype(rows[column]):
            planted[column] = planted[column].mask(hit)
        else:
            planted[column] = planted[column].astype("str").mask(hit & (np.arange(len(rows)) % 2 == 0), "never seen")
            planted[column] = planted[column].mask(hit & (np.arange(len(rows)) % 2 == 1), None)
    return pd.concat([rows, planted], ignore_index=True)


def assemble(
    storage: Storage, recipe: Recipe, folder: Path, *, lineage: Mapping[str, Any], window_hours: float = 24.0
) -> VersionFolder:
    """Gather every part of a version into a folder; its training rows are kept as windows of so many hours."""
    parts = load_split(storage, recipe.split)
    pipeline = _pipeline(storage, recipe)
    contract = load_contract(storage, recipe.split.dataset_id)
    numerical = [c for c in contract.feature_columns if contract.kinds[c] in ("number", "integer")]
    categorical = [c for c in contract.feature_columns if c not in numerical]
    scores = score(pipeline, parts.X_test)
    # Of many classes the most probable one's probability is watched, as the API answers it.
    outputs = pd.DataFrame({"probability": scores if scores.ndim == 1 else scores.max(axis=1)})
    times = parts.train[recipe.split.time_column] if recipe.split.time_column else None
    reference = ReferenceProfile.build(
        parts.X_train, categorical, numerical, outputs=outputs, times=times, window_hours=window_hours
    )
    task = task_of(pipeline)
    judged = storage.read_json(recipe.key("evaluation.json"))
    compiled = storage.read_json(recipe.key("compiled.json"))
    example = parts.X_test.dropna().head(1)
    example = example if len(example) else parts.X_test.head(1)
    return write_parts(
        folder,
        pipeline=pipeline,
        contract=contract,
        reference=reference.to_files(),
        evaluation=Evaluation.from_dict(judged["evaluation"]),
        verdict=Verdict.from_dict(judged["verdict"]),
        expectation=Expectation.fit(task, labels_as_numbers(parts.y_test, pipeline), scores),
        compiled=compiled,
        onnx=storage.read_bytes(recipe.key("model.onnx")) if compiled["parity"] else None,
        input_example=json.loads(example.to_json(orient="records", date_format="iso"))[0],
        lineage={
            "dataset": recipe.split.dataset_id,
            "source": load_manifest(storage, recipe.split.dataset_id).source,
            "candidate": recipe.candidate_id,
            "model_type": recipe.model_type,
            "hyperparameters": dict(recipe.hyperparameters),
            "task": task,
            "classes": classes_of(pipeline),
            "train_rows": len(parts.train) + len(parts.validation),
            **lineage,
        },
    )


def _features(storage: Storage, recipe: Recipe) -> list[str]:
    return load_contract(storage, recipe.split.dataset_id).feature_columns


def _pipeline(storage: Storage, recipe: Recipe) -> Any:
    key = recipe.key("model.skops")
    return load_pipeline(storage.read_bytes(key), origin=f"{storage.url}/{key}")
