"""The desired serving state, the order in which Serve is brought to it, the rows of a replay, and their comparison."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pytest
import yaml
from pydantic import ValidationError

from forge_core.data.contracts import Contract
from forge_core.deployment.offline_path import Offline
from forge_core.deployment.replay_rows import NEVER_SEEN, choose_rows, plant_faults, to_records
from forge_core.deployment.routing import dismiss, nominate, promote, read_state, roll_back, withdraw
from forge_core.deployment.serve_client import ServeClient
from forge_core.deployment.serve_config import ServeConfig
from forge_core.deployment.served_path import Answer
from forge_core.deployment.stages import live_at
from forge_core.errors import Conflict, ModelError, ModelNotFound
from forge_core.ledger import Ledger
from forge_core.models.version import VersionFolder
from forge_core.policy import AutoscalingPolicy, DataPolicy, ServingPolicy
from forge_core.storage import Storage
from tests.core.sample_version import sample_version

pytestmark = pytest.mark.slow

WHO: dict[str, Any] = {"actor": "test", "reason": "because"}
DATA = DataPolicy(source="sample:", target="target", time_column="event_time")


@pytest.fixture
def ledger() -> Ledger:
    return Ledger("sqlite://")


def entry(ledger: Ledger, model: str = "m") -> dict[str, Any] | None:
    return read_state(ledger)[1]["models"].get(model)


def bring_live(ledger: Ledger, model: str, version: str) -> None:
    nominate(ledger, model, version, **WHO)
    promote(ledger, model, version, **WHO)


def test_a_candidate_becomes_champion_and_the_champion_previous(ledger: Ledger) -> None:
    bring_live(ledger, "m", "1")
    nominate(ledger, "m", "2", **WHO)
    assert entry(ledger) == {"champion": "1", "previous": None, "candidate": "2"}
    promote(ledger, "m", "2", details={"parity": {"n_rows": 3}}, **WHO)
    assert entry(ledger) == {"champion": "2", "previous": "1"}
    assert ledger.events("m", "promoted")[-1]["details"] == {"parity": {"n_rows": 3}}


def test_the_first_version_of_a_model_is_a_candidate_without_a_champion(ledger: Ledger) -> None:
    nominate(ledger, "m", "1", **WHO)
    assert entry(ledger) == {"candidate": "1"}
    dismiss(ledger, "m", "1", **WHO)
    assert entry(ledger) is None


def test_a_dismissed_candidate_leaves_the_champion_and_its_reason(ledger: Ledger) -> None:
    bring_live(ledger, "m", "1")
    nominate(ledger, "m", "2", **WHO)
    dismiss(ledger, "m", "2", details={"worst": [1]}, **WHO)
    dismiss(ledger, "m", "2", **WHO)  # again changes nothing
    assert entry(ledger) == {"champion": "1", "previous": None}
    (dismissed,) = ledger.events("m", "dismissed")
    assert dismissed["version"] == "2" and dismissed["details"] == {"worst": [1]}
    assert live_at(ledger.events("m"), datetime.now(UTC)) == "1"


def test_a_repeated_nomination_changes_nothing_and_another_replaces_what_a_killed_deployment_left(
    ledger: Ledger,
) -> None:
    bring_live(ledger, "m", "1")
    first = nominate(ledger, "m", "2", **WHO)
    assert nominate(ledger, "m", "2", **WHO) == first and nominate(ledger, "m", "1", **WHO) == first
    nominate(ledger, "m", "3", **WHO)
    assert entry(ledger) == {"champion": "1", "previous": None, "candidate": "3"}
    with pytest.raises(Conflict, match="expected version 2 of 'm' to be the candidate, found 3"):
        promote(ledger, "m", "2", **WHO)


def test_rolling_back_and_withdrawing_leave_a_candidate_alone(ledger: Ledger) -> None:
    for version in ("1", "2"):
        bring_live(ledger, "m", version)
    nominate(ledger, "m", "3", **WHO)
    assert roll_back(ledger, "m", from_version="2", **WHO) == "1"
    assert roll_back(ledger, "m", from_version="2", **WHO) == "1"  # a repeated call goes back once
    assert entry(ledger) == {"champion": "1", "previous": None, "candidate": "3"}
    with pytest.raises(ModelNotFound, match="no champion before 1"):
        roll_back(ledger, "m", **WHO)
    withdraw(ledger, "m", "1", **WHO)
    assert entry(ledger) == {"candidate": "3"}


class RecordedServe(ServeClient):
    """Serve's REST API in memory: an application runs as soon as it is put, but for those that fail."""

    def __init__(self, failing: tuple[str, ...] = ()) -> None:
        config = ServeConfig(Path("deployments/serve.yaml"), "127.0.0.1", 1, arguments={}, watch={}, serving={})
        super().__init__("http://none", config)
        self.failing, self.puts, self.told = failing, list[tuple[list[str], dict[str, Any]]](), dict[str, Any]()

    def _request(self, method: str, **options: Any) -> Any:
        import httpx

        if method == "PUT":
            self.told = options["json"]
            variants = [a["name"] for a in self.told["applications"] if a["name"].startswith("variant-")]
            self.puts.append((variants, self.table))
        apps = {a["name"]: self._status(a) for a in self.told.get("applications", [])}
        return httpx.Response(200, json={"applications": apps})

    def _status(self, app: dict[str, Any]) -> dict[str, Any]:
        status = "DEPLOY_FAILED" if app["name"] in self.failing else "RUNNING"
        return {"status": status, "message": "no such file", "deployments": {}, "deployed_app_config": app}

    @property
    def table(self) -> dict[str, Any]:
        router = next(a for a in self.told["applications"] if a["name"] == "router")
        return router["deployments"][0]["user_config"]["models"]


def test_a_candidate_is_loaded_then_held_and_its_promotion_loads_nothing_again(ledger: Ledger) -> None:
    serve = RecordedServe()
    bring_live(ledger, "m", "1")
    serve.reconcile(ledger)
    nominate(ledger, "m", "2", **WHO)
    serve.puts.clear()
    serve.reconcile(ledger, trying="m")
    both = ["variant-m-v1", "variant-m-v2"]
    assert serve.puts == [
        (both, {"m": {"champion": "1"}}),
        (both, {"m": {"champion": "1", "candidate": "2"}}),
    ]
    promote(ledger, "m", "2", **WHO)
    serve.puts.clear()
    serve.reconcile(ledger)
    assert serve.puts == [(both, {"m": {"champion": "2"}}), (["variant-m-v2"], {"m": {"champion": "2"}})]


def test_a_first_candidate_gives_the_router_no_champion(ledger: Ledger) -> None:
    serve = RecordedServe()
    nominate(ledger, "m", "1", **WHO)
    serve.reconcile(ledger, trying="m")
    assert serve.table == {"m": {"candidate": "1"}}
    dismiss(ledger, "m", "1", **WHO)
    serve.reconcile(ledger)
    assert serve.puts[-1] == ([], {})


def test_a_candidate_that_does_not_start_is_removed_after_its_dismissal(ledger: Ledger) -> None:
    serve = RecordedServe(failing=("variant-m-v2",))
    bring_live(ledger, "m", "1")
    serve.reconcile(ledger)
    nominate(ledger, "m", "2", **WHO)
    with pytest.raises(ModelError, match="variant-m-v2 did not start"):
        serve.reconcile(ledger, trying="m")
    assert serve.table == {"m": {"champion": "1"}}
    dismiss(ledger, "m", "2", **WHO)
    serve.reconcile(ledger)
    assert serve.puts[-1] == (["variant-m-v1"], {"m": {"champion": "1"}})


def test_after_a_restart_a_candidate_that_was_left_behind_is_not_loaded(ledger: Ledger) -> None:
    bring_live(ledger, "m", "1")
    nominate(ledger, "m", "2", **WHO)
    serve = RecordedServe(failing=("variant-m-v2",))
    assert serve.reconcile(ledger) == {"m": {"champion": "1"}}
    bring_live(ledger, "n", "7")
    nominate(ledger, "n", "8", **WHO)
    table = {"m": {"champion": "1"}, "n": {"champion": "7", "candidate": "8"}}
    assert serve.reconcile(ledger, trying="n") == table
    # While a deployment tries it, every other reconcile leaves it where it is.
    assert serve.reconcile(ledger) == table


WATCH = {"window_hours": 6.0, "redacted": ["age"]}


def test_changed_scaling_and_windows_reach_a_running_serve_and_nothing_else_does(ledger: Ledger) -> None:
    serve = RecordedServe()
    for model in ("m", "n"):
        bring_live(ledger, model, "1")
    serve.reconcile(ledger)
    serve.puts.clear()
    serve.reconcile(ledger)
    assert not serve.puts
    before = {app["name"]: app for app in serve.told["applications"]}
    serve.config = replace(serve.config, watch={"m": WATCH}, serving={"n": ServingPolicy(replicas=2)})
    told: list[str] = []
    serve.reconcile(ledger, progress=told.append)
    after = {app["name"]: app for app in serve.told["applications"]}
    assert len(serve.puts) == 1 and told[0] == "changing router, variant-n-v1"
    assert {name for name in after if after[name] != before[name]} == {"router", "variant-n-v1"}
    assert after["router"]["deployments"][0]["user_config"]["watch"] == {"m": WATCH}
    assert after["variant-n-v1"]["deployments"][0]["num_replicas"] == 2
    serve.reconcile(ledger)
    assert len(serve.puts) == 1
    serve.config = replace(serve.config, serving={"n": ServingPolicy(replicas=3)})
    serve.told["applications"].append({**after["variant-n-v1"], "name": "variant-n-v0"})
    told.clear()
    serve.reconcile(ledger, progress=told.append)
    assert told[:2] == ["removing variant-n-v0", "changing variant-n-v1"] and len(serve.puts) == 2


def test_a_policy_scales_its_models_versions_over_the_pattern() -> None:
    scaled = AutoscalingPolicy(max_replicas=4)
    serving = {"m": ServingPolicy(autoscaling=scaled, num_cpus=0.5, max_ongoing_requests=8), "n": ServingPolicy()}
    config = replace(RecordedServe().config, serving=serving)
    apps = {a["name"]: a["deployments"][0] for a in config.compose([("m", "1"), ("n", "2")], {})["applications"]}
    assert "num_replicas" not in apps["variant-m-v1"] and apps["variant-n-v2"]["num_replicas"] == 1
    assert apps["variant-m-v1"]["autoscaling_config"]["max_replicas"] == 4
    assert apps["variant-m-v1"]["max_ongoing_requests"] == 8
    assert apps["variant-m-v1"]["ray_actor_options"]["num_cpus"] == 0.5
    assert apps["variant-n-v2"]["ray_actor_options"]["num_cpus"] == 0


@pytest.mark.parametrize("scaled", [None, {"autoscaling_config": {"max_replicas": 3}}, {"num_replicas": "auto"}])
def test_serve_counts_the_requests_of_a_router_only_where_their_number_scales_it(
    scaled: dict[str, Any] | None, tmp_path: Path
) -> None:
    config = RecordedServe().config
    template = yaml.safe_load(config.template_file.read_text())
    deployment = next(app for app in template["applications"] if app["name"] == "router")["deployments"][0]
    if scaled:
        del deployment["num_replicas"]
        deployment.update(scaled)
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(template))
    apps = replace(config, template_file=tmp_path / "serve.yaml").compose([], {})["applications"]
    assert next(app for app in apps if app["name"] == "router")["args"]["counted_by_serve"] is (scaled is not None)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"replicas": 2, "autoscaling": {"max_replicas": 2}}, "not both"),
        ({"replicas": 0}, "greater than or equal to 1"),
        ({"autoscaling": {"min_replicas": 3, "max_replicas": 2}}, "max_replicas 2 is below min_replicas 3"),
        ({"autoscaling": {"max_replicas": 2, "target_ongoing_requests": 4}, "max_ongoing_requests": 3}, "never scales"),
        ({"replica": 2}, "Extra inputs"),
    ],
)
def test_scaling_that_cannot_be_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        ServingPolicy.model_validate(fields)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, VersionFolder]:
    """A small version of the sample model with all its parts."""
    return sample_version(tmp_path_factory.mktemp("version"))


def test_held_out_rows_are_replayed_spread_over_their_part(version: tuple[Storage, VersionFolder]) -> None:
    storage, folder = version
    rows = choose_rows(storage, folder, data=DATA, n_rows=50)
    test = storage.read_frame(f"datasets/{folder.lineage['dataset']}/rows.parquet").sort_values("event_time").tail(300)
    assert len(rows.held_out) == 50 and "50 of " in rows.origin and folder.lineage["dataset"] in rows.origin
    assert set(rows.held_out["feature1"].dropna()) <= set(test["feature1"].dropna())
    assert list(rows.held_out.columns) == folder.contract.feature_columns
    for record in to_records(rows.held_out, folder.contract) + to_records(rows.planted, folder.contract):
        assert folder.contract.check_row(json.loads(json.dumps(record)))


def test_without_the_candidates_recipe_the_policy_tells_how_the_rows_were_split(
    version: tuple[Storage, VersionFolder],
) -> None:
    storage, folder = version
    kept = choose_rows(storage, folder, data=DATA, n_rows=50)
    recipe = f"candidates/{folder.lineage['candidate']}/recipe.json"
    text = storage.read_bytes(recipe)
    storage.fs.rm(storage.path(recipe))
    try:
        told = choose_rows(storage, folder, data=DATA, n_rows=50)
    finally:
        storage.write_bytes(recipe, text)
    pd.testing.assert_frame_equal(told.held_out, kept.held_out)


def test_without_its_dataset_rows_are_made_from_the_versions_own_parts_and_it_is_said(
    version: tuple[Storage, VersionFolder], tmp_path: Path
) -> None:
    _, folder = version
    rows = choose_rows(Storage(str(tmp_path)), folder, data=DATA, n_rows=50)
    assert "made from the version's example and reference" in rows.origin and "no dataset version" in rows.origin
    assert len(rows.held_out) > 40
    first = to_records(rows.held_out, folder.contract)[0]
    assert first == folder.contract.check_row(folder.input_example)
    assert Offline.of(folder, rows).labels


def test_every_nullable_feature_is_missing_once_and_open_categories_are_unknown_once() -> None:
    schema = pa.DataFrameSchema(
        {
            "count": pa.Column("int64"),
            "warm": pa.Column("float64", nullable=True),
            "town": pa.Column("str", nullable=True),
            "colour": pa.Column("str", pa.Check.isin(["red", "blue"])),
            "when": pa.Column("datetime64[us, UTC]", nullable=True),
            "flag": pa.Column("boolean", nullable=True),
        }
    )
    contract = Contract(schema)
    rows = pd.DataFrame(
        {
            "count": [1, 2],
            "warm": [0.5, np.nan],
            "town": ["Oslo", "Bergen"],
            "colour": ["red", "blue"],
            "when": pd.to_datetime(["2024-01-01T10:00:00Z", "2024-01-02T11:30:00Z"]).as_unit("us"),
            "flag": pd.array([True, False], dtype="boolean"),
        }
    )
    planted = to_records(plant_faults(rows, contract), contract)
    gaps = [{name for name, value in record.items() if value is None} for record in planted]
    assert {"town"} in gaps and {"when"} in gaps and {"warm", "town", "when", "flag"} in gaps
    assert [r["town"] for r in planted].count(NEVER_SEEN) == 1
    assert {r["colour"] for r in planted} <= {"red", "blue"}
    sent = json.loads(json.dumps(to_records(rows, contract)))
    assert sent[0] == {
        "count": 1, "warm": 0.5, "town": "Oslo", "colour": "red", "when": "2024-01-01T10:00:00+00:00", "flag": True,
    }  # fmt: skip
    assert sent[1]["warm"] is None
    for record in [*planted, *sent]:
        contract.check_row(record)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (Answer("a", 1, 0.8), True),
        (Answer("a", 1, 0.80005), True),
        (Answer("a", 1, 0.8002), False),
        (Answer("a", 0, 0.2), False),
        (Answer("a", 0, 0.8), False),
        (Answer("a", 1, None), False),
        (Answer("a", 1, float("nan")), False),
        (Answer("a", 7, 0.8), False),
        (Answer("a", refusal="feature1: expected a number"), False),
    ],
)
def test_an_answer_is_right_only_with_the_pipelines_label_and_probability(answer: Answer, right: bool) -> None:
    offline = Offline([1], [0, 1], np.array([[0.2, 0.8]]))
    assert offline.agrees(0, answer, tolerance=1e-4) is right


def test_numbers_and_many_classes_are_compared_too() -> None:
    numbers = Offline([250_000.0])
    assert numbers.agrees(0, Answer("a", 250_001.0), 1e-4) and not numbers.agrees(0, Answer("a", 250_100.0), 1e-4)
    many = Offline(["b"], ["a", "b", "c"], np.array([[0.2, 0.5, 0.3]]))
    assert many.agrees(0, Answer("a", "b", 0.5), 1e-4) and not many.agrees(0, Answer("a", "c", 0.3), 1e-4)
