"""A model version: one folder with every part that training leaves and serving, watching and people need.

    model.skops        the pipeline, features and estimator together; loads without running pickled code
    model.onnx         the same pipeline compiled (absent where it does not convert; compiled.json says why)
    compiled.json      parity with the pipeline on held-out rows, or the reason for none
    contract.yaml      the Pandera contract of the inputs
    features.json      the feature engineer's fitted state, with its hash
    reference.json/bin what the training rows and the held-out predictions looked like (grid, whylogs profile)
    evaluation.json    metrics with intervals, slices; the gate's verdict
    input_example.json one valid request
    lineage.json       dataset version, code commit, lock-file hash, parent run
    parts.json         the SHA-256 of every part above, written last

A part that is missing or was changed is an error at load, never a surprise at predict.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sklearn.pipeline import Pipeline

from forge_core.data.contracts import Contract
from forge_core.errors import IncompleteVersion, UntrustedModel
from forge_core.models.evaluation import Evaluation, Verdict
from forge_core.statistics.expectation import Expectation
from forge_core.statistics.quality import Task

REQUIRED = (
    "model.skops",
    "compiled.json",
    "contract.yaml",
    "features.json",
    "reference.json",
    "reference.bin",
    "evaluation.json",
    "expectation.json",
    "input_example.json",
    "lineage.json",
)

# Types outside skops' own trust list that our algorithms' files contain. A file with any other type is refused.
TRUSTED_TYPES = frozenset(
    {
        "forge_core.data.feature_engineering.FeatureEngineer",
        "forge_core.models.mlp.TorchClassifier",
        "forge_core.models.mlp.TorchRegressor",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.tree._tree.Tree",
    }
)


@dataclass(frozen=True)
class VersionFolder:
    """A version's parts on a local disk, read and checked on demand."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> "VersionFolder":
        """Return the folder after checking that every part is there and unchanged.

        Raises
        ------
        IncompleteVersion
            Names the parts that are missing or changed.
        """
        folder = Path(path)
        index = folder / "parts.json"
        if not index.is_file():
            raise IncompleteVersion(f"expected parts.json in {folder}, found none; register the version again")
        hashes: dict[str, str] = json.loads(index.read_text())
        missing = sorted(n for n in {*REQUIRED, *hashes} if not (folder / n).is_file())
        changed = sorted(n for n, h in hashes.items() if n not in missing and _sha256(folder / n) != h)
        if missing or changed:
            raise IncompleteVersion(
                f"the version in {folder} is not what was registered: missing {missing or 'nothing'}, "
                f"changed {changed or 'nothing'}; register it again from its run"
            )
        return cls(folder)

    @cached_property
    def pipeline(self) -> Pipeline:
        """The native pipeline."""
        return load_pipeline((self.path / "model.skops").read_bytes(), origin=str(self.path / "model.skops"))

    @property
    def onnx(self) -> bytes | None:
        """The compiled pipeline, or None where it does not convert or lies outside the tolerance."""
        file = self.path / "model.onnx"
        return file.read_bytes() if file.is_file() and self.compiled["serves"] == "compiled" else None

    @cached_property
    def compiled(self) -> dict[str, Any]:
        """Which form serves, the parity that was measured, and the reason."""
        return self._json("compiled.json")

    @cached_property
    def contract(self) -> Contract:
        """The contract of the inputs."""
        return Contract.from_yaml((self.path / "contract.yaml").read_text())

    @cached_property
    def evaluation(self) -> Evaluation:
        """Metrics with intervals on the held-out rows."""
        return Evaluation.from_dict(self._json("evaluation.json")["evaluation"])

    @cached_property
    def verdict(self) -> Verdict:
        """What the gate said."""
        return Verdict.from_dict(self._json("evaluation.json")["verdict"])

    @cached_property
    def lineage(self) -> dict[str, Any]:
        """Dataset version, code commit, lock-file hash, parent run, task and model type."""
        return self._json("lineage.json")

    @cached_property
    def input_example(self) -> dict[str, Any]:
        """One valid request's features."""
        return self._json("input_example.json")

    @property
    def task(self) -> Task:
        """Classification (two classes), multiclass or regression."""
        return self.evaluation.task

    @property
    def classes(self) -> list[Any] | None:
        """The classes in the order of their probabilities; None for a regression."""
        return None if self.task == "regression" else self.lineage.get("classes") or [0, 1]

    @property
    def features_hash(self) -> str:
        """Hash of the fitted feature state."""
        return self._json("features.json")["hash"]

    @property
    def reference_files(self) -> dict[str, bytes]:
        """The reference profile's files, for `ReferenceProfile.from_files`."""
        return {file.name: file.read_bytes() for file in self.path.glob("reference*")}

    @cached_property
    def expectation(self) -> Expectation:
        """What live labels are held against, and what estimates quality without them."""
        return Expectation.from_dict(self._json("expectation.json"))

    def _json(self, name: str) -> dict[str, Any]:
        return json.loads((self.path / name).read_text())


def write_parts(
    folder: Path,
    *,
    pipeline: Pipeline,
    contract: Contract,
    reference: Mapping[str, bytes],
    evaluation: Evaluation,
    verdict: Verdict,
    expectation: Expectation,
    compiled: Mapping[str, Any],
    onnx: bytes | None,
    input_example: Mapping[str, Any],
    lineage: Mapping[str, Any],
) -> VersionFolder:
    """Write every part into a folder, the index of hashes last, and return the folder opened."""
    folder.mkdir(parents=True, exist_ok=True)
    engineer = pipeline.named_steps["features"]
    files: dict[str, bytes] = {
        "model.skops": dump_pipeline(pipeline),
        "contract.yaml": contract.to_yaml().encode(),
        "features.json": _json_bytes({"hash": engineer.state_hash, "state": engineer.state()}),
        "evaluation.json": _json_bytes({"evaluation": evaluation.to_dict(), "verdict": verdict.to_dict()}),
        "expectation.json": _json_bytes(expectation.to_dict()),
        "compiled.json": _json_bytes(compiled),
        "input_example.json": _json_bytes(input_example),
        "lineage.json": _json_bytes(lineage),
        **reference,
    }
    if onnx is not None:
        files["model.onnx"] = onnx
    for name, data in files.items():
        (folder / name).write_bytes(data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    (folder / "parts.json").write_bytes(_json_bytes(hashes))
    return VersionFolder.open(folder)


def dump_pipeline(pipeline: Pipeline) -> bytes:
    """Return the pipeline in skops' format."""
    from skops.io import dumps

    return dumps(pipeline)


def load_pipeline(data: bytes, *, origin: str) -> Pipeline:
    """Return the pipeline in skops bytes; a file with a type outside our own list is refused.

    Raises
    ------
    UntrustedModel
        Names the types that are not on the list.
    """
    from skops.io import get_untrusted_types, loads

    if foreign := sorted(set(get_untrusted_types(data=data)) - TRUSTED_TYPES):
        raise UntrustedModel(
            f"{origin} contains types that are not trusted: {', '.join(foreign)}; "
            "save the model again with a model type of MLOps-Forge, or use ONNX"
        )
    return loads(data, trusted=sorted(TRUSTED_TYPES))


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1, default=str).encode()
