"""The whole loop on the sample model, on real servers: train, serve, predict, label, watch, retrain, refuse."""

import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import psutil
import pytest

from forge_core.data.sample import generate_sample_data
from forge_core.deployment.routing import nominate, read_state
from forge_core.errors import ModelError
from forge_core.ledger import Ledger
from forge_core.models.version import REQUIRED
from forge_core.monitoring.prediction_log import PredictionLog
from forge_core.settings import Settings
from forge_core.storage import Storage
from forge_core.tracking.registry import Registry
from infra.grafana.boards import BOARDS
from infra.local import stack as local
from infra.local.prefect_api import FINAL, PrefectApi
from tests.prometheus_server import PROGRAMS, watching

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

GUIDE_REQUEST = {"features": {"feature1": 1.0, "feature2": "category1"}}
ROWS = "sample:?rows=6000"


@pytest.fixture(scope="module")
def prefect(stack: Settings) -> PrefectApi:
    return PrefectApi(stack.prefect_url)


@pytest.fixture(scope="module")
def api(stack: Settings) -> httpx.Client:
    return httpx.Client(base_url=stack.api_url, trust_env=False, timeout=30.0)


def finish(prefect: PrefectApi, run: dict[str, Any], timeout: float = 240.0) -> dict[str, Any]:
    deadline = time.monotonic() + timeout
    while (run := prefect.call("GET", f"/flow_runs/{run['id']}"))["state_type"] not in FINAL:
        assert time.monotonic() < deadline, run["state_name"]
        time.sleep(0.3)
    return run


def states(prefect: PrefectApi, run: dict[str, Any]) -> dict[str, str]:
    return {task["name"].rpartition("-")[0]: task["state_name"] for task in prefect.tasks(run)}


@pytest.fixture(scope="module")
def trained(stack: Settings, prefect: PrefectApi, api: httpx.Client) -> dict[str, Any]:
    """The first model, trained by its deployment; before it, what the API says without one."""
    assert api.get("/health").json()["status"] == "ok"
    not_ready, early = api.get("/health/ready"), api.post("/predict", json=GUIDE_REQUEST)
    assert (not_ready.status_code, early.status_code) == (503, 503)
    assert "prefect deployment run 'train/sample'" in early.json()["detail"] and early.headers["retry-after"]
    run = finish(prefect, prefect.run("train/sample", {"model": "sample", "source": ROWS, "trials": 4}))
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    return run


def test_training_leaves_a_live_champion_with_every_part(stack: Settings, trained: dict[str, Any]) -> None:
    registry = Registry(stack.mlflow_url)
    champion = registry.resolve("sample", "champion")
    assert champion.version == "1" and champion.passed_gate
    with registry.open(champion) as folder:
        assert {p.name for p in folder.path.iterdir()} >= {*REQUIRED, "model.onnx", "MLmodel", "parts.json"}
        assert folder.compiled["serves"] == "compiled" and folder.compiled["parity"]["largest_difference"] < 1e-5
        assert folder.lineage["dataset"].startswith("ds-") and len(folder.lineage["lock_sha256"]) == 64
        assert folder.verdict.passed and folder.evaluation.metrics["roc_auc"].low > 0.6
        assert folder.contract.feature_columns == ["feature1", "feature2"]


def test_the_run_leaves_tables_and_pictures(stack: Settings, prefect: PrefectApi, trained: dict[str, Any]) -> None:
    found = prefect.call("POST", "/artifacts/filter", {"flow_runs": {"id": {"any_": [trained["id"]]}}})
    kinds = {artifact["key"]: artifact["type"] for artifact in found}
    assert kinds["sample-data"] == "markdown" and kinds["sample-data-columns"] == "image"
    assert kinds["sample-parity"] == "table"
    assert Ledger(stack.ledger).events("sample", "promoted")[0]["details"]["parity"]["passed"]
    assert kinds["sample-metrics"] == kinds["sample-gate"] == kinds["sample-trials"] == "table"
    assert kinds["sample-evaluation"] == "image" and kinds["sample-held-out-drift"] == "markdown"


def test_the_guides_call_gets_the_guides_reply(trained: dict[str, Any], api: httpx.Client) -> None:
    answer = api.post("/predict", json=GUIDE_REQUEST)
    reply = answer.json()
    assert answer.status_code == 200
    assert reply["prediction"] in (0, 1) and 0.5 <= reply["prediction_probability"] <= 1.0
    assert reply["model_version"] == "1" and reply["processing_time_ms"] >= 0 and reply["request_id"]
    info = api.get("/model/info").json()
    assert info["version"] == "1" and info["features"] == {"feature1": "number", "feature2": "category"}


def test_served_scores_equal_the_registered_pipelines(
    stack: Settings, trained: dict[str, Any], api: httpx.Client
) -> None:
    rows = generate_sample_data(300, random_state=9)[["feature1", "feature2"]]
    answers = api.post("/predict/batch", json={"records": rows.to_dict("records")}).json()["predictions"]
    registry = Registry(stack.mlflow_url)
    with registry.open(registry.resolve("sample")) as folder:
        native = folder.pipeline.predict_proba(rows)[:, 1]
    served = [a["prediction_probability"] if a["prediction"] == 1 else 1 - a["prediction_probability"] for a in answers]
    assert max(abs(a - b) for a, b in zip(served, native, strict=True)) < 1e-5


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"features": {"feature1": "one", "feature2": "a"}}, "feature1"),
        ({"features": {"feature1": 1.0}}, "feature2"),
        ({"features": {"feature1": 1.0, "feature2": "a", "feature3": 1}}, "feature3"),
        ({"features": {"feature1": None, "feature2": 3}}, "feature2"),
        ({"feature": {}}, "features"),
    ],
)
def test_a_wrong_field_is_named_in_a_problem_document(
    trained: dict[str, Any], api: httpx.Client, body: dict[str, Any], field: str
) -> None:
    answer = api.post("/predict", json=body)
    assert answer.status_code == 422 and answer.headers["content-type"] == "application/problem+json"
    assert field in [fault["field"] for fault in answer.json()["errors"]]
    assert answer.json()["status"] == 422


def test_unknown_models_routes_and_broken_json_are_problems_too(trained: dict[str, Any], api: httpx.Client) -> None:
    assert api.get("/models/none").status_code == 404
    assert api.get("/nothing").json()["status"] == 404
    assert api.post("/predict", content=b'{"fea', headers={"content-type": "application/json"}).status_code == 400


@pytest.mark.long
def test_a_data_set_is_scored_by_its_flow_and_leaves_a_table_and_a_picture(
    stack: Settings, prefect: PrefectApi, trained: dict[str, Any], tmp_path: Path
) -> None:
    rows = generate_sample_data(3000, random_state=12)
    rows.to_parquet(tmp_path / "rows.parquet", row_group_size=500)
    asked = {"source": str(tmp_path / "rows.parquet"), "output": str(tmp_path / "scores"), "keep": "feature1"}
    run = finish(prefect, prefect.run("score/sample", asked))
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    output = pd.read_parquet(tmp_path / "scores" / "parts")
    assert output["row_number"].tolist() == list(range(3000)) and output["fault"].isna().all()
    assert output["feature1"].equals(rows["feature1"])
    registry = Registry(stack.mlflow_url)
    with registry.open(registry.resolve("sample")) as folder:
        assert output["prediction"].tolist() == folder.pipeline.predict(rows[["feature1", "feature2"]]).tolist()
    found = prefect.call("POST", "/artifacts/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    kinds = {artifact["key"]: artifact["type"] for artifact in found}
    assert kinds == {"sample-scored": "progress", "sample-scores": "table", "sample-predictions": "image"}
    command = [sys.executable, "-m", "forge_core.scoring", "sample", asked["source"], "--output", asked["output"]]
    done = subprocess.run([*command, "--keep", "feature1"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "3,000 of 3,000 rows" in done.stdout and "rows from an earlier attempt: 3000" in done.stdout


def test_the_same_training_again_finds_every_step_and_makes_no_new_version(
    stack: Settings, prefect: PrefectApi, trained: dict[str, Any]
) -> None:
    run = finish(prefect, prefect.run("train/sample", {"model": "sample", "source": ROWS, "trials": 4}))
    found = states(prefect, run)
    assert run["state_type"] == "COMPLETED"
    # The champion is this very candidate; it is judged as before it went live, not against itself.
    assert {found[name] for name in ("ingest", "search", "fit", "evaluate", "compile")} == {"Cached"}
    assert [v.version for v in Registry(stack.mlflow_url).versions("sample")] == ["1"]


@pytest.mark.long
def test_bad_data_fails_at_ingest_with_a_sentence_and_what_teaches_nothing_at_the_gate(
    stack: Settings, prefect: PrefectApi, trained: dict[str, Any], tmp_path: Path
) -> None:
    rows = generate_sample_data(2000, random_state=1)
    rows.assign(target=1).to_csv(tmp_path / "one_class.csv", index=False)
    run = finish(prefect, prefect.run("train/sample", {"model": "sample", "source": str(tmp_path / "one_class.csv")}))
    assert run["state_type"] == "FAILED"
    message = run["state"]["message"]
    assert "one_class.csv" in message and "target" in message and "2,000 rows" in message
    assert list(states(prefect, run)) == ["ingest"]
    # After the repair the same run goes on; what it learns from targets that are chance does not go live.
    chance = rows["target"].sample(frac=1, random_state=0).to_numpy()
    rows.assign(target=chance).to_csv(tmp_path / "one_class.csv", index=False)
    again = {"model": "sample", "source": str(tmp_path / "one_class.csv"), "trials": 1}
    run = finish(prefect, prefect.run("train/sample", again))
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert "deploy" not in states(prefect, run)
    registry, ledger = Registry(stack.mlflow_url), Ledger(stack.ledger)
    refused = registry.versions("sample")[-1]
    assert not refused.passed_gate and refused.version not in registry.aliases("sample").values()
    assert read_state(ledger)[1]["models"]["sample"]["champion"] == "1"
    with pytest.raises(ModelError, match=rf"version {refused.version} of 'sample' .* refused .*roc_auc"):
        nominate(ledger, "sample", refused.version, actor="test", reason="in spite of the gate")


@pytest.mark.long
def test_a_killed_flow_is_marked_crashed_and_its_rerun_repeats_only_what_was_cut(
    stack: Settings, prefect: PrefectApi, trained: dict[str, Any]
) -> None:
    parameters = {"model": "sample", "source": "sample:?rows=5000&seed=5", "trials": 6, "deploy": False}
    run = prefect.run("train/sample", parameters)
    deadline = time.monotonic() + 120
    while states(prefect, run).get("search") != "Running":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    pid = int(prefect.call("GET", f"/flow_runs/{run['id']}")["infrastructure_pid"].rpartition(":")[2])
    flow = psutil.Process(pid)
    for process in [*flow.children(recursive=True), flow]:
        os.kill(process.pid, signal.SIGKILL)
    killed = time.monotonic()
    again = prefect.run("train/sample", parameters)
    while prefect.call("GET", f"/flow_runs/{again['id']}")["state_type"] != "RUNNING":
        assert time.monotonic() - killed < 60
        time.sleep(0.3)
    again = finish(prefect, again)
    assert again["state_type"] == "COMPLETED", again["state"]["message"]
    assert states(prefect, again)["ingest"] == "Cached" and states(prefect, again)["search"] == "Completed"
    assert prefect.call("GET", f"/flow_runs/{run['id']}")["state_type"] == "CRASHED"


@pytest.fixture(scope="module")
def checked(
    stack: Settings, prefect: PrefectApi, trained: dict[str, Any], api: httpx.Client
) -> tuple[dict[str, Any], datetime]:
    """What the monitor says after inputs have drifted and labels turned, and when it began."""
    start = datetime(2025, 3, 1, tzinfo=UTC)
    rows = generate_sample_data(3000, random_state=8, drift=2.0, start=start)
    for hour, part in rows.groupby(rows["event_time"].dt.floor("h")):
        moment = {"X-Forge-Event-Time": pd.Timestamp(hour).isoformat()}
        body = {"records": part[["feature1", "feature2"]].to_dict("records"), "request_ids": part["sample_id"].tolist()}
        assert api.post("/predict/batch", json=body, headers=moment).status_code == 200
        # The world has turned: what was 1 is 0 now, so quality is lost, not only the inputs' shape.
        labels = [{"request_id": i, "label": 1 - y} for i, y in zip(part["sample_id"], part["target"], strict=True)]
        assert api.post("/feedback", json={"feedback": labels}, headers=moment).json() == {"committed": len(labels)}
    counts = api.get("/monitoring", params={"flush": True}).json()
    assert counts["waiting"] == counts["dropped"] == counts["dropped_by_router"] == 0
    log = PredictionLog(Storage(stack.storage), "sample").read(since=start, until=start + timedelta(days=9))
    assert sorted(log["request_id"]) == sorted(rows["sample_id"])
    assert {f.request_id for f in Ledger(stack.ledger).feedback("sample", since=start)} == set(rows["sample_id"])

    began = datetime.now(UTC) - timedelta(seconds=1)
    now = (rows["event_time"].max() + timedelta(hours=1)).isoformat()
    run = finish(prefect, prefect.run("monitor/sample", {"model": "sample", "now": now}))
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    return Ledger(stack.ledger).events("sample", "checked")[-1]["details"], began


def test_drift_and_lost_quality_start_a_retraining_by_themselves(
    stack: Settings, prefect: PrefectApi, checked: tuple[dict[str, Any], datetime]
) -> None:
    found, began = checked
    assert found["retrain"] and "feature1" in found["drifted"] and found["labels"] == 3000
    assert found["quality"]["alarm"] and found["estimate"]["estimated"]
    retrain = prefect.newest_run("retrain/sample", began)
    assert retrain is not None
    retrain = finish(prefect, retrain)
    assert retrain["state_type"] == "COMPLETED", retrain["state"]["message"]
    told = Ledger(stack.ledger).events("sample", "retrained")[-1]["details"]
    # It learnt more of the old rows; whether it is better on the same held-out rows is the gate's to say, and what is
    # live follows from that.
    assert told["passed"] != ("better log_loss than champion" in told["reason"])
    assert told["passed"] != (read_state(Ledger(stack.ledger))[1]["models"]["sample"]["champion"] == "1")


@pytest.mark.skipif(
    any(shutil.which(program) is None for program in PROGRAMS),
    reason="needs Debian's programs: apt-get install prometheus prometheus-alertmanager",
)
def test_prometheus_reads_the_service_every_panel_is_answered_and_an_alert_arrives(
    stack: Settings, checked: tuple[dict[str, Any], datetime], api: httpx.Client, tmp_path: Path
) -> None:
    with watching(tmp_path, stack.api_port) as watcher:
        assert watcher.until(lambda: watcher.ask('up{job="forge"} == 1'))
        for _ in range(4):
            assert api.post("/predict", json=GUIDE_REQUEST).status_code == 200
            time.sleep(1.0)
        for _, title, panels in BOARDS.values():
            for panel in panels:
                for query in panel.queries.values():
                    found = watcher.until(lambda query=query: watcher.ask(query), 20)
                    assert found, f"{title}, {panel.title}: nothing answers {query}"
                    assert any(series["value"][1] != "NaN" for series in found), f"{panel.title}: {found}"
        alert = watcher.until(
            lambda: [a for a in watcher.received if a["labels"]["alertname"] == "ForgeQualityLoss"], 30
        )[0]
    assert alert["labels"]["model"] == "sample" and "worse than allowed" in alert["annotations"]["summary"]


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium: apt-get install chromium")
def test_run_artifacts_and_champion_can_be_looked_at_in_a_browser(
    stack: Settings, prefect: PrefectApi, trained: dict[str, Any], tmp_path: Path
) -> None:
    def shows(url: str, text: str) -> bool:
        quiet = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
        quiet += ("--disable-component-update", "--disable-sync", "--no-sandbox")
        for attempt in range(4):  # a page may be read before its data has come
            command = ["chromium", "--headless", *quiet, f"--user-data-dir={tmp_path}/{abs(hash(url))}-{attempt}"]
            command += ["--virtual-time-budget=20000", "--dump-dom", url]
            if text in subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout:
                return True
        return False

    found = prefect.call("POST", "/artifacts/filter", {"flow_runs": {"id": {"any_": [trained["id"]]}}})
    picture = next(artifact["id"] for artifact in found if artifact["key"] == "sample-evaluation")
    assert shows(f"{stack.prefect_url}/runs/flow-run/{trained['id']}", trained["name"])
    assert shows(f"{stack.prefect_url}/artifacts/artifact/{picture}", '<img src="data:image/png;base64')
    assert shows(f"{stack.mlflow_url}/#/models/sample", "champion")


@pytest.mark.long
def test_down_and_up_lose_nothing_and_serve_the_champion_again(
    stack: Settings, trained: dict[str, Any], api: httpx.Client
) -> None:
    champion = read_state(Ledger(stack.ledger))[1]["models"]["sample"]["champion"]
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    ids = [f"last-{i}" for i in range(50)]
    body = {"records": [GUIDE_REQUEST["features"]] * 50, "request_ids": ids}
    assert api.post("/predict/batch", json=body, headers={"X-Forge-Event-Time": moment.isoformat()}).status_code == 200
    time.sleep(0.5)  # long enough for the router to hand its rows on, shorter than the profiler's own rhythm
    local.down(stack, quiet=True)
    local.up(stack, quiet=True)
    assert sorted(PredictionLog(Storage(stack.storage), "sample").read(since=moment)["request_id"]) == sorted(ids)
    answer = api.post("/predict", json=GUIDE_REQUEST).json()
    assert answer["model_version"] == champion
