"""What the servers serve: 12 mixed columns, two pipelines that our own trainer fits, and their requests.

Ours is registered and served compiled, and the servers of an ONNX session get that very graph. The others load what
their users write: the same estimator, of the same parameters and rows, behind scikit-learn's own ColumnTransformer. (It
takes about 24 ms a row where our feature engineer behind scikit-learn's forest takes 8.)
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from forge_core.data.ingest import ingest
from forge_core.data.splits import DataSplit
from forge_core.deployment.go_live import go_live
from forge_core.deployment.replay_rows import to_records
from forge_core.deployment.serve_client import get_serve_client
from forge_core.ledger import Ledger
from forge_core.models.model_trainer import score
from forge_core.models.version import VersionFolder
from forge_core.policy import ModelPolicy, load_policy
from forge_core.settings import Settings
from forge_core.storage import Storage
from forge_core.tracking.mlflow_extensions import ExperimentTracker
from forge_core.tracking.registry import Registry, write_mlmodel
from forge_core.training import candidate
from forge_core.training.datasets import SplitRequest, load_split
from tests.benchmarks.peers.scikit_pipeline import scikit_pipeline

MODELS = {"forest": "random_forest", "logistic": "logistic_regression"}
_TARGET = "bought"


@dataclass(frozen=True)
class Served:
    """One model that is live, and what its peers need.

    `answers` are those of the scikit-learn pipeline for the records, `onnx_answers` those of the graph, which is ours.
    """

    name: str
    pipeline: Path
    onnx: Path
    records: list[dict[str, Any]]
    answers: NDArray[np.float64]
    onnx_answers: NDArray[np.float64]


def mixed_rows(n_rows: int = 20_000, random_state: int = 0) -> pd.DataFrame:
    """Return rows of 12 columns and a target: six numbers, four categories of 4 to 500 levels, a flag, a time."""
    rng = np.random.default_rng(random_state)
    columns: dict[str, Any] = {
        name: np.where(rng.random(n_rows) < 0.05, np.nan, np.round(rng.normal(mean, spread, n_rows), 3))
        for name, mean, spread in (
            ("age", 40, 12), ("income", 30_000, 8000), ("balance", 0, 2000), ("distance", 25, 9), ("rating", 3, 1),
        )
    }  # fmt: skip
    columns["visits"] = rng.integers(0, 50, n_rows)
    for name, levels in (("channel", 4), ("region", 8), ("product", 30), ("shop", 500)):
        columns[name] = [f"{name}-{level}" for level in rng.integers(0, levels, n_rows)]
    columns["member"] = rng.random(n_rows) < 0.4
    columns["seen_at"] = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(rng.integers(0, 8760, n_rows), "h")
    rows = pd.DataFrame(columns)
    strength = rows["rating"].fillna(3) - 3 + (rows["visits"] - 25) / 15 + 0.8 * rows["member"]
    strength += (rows["seen_at"].dt.hour - 12) / 12 + rows["channel"].str[-1].astype(int) / 4
    rows[_TARGET] = (strength + rng.normal(0, 1, n_rows) > 0.6).astype(int)
    return rows


def write_policy(file: Path) -> Path:
    """Write the policy of both models and return the file."""
    data = {"source": "memory", "target": _TARGET}
    models = {name: {"data": data, "training": {"model_type": kind}} for name, kind in MODELS.items()}
    file.write_text(yaml.safe_dump({"models": models}))
    return file


def bring_live(settings: Settings, name: str, folder: Path) -> Served:
    """Train one of `MODELS`, register it, bring it live as the product does, and return it with its requests."""
    storage, registry = Storage(settings.storage), Registry(settings.mlflow_url)
    policy = load_policy(settings.policy_file, name)
    recipe = _recipe(storage, policy)
    version = _register(storage, registry, recipe, name, policy)
    go_live(
        storage, Ledger(settings.ledger), registry, get_serve_client(settings), name, version,
        policy=policy, actor="bench", reason="the serving benchmark", progress=lambda told: None,
    )  # fmt: skip
    with registry.open(registry.resolve(name, version)) as parts:
        return _served(name, parts, load_split(storage, recipe.split), folder)


def _recipe(storage: Storage, policy: ModelPolicy) -> candidate.Recipe:
    data = policy.data
    split = SplitRequest(
        storage_url=storage.url,
        dataset_id=ingest(storage, mixed_rows(), data).version.id,
        target=data.target,
        time_column=None,
        validation_share=data.validation_share,
        test_share=data.test_share,
        random_state=0,
    )
    return candidate.Recipe(split, policy.training.model_type, "classification", (("random_state", 0),))


def _register(storage: Storage, registry: Registry, recipe: candidate.Recipe, name: str, policy: ModelPolicy) -> str:
    candidate.fit(storage, recipe)
    _, verdict = candidate.evaluate(
        storage, recipe, policy=policy.gate, champion=None, champion_name="the training mean"
    )
    compiled = candidate.compile_candidate(storage, recipe, tolerance=policy.gate.parity_tolerance)
    if not verdict.passed or compiled["serves"] != "compiled":
        raise RuntimeError(f"{name} cannot be measured: {verdict.reason}; compiled: {compiled['reason']}")
    tracker = ExperimentTracker(name, tracking_uri=registry.tracking_uri)
    with tempfile.TemporaryDirectory(prefix="forge-bench-") as path, tracker:
        run_id = tracker.run_id or ""
        parts = candidate.assemble(storage, recipe, Path(path) / "version", lineage={"run": run_id})
        write_mlmodel(parts.path, parts.pipeline, parts.input_example)
        return registry.register(name, parts.path, run_id=run_id, candidate=recipe.candidate_id, gate="passed").version


def _served(name: str, parts: VersionFolder, data: DataSplit, folder: Path) -> Served:
    pipeline, onnx = folder / f"{name}.joblib", folder / f"{name}.onnx"
    theirs = scikit_pipeline(parts.pipeline.named_steps["estimator"], data.X_train, data.y_train)
    joblib.dump(theirs, pipeline)
    onnx.write_bytes(parts.onnx or b"")
    rows = data.X_test.head(1000)
    records = to_records(rows, parts.contract)
    return Served(name, pipeline, onnx, records, score(theirs, rows), score(parts.pipeline, rows))


def mlflow_model(served: Served, folder: Path) -> Path:
    """Write the pipeline as MLflow saves one, with a signature and its probabilities as the answer."""
    import mlflow.sklearn
    from mlflow.models import infer_signature

    pipeline: Pipeline = joblib.load(served.pipeline)
    rows = pd.DataFrame(served.records)
    mlflow.sklearn.save_model(
        pipeline,
        str(folder),
        serialization_format=mlflow.sklearn.SERIALIZATION_FORMAT_CLOUDPICKLE,
        pyfunc_predict_fn="predict_proba",
        signature=infer_signature(rows, pipeline.predict_proba(rows)),
        pip_requirements=["scikit-learn"],
    )
    return folder
