"""Tracking on a real MLflow server (SQLite), killed and started again in the middle."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from forge_core.data.loaders import get_data_loader
from forge_core.data.sample import generate_sample_data, sample_contract
from forge_core.data.versions import save_dataset
from forge_core.errors import ConfigurationError, ServiceUnavailable
from forge_core.storage import Storage
from forge_core.tracking.__main__ import main
from forge_core.tracking.mlflow_extensions import ExperimentTracker, track_experiment
from forge_core.tracking.names import key_that_fits
from forge_core.tracking.outbox import resend
from forge_core.tracking.performance import measure_performance
from tests.servers import MlflowServer

pytestmark = [pytest.mark.mlflow, pytest.mark.timeout(180), pytest.mark.usefixtures("surroundings")]


@pytest.fixture
def client(server: MlflowServer) -> MlflowClient:
    return MlflowClient(server.uri)


def outbox(tmp_path: Path) -> Path:
    return tmp_path / "home" / "outbox"


def test_a_run_has_all_that_was_logged_and_its_surroundings(client: MlflowClient, tmp_path: Path) -> None:
    with ExperimentTracker("plain") as tracker:
        run_id = tracker.run_id or ""
        tracker.log_params({"depth": 3})
        tracker.log_seeds(model=7)
        for step in range(2500):
            tracker.log_metrics({"loss": 1 / (step + 1)}, step=step)
        tracker.log_dict({"a": 1}, "facts/a.json")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and tracker.left == 0
    assert run.data.params == {"depth": "3", "seed.model": "7"}
    assert {
        "forge.python",
        "forge.packages_sha256",
        "forge.machine",
        "forge.cores",
        "forge.gpus",
    } <= run.data.tags.keys()
    assert len(run.data.tags["forge.code_commit"]) == 40 and run.data.tags["forge.code_dirty"] in ("true", "false")
    history = client.get_metric_history(run_id, "loss")
    assert sorted(m.step for m in history) == list(range(2500))
    assert [f.path for f in client.list_artifacts(run_id, "facts")] == ["facts/a.json"]
    assert not list(outbox(tmp_path).iterdir())


def test_an_exception_ends_the_run_as_failed_with_the_reason(client: MlflowClient) -> None:
    tracker = ExperimentTracker("failing")
    tracker.start_run()
    run_id = tracker.run_id or ""
    with pytest.raises(ValueError, match="no good"), tracker:
        raise ValueError("no good")
    run = client.get_run(run_id)
    assert run.info.status == "FAILED" and run.data.tags["forge.reason"] == "ValueError: no good"
    assert tracker.run_id is None


def test_a_tracker_inside_another_makes_a_child_and_the_parent_stays_active(client: MlflowClient) -> None:
    import mlflow

    with ExperimentTracker("nested") as parent:
        with ExperimentTracker("nested") as child:
            mlflow.log_param("of", "child")
            ids = parent.run_id, child.run_id
        mlflow.log_param("of", "parent")
    assert mlflow.active_run() is None
    found = [client.get_run(str(id)) for id in ids]
    assert [run.data.params["of"] for run in found] == ["parent", "child"]
    assert found[1].data.tags["mlflow.parentRunId"] == ids[0]


def test_odd_names_and_long_values_are_kept_whole(client: MlflowClient, tmp_path: Path) -> None:
    text = "x" * 9000
    with ExperimentTracker("odd") as tracker:
        run_id = tracker.run_id or ""
        tracker.log_params({"sql": text, "größe (cm)": 3, "a//b": 1})
        tracker.log_metrics({"f1@5": 0.5, "nothing": float("nan")})
        with pytest.raises(ConfigurationError, match=r"parameter 'a.*is '1' and cannot become '2'"):
            tracker.log_params({"a//b": 2})
        with pytest.raises(ConfigurationError, match="expected a number for the metric 'x', found 'much'"):
            tracker.log_metrics({"x": "much"})  # type: ignore[dict-item]
    run = client.get_run(run_id)
    assert run.data.params["sql"].endswith("(cut: 9,000 characters in all)")
    assert Path(client.download_artifacts(run_id, "params/sql.txt", str(tmp_path))).read_text() == text
    assert run.data.params[key_that_fits("größe (cm)")] == "3"
    assert run.data.tags[f"forge.name.{key_that_fits('f1@5')}"] == "f1@5"
    assert run.data.metrics[key_that_fits("f1@5")] == 0.5 and np.isnan(run.data.metrics["nothing"])


def test_a_record_that_mlflow_refuses_is_kept_with_its_reason_and_the_others_arrive(
    client: MlflowClient, tmp_path: Path
) -> None:
    with ExperimentTracker("refused") as tracker:
        run_id = tracker.run_id or ""
        client.log_param(run_id, "rate", "0.1")
        tracker.log_params({"rate": 0.2})
        tracker.log_metrics({"loss": 1.0})
    run = client.get_run(run_id)
    assert run.data.params["rate"] == "0.1" and run.data.metrics == {"loss": 1.0} and run.info.status == "FINISHED"
    refused = (outbox(tmp_path) / run_id / "refused.jsonl").read_text()
    assert '"rate": "0.2"' in refused and "Changing param values is not allowed" in refused


def test_a_dataset_version_is_an_input_with_its_source_and_rows(client: MlflowClient, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "storage"))
    rows = get_data_loader().preprocess_data(generate_sample_data(500, random_state=1))
    saved = save_dataset(storage, rows, source="sample:", contract=sample_contract())
    with ExperimentTracker("inputs") as tracker:
        run_id = tracker.run_id or ""
        tracker.log_dataset_version(storage, saved.id, target="target")
        tracker.log_dataset(rows, name="rows", source="somewhere://else")
    inputs = {i.dataset.name: i for i in client.get_run(run_id).inputs.dataset_inputs}
    assert (
        inputs[saved.id].dataset.digest == saved.id
        and f'"num_rows": {saved.n_rows}' in inputs[saved.id].dataset.profile
    )
    assert saved.id in inputs[saved.id].dataset.source and "somewhere://else" in inputs["rows"].dataset.profile


def test_the_decorator_keeps_arguments_and_numbers(client: MlflowClient) -> None:
    @track_experiment("decorated")
    def train(rows: Any, depth: int = 3) -> dict[str, Any]:
        return {"accuracy": np.float32(0.5), "name": "forest", "good": True}

    train(np.zeros((4, 2)))
    experiment = client.get_experiment_by_name("decorated")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"rows": "ndarray (4, 2)", "depth": "3"} and run.data.metrics == {"accuracy": 0.5}
    assert run.info.run_name == "train"


@pytest.mark.parametrize(
    ("labels", "with_shares", "task", "pictures"),
    [
        (["a", "b"], True, "classification", {"evaluation.png", "precision_recall.png"}),
        (["a", "b", "c"], True, "multiclass", {"evaluation.png", "precision_recall.png"}),
        (["a", "b", "c"], False, "multiclass", {"confusion.png"}),
    ],
)
def test_performance_has_the_metrics_and_pictures_of_its_task(
    labels: list[str], with_shares: bool, task: str, pictures: set[str]
) -> None:
    y = np.resize(labels, 60)
    shares = np.full((60, len(labels)), 0.1)
    shares[np.arange(60), np.arange(60) % len(labels)] = 1 - 0.1 * (len(labels) - 1)
    found = measure_performance(y, y, shares if with_shares else None)
    assert found.task == task and set(found.pictures) == pictures and found.metrics["accuracy"] == 1.0
    assert all(picture.startswith(b"\x89PNG") for picture in found.pictures.values())


def test_performance_of_numbers_is_a_regression_and_odd_shapes_are_named() -> None:
    y = np.linspace(0, 1, 50)
    assert measure_performance(y, y + 0.1).metrics["mae"] == pytest.approx(0.1)
    with pytest.raises(ConfigurationError, match=r"expected probabilities of 3 classes.*found 2 columns"):
        measure_performance(["a", "b", "c"], ["a", "b", "c"], np.full((3, 2), 0.5))
    with pytest.raises(ConfigurationError, match="as many predictions as labels, found 1 and 2"):
        measure_performance([0, 1], [1])


# --- the server goes away (these come last: each leaves it running)


@pytest.mark.long
def test_a_server_killed_in_the_middle_loses_no_metric(
    server: MlflowServer, client: MlflowClient, tmp_path: Path
) -> None:
    tracker = ExperimentTracker("outage", patience=60)
    run_id = tracker.start_run()
    slowest = 0.0

    def log(steps: range) -> None:
        nonlocal slowest
        for step in steps:
            started = time.perf_counter()
            tracker.log_metrics({"loss": 1 / (step + 1), "step": float(step)}, step=step)
            slowest = max(slowest, time.perf_counter() - started)
            time.sleep(0.002)

    log(range(300))
    server.kill()
    log(range(300, 600))
    tracker.log_params({"while": "away"})
    tracker.log_bytes(b"a picture", "pictures/a.png")
    assert not tracker.flush(0.5)
    server.start()
    log(range(600, 900))
    tracker.end_run()
    history = client.get_metric_history(run_id, "step")
    assert [m.step for m in history] == list(range(900)) == [int(m.value) for m in history]
    assert [m.timestamp for m in history] == sorted(m.timestamp for m in history)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.params == {"while": "away"} and tracker.left == 0
    assert [f.path for f in client.list_artifacts(run_id, "pictures")] == ["pictures/a.png"]
    assert slowest < 0.5
    assert not list(outbox(tmp_path).iterdir())


@pytest.mark.long
def test_what_is_left_at_the_end_is_told_kept_and_sent_later(
    server: MlflowServer, client: MlflowClient, tmp_path: Path,
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import mlflow

    tracker = ExperimentTracker("left", patience=1.0)
    run_id = tracker.start_run()
    assert tracker.flush()
    # A process that dies without a word while the server is away.
    code = (
        "import os, sys; from forge_core.tracking.mlflow_extensions import ExperimentTracker;"
        "t = ExperimentTracker('died', outbox=sys.argv[1]); print(t.start_run(), flush=True); input();"
        "[t.log_metrics({'n': n}, step=n) for n in range(50)]; os._exit(9)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(outbox(tmp_path))], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    died = process.stdout.readline().strip()
    server.kill()
    process.communicate("go\n", timeout=60)
    for step in range(40):
        tracker.log_metrics({"n": float(step)}, step=step)
    started = time.monotonic()
    tracker.end_run()
    assert time.monotonic() - started < 10 and mlflow.active_run() is None
    assert tracker.left == 41  # 40 metrics and the end
    assert any(
        f"does not have 41 records of run {run_id}" in r.message and str(outbox(tmp_path)) in r.message
        and "python -m forge_core.tracking resend" in r.message for r in caplog.records
    )  # fmt: skip
    with pytest.raises(ServiceUnavailable, match=f"expected MLflow at {server.uri}"):
        tracker.start_run()
    assert resend(outbox(tmp_path)).left >= 41 + 50
    server.start()
    assert main(["resend"]) == 0
    assert "left in" in capsys.readouterr().out
    assert client.get_run(run_id).info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run_id, "n")] == list(range(40))
    ended = client.get_run(died)
    assert ended.info.status == "KILLED" and ended.data.tags["forge.reason"] == "its process died"
    assert [m.step for m in client.get_metric_history(died, "n")] == list(range(50))
    assert not list(outbox(tmp_path).iterdir())
