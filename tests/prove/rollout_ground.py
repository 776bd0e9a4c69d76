"""A running stack with a champion and four versions to roll out: better, wrong, slow, and failing on 2 % of rows."""

import hashlib
import json
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import yaml
from onnx import TensorProto, helper, numpy_helper

from forge_core.data.loaders import get_data_loader
from forge_core.data.sample import generate_sample_data, sample_contract
from forge_core.data.versions import save_dataset
from forge_core.deployment.replay_rows import to_records
from forge_core.errors import ForgeError
from forge_core.ledger import Feedback
from forge_core.models.version import VersionFolder
from forge_core.monitoring.prediction_log import PredictionLog
from forge_core.monitoring.shadow_log import ShadowLog
from forge_core.training.datasets import SplitRequest
from tests.prove.serving_ground import MODEL, Ground

N_BODIES = 400
# Far beyond every row of training and held-out data, and within the contract: what the failing version fails on.
_FAR, _BEYOND = 60.0, 30.0
POLICY = {
    "shadow_share": 0.5,
    "shadow_rows": 300,
    "steps": [0.01, 0.05, 0.25, 0.5, 1.0],
    "min_rows": 60,
    "min_minutes": 0.15,
    "look_seconds": 2.0,
    "max_hours": 1.0,
}


class RolloutGround(Ground):
    """The stack, its versions by kind, and labels that come a few seconds after the answers."""

    versions: dict[str, str]

    def write_policy(self, **more: Any) -> None:
        """Write how the model is rolled out."""
        policies = yaml.safe_load(self.settings.policy_file.read_text())
        policies["models"][MODEL]["rollout"] = {**POLICY, **more}
        self.settings.policy_file.write_text(yaml.safe_dump(policies, sort_keys=False))

    def make_kinds(self) -> None:
        """Register the versions; the champion has learnt from one feature alone."""
        rows = get_data_loader().preprocess_data(generate_sample_data(4000, random_state=3))
        rng = np.random.default_rng(0)
        blind = rows.assign(feature1=rng.permutation(rows["feature1"].to_numpy()))
        folders = {
            "champion": self._learnt("champion", blind, 30),
            "better": self._learnt("better", rows, 40),
            "wrong": self._learnt("wrong", rows.assign(target=1 - rows["target"]), 41),
        }
        graph = onnx.load(str(folders["better"] / "model.onnx"))
        folders["slow"] = self._with_other_graph(folders["better"], "slow", slowed(graph))
        folders["failing"] = self._with_other_graph(folders["better"], "failing", failing(graph))
        self.versions = {kind: self.register(f"candidate-{kind}", folder) for kind, folder in folders.items()}
        self._ask_with(rows.tail(N_BODIES).reset_index(drop=True), folders)

    def _learnt(self, kind: str, rows: pd.DataFrame, iterations: int) -> Path:
        dataset = save_dataset(self.storage, rows, source=f"sample:{kind}", contract=sample_contract())
        split = SplitRequest(self.storage.url, dataset.id, "target", "event_time", 0.15, 0.15, 0)
        return self._train(split, iterations)

    def _with_other_graph(self, source: Path, name: str, graph: onnx.ModelProto) -> Path:
        folder = self.settings.home / f"graph-{name}"
        shutil.copytree(source, folder)
        (folder / "model.onnx").write_bytes(data := graph.SerializeToString())
        hashes = json.loads((folder / "parts.json").read_text())
        digest = hashlib.sha256(data).hexdigest()
        (folder / "parts.json").write_text(json.dumps({**hashes, "model.onnx": digest}))
        return folder

    def _ask_with(self, rows: pd.DataFrame, folders: dict[str, Path]) -> None:
        """Keep what is sent, what each version says of it, and what is true; one row in fifty is far away."""
        rows = rows.assign(feature1=rows["feature1"].where(rows.index % 50 != 0, _FAR))
        opened = {kind: VersionFolder.open(folder) for kind, folder in folders.items()}
        columns = opened["champion"].contract.feature_columns
        self.bodies = [{"features": r} for r in to_records(rows[columns], opened["champion"].contract)]
        for kind, folder in opened.items():
            said = folder.pipeline.predict_proba(rows[columns])
            best = said.argmax(axis=1)
            answers = [(folder.classes[b], float(p[b])) for b, p in zip(best, said, strict=True)]  # type: ignore[index]
            self.expected[self.versions[kind]] = answers
        self.truth = dict(zip(_keys(rows), rows["target"].astype(float), strict=True))

    def labels(self, every: float = 3.0) -> "Labels":
        """Return what sends labels, as a context."""
        return Labels(self, every)


class Labels:
    """Sends the truth of logged rows that are compared, a little later, for as long as the context lasts."""

    def __init__(self, ground: RolloutGround, every: float) -> None:
        self.ground, self.every, self.n_sent = ground, every, 0
        self._ended, self._known = threading.Event(), set[str]()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Labels":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self.every):
            with suppress(ForgeError, OSError):
                self._send()

    def _send(self) -> None:
        columns = ["request_id", "event_time", "feature1", "feature2"]
        log = PredictionLog(self.ground.storage, MODEL).read(columns=[*columns, "split"])
        shadowed = set[str]()
        for version in self.ground.versions.values():
            shadowed |= set(ShadowLog(self.ground.storage, MODEL).read(version, columns=["request_id"])["request_id"])
        compared = log["split"].fillna("").astype(str).str.startswith("rollout:") | log["request_id"].isin(shadowed)
        rows = log[compared & ~log["request_id"].isin(self._known)]
        feedback = [
            Feedback(request_id, self.ground.truth[key], at)
            for request_id, at, key in zip(rows["request_id"], rows["event_time"], _keys(rows), strict=True)
        ]
        for start in range(0, len(feedback), 2000):
            self.ground.ledger.record_feedback(MODEL, feedback[start : start + 2000])
        self._known |= set(rows["request_id"])
        self.n_sent += len(feedback)


def _keys(rows: pd.DataFrame) -> list[tuple[float, str]]:
    pairs = zip(rows["feature1"], rows["feature2"], strict=True)
    return [(round(float(first), 9), str(second)) for first, second in pairs]


def slowed(model: onnx.ModelProto, size: int = 800, times: int = 3) -> onnx.ModelProto:
    """Return the graph with matrices multiplied beside its answer, which stays the same."""
    matrix = np.full((size, size), 1.0 / size, np.float32)
    nodes = [
        helper.make_node("Shape", ["feature1"], ["slow_shape"]),
        helper.make_node("Cast", ["slow_shape"], ["slow_rows"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["slow_rows"], ["slow_n"], keepdims=0),
        # Of the number of rows, so that nothing is computed once and for all when the graph is loaded.
        helper.make_node("Mul", ["slow_matrix", "slow_n"], ["slow_0"]),
    ]
    nodes += [helper.make_node("MatMul", [f"slow_{n}", "slow_matrix"], [f"slow_{n + 1}"]) for n in range(times)]
    nodes += [
        helper.make_node("ReduceMax", [f"slow_{times}"], ["slow_most"], keepdims=0),
        helper.make_node("Mul", ["slow_most", "slow_nothing"], ["slow_zero"]),
    ]
    constants = {"slow_matrix": matrix, "slow_nothing": np.float32(0.0)}
    return _with_added(model, nodes, constants, "slow_zero")


def failing(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with a table looked up out of range for rows far away, which ends the whole call."""
    nodes = [
        helper.make_node("Greater", ["feature1", "far_limit"], ["far_yes"]),
        helper.make_node("Cast", ["far_yes"], ["far_index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["far_table", "far_index"], ["far_found"]),
        helper.make_node("ReduceMax", ["far_found"], ["far_zero"], keepdims=0),
    ]
    constants = {"far_limit": np.float32(_BEYOND), "far_table": np.zeros(1, np.float32)}
    return _with_added(model, nodes, constants, "far_zero")


def _with_added(model: onnx.ModelProto, nodes: list[Any], constants: dict[str, Any], added: str) -> onnx.ModelProto:
    """Return a graph whose last output has something added, which is zero wherever it can be computed."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph, output = changed.graph, changed.graph.output[-1].name
    for node in graph.node:
        for place, name in enumerate(node.output):
            if name == output:
                node.output[place] = f"{output}_before"
    graph.node.extend([*nodes, helper.make_node("Add", [f"{output}_before", added], [output])])
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    return changed


def await_true(claim: Any, seconds: float, what: str, every: float = 0.2) -> None:
    """Return once the claim holds; raise where it does not come to that."""
    deadline = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > deadline:
            raise ForgeError(f"expected {what} within {seconds:.0f} s")
        time.sleep(every)
