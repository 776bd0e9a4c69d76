"""A private stack with versions that answer differently, its replicas' processes, and its scaling as files."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import yaml

from forge_core.data.loaders import get_data_loader
from forge_core.data.sample import generate_sample_data, sample_contract
from forge_core.data.versions import save_dataset
from forge_core.deployment.go_back import go_back
from forge_core.deployment.go_live import go_live
from forge_core.deployment.replay_rows import to_records
from forge_core.deployment.serve_client import get_serve_client
from forge_core.errors import ForgeError
from forge_core.ledger import Ledger
from forge_core.models.version import VersionFolder
from forge_core.policy import load_policy
from forge_core.settings import Settings
from forge_core.storage import Storage
from forge_core.tracking.mlflow_extensions import ExperimentTracker
from forge_core.tracking.registry import Registry, write_mlmodel
from forge_core.training import candidate
from forge_core.training.candidate import Recipe
from forge_core.training.datasets import SplitRequest
from infra.local.processes import free_ports, stack_processes
from tests.prove.serving_load import TOLERANCE, Expected, Load
from tests.stack_settings import short_home, stack_settings

MODEL = "sample"
_WHO = {"actor": "prove", "reason": "a test"}


def settings_with_files() -> Settings:
    """Return settings of a new stack that reads copies of serve.yaml and policy.yaml from its own home."""
    settings = stack_settings(short_home(), free_ports)
    names = {"serve_file": settings.serve_file, "policy_file": settings.policy_file}
    copies = {name: Path(shutil.copy(file, settings.home)) for name, file in names.items()}
    return settings.model_copy(update=copies)


class Ground:
    """The rooms of the running stack, and the versions that the load knows."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.storage, self.ledger = Storage(settings.storage), Ledger(settings.ledger)
        self.registry = Registry(settings.mlflow_url)
        self.policy = load_policy(settings.policy_file, MODEL)
        self.bodies: list[dict[str, Any]] = []
        self.expected: dict[str, list[tuple[Any, float]]] = {}
        self.folders: dict[str, Path] = {}

    def make_versions(self, iterations: Sequence[int]) -> list[str]:
        """Register models of different strength; keep the rows on which any two of them differ clearly."""
        rows = get_data_loader().preprocess_data(generate_sample_data(3000, random_state=3))
        dataset = save_dataset(self.storage, rows, source="sample:", contract=sample_contract())
        split = SplitRequest(self.storage.url, dataset.id, "target", "event_time", 0.15, 0.15, 0)
        folders = [self._train(split, n) for n in iterations]
        numbers = [self.register(f"candidate-{n}", folder) for n, folder in zip(iterations, folders, strict=True)]
        self.folders = dict(zip(numbers, folders, strict=True))
        opened = [VersionFolder.open(folder) for folder in folders]
        columns = opened[0].contract.feature_columns
        asked = rows[columns].head(400)
        said = [folder.pipeline.predict_proba(asked) for folder in opened]
        ones = sorted_gaps([proba[:, 1].tolist() for proba in said])
        chosen = [row for row, gap in enumerate(ones) if gap > 20 * TOLERANCE][:64]
        self.bodies = [{"features": r} for r in to_records(asked.iloc[chosen], opened[0].contract)]
        for number, folder, proba in zip(numbers, opened, said, strict=True):
            best = [int(proba[row].argmax()) for row in chosen]
            self.expected[number] = [
                (folder.classes[b], float(proba[row, b])) for row, b in zip(chosen, best, strict=True)
            ]
        return numbers

    def _train(self, split: SplitRequest, iterations: int) -> Path:
        parameters = (("max_iter", iterations), ("random_state", 0))
        recipe, folder = Recipe(split, "gradient_boosting", "classification", parameters), f"v-{iterations}"
        candidate.fit(self.storage, recipe)
        candidate.evaluate(
            self.storage, recipe, policy=self.policy.gate, champion=None, champion_name="the training mean"
        )
        candidate.compile_candidate(self.storage, recipe, tolerance=TOLERANCE)
        parts = candidate.assemble(self.storage, recipe, self.settings.home / folder, lineage={"reason": "prove"})
        write_mlmodel(parts.path, parts.pipeline, parts.input_example)
        return parts.path

    def register(self, name: str, folder: Path) -> str:
        """Return the registry's number of a folder."""
        with ExperimentTracker(MODEL, tracking_uri=self.settings.mlflow_url) as tracker:
            assert tracker.run_id
            return self.registry.register(MODEL, folder, run_id=tracker.run_id, candidate=name, gate="passed").version

    def with_graph(self, onnx: bytes, name: str) -> str:
        """Register the newest version with another compiled form and an index of hashes that says all is well."""
        return self._altered(list(self.folders)[-1], name, {"model.onnx": onnx})

    def not_compiled(self, version: str) -> str:
        """Register a version once more without its compiled form: it answers the same, in milliseconds a batch."""
        compiled = {**VersionFolder.open(self.folders[version]).compiled, "serves": "native", "reason": "a test"}
        number = self._altered(version, "native", {"model.onnx": None, "compiled.json": json.dumps(compiled).encode()})
        self.expected[number] = self.expected[version]
        return number

    def _altered(self, version: str, name: str, parts: Mapping[str, bytes | None]) -> str:
        folder = self.settings.home / name
        shutil.copytree(self.folders[version], folder)
        hashes = json.loads((folder / "parts.json").read_text())
        for part, data in parts.items():
            if data is None:
                (folder / part).unlink()
                del hashes[part]
            else:
                (folder / part).write_bytes(data)
                hashes[part] = hashlib.sha256(data).hexdigest()
        (folder / "parts.json").write_text(json.dumps(hashes))
        return self.register(f"candidate-{name}", folder)

    def swap(self, version: str) -> None:
        """Make a version champion the whole way: mirrored, replayed over HTTP, compared, promoted."""
        rooms = (self.storage, self.ledger, self.registry, get_serve_client(self.settings))
        go_live(*rooms, MODEL, version, policy=self.policy, **_WHO)

    def go_back(self) -> str:
        """Roll back and return the version that is live."""
        return go_back(self.ledger, self.registry, get_serve_client(self.settings), MODEL, **_WHO)

    def scale(self, *, router: dict[str, Any], serving: dict[str, Any]) -> None:
        """Write other replicas into both files and bring them to the running Serve.

        Another number must restart none. Autoscaling instead of a number is another version to Serve, which replaces
        one after the other.
        """
        before = {kind: {p.pid for p in self.replicas(kind)} for kind in ("router", "variant")}
        template = yaml.safe_load(self.settings.serve_file.read_text())
        deployment = next(a for a in template["applications"] if a["name"] == "router")["deployments"][0]
        for key in ("num_replicas", "autoscaling_config"):
            deployment.pop(key, None)
        deployment.update(router)
        self.settings.serve_file.write_text(yaml.safe_dump(template, sort_keys=False))
        policies = yaml.safe_load(self.settings.policy_file.read_text())
        policies["models"][MODEL]["serving"] = serving
        self.settings.policy_file.write_text(yaml.safe_dump(policies, sort_keys=False))
        told: list[str] = []
        serve = get_serve_client(self.settings)
        serve.reconcile(self.ledger, progress=told.append)
        if not any(line.startswith("changing router, variant-") for line in told):
            raise ForgeError(f"expected router and variant to be changed, found: {told}")
        for kind, pids in before.items() if "num_replicas" in router else ():
            if pids.isdisjoint(p.pid for p in self.replicas(kind)):
                raise ForgeError(f"another number of replicas restarted every {kind} of {sorted(pids)}")
        told.clear()
        serve.reconcile(self.ledger, progress=told.append)
        if any(line.startswith("changing") for line in told):
            raise ForgeError(f"expected nothing to change a second time, found: {told}")

    def load(self, steps: Sequence[tuple[int, float | None]]) -> Load:
        """Return the load on this stack's `/predict`; it runs as a context."""
        target = (self.settings.host, self.settings.api_port, "/predict")
        expected: Expected = self.expected
        return Load(self.settings.home, target, self.bodies, expected, steps)

    def replicas(self, application: str) -> list[psutil.Process]:
        """Return the living replica processes of an application (or of those whose name begins so), oldest first."""
        found = []
        for process in stack_processes(self.settings.home, member="ray"):
            try:
                title = (process.cmdline() or [""])[0]
            except psutil.Error:
                continue
            if title.startswith(f"ray::ServeReplica:{application}"):
                found.append(process)
        return sorted(found, key=lambda p: p.create_time())


def sorted_gaps(scores: Sequence[Sequence[float]]) -> list[float]:
    """Return for each row the smallest difference between any two versions' scores."""
    rows = [sorted(row) for row in zip(*scores, strict=True)]
    return [min(high - low for low, high in pairwise(row)) for row in rows]
