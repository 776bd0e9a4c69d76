"""Search on a real Ray cluster and a real MLflow store: equal work once, trials that fail, trials that are tracked."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forge_core.data.loaders import get_data_loader
from forge_core.data.sample import generate_sample_data, sample_contract
from forge_core.data.splits import split_frame
from forge_core.data.versions import save_dataset
from forge_core.errors import ConfigurationError, ModelError, NotEnoughSamples
from forge_core.storage import Storage
from forge_core.training.datasets import SplitRequest
from forge_core.training.search_journal import Journal
from forge_core.training.search_report import search_figure, terminal_progress
from forge_core.training.trial_runs import Tracking, TrialRuns
from forge_core.training.trials import WHOLE, TrialPlan, run_trial, trial_data
from forge_core.training.tuning import SearchResult, search

ROWS = generate_sample_data(2000, random_state=0)
FEATURES = ["feature1", "feature2"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of this process with two CPUs."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture
def split(tmp_path: Path) -> SplitRequest:
    rows = get_data_loader().preprocess_data(ROWS)
    version = save_dataset(Storage(str(tmp_path)), rows, source="sample:", contract=sample_contract())
    return SplitRequest(str(tmp_path), version.id, "target", "event_time", 0.15, 0.15, 0)


def ask(split: SplitRequest, **changes: Any) -> SearchResult:
    from ray import tune

    space = {"learning_rate": tune.loguniform(0.01, 0.3), "max_leaf_nodes": tune.randint(4, 31)}
    asked: dict[str, Any] = {"fixed": {"max_iter": 30}, "space": space, "trials": 6, "early_stop": False}
    return search(split, **{"model_type": "gradient_boosting", "metric": "log_loss", **asked, **changes})


def record(number: int, value: float | None = 0.5, state: str = "complete") -> dict[str, Any]:
    stages = (
        [] if value is None else [{"thirds": WHOLE, "metrics": {"log_loss": value}, "seconds": 1.0, "value": value}]
    )
    reason = "ValueError: no" if state == "failed" else None
    return {
        "number": number, "state": state, "hyperparameters": {"C": 1.0}, "value": value, "seconds": 1.0,
        "metrics": {"log_loss": value}, "stages": stages, "reason": reason,
    }  # fmt: skip


@pytest.mark.long
@pytest.mark.ray
def test_a_search_that_was_cut_goes_on_and_ends_where_the_uncut_one_does(
    cluster: None, split: SplitRequest, tmp_path: Path
) -> None:
    told: list[tuple[int, dict[str, Any]]] = []
    uncut = ask(split, progress=lambda done, result: told.append((done, result)))
    assert [done for done, _ in told] == [1, 2, 3, 4, 5, 6] and uncut.resumed == 0
    assert [t["state"] for t in uncut.trials] == ["complete"] * 6
    assert uncut.value == min(t["log_loss"] for t in uncut.trials)
    journal = sorted((tmp_path / "searches" / uncut.key).glob("*.json"))
    for file in (journal[1], journal[4]):
        file.unlink()
    again = ask(split)
    assert again.resumed == 4 and again.key == uncut.key
    assert again.hyperparameters == uncut.hyperparameters and again.value == uncut.value
    same = [(t["hyperparameters"], t["log_loss"]) for t in again.trials]
    assert same == [(t["hyperparameters"], t["log_loss"]) for t in uncut.trials]
    assert ask(split, random_state=1).trials[0]["hyperparameters"] != uncut.trials[0]["hyperparameters"]
    assert not list((tmp_path / ".drafts").glob("*"))


@pytest.mark.ray
def test_the_champion_is_tried_first_and_what_lags_behind_is_stopped(cluster: None, split: SplitRequest) -> None:
    found = ask(
        split, start_from={"learning_rate": 0.1, "max_leaf_nodes": 15}, trials=12, early_stop=True, workers=1,
        fixed={"max_iter": 60},
    )  # fmt: skip
    assert found.trials[0]["hyperparameters"] == {"learning_rate": 0.1, "max_leaf_nodes": 15}
    states = [t["state"] for t in found.trials]
    assert set(states) == {"complete", "stopped"}
    best = min((t for t in found.trials if t["state"] == "complete"), key=lambda t: t["log_loss"])
    assert found.hyperparameters == {"max_iter": 60, "random_state": 0, **best["hyperparameters"]}
    assert found.table()["state"].tolist() == states
    assert found.picture().startswith(b"\x89PNG")


@pytest.mark.long
@pytest.mark.ray
def test_trials_that_fail_are_counted_with_their_reason_and_tried_again(
    cluster: None, split: SplitRequest, caplog: pytest.LogCaptureFixture
) -> None:
    from ray import tune

    space = {"C": tune.choice([1.0, -1.0])}
    found = ask(split, model_type="logistic_regression", space=space, fixed={}, trials=8, workers=8)
    assert "workers=8 cores=2" in caplog.text
    failed = [t for t in found.trials if t["state"] == "failed"]
    assert 0 < len(failed) < 8 and all(t["hyperparameters"] == {"C": -1.0} for t in failed)
    assert "InvalidParameterError" in failed[0]["reason"] and found.hyperparameters["C"] == 1.0
    assert ask(split, model_type="logistic_regression", space=space, fixed={}, trials=8).resumed == 8 - len(failed)
    with pytest.raises(ModelError, match=r"all 2 trials failed; the first: InvalidParameterError"):
        ask(split, model_type="logistic_regression", space={"C": tune.uniform(-2.0, -1.0)}, fixed={}, trials=2)


@pytest.mark.ray
def test_each_trial_is_a_child_run_once_however_often_the_search_is_run(
    cluster: None, split: SplitRequest, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("flights", artifact_location=(tmp_path / "artifacts").as_uri())
    tracking = Tracking("flights", uri=uri)
    found = ask(split, trials=3, tracking=tracking)
    again = ask(split, trials=4, tracking=tracking)
    assert found.unsent_runs == again.unsent_runs == 0 and again.parent_run == found.parent_run
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{found.parent_run}'")
    assert sorted(int(run.data.tags["forge.trial"]) for run in runs) == [0, 1, 2, 3]
    for run in runs:
        trial = again.trials[int(run.data.tags["forge.trial"])]
        assert run.data.metrics["log_loss"] == pytest.approx(trial["log_loss"])
        assert run.data.params["learning_rate"] == str(trial["hyperparameters"]["learning_rate"])
        assert run.info.status == "FINISHED"
    parent = client.get_run(str(found.parent_run))
    assert parent.info.status == "FINISHED" and parent.data.metrics["objective"] == pytest.approx(again.value)
    assert [file.path for file in client.list_artifacts(str(found.parent_run), "pictures")] == ["pictures/search.png"]


@pytest.mark.slow
def test_trials_wait_for_a_tracking_server_that_is_away_and_are_counted_if_it_stays_so(tmp_path: Path) -> None:
    class Away(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Away)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        runs = TrialRuns(Tracking("flights", uri=f"http://127.0.0.1:{server.server_port}", parent_run="x"), "search-0")
        runs.send(record(0))
        runs.send(record(1))
        assert runs.finish(None, None, patience=2.5) == 2
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_a_stopped_and_continued_fit_scores_as_one_fit_does() -> None:
    parts = split_frame(ROWS, "target", feature_columns=FEATURES, validation_share=0.2, test_share=0.1)
    data = trial_data(parts, "classification", folds=0, time_column=None, seed=0)
    assert len(data.X) == len(parts.train) + len(parts.validation)
    for model_type, parameters in (("gradient_boosting", {"max_iter": 30}), ("random_forest", {"n_estimators": 30})):
        plan = TrialPlan(model_type, "classification", "log_loss", (("random_state", 0),))
        whole = TrialPlan(model_type, "classification", "log_loss", (("random_state", 0),), (WHOLE,))
        third, last = list(run_trial(data, plan, parameters))
        (once,) = list(run_trial(data, whole, parameters))
        assert third["thirds"] == 1 and third["metrics"]["log_loss"] != last["metrics"]["log_loss"]
        assert last["metrics"]["log_loss"] == pytest.approx(once["metrics"]["log_loss"], rel=1e-3)


def test_folds_share_no_rows_keep_classes_and_go_forward_in_time() -> None:
    parts = split_frame(ROWS, "target", time_column="event_time", feature_columns=FEATURES)
    forward = trial_data(parts, "classification", folds=4, time_column="event_time", seed=0)
    assert all(fold.fit.max() < fold.score.min() for fold in forward.folds)
    balanced = trial_data(parts, "classification", folds=4, time_column=None, seed=0)
    shares = [balanced.y.iloc[fold.score].mean() for fold in balanced.folds]
    assert np.ptp(shares) < 0.01 and not set(balanced.folds[0].fit) & set(balanced.folds[0].score)
    (metrics,) = list(run_trial(balanced, TrialPlan("linear", "classification", "roc_auc", ()), {}))
    assert metrics["metrics"]["roc_auc"] > 0.7


def test_what_no_trial_could_use_is_refused_before_one_is_started(split: SplitRequest) -> None:
    def refused(words: str, **changes: Any) -> None:
        with pytest.raises(ConfigurationError, match=words):
            search(split, **{"model_type": "gradient_boosting", "metric": "log_loss", **changes})

    refused("known: .*random_forest", model_type="magic")
    refused("no hyperparameter depth", fixed={"depth": 3})
    refused(r"a metric of a classification task \(accuracy.*found 'rmse'", metric="rmse")
    refused("at least one trial", trials=0)
    refused("folds=0", folds=1)


@pytest.mark.ray
def test_search_spaces_that_cannot_be_drawn_from_are_refused(cluster: None, split: SplitRequest) -> None:
    from ray import tune

    for space, words in (
        ({}, "found an empty one"),
        ({"max_iter": 3}, "put constants into `fixed`"),
        ({"depth": tune.uniform(0, 1)}, "no hyperparameter depth"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            search(split, model_type="gradient_boosting", metric="log_loss", space=space)


def test_a_fold_of_one_class_is_named() -> None:
    rows = ROWS.assign(target=np.where(ROWS.index < 1200, ROWS["target"], 0))
    parts = split_frame(rows, "target", time_column="event_time")
    with pytest.raises(NotEnoughSamples, match=r"scored rows of fold 1, found only \[0\]"):
        trial_data(parts, "classification", folds=0, time_column="event_time", seed=0)
    rare = split_frame(pd.DataFrame({"x": range(200), "y": [1] * 3 + [0] * 197}), "y", test_share=0.0)
    with pytest.raises(NotEnoughSamples, match="5 rows or more of every class"):
        trial_data(rare, "classification", folds=5, time_column=None, seed=0)


def test_the_journal_keeps_what_ended_and_knows_other_questions(tmp_path: Path) -> None:
    journal = Journal(Storage(str(tmp_path)), {"metric": "log_loss"})
    for number, state in enumerate(("complete", "failed", "stopped")):
        journal.write(record(number, state=state))
    assert [r["number"] for r in journal.read(8)] == [0, 2] and [r["number"] for r in journal.read(1)] == [0]
    assert json.loads(json.dumps(journal.read(1)[0])) == record(0)
    assert Journal(Storage(str(tmp_path)), {"metric": "roc_auc"}).read(8) == []


@pytest.mark.slow
def test_failed_trials_are_in_the_picture_and_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    trials = [{**record(0), "log_loss": 0.5}, {**record(1, None, "failed"), "log_loss": None}]
    assert len(search_figure(trials, "log_loss", "min")) > 5000
    progress = terminal_progress(2)
    progress(1, {"C": 0.25, "log_loss": 0.5})
    progress(2, {"C": 4.0, "log_loss": None})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["trial", "C", "log_loss"], ["1/2", "0.25", "0.5"], ["2/2", "4", "failed"]]
