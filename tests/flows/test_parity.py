"""A version goes live only when it answers over HTTP as its own pipeline does: on the real stack, without a flow.

The model has a name of its own, so that the story's model and its versions are left as they are.
"""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from forge_core.data.loaders import get_data_loader
from forge_core.data.sample import generate_sample_data, sample_contract
from forge_core.data.versions import save_dataset
from forge_core.deployment.go_back import go_back
from forge_core.deployment.go_live import go_live
from forge_core.deployment.routing import approve, nominate, read_state, withdraw
from forge_core.deployment.serve_client import get_serve_client
from forge_core.deployment.stages import live_at
from forge_core.errors import ApprovalNeeded, ModelError
from forge_core.ledger import Ledger
from forge_core.models.compiled import compile_pipeline
from forge_core.models.model_trainer import get_model_trainer
from forge_core.monitoring.prediction_log import PredictionLog
from forge_core.monitoring.windows import WindowStore
from forge_core.policy import load_policy
from forge_core.settings import Settings
from forge_core.storage import Storage
from forge_core.tracking.mlflow_extensions import ExperimentTracker
from forge_core.tracking.registry import Registry, write_mlmodel
from forge_core.training import candidate
from forge_core.training.candidate import Recipe
from forge_core.training.datasets import SplitRequest

pytestmark = [pytest.mark.long, pytest.mark.stack, pytest.mark.timeout(300)]

MODEL = "replayed"
ROW = {"features": {"feature1": 1.0, "feature2": "category1"}}


class House:
    """The rooms of the running stack, and the model's versions."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.storage, self.ledger = Storage(settings.storage), Ledger(settings.ledger)
        self.registry, self.serve = Registry(settings.mlflow_url), get_serve_client(settings)
        self.policy = load_policy(settings.policy_file, "sample")
        self.api = httpx.Client(base_url=settings.api_url, trust_env=False, timeout=30.0)

    def register(self, folder: Path, candidate_id: str) -> str:
        with ExperimentTracker(MODEL, tracking_uri=self.settings.mlflow_url) as tracker:
            assert tracker.run_id
            made = self.registry.register(MODEL, folder, run_id=tracker.run_id, candidate=candidate_id, gate="passed")
        return made.version

    def go_live(self, version: str) -> dict[str, Any]:
        rooms = (self.storage, self.ledger, self.registry, self.serve)
        return go_live(*rooms, MODEL, version, policy=self.policy, actor="test", reason="a test")

    @property
    def entry(self) -> dict[str, Any]:
        return read_state(self.ledger)[1]["models"].get(MODEL, {})

    def predict(self, version: str | None = None) -> httpx.Response:
        headers = {"X-Forge-Version": version} if version else {}
        return self.api.post(f"/models/{MODEL}/predict", json=ROW, headers=headers)


@pytest.fixture(scope="module")
def house(stack: Settings) -> Iterator[House]:
    house = House(stack)
    yield house
    while champion := house.entry.get("champion"):
        withdraw(house.ledger, MODEL, champion, actor="test", reason="the test is over")
    house.serve.reconcile(house.ledger)


@pytest.fixture(scope="module")
def honest(house: House, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version's folder with all its parts, from rows that are kept as a dataset version."""
    storage, folder = house.storage, tmp_path_factory.mktemp("versions") / "honest"
    rows = get_data_loader().preprocess_data(generate_sample_data(4000, random_state=3))
    dataset = save_dataset(storage, rows, source="sample:", contract=sample_contract())
    split = SplitRequest(storage.url, dataset.id, "target", "event_time", 0.15, 0.15, 0)
    recipe = Recipe(split, "gradient_boosting", "classification", (("max_iter", 20), ("random_state", 0)))
    candidate.fit(storage, recipe)
    candidate.evaluate(storage, recipe, policy=house.policy.gate, champion=None, champion_name="the training mean")
    candidate.compile_candidate(storage, recipe, tolerance=1e-4)
    parts = candidate.assemble(storage, recipe, folder, lineage={"reason": "test"})
    write_mlmodel(parts.path, parts.pipeline, parts.input_example)
    return folder


def with_another_models_graph(folder: Path, to: Path) -> Path:
    """Copy a version whose compiled form is another model's, with an index of hashes that says all is well."""
    shutil.copytree(folder, to)
    rows = generate_sample_data(4000, random_state=4)
    trainer = get_model_trainer("gradient_boosting", {"max_iter": 3, "random_state": 0})
    onnx, _ = compile_pipeline(trainer.train(rows[["feature1", "feature2"]], 1 - rows["target"]).pipeline)
    assert onnx is not None
    (to / "model.onnx").write_bytes(onnx)
    hashes = json.loads((to / "parts.json").read_text())
    (to / "parts.json").write_text(json.dumps({**hashes, "model.onnx": hashlib.sha256(onnx).hexdigest()}))
    return to


class Traffic:
    """A client that asks the live version all the time and keeps what it heard."""

    def __init__(self, house: House) -> None:
        self.house, self.heard, self._stop = house, set[tuple[int, str]](), threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._stop.wait(0.02):
            reply = self.house.predict()
            self.heard.add((reply.status_code, reply.json().get("model_version", reply.text)))


@pytest.fixture(scope="module")
def first(house: House, honest: Path) -> dict[str, Any]:
    return house.go_live(house.register(honest, "candidate-honest"))


def test_the_first_version_goes_live_after_its_rows_were_replayed(house: House, first: dict[str, Any]) -> None:
    assert first["table"][MODEL] == {"champion": "1"} and house.entry == {"champion": "1", "previous": None}
    (promoted,) = house.ledger.events(MODEL, "promoted")
    parity = promoted["details"]["parity"]
    assert parity["passed"] and parity["n_wrong"] == parity["n_out_of_order"] == parity["n_refused"] == 0
    assert parity["n_rows"] - parity["n_planted"] == 200 and parity["n_planted"] >= 1 and parity["n_single"] == 8
    assert parity["largest_difference"] < 1e-5 and parity["label_agreement"] == 1.0
    assert "held-out rows of ds-" in parity["origin"]
    reply = house.predict()
    assert reply.status_code == 200 and reply.json()["model_version"] == "1"


def test_replayed_rows_are_neither_logged_nor_counted_in_windows(house: House, first: dict[str, Any]) -> None:
    assert house.predict().status_code == house.predict("1").status_code == 200
    house.api.get("/monitoring", params={"flush": True})
    logged = PredictionLog(house.storage, MODEL).read()
    assert len(logged) >= 1 and not logged["request_id"].str.startswith("replay-").any()
    windows = WindowStore(house.storage, MODEL).windows("1")
    assert sum(window.n_rows for window in windows) == len(logged) < 200


def test_a_version_that_answers_differently_is_refused_with_rows_and_figures_and_the_champion_serves_on(
    house: House, first: dict[str, Any], honest: Path, tmp_path: Path
) -> None:
    wrong = house.register(with_another_models_graph(honest, tmp_path / "wrong"), "candidate-wrong")
    with Traffic(house) as traffic, pytest.raises(ModelError) as refusal:
        house.go_live(wrong)
    assert traffic.heard == {(200, "1")}
    told = str(refusal.value)
    assert f"version {wrong} of 'replayed' does not go live" in told
    assert "answers differ" in told and "feature1=" in told and "served" in told and "offline" in told
    parity = refusal.value.context["parity"]
    assert not parity["passed"] and parity["n_wrong"] > 100 and parity["largest_difference"] > 0.1
    assert set(parity["worst"][0]["features"]) == {"feature1", "feature2"} and len(parity["worst"]) == 5
    (event,) = house.ledger.events(MODEL, "dismissed")
    assert event["version"] == wrong and event["details"]["parity"]["worst"] == parity["worst"]
    assert house.entry == {"champion": "1", "previous": None}
    assert house.registry.resolve(MODEL, "champion").version == "1"
    gone = house.predict(wrong)
    assert gone.status_code == 404 and gone.headers["content-type"] == "application/problem+json"
    assert gone.json()["held"] == ["1"] and "held: 1 (champion)" in gone.json()["detail"]


def test_the_next_deployment_replaces_a_candidate_that_a_killed_one_left_loaded(
    house: House, first: dict[str, Any], honest: Path, tmp_path: Path
) -> None:
    nominate(house.ledger, MODEL, "2", actor="test", reason="a test")
    house.serve.reconcile(house.ledger, trying=MODEL)  # here the deployment is killed
    held = {version: house.predict(version).json()["model_version"] for version in ("1", "2")}
    assert held == {"1": "1", "2": "2"} and house.api.get("/health").json()["candidates"][MODEL] == "2"
    assert house.api.get(f"/models/{MODEL}", headers={"X-Forge-Version": "2"}).json()["version"] == "2"
    shutil.copytree(honest, tmp_path / "again")
    again = house.register(tmp_path / "again", "candidate-again")
    with Traffic(house) as traffic:
        live = house.go_live(again)
    assert {status for status, _ in traffic.heard} == {200} and {v for _, v in traffic.heard} <= {"1", again}
    assert live["parity"]["passed"] and live["table"][MODEL] == {"champion": again}
    assert house.entry == {"champion": again, "previous": "1"}
    assert house.predict().json()["model_version"] == again
    assert house.go_live(again)["parity"] is None  # champion already: the repeated step changes nothing


def test_a_version_waits_for_a_person_where_the_policy_asks_and_one_call_goes_back(
    house: House, first: dict[str, Any], honest: Path, tmp_path: Path
) -> None:
    shutil.copytree(honest, tmp_path / "third")
    third = house.register(tmp_path / "third", "candidate-third")
    before = house.entry["champion"]
    careful = house.policy.model_copy(update={"gate": house.policy.gate.model_copy(update={"approval": True})})
    rooms = (house.storage, house.ledger, house.registry, house.serve)
    who = {"actor": "ana", "reason": "read the slices"}
    with pytest.raises(ApprovalNeeded, match=f"version {third} of 'replayed' .* -p version={third} -p approved_by="):
        go_live(*rooms, MODEL, third, policy=careful, **who)
    assert house.entry["champion"] == before
    approve(house.ledger, MODEL, third, **who)
    assert go_live(*rooms, MODEL, third, policy=careful, **who)["version"] == third
    assert house.registry.aliases(MODEL)["champion"] == third and house.registry.aliases(MODEL)["previous"] == before
    back = {"actor": "ana", "reason": "complaints", "from_version": third}
    with Traffic(house) as traffic:
        assert go_back(house.ledger, house.registry, house.serve, MODEL, **back) == before
        assert go_back(house.ledger, house.registry, house.serve, MODEL, **back) == before
    assert {status for status, _ in traffic.heard} == {200}
    assert house.predict().json()["model_version"] == before
    assert house.registry.aliases(MODEL)["champion"] == before
    assert house.registry.resolve(MODEL, third).tags["forge.stage"] == "archived"
    assert live_at(house.ledger.events(MODEL), datetime.now(UTC)) == before
    steps = [e["kind"] for e in house.ledger.events(MODEL) if e["version"] == third]
    assert steps == ["approved", "nominated", "promoted"]
