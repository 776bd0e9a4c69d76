"""Distributed training on real Ray workers: the same result for any number of them, and after any of them died."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from forge_core.data.feature_engineering import FeatureEngineer
from forge_core.data.flights import flights_contract, load_flights
from forge_core.data.loaders import get_data_loader
from forge_core.data.sample import generate_sample_data
from forge_core.data.splits import split_frame
from forge_core.data.versions import load_dataset, save_dataset
from forge_core.errors import ConfigurationError, DataNotFound, EmptyData, ModelError, UnreadableData, UnusableTarget
from forge_core.models.compiled import compile_pipeline, measure_parity
from forge_core.models.mlp import TorchClassifier, TorchRegressor
from forge_core.models.model_trainer import score
from forge_core.models.version import dump_pipeline, load_pipeline
from forge_core.policy import GatePolicy
from forge_core.storage import Storage
from forge_core.training import candidate
from forge_core.training.candidate import Recipe
from forge_core.training.datasets import SplitRequest, load_split
from forge_core.training.distributed_blocks import BlockWriter, Share, epoch_order, read_batches
from forge_core.training.distributed_checkpoint import Checkpoint, load_newest, save_checkpoint
from forge_core.training.distributed_cluster import room_for
from forge_core.training.distributed_data import Parts
from forge_core.training.distributed_result import DistributedResult, to_candidate
from forge_core.training.distributed_trainer import nearest_multiple, train_distributed
from tests.servers import s3_server

FEATURES = ["feature1", "feature2"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of this process with two CPUs."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def flights() -> pd.DataFrame:
    return load_flights(until=datetime(2013, 1, 8, tzinfo=UTC))


def estimators() -> list[Any]:
    small: dict[str, Any] = {"hidden_sizes": (16,), "epochs": 15, "learning_rate": 0.01, "random_state": 0}
    return [TorchClassifier(**small), TorchRegressor(**small)]


@pytest.mark.slow
@pytest.mark.parametrize("estimator", estimators(), ids=["classifier", "regressor"])
def test_a_network_learns_the_same_from_the_same_seed_and_survives_storage_and_onnx(estimator: Any) -> None:
    frame = generate_sample_data(2000, random_state=0)
    y = frame["target"] if isinstance(estimator, TorchClassifier) else 3 * frame["feature1"] + 7
    pipeline = Pipeline([("features", FeatureEngineer(scale=True)), ("estimator", estimator)])
    answers = pipeline.fit(frame[FEATURES], y).predict(frame[FEATURES])
    assert pipeline.score(frame[FEATURES], y) > 0.7
    assert (clone(pipeline).fit(frame[FEATURES], y).predict(frame[FEATURES]) == answers).all()
    other = clone(pipeline).set_params(estimator__random_state=1).fit(frame[FEATURES], y)
    assert (score(other, frame[FEATURES]) != score(pipeline, frame[FEATURES])).any()
    loaded = load_pipeline(dump_pipeline(pipeline), origin="test")
    assert (loaded.predict(frame[FEATURES]) == answers).all()
    again = type(estimator).from_state(estimator.state())
    assert (again.predict(pipeline[0].transform(frame[FEATURES])) == answers).all()
    onnx, reason = compile_pipeline(pipeline)
    assert onnx is not None, reason
    assert measure_parity(pipeline, onnx, frame[FEATURES]).largest_difference < 1e-5


@pytest.mark.slow
def test_a_network_tells_more_than_two_classes_apart_and_stops_early() -> None:
    frame = generate_sample_data(1500, random_state=0)
    X = FeatureEngineer(scale=True).fit_transform(frame[FEATURES])
    model = TorchClassifier((16,), learning_rate=0.05, epochs=20, random_state=0).fit(X, frame["feature2"])
    assert model.score(X, frame["feature2"]) > 0.95
    assert model.predict_proba(X).shape == (1500, 4)
    noisy = TorchClassifier((64,), learning_rate=0.02, epochs=200, patience=2, random_state=0).fit(X, frame["target"])
    assert len(noisy.loss_curve_) == len(noisy.validation_curve_) < 200


@pytest.mark.slow
def test_a_network_refuses_what_it_cannot_learn_from() -> None:
    X = np.zeros((20, 2), np.float32)
    with pytest.raises(UnusableTarget, match="two classes"):
        TorchClassifier().fit(X, np.ones(20))
    with pytest.raises(UnusableTarget, match="finite"):
        TorchRegressor().fit(X, np.full(20, np.nan))
    with pytest.raises(EmptyData):
        TorchClassifier().fit(X[:0], [])
    with pytest.raises(ModelError, match="standardise"):
        TorchRegressor(epochs=3, random_state=0).fit(np.full((20, 2), 3e38, np.float32), np.arange(20))


def blocks_of(storage: Storage, n_rows: int, batch_size: int) -> Any:
    writer = BlockWriter(storage, "rows", width=3, batch_size=batch_size, random_state=0)
    ids = np.arange(1, n_rows + 1, dtype=np.float32)
    for part in np.array_split(ids, 7):
        writer.add("train", np.column_stack([part, part, np.ones_like(part)]).astype(np.float32))
    return writer.finish()


def epoch_of(storage: Storage, blocks: Any, workers: int, epoch: int) -> list[set[float]]:
    batches: list[set[float]] = []
    for number in epoch_order(blocks, epoch, 0):
        shares = [read_batches(storage, blocks, number, Share(r, workers), epoch=epoch, seed=0) for r in range(workers)]
        batches += [{float(row[0]) for row in batch if row[2]} for batch in np.concatenate(shares, axis=1)]
    return batches


def test_each_batch_holds_the_same_rows_for_any_number_of_workers(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    blocks = blocks_of(storage, 1000, 12)
    alone = epoch_of(storage, blocks, 1, 0)
    assert alone == epoch_of(storage, blocks, 2, 0) == epoch_of(storage, blocks, 3, 0)
    assert sorted(row for batch in alone for row in batch) == list(range(1, 1001))
    assert alone != epoch_of(storage, blocks, 1, 1)


def test_training_rows_are_those_of_split_frame(flights: pd.DataFrame) -> None:
    ours, _ = Parts(0.15, 0.1, 3).of(flights)
    split = split_frame(flights, "late", validation_share=0.15, test_share=0.1, random_state=3)
    assert np.bincount(ours).tolist() == [len(split.train), len(split.validation), len(split.test)]
    assert flights[ours == 2].reset_index(drop=True).equals(split.test)


@pytest.mark.parametrize("fault", ["cut short", "empty", "one bit"])
def test_a_checkpoint_that_is_not_whole_falls_back_to_the_one_before(tmp_path: Path, fault: str) -> None:
    storage = Storage(str(tmp_path))
    for step in (10, 20):
        save_checkpoint(storage, "c", Checkpoint(step, {"loss": 0.5}, {"model/w": np.full(100, step)}))
    key = storage.list("c")[-1]
    data = bytearray(storage.read_bytes(key))
    data[-500] ^= 1
    storage.write_bytes(key, {"cut short": bytes(data[:300]), "empty": b"", "one bit": bytes(data)}[fault])
    found = load_newest(storage, "c")
    assert found is not None
    assert (found.step, found.facts, found.arrays["model/w"][0]) == (10, {"loss": 0.5}, 10)


def test_a_batch_size_that_does_not_divide_goes_to_the_nearest_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert nearest_multiple(64, 2) == 64
    assert not caplog.records
    assert nearest_multiple(64, 3) == 63
    assert "chosen=63" in caplog.text


@pytest.fixture(scope="module")
def trained(
    cluster: None, flights: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Storage, str, DistributedResult, DistributedResult]:
    """A dataset version, and what one worker with the rows in memory and two that stream them learnt from it."""
    storage = Storage(str(tmp_path_factory.mktemp("trained")))
    contract = flights_contract()
    good = contract.check(get_data_loader().preprocess_data(flights), max_bad_share=0.1).good
    version = save_dataset(storage, good, source="flights:", contract=contract)
    one, two = (
        train_distributed(
            version.id, target="late", num_workers=workers, batch_size=128, epochs=2, test_share=0.15,
            storage_url=storage.url, run_name=f"w{workers}", memory_bytes=memory,
        )
        for workers, memory in ((1, 2**30), (2, 1))
    )  # fmt: skip
    return storage, version.id, one, two


@pytest.mark.long
@pytest.mark.ray
def test_two_workers_that_stream_learn_what_one_learns(
    trained: tuple[Storage, str, DistributedResult, DistributedResult],
) -> None:
    storage, id, one, two = trained
    assert (one.workers, two.workers) == (1, 2)
    assert two.metrics["log_loss"] == pytest.approx(one.metrics["log_loss"], abs=1e-4)
    rows = load_dataset(storage, id)
    a, b = (result.pipeline.predict_proba(rows)[:, 1] for result in (one, two))
    assert np.abs(a - b).max() < 5e-3


@pytest.mark.long
@pytest.mark.ray
def test_the_result_becomes_a_version_like_any_other(
    trained: tuple[Storage, str, DistributedResult, DistributedResult], tmp_path: Path
) -> None:
    storage, id, result, _ = trained
    split = SplitRequest(storage.url, id, "late", None, 0.15, 0.15, 0)
    recipe = Recipe(split, "mlp", "classification", (("epochs", 2),))
    to_candidate(storage, recipe, result)
    evaluation, _ = candidate.evaluate(
        storage, recipe, policy=GatePolicy(metric="roc_auc"), champion=None, champion_name="none"
    )
    assert evaluation.to_dict()
    assert candidate.compile_candidate(storage, recipe, tolerance=1e-4)["serves"] == "compiled"
    folder = candidate.assemble(storage, recipe, tmp_path / "version", lineage={})
    parts = load_split(storage, split)
    assert np.allclose(score(folder.pipeline, parts.X_test), score(result.pipeline, parts.X_test))
    with pytest.raises(ConfigurationError, match="splits by hash"):
        to_candidate(storage, Recipe(replace(split, test_share=0.3), "mlp", "classification", ()), result)


@pytest.mark.long
@pytest.mark.ray
def test_the_guides_command_trains_on_a_csv_file_and_goes_on_after_its_driver_was_killed(tmp_path: Path) -> None:
    generate_sample_data(4000, random_state=0)[[*FEATURES, "target"]].to_csv(tmp_path / "rows.csv", index=False)
    command = [
        "--master", "--num-workers=2", "--dataset=rows.csv", "--batch-size=64", "--epochs=10", "--checkpoint-every=20",
        "--run-name=cut",
    ]  # fmt: skip
    folder = tmp_path / "home/storage/training/cut"
    first = _command(tmp_path, command)
    _wait(lambda: list((folder / "checkpoints").glob("*.checkpoint")), first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (folder / "result.json").exists()
    second = _command(tmp_path, command)
    out, errors = second.communicate(timeout=150)
    assert second.returncode == 0, errors
    assert "gone on from epoch" in out and "epoch 10/10" in out
    assert len(list((folder / "epochs").iterdir())) == 10
    assert json.loads((folder / "result.json").read_text())["metrics"]["roc_auc"] > 0.75


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.s3
def test_rows_blocks_and_checkpoints_may_all_lie_on_s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = generate_sample_data(1200, random_state=0)[[*FEATURES, "target"]]
    options = ["--num-workers=2", "--batch-size=32", "--epochs=2", "--checkpoint-every=10", "--run-name=s3"]
    with s3_server(monkeypatch, "forge-training"):
        rows.to_parquet("s3://forge-training/rows.parquet")
        away = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
        variables = {**{k: v for k, v in os.environ.items() if k not in away}, "FORGE_HOME": str(tmp_path)}
        variables["FORGE_STORAGE_URL"] = "s3://forge-training/storage"
        command = [sys.executable, "-m", "forge_core.training.distributed_trainer", "--dataset"]
        done = subprocess.run(
            [*command, "s3://forge-training/rows.parquet", *options],
            env=variables, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        storage = Storage("s3://forge-training/storage")
        checkpoint = load_newest(storage, "training/s3/checkpoints")
        assert checkpoint is not None and checkpoint.facts["epoch"] == 2
        epochs = [storage.read_json(key) for key in storage.list("training/s3/epochs", suffix=".json")]
        assert [epoch["epoch"] for epoch in epochs] == [1, 2]
        pipeline = load_pipeline(storage.read_bytes("training/s3/model.skops"), origin="test")
        assert len(pipeline.predict(rows[FEATURES])) == len(rows)


@pytest.mark.ray
def test_more_workers_than_cores_work_on_this_machine_and_are_refused_on_a_real_cluster(
    cluster: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert room_for(8).resources["CPU"] * 8 <= 2
    assert "share the cores" in caplog.text
    with pytest.raises(ConfigurationError, match="expected 8 GPUs for 8 workers, found 0"):
        room_for(8, gpu=True)
    monkeypatch.setattr("forge_core.training.distributed_cluster._is_this_machine", lambda nodes: False)
    with pytest.raises(ConfigurationError, match="expected 8 CPUs for 8 workers, found 2"):
        room_for(8)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (lambda f: f.assign(target=1), UnusableTarget, "two classes"),
        (lambda f: f.assign(target=f["target"].astype(float).mask(f.index == 7)), UnusableTarget, "1 missing"),
        (lambda f: f.drop(columns="target"), UnusableTarget, "'target'"),
        (lambda f: f.assign(target=f["feature1"]), UnusableTarget, "--task=regression"),
        (lambda f: f.head(0), EmptyData, "found none"),
    ],
)
def test_data_that_nothing_can_be_learnt_from_is_refused(
    cluster: None, tmp_path: Path, spoil: Callable[[pd.DataFrame], pd.DataFrame], error: type[Exception], says: str
) -> None:
    file = tmp_path / "bad.parquet"
    spoil(generate_sample_data(500)[[*FEATURES, "target"]]).to_parquet(file)
    with pytest.raises(error, match=says):
        train_distributed(str(file), storage_url=str(tmp_path / "store"))


@pytest.mark.ray
def test_files_that_are_away_empty_or_not_what_they_say_are_named(cluster: None, tmp_path: Path) -> None:
    (tmp_path / "zero.csv").touch()
    (tmp_path / "text.parquet").write_text("not a table")
    for name, error in (("zero.csv", EmptyData), ("text.parquet", UnreadableData), ("none*.csv", DataNotFound)):
        with pytest.raises(error, match=name.replace("*", r"\*")):
            train_distributed(str(tmp_path / name), storage_url=str(tmp_path / "store"))


def _command(tmp_path: Path, arguments: list[str]) -> "subprocess.Popen[str]":
    surroundings = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    return subprocess.Popen(
        [sys.executable, "-m", "forge_core.training.distributed_trainer", *arguments],
        cwd=tmp_path,
        env={**surroundings, "FORGE_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait(claim: Callable[[], Any], process: "subprocess.Popen[str]", seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not claim():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)
