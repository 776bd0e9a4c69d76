"""One model file behind the same API: no registry, no ledger, no watching. For a container with `MODEL_PATH`."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandera.pandas as pa

from forge_core.data.contracts import Contract
from forge_core.data.feature_engineering import FeatureEngineer
from forge_core.errors import ModelError, ModelNotFound, ServiceUnavailable, UntrustedModel
from forge_core.models.compiled import CompiledModel, NativeModel
from forge_core.models.model_trainer import load_model
from forge_core.monitoring.metrics import exposition
from forge_core.statistics.quality import Task
from serve_app.columns import Row, Table, packed
from serve_app.lanes import Lane
from serve_app.live_version import LiveVersion
from serve_app.router import Switchboard

_DTYPES = {"number": "float64", "category": "str", "datetime": "datetime64[ns, UTC]"}


def load_model_file(path: str | Path, *, allow_pickle: bool = False) -> LiveVersion:
    """Return the model in a file, ready to answer.

    Its fields and their kinds are those that the features were fitted on; each may be missing. The version is the
    start of the file's SHA-256.

    Parameters
    ----------
    path : str or Path
        What `save_model` wrote (`.skops`, or `.joblib` where `allow_pickle` is set), or a version's `model.onnx`.

    Raises
    ------
    ModelError
        "Failed to load model from path: …", and why.
    """
    file = Path(path)
    try:
        model, kinds, classes = (_onnx if file.suffix == ".onnx" else _pipeline)(file, allow_pickle)
    except Exception as error:
        told = str(error).removeprefix(f"Failed to load model from path: {file}; ")
        raise ModelError(
            f"Failed to load model from path: {file}; {told}; check the MODEL_PATH environment variable"
        ) from error
    contract = Contract(pa.DataFrameSchema({n: pa.Column(_DTYPES[k], nullable=True) for n, k in kinds.items()}))
    columns, version = contract.feature_columns, hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    task: Task = "classification" if classes else "regression"
    example: dict[str, Any] = {"features": dict.fromkeys(columns)}
    info: dict[str, Any] = {
        "name": file.stem,
        "version": version,
        "task": task,
        "features": contract.kinds,
        "serves": {"serves": "compiled" if file.suffix == ".onnx" else "native", "reason": f"the file is {file.name}"},
        "metrics": {},
        "lineage": {"file": file.name},
        "example": example,
    }

    def score(rows: Sequence[Row] | Table) -> list[Any]:
        return model.score(dict(zip(columns, packed(rows), strict=True))).tolist()

    async def send(rows: Sequence[Any] | Table) -> Sequence[Any]:
        return await asyncio.to_thread(score, rows)

    score([tuple(contract.check_row({}).values())])
    return LiveVersion(file.stem, version, contract, columns, task, classes, info, example, Lane(send))


def _pipeline(file: Path, allow_pickle: bool) -> tuple[NativeModel, Mapping[str, str], list[Any]]:
    pipeline = load_model(file, allow_pickle=allow_pickle)
    features = getattr(pipeline, "named_steps", {}).get("features")
    if not isinstance(features, FeatureEngineer):
        raise UntrustedModel(f"expected a pipeline that `save_model` wrote, found {type(pipeline).__name__}")
    classes = getattr(pipeline, "classes_", None)
    kinds = features.input_kinds
    return NativeModel(pipeline, list(kinds)), kinds, [] if classes is None else list(classes.tolist())


def _onnx(file: Path, allow_pickle: bool) -> tuple[CompiledModel, Mapping[str, str], list[Any]]:
    if not file.is_file():
        raise ModelNotFound("there is no such file")
    model = CompiledModel(file.read_bytes())
    return model, model.input_kinds, list(range(model.n_outputs)) if model.n_outputs > 1 else []


class FileBoard(Switchboard):
    """A switchboard with one version that never changes."""

    def __init__(self, live: LiveVersion) -> None:
        super().__init__("memory://none", live.model)
        self.live, self.held = {live.model: live}, {live.model: {live.version: live}}
        self.watch = {live.model: None}

    async def metrics(self) -> bytes:
        """Return this process's metrics."""
        return exposition(self.counting)

    async def record(self, model: str | None, labels: Sequence[tuple[str, float]], event_time: datetime | None) -> int:
        """Refuse labels: nobody is there to keep them."""
        raise ServiceUnavailable("a model file alone keeps no feedback; serve it from the registry: make up")

    async def monitoring(self, flush: bool) -> dict[str, Any]:
        """Return that nothing is watched."""
        return {"received": 0, "written": 0, "dropped": 0, "waiting": 0}
