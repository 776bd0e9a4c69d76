"""Compose as plain processes, on PostgreSQL and an S3 server: train, serve, label, watch, stop, begin anew."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import sqlalchemy as sa

from forge_core.data.sample import generate_sample_data
from infra.docker.entrypoint.node import node_command
from infra.local.environment import STACK
from infra.local.prefect_api import FINAL, PrefectApi
from infra.local.processes import free_ports, stop_marked
from tests.compose_processes import PATIENT, Processes, image_variables
from tests.servers import S3_KEYS, postgres_server, s3_server
from tests.stack_settings import short_home

pytestmark = [pytest.mark.long, pytest.mark.stack, pytest.mark.postgres, pytest.mark.s3, pytest.mark.timeout(900)]

SERVERS = ("mlflow", "prefect", "ray-head")
NODES = ("ray-worker", "worker")
PASSWORD = "not-for-logs"


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def processes(patch: pytest.MonkeyPatch) -> Iterator[Processes]:
    """All services that our image runs, up and well."""
    with postgres_server() as postgres, s3_server(patch) as storage:
        home = short_home()
        ports = free_ports(9)
        api, dashboard, ray, mlflow, prefect, metrics, statistics, health, _ = ports
        places = {
            "ray-head:8000": f"127.0.0.1:{api}", "ray-head:8265": f"127.0.0.1:{dashboard}",
            "ray-head:6379": f"127.0.0.1:{ray}", "mlflow:5000": f"127.0.0.1:{mlflow}",
            "prefect:4200": f"127.0.0.1:{prefect}", "storage:8333": storage.removeprefix("http://"),
            "/run/forge/ray_token": str(home / "ray_token"),
        }  # fmt: skip
        database = sa.make_url(postgres)
        variables = {
            **S3_KEYS, **PATIENT, "PGHOST": "127.0.0.1", "PGPORT": str(database.port), "PGUSER": "postgres",
            "PGPASSWORD": PASSWORD,
            "FORGE_STARTUP_TIMEOUT": "280",
            "FORGE_HOST": "127.0.0.1", "FORGE_API_PORT": str(api), "FORGE_DASHBOARD_PORT": str(dashboard),
            "FORGE_RAY_PORT": str(ray), "FORGE_HAPROXY_METRICS_PORT": str(metrics),
            "FORGE_HAPROXY_STATS_PORT": str(statistics), "FORGE_MODEL": "sample",
            "PREFECT_WORKER_WEBSERVER_PORT": str(health), "PREFECT_WORKER_QUERY_SECONDS": "1",
            "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
        }  # fmt: skip
        processes = Processes(home, places, variables)
        try:
            processes.start("prepare")
            assert processes.running.pop("prepare").wait(60) == 0, processes.log("prepare")
            assert "made: forge, mlflow, prefect, forge, mlflow" in processes.log("prepare")
            # One after another: side by side on two cores they starve each other.
            for service in (*SERVERS, *NODES):
                processes.start(service)
                processes.wait(service)
            yield processes
        finally:
            processes.kill_all()
            for service in (*SERVERS, *NODES):
                stop_marked(home / service, grace=1.0)


@pytest.fixture(scope="module")
def api(processes: Processes) -> httpx.Client:
    url = f"http://{processes.addresses['ray-head:8000']}"
    return httpx.Client(base_url=url, trust_env=False, timeout=30.0)


def run_to_its_end(processes: Processes, deployment: str, parameters: dict[str, Any]) -> dict[str, Any]:
    prefect = PrefectApi(f"http://{processes.addresses['prefect:4200']}")
    run = prefect.run(deployment, parameters)
    deadline = time.monotonic() + 400
    while (run := prefect.call("GET", f"/flow_runs/{run['id']}"))["state_type"] not in FINAL:
        assert time.monotonic() < deadline, processes.log("worker")[-3000:]
        time.sleep(0.5)
    assert run["state_type"] == "COMPLETED", run["state"]["message"] + processes.log("worker")[-3000:]
    return run


def marked(home: Path) -> list[int]:
    """Return the living processes whose environment carries the mark of any service below `home`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(STACK, "").startswith(str(home)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def trained(processes: Processes, api: httpx.Client) -> dict[str, Any]:
    assert "train/sample" in api.post("/predict", json={"features": {}}).json()["detail"]
    return run_to_its_end(
        processes, "train/sample", {"model": "sample", "source": "sample:?rows=6000", "trials": 1}
    )  # fmt: skip


def test_a_model_is_trained_served_labelled_and_watched(
    processes: Processes, trained: dict[str, Any], api: httpx.Client
) -> None:
    answer = api.post("/predict", json={"features": {"feature1": 1.0, "feature2": "category1"}})
    assert answer.status_code == 200 and answer.json()["model_version"] == "1", answer.text
    rows = generate_sample_data(300, random_state=8)
    body = {"records": rows[["feature1", "feature2"]].to_dict("records"), "request_ids": rows["sample_id"].tolist()}
    assert api.post("/predict/batch", json=body).status_code == 200
    labels = [{"request_id": i, "label": y} for i, y in zip(rows["sample_id"], rows["target"], strict=True)]
    assert api.post("/feedback", json={"feedback": labels}).json() == {"committed": 300}
    watched = api.get("/monitoring", params={"flush": True}).json()
    assert watched["dropped"] == watched["waiting"] == 0
    now = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    run_to_its_end(processes, "monitor/sample", {"model": "sample", "now": now})
    ledger = sa.create_engine(f"postgresql+psycopg://postgres@127.0.0.1:{processes.variables['PGPORT']}/forge")
    with ledger.connect() as connection:
        kinds = [row[0] for row in connection.execute(sa.text("SELECT kind FROM events ORDER BY id"))]
        assert connection.execute(sa.text("SELECT count(*) FROM feedback")).scalar() == 300
    assert "promoted" in kinds and "checked" in kinds


def test_the_state_lies_in_postgresql_and_s3_only(processes: Processes, trained: dict[str, Any]) -> None:
    import s3fs

    store = s3fs.S3FileSystem(skip_instance_cache=True)
    assert store.glob("mlflow/**/model.skops") and store.glob("forge/storage/datasets/**")
    for name, table in (("mlflow", "model_versions"), ("prefect", "flow_run")):
        url = f"postgresql+psycopg://postgres@127.0.0.1:{processes.variables['PGPORT']}/{name}"
        with sa.create_engine(url).connect() as connection:
            assert connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar() > 0
    assert not list(processes.home.rglob("*.db"))


def test_logs_of_replicas_and_flows_are_on_the_standard_output_without_the_password(
    processes: Processes, trained: dict[str, Any]
) -> None:
    assert "Deploying new app 'variant-sample-v1'" in processes.log("ray-head")
    assert "ingest" in processes.log("worker") and "Beginning flow run" in processes.log("worker")
    for service in (*SERVERS, *NODES):
        assert PASSWORD not in processes.log(service)


def test_no_replica_stands_where_only_programs_do(processes: Processes, trained: dict[str, Any]) -> None:
    dashboard = f"http://{processes.addresses['ray-head:8265']}"
    token = {"Authorization": f"Bearer {(processes.home / 'ray_token').read_text()}"}
    with httpx.Client(base_url=dashboard, headers=token, trust_env=False, timeout=30.0) as ray:
        nodes = ray.get("/api/v0/nodes", params={"detail": True}).json()["data"]["result"]["result"]
        assert len([node for node in nodes if node["state"] == "ALIVE"]) == 2
    command = node_command(processes.addresses["ray-head:6379"], (), drivers_only=True)
    assert "--num-cpus=0" in command and "--labels=forge-drivers=only" in command


def test_told_to_stop_they_end_in_order_and_a_new_head_serves_the_champion(
    processes: Processes, trained: dict[str, Any], api: httpx.Client
) -> None:
    codes = {service: processes.stop(service) for service in ("worker", "ray-worker", "ray-head")}
    assert codes == dict.fromkeys(("worker", "ray-worker", "ray-head"), 0), processes.log("ray-head")[-2000:]
    assert marked(processes.home) == []
    processes.start("ray-head")
    processes.wait("ray-head")
    deadline = time.monotonic() + 90
    while (answer := api.post("/predict", json={"features": {"feature1": 1.0, "feature2": "a"}})).status_code != 200:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.5)
    assert answer.json()["model_version"] == "1"
    assert processes.stop("ray-head") == 0 and marked(processes.home) == []


def test_the_servers_of_others_end_when_told(processes: Processes) -> None:
    assert {processes.stop(service) for service in ("mlflow", "prefect")} <= {0, 143, -15}


def test_one_model_file_answers_on_every_address_without_a_key_and_says_so(tmp_path: Path) -> None:
    """What `docker run -p 127.0.0.1:8000:8000 -e MODEL_PATH=…` does, with the image's own variables."""
    (port,) = free_ports(1)
    variables = {**os.environ, **image_variables(), **PATIENT, "FORGE_HOME": str(tmp_path), "FORGE_API_PORT": str(port)}
    command = [sys.executable, "-m", "infra.docker.entrypoint", "serve"]
    model = tmp_path / "model.skops"
    missing = subprocess.run(
        command, env={**variables, "MODEL_PATH": str(model)}, capture_output=True, text=True, timeout=120, check=False
    )
    assert missing.returncode == 1 and f"Failed to load model from path: {model}" in missing.stderr
    made = [sys.executable, "-m", "infra.kubernetes.model_file", str(model)]
    subprocess.run(made, env=variables, check=True, timeout=120, capture_output=True)
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, env={**variables, "MODEL_PATH": str(model)}, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 180
        while "answers at" not in (said := (tmp_path / "log").read_text()):
            assert server.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.3)
        assert "whoever reaches 0.0.0.0" in said and "FORGE_API_KEY" in said
        body = {"features": {"feature1": 1.0, "feature2": "category1"}}
        answer = httpx.post(f"http://127.0.0.1:{port}/predict", json=body, trust_env=False, timeout=30)
        assert answer.status_code == 200, answer.text
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        server.kill()


def test_training_starts_by_its_entry_point_with_a_ray_of_its_own(tmp_path: Path) -> None:
    generate_sample_data(2000, random_state=1)[["feature1", "feature2", "target"]].to_parquet(tmp_path / "rows.parquet")
    owned = ("FORGE_", "MLFLOW_", "RAY_", "AWS_")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(owned)}
    command = [sys.executable, "-m", "infra.docker.entrypoint", "train", "--master", "--num-workers=1", "--epochs=1"]
    done = subprocess.run(
        [*command, f"--dataset={tmp_path / 'rows.parquet'}"],
        env={**variables, "FORGE_HOME": str(tmp_path / "home")},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "epoch 1/1" in done.stdout and "model: " in done.stdout
