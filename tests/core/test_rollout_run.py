"""A rollout looked at and carried on, over a real registry, real versions and logs; Serve's REST API is in memory."""

import shutil
from contextlib import chdir
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from forge_core.deployment.mirror import mirror_version
from forge_core.deployment.routing import nominate, promote, read_state, roll_back
from forge_core.errors import Conflict, ModelError, ModelNotFound
from forge_core.experiments.rollout import begin, hold
from forge_core.experiments.rollout_records import Rollout, RolloutRecords
from forge_core.experiments.rollout_run import go_on, roll_back_now, start_rollout
from forge_core.ledger import Ledger
from forge_core.models.version import VersionFolder
from forge_core.policy import DataPolicy, ModelPolicy, RolloutPolicy
from forge_core.storage import Storage
from forge_core.tracking.mlflow_extensions import ExperimentTracker
from forge_core.tracking.registry import Registry, write_mlmodel
from tests.core.sample_version import sample_version
from tests.core.test_deployment import RecordedServe
from tests.core.test_rollout_evidence import shadow_rows, split_rows

pytestmark = pytest.mark.slow

WHO: dict[str, Any] = {"actor": "ana", "reason": "because"}
POLICY = RolloutPolicy(steps=(0.25, 1.0), min_minutes=0)
# After the made rows of the logs, which begin at noon of this day.
NOW = datetime(2026, 5, 1, 13, tzinfo=UTC)


class House(NamedTuple):
    storage: Storage
    ledger: Ledger
    registry: Registry
    serve: RecordedServe


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VersionFolder]:
    """An MLflow database with three versions of m, the third refused, and the folder that each of them holds."""
    home = tmp_path_factory.mktemp("made")
    _, folder = sample_version(home)
    write_mlmodel(folder.path, folder.pipeline, folder.input_example)
    uri = f"sqlite:///{home / 'mlflow.db'}"
    # Where MLflow puts the files of a database without a server; and what it sets goes with the context.
    with chdir(home), pytest.MonkeyPatch.context() as surroundings:
        surroundings.setenv("MLFLOW_EXPERIMENT_ID", "0")
        surroundings.delenv("MLFLOW_EXPERIMENT_ID")
        surroundings.setenv("MLFLOW_TRACKING_URI", uri)
        for number in ("1", "2", "3"):
            with ExperimentTracker("m") as tracker:
                assert tracker.run_id
                gate: Any = "refused" if number == "3" else "passed"
                Registry(uri).register("m", folder.path, run_id=tracker.run_id, candidate=f"c{number}", gate=gate)
    return home / "mlflow.db", folder


@pytest.fixture
def house(tmp_path: Path, made: tuple[Path, VersionFolder], monkeypatch: pytest.MonkeyPatch) -> House:
    """A model m with champion 1 and candidate 2, and a refused version 3."""
    database, folder = made
    shutil.copy(database, tmp_path / "mlflow.db")
    registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")  # where MLflow looks for files
    storage, ledger = Storage(str(tmp_path / "storage")), Ledger("sqlite://")
    for number in ("1", "2", "3"):
        mirror_version(storage, "m", number, folder)
    nominate(ledger, "m", "1", **WHO)
    promote(ledger, "m", "1", **WHO)
    nominate(ledger, "m", "2", **WHO)
    return House(storage, ledger, registry, RecordedServe())


def start(house: House, policy: RolloutPolicy = POLICY) -> Rollout:
    return begin(house.ledger, "m", "2", policy=policy, now=NOW - timedelta(hours=1), **WHO)


def again(house: House, now: datetime = NOW) -> Rollout:
    found, _ = go_on(*house, "m", policy=POLICY, actor="rollout flow", now=now)
    return found


def row(house: House) -> dict[str, Any]:
    return house.serve.table["m"]


def test_a_good_version_goes_from_shadow_to_champion_and_the_registry_names_it(house: House) -> None:
    start(house)
    assert again(house).told_step == "shadow"
    shadow_rows(house.storage, "equal")
    assert again(house, NOW - timedelta(hours=1)).told_step == "25 %"
    assert row(house)["split"]["segments"] == [[0.75, "champion"], [1.0, "canary"]]
    split_rows(house.storage, "equal", 0.25)
    assert again(house, NOW - timedelta(hours=1)).told_step == "100 %"
    split_rows(house.storage, "equal", 1.0, seed=9)
    found = again(house)
    assert (found.outcome, row(house)) == ("promoted", {"champion": "2", "warm": "1"})
    assert house.registry.aliases("m")["champion"] == "2" and house.registry.aliases("m")["previous"] == "1"
    assert roll_back_now(house.ledger, house.registry, house.serve, "m", **WHO) == "1"
    assert row(house) == {"champion": "1"} and house.registry.aliases("m")["champion"] == "1"


def test_a_wrong_version_is_stopped_in_shadow_and_the_reason_stands_in_the_ledger(house: House) -> None:
    start(house)
    shadow_rows(house.storage, "wrong")
    found = again(house)
    assert found.outcome == "rolled back" and "answers unlike the champion's" in found.reason
    assert row(house) == {"champion": "1"} and house.serve.puts[-1][0] == ["variant-m-v1"]
    (event,) = house.ledger.events("m", "rollout_finished")
    guards = {g["name"]: g["state"] for g in event["details"]["look"]["guards"]}
    assert guards["answers"] == "harm" and event["actor"] == "rollout flow"


def test_a_held_rollout_is_looked_at_and_harm_sends_it_back_all_the_same(house: House) -> None:
    start(house)
    hold(house.ledger, "m", **WHO)
    shadow_rows(house.storage, "equal", n=1000)
    held = again(house)
    assert (held.status, held.told_step, held.looks[-1]["action"]) == ("held", "shadow", "promote")
    shadow_rows(Storage(house.storage.url), "failing", n=4000, seed=3)
    assert again(house).outcome in ("", "rolled back")


def test_a_version_that_is_deleted_while_it_runs_goes_back(house: House) -> None:
    start(house)
    house.registry.client.delete_model_version("m", "2")
    found = again(house)
    assert found.outcome == "rolled back" and found.reason.startswith("the version is gone: no version or alias '2'")
    assert row(house) == {"champion": "1"}


def test_a_champion_that_somebody_changed_ends_the_rollout(house: House) -> None:
    start(house)
    promote(house.ledger, "m", "2", actor="bob", reason="a fire")
    found = again(house)
    assert (found.outcome, found.reason) == ("overtaken", "the champion is 2 by now, not 1 (bob: a fire)")
    assert row(house) == {"champion": "2"}
    with pytest.raises(ModelNotFound, match="was overtaken"):
        again(house)
    nominate(house.ledger, "m", "1", **WHO)
    begin(house.ledger, "m", "1", policy=POLICY, **WHO)
    roll_back(house.ledger, "m", actor="bob", reason="a fire")
    ended = again(house)
    assert ended.outcome == "overtaken" and row(house) == {"champion": "1"}


def test_a_rollback_while_a_rollout_runs_leaves_the_champion_of_now(house: House) -> None:
    start(house)
    assert roll_back_now(house.ledger, house.registry, house.serve, "m", **WHO) == "1"
    assert row(house) == {"champion": "1"}
    assert RolloutRecords(house.ledger).newest("m").outcome == "rolled back"  # type: ignore[union-attr]


def test_what_may_not_begin_changes_nothing(house: House) -> None:
    policy = ModelPolicy(data=DataPolicy(source="sample:", target="target"), rollout=POLICY)
    before = read_state(house.ledger)
    with pytest.raises(ModelError, match="version 3 of 'm' was refused"):
        start_rollout(*house, "m", "3", policy=policy, **WHO)
    with pytest.raises(ModelNotFound, match="no version or alias '9'"):
        start_rollout(*house, "m", "9", policy=policy, **WHO)
    with pytest.raises(Conflict, match="version 1 of 'm' is champion already"):
        start_rollout(*house, "m", "1", policy=policy, **WHO)
    assert read_state(house.ledger) == before
    start(house)
    with pytest.raises(Conflict, match="rollout:2 of 'm' is under way"):
        start_rollout(*house, "m", "1", policy=policy, **WHO)
    assert start_rollout(*house, "m", "2", policy=policy, **WHO).id == "rollout:2"
