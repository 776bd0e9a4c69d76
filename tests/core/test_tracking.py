"""Tracking and the registry on a real MLflow server (SQLite), killed and started again in the middle."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from mlflow import MlflowClient

from forge_core.data.loaders import get_data_loader
from forge_core.data.sample import generate_sample_data, sample_contract
from forge_core.data.versions import save_dataset
from forge_core.errors import ConfigurationError, ModelError, ModelNotFound, ServiceUnavailable
from forge_core.models.evaluation import Verdict
from forge_core.policy import GatePolicy
from forge_core.settings import get_settings
from forge_core.storage import Storage
from forge_core.tracking.__main__ import main
from forge_core.tracking.mlflow_extensions import ExperimentTracker, track_experiment
from forge_core.tracking.names import check_alias, check_model_name, key_that_fits
from forge_core.tracking.outbox import resend
from forge_core.tracking.performance import measure_performance
from forge_core.tracking.provenance import card, compare, lineage
from forge_core.tracking.registry import CHALLENGER, Registry, write_mlmodel
from forge_core.training import candidate
from forge_core.training.candidate import Recipe
from forge_core.training.datasets import SplitRequest
from infra.local.processes import free_ports

pytestmark = [pytest.mark.mlflow, pytest.mark.timeout(180)]


class Server:
    """An MLflow server of our own, that can be killed and started again with what it had."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_ports(1)[0]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--serve-artifacts", "--artifacts-destination", str(self.folder / "artifacts")]
        variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env={**os.environ, **variables}, start_new_session=True,
                stdout=log, stderr=log,
            )  # fmt: skip
        until = time.monotonic() + 90
        while not self.answers:
            assert time.monotonic() < until, (self.folder / "server.log").read_text()[-2000:]
            time.sleep(0.25)

    @property
    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.uri}/health", trust_env=False, timeout=2.0).is_success
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, server: Server, tmp_path: Path) -> Iterator[None]:
    # The variables and not `set_tracking_uri`, which would leave them set for every later test.
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.setenv(name, server.uri if name.endswith("URI") else "0")
        if name.endswith("ID"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.fixture
def client(server: Server) -> MlflowClient:
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


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a b", "it's", "ä", "x" * 129, ".hidden", "a\x00b", "a:b"])
def test_a_model_name_that_cannot_be_one_is_refused_and_says_what_can(name: str, server: Server) -> None:
    with pytest.raises(ConfigurationError, match="expected a model name of 1 to 128 of the characters A-Z"):
        check_model_name(name)
    with pytest.raises(ConfigurationError, match="expected a model name"):
        Registry(server.uri).versions(name)


@pytest.mark.parametrize("alias", ["", "7", "v7", "latest", "a b", "a/b"])
def test_an_alias_that_cannot_be_one_is_refused(alias: str) -> None:
    with pytest.raises(ConfigurationError, match="expected an alias"):
        check_alias(alias)


# --- the registry


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage(str(tmp_path_factory.mktemp("storage")))


def made_folder(storage: Storage, folder: Path, max_iter: int) -> tuple[Path, Recipe, Verdict]:
    rows = get_data_loader().preprocess_data(generate_sample_data(2000, random_state=3))
    dataset = save_dataset(storage, rows, source="sample:", contract=sample_contract())
    split = SplitRequest(storage.url, dataset.id, "target", "event_time", 0.15, 0.15, 0)
    recipe = Recipe(split, "gradient_boosting", "classification", (("max_iter", max_iter), ("random_state", 0)))
    candidate.fit(storage, recipe)
    _, verdict = candidate.evaluate(
        storage, recipe, policy=GatePolicy(), champion=None, champion_name="the training mean"
    )
    candidate.compile_candidate(storage, recipe, tolerance=1e-4)
    parts = candidate.assemble(storage, recipe, folder, lineage={"reason": "test", "code_commit": "c0ffee"})
    write_mlmodel(parts.path, parts.pipeline, parts.input_example)
    return folder, recipe, verdict


@pytest.fixture(scope="module")
def folders(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Recipe, Verdict]]:
    home = tmp_path_factory.mktemp("versions")
    return [made_folder(storage, home / str(n), n) for n in (5, 15)]


def register(server: Server, model: str, made: tuple[Path, Recipe, Verdict], outbox: Path) -> Any:
    folder, recipe, _ = made
    with ExperimentTracker(model, outbox=outbox) as tracker:
        trial = {"number": 2, "state": "complete", "log_loss": 0.4, "hyperparameters": dict(recipe.hyperparameters)}
        tracker.log_dict({"trials": [trial]}, "search.json")
        tracker.flush()
        return Registry(server.uri).register(
            model, folder, run_id=tracker.run_id or "", candidate=recipe.candidate_id, gate="passed",
            tags={"dataset": recipe.split.dataset_id},
        )  # fmt: skip


def test_a_version_registered_half_is_not_found_and_the_next_try_succeeds(
    server: Server, folders: list[tuple[Path, Recipe, Verdict]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "finalize_logged_model", crash)
        with pytest.raises(KeyboardInterrupt):
            register(server, "half", folders[0], tmp_path)
    registry = Registry(server.uri)
    assert registry.versions("half") == [] and registry.find("half", "1") is None
    with pytest.raises(ModelNotFound, match="versions: none"):
        registry.resolve("half", "challenger")
    assert register(server, "half", folders[0], tmp_path).version == "1"
    assert register(server, "half", folders[0], tmp_path).version == "1"  # the same candidate is registered once


def test_lineage_comparison_and_card_tell_where_versions_come_from(
    server: Server, storage: Storage, folders: list[tuple[Path, Recipe, Verdict]], tmp_path: Path
) -> None:
    registry = Registry(server.uri)
    for made in folders:
        version = register(server, "told", made, tmp_path)
    registry.set_alias(version, CHALLENGER)
    found = lineage(registry, "told", CHALLENGER, storage=storage)
    dataset = folders[1][1].split.dataset_id
    assert (found.version, found.previous_version, found.gate) == ("2", "1", "passed")
    assert found.dataset["id"] == dataset and found.dataset["source"] == "sample:"
    assert found.dataset["rows"] == found.dataset["train_rows"] + found.dataset["held_out_rows"]
    assert found.code["commit"] == "c0ffee" and found.run["id"] == version.run_id
    assert found.run["trial"] == {"number": 2, "log_loss": 0.4, "run": None}
    assert found.candidate == folders[1][1].candidate_id and len(found.features_hash) > 8
    assert "dataset.id" in found.text() and dataset in found.text()
    difference = compare(registry, "told", "1", "2")
    assert difference.parameters == {"max_iter": (5, 15)} and difference.same_rows
    assert difference.metrics["log_loss"][0] != difference.metrics["log_loss"][1]
    assert "max_iter" in difference.text()
    text = card(registry, "told", "2")
    for part in (
        "# told, version 2",
        "## Trained on",
        dataset,
        "| roc_auc |",
        "## Slices",
        "## The gate",
        "## Known limits",
    ):
        assert part in text
    described = registry.client.get_model_version("told", "1").description
    assert described.startswith("# told") and "## Known limits" in described


def test_a_version_that_is_needed_is_not_deleted_and_says_why(
    server: Server, folders: list[tuple[Path, Recipe, Verdict]], tmp_path: Path
) -> None:
    registry = Registry(server.uri)
    first, second = (register(server, "kept", made, tmp_path) for made in folders)
    registry.set_alias(second, "shadow")
    with pytest.raises(ModelError, match="version 2 of 'kept' is not deleted: the alias 'shadow' points at it"):
        registry.delete_version("kept", "2")
    serving = {"models": {"kept": {"champion": "2", "previous": "1"}}}
    with pytest.raises(ModelError, match="it is previous in the serving state"):
        registry.delete_version("kept", "1", serving=serving)
    registry.set_tag(first, "protected", "true")
    with pytest.raises(ModelError, match="its tag 'protected' is true"):
        registry.delete_version("kept", "1")
    registry.set_tag(first, "protected", "false")
    registry.delete_version("kept", "1")
    assert [v.version for v in registry.versions("kept")] == ["2"] and registry.aliases("kept") == {"shadow": "2"}


def test_the_command_line_lists_explains_and_refuses(
    server: Server, folders: list[tuple[Path, Recipe, Verdict]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for made in folders:
        register(server, "listed", made, tmp_path)
    assert main(["alias", "listed", "2", "shadow"]) == 0
    assert main(["versions", "listed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["2", "passed", folders[1][1].split.dataset_id, "shadow"]
    assert main(["lineage", "listed", "1"]) == 0 and "dataset.train_rows" in capsys.readouterr().out
    assert main(["card", "listed", "shadow"]) == 0 and "# listed, version 2" in capsys.readouterr().out
    assert main(["alias", "listed", "1", "champion"]) == 1 and "deploy the version" in capsys.readouterr().err
    assert main(["delete", "listed", "2"]) == 1 and "'shadow' points at it" in capsys.readouterr().err
    assert main(["delete", "listed", "1"]) == 0
    assert main(["card", "listed", "9"]) == 1 and "versions: 2" in capsys.readouterr().err


# --- the server goes away (these come last: each leaves it running)


def test_a_server_killed_in_the_middle_loses_no_metric(server: Server, client: MlflowClient, tmp_path: Path) -> None:
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


def test_what_is_left_at_the_end_is_told_kept_and_sent_later(
    server: Server, client: MlflowClient, tmp_path: Path,
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
