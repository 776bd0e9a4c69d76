"""Experiments from Python: the guide's calls, bad input, and the same experiment in every process."""

import json
import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sklearn.linear_model import LogisticRegression

from forge_core.errors import ConfigurationError, Conflict, ExperimentNotFound, ModelNotFound
from forge_core.experiments.ab_testing import ABTestManager
from forge_core.experiments.models import fingerprint
from forge_core.experiments.records import ExperimentRecords, Outcome
from forge_core.ledger import Ledger
from forge_core.monitoring.ab_testing import get_ab_test_manager
from forge_core.settings import get_settings
from tests.core.experiment_data import definition
from tests.servers import postgres_server

pytestmark = pytest.mark.slow

HALVES = {"model_v1": 0.5, "model_v2": 0.5}
NOW = datetime(2024, 3, 1, tzinfo=UTC)


class Model:
    """A model small enough to be hashed and told apart."""

    def __init__(self, answer: int) -> None:
        self.answer = answer

    def predict(self, rows: Any) -> list[int]:
        return [self.answer for _ in rows]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def manager(url: str) -> ABTestManager:
    return ABTestManager(Ledger(url))


def models() -> dict[str, Model]:
    return {"model_v1": Model(1), "model_v2": Model(2)}


def started(manager: ABTestManager, name: str = "comparison", **rule: Any) -> None:
    manager.create_experiment(name, models(), HALVES, "Comparing", auto_start=True, **rule)


def test_a_user_gets_one_variant_for_good_and_everybody_the_declared_shares(manager: ABTestManager) -> None:
    started(manager)
    first = {user: manager.get_variant(user) for user in range(400)}
    assert all(manager.get_variant(str(user)) == assigned for user, assigned in first.items())
    counts = Counter(variant for _, variant in first.values())
    assert 160 < counts["model_v1"] < 240 and sum(counts.values()) == 400
    assert manager.results("comparison").users == dict(sorted(counts.items()))
    assert manager.get_variant(user_id="user123") == ("comparison", "model_v1")


def test_the_variants_are_the_models_that_were_given(manager: ABTestManager) -> None:
    started(manager)
    found = manager.get_experiment("comparison").variants
    assert [found[name].predict([0]) for name in found] == [[1], [2]] and len(found) == 2
    with pytest.raises(ModelNotFound, match="no variant 'model_v3'; variants: model_v1, model_v2"):
        found["model_v3"]


def test_the_same_definition_again_is_no_error_and_another_one_says_what_differs(
    manager: ABTestManager, url: str
) -> None:
    started(manager)
    started(manager)
    again = ABTestManager(Ledger(url)).create_experiment("comparison", models(), HALVES, "other words")
    assert again.status == "running"
    with pytest.raises(Conflict, match=r"traffic_allocation.model_v1 is 0.5 and was given as 0.9"):
        manager.create_experiment("comparison", models(), {"model_v1": 0.9, "model_v2": 0.1})
    with pytest.raises(Conflict, match=r"variants.model_v2 is Model object \w+ and was given as Model object"):
        manager.create_experiment("comparison", {"model_v1": Model(1), "model_v2": Model(3)}, HALVES)
    assert manager.get_experiment("comparison").variants["model_v2"].predict([0]) == [2]


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ({"model_v1": 0.5, "model_v2": 0.6}, "add up to 1, found 1.1"),
        ({"model_v1": 0.5}, "no share for model_v2"),
        ({"model_v1": 0.5, "model_v3": 0.5}, "no variant 'model_v3'; variants: model_v1, model_v2"),
        ({"model_v1": "half", "model_v2": 0.5}, "valid number"),
    ],
)
def test_shares_that_do_not_fit_make_no_experiment(manager: ABTestManager, shares: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        manager.create_experiment("comparison", models(), shares)
    assert manager.experiments() == []


@pytest.mark.parametrize("user", [None, "", True, 1.5, "x" * 513])
def test_a_user_key_that_is_none_is_an_error(manager: ABTestManager, user: Any) -> None:
    started(manager)
    with pytest.raises(ConfigurationError, match="expected a user key"):
        manager.get_variant(user)
    assert manager.results("comparison").users == {"model_v1": 0, "model_v2": 0}


def test_with_several_experiments_the_id_is_asked_for(manager: ABTestManager) -> None:
    with pytest.raises(ExperimentNotFound, match="no experiment runs; known: none, create one"):
        manager.get_variant("ana")
    started(manager, "one")
    assert manager.get_variant("ana").experiment_id == "one"
    started(manager, "two")
    with pytest.raises(Conflict, match="several experiments run: one, two; give the experiment_id"):
        manager.get_variant("ana")
    assert manager.get_variant("ana", "two").experiment_id == "two"
    with pytest.raises(ExperimentNotFound, match="no experiment 'three'; known: one, two"):
        manager.get_variant("ana", "three")


def test_two_experiments_assign_independently(manager: ABTestManager) -> None:
    started(manager, "one")
    started(manager, "two")
    both = Counter((manager.get_variant(u, "one")[1], manager.get_variant(u, "two")[1]) for u in range(400))
    assert len(both) == 4 and min(both.values()) > 60


def test_each_conversion_hears_what_became_of_it(manager: ABTestManager) -> None:
    started(manager)
    _, met = manager.get_variant("ana")
    other = next(name for name in HALVES if name != met)
    told = [
        manager.record_conversion("comparison", other, "ana"),
        manager.record_conversion("comparison", met, "ana"),
        manager.record_conversion("comparison", met, "ana"),
        manager.record_conversion("comparison", met, "bob"),
        manager.record_metric("comparison", met, "typo", 1.0, "ana"),
    ]
    # The one for another variant has taken nobody's place.
    assert [one.reason for one in told] == ["other variant", "", "twice", "no exposure", "metric not declared"]
    assert manager.results("comparison").not_counted == {
        "other variant": 1, "twice": 1, "no exposure": 1, "metric not declared": 1,
    }  # fmt: skip


def test_conversions_without_a_user_are_never_more_than_users(manager: ABTestManager) -> None:
    started(manager)
    _, met = manager.get_variant("ana")
    assert manager.record_conversion("comparison", met).counted
    refused = manager.record_conversion("comparison", met)
    assert (refused.counted, refused.reason) == (False, "more than exposures")
    assert manager.results("comparison").not_counted == {"more than exposures": 1}
    assert manager.record_conversion("comparison", met, "ana").reason != "twice"


def test_an_unknown_variant_or_experiment_and_a_value_that_is_none_are_errors(manager: ABTestManager) -> None:
    started(manager)
    with pytest.raises(ConfigurationError, match="has no variant 'model_v9'; variants: model_v1, model_v2"):
        manager.record_conversion("comparison", "model_v9", "ana")
    with pytest.raises(ExperimentNotFound, match="known: comparison"):
        manager.record_conversion("none", "model_v1", "ana")
    for value in (float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="finite"):
            manager.record_metric("comparison", "model_v1", "ms", value, "ana")
    with pytest.raises(ConfigurationError, match=r"expected 1 \(or 0\)"):
        manager.record_metric("comparison", "model_v1", "conversion", 2.0, "ana")


def test_values_with_keys_of_their_own_add_up(manager: ABTestManager) -> None:
    started(manager, primary={"name": "spent", "kind": "mean"})
    _, met = manager.get_variant("ana")
    for key, value in (("order-1", 5.0), ("order-2", 7.0), ("order-2", 7.0)):
        manager.record_metric("comparison", met, "spent", value, "ana", key=key)
    found = {c.variant: c.mean for c in manager.results("comparison").variants}
    assert found.pop(met) == 12.0 and list(found.values()) == [None]


def test_states_go_one_way_and_callers_need_no_other_code(manager: ABTestManager) -> None:
    manager.create_experiment("comparison", models(), HALVES)
    with pytest.raises(Conflict, match="experiment 'comparison' was not started; start it"):
        manager.get_variant("ana", "comparison")
    manager.start("comparison")
    manager.start("comparison")
    manager.pause("comparison")
    assert {manager.get_variant(user, "comparison")[1] for user in range(50)} == {"model_v1"}
    assert manager.start("comparison").status == "running"
    stopped = manager.stop("comparison", winner="model_v2", reason="enough")
    assert (stopped.status, stopped.winner, manager.stop("comparison").winner) == ("stopped", "model_v2", "model_v2")
    assert {manager.get_variant(user, "comparison")[1] for user in range(50)} == {"model_v2"}
    assert manager.results("comparison").users == {"model_v1": 0, "model_v2": 0}
    for move in (manager.start, manager.pause):
        with pytest.raises(Conflict, match="is stopped and cannot be"):
            move("comparison")
    kinds = [event["kind"] for event in manager.records.ledger.events("Model")]
    assert kinds == ["experiment_created", "experiment_running", "experiment_paused", "experiment_running",
                     "experiment_stopped"]  # fmt: skip


def test_of_two_people_who_move_an_experiment_at_once_one_is_told(url: str) -> None:
    records = ExperimentRecords(Ledger(url))
    read = records.create(definition(), actor="test")
    records.move(read, "running", actor="ana", reason="go")
    with pytest.raises(Conflict, match=r"expected revision 1 of experiment 'checkout', found 2 \(running\)"):
        records.move(read, "stopped", actor="bob", reason="no")
    assert records.get("checkout").status == "running"


def test_many_who_create_at_once_make_one_experiment(url: str) -> None:
    Ledger(url)
    made: list[str] = []

    def create() -> None:
        made.append(ABTestManager(Ledger(url)).create_experiment("one", models(), HALVES, auto_start=False).id)

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["one"] * 6 and len(ABTestManager(Ledger(url)).experiments()) == 1


def test_overrides_get_their_variant_and_are_not_judged(manager: ABTestManager) -> None:
    started(manager, overrides={"boss": "model_v2"})
    assert manager.get_variant("boss")[1] == "model_v2"
    assert manager.record_conversion("comparison", "model_v2", "boss").reason == "override"
    assert manager.results("comparison").users == {"model_v1": 0, "model_v2": 0}


def test_no_user_key_reaches_the_ledger(manager: ABTestManager, tmp_path: Path) -> None:
    started(manager)
    _, met = manager.get_variant("someone@example.org")
    manager.record_conversion("comparison", met, "someone@example.org")
    manager.records.engine.dispose()
    stored = b"".join(file.read_bytes() for file in tmp_path.glob("ledger.db*"))
    assert b"someone@example.org" not in stored and b"comparison" in stored


ELSEWHERE = """
import json, sys
from forge_core.errors import ForgeError
from forge_core.monitoring.ab_testing import get_ab_test_manager

manager = get_ab_test_manager()
assigned = [manager.get_variant(str(user))[1] for user in range(60)]
counted = [manager.record_conversion("comparison", v, str(u)).counted for u, v in list(enumerate(assigned))[:10]]
try:
    told = str(manager.get_experiment("comparison").variants["model_v1"])
except ForgeError as error:
    told = f"{type(error).__name__}: {error}"
print(json.dumps({"assigned": assigned, "counted": counted, "told": told,
                  "users": manager.results("comparison").users}))
"""


def test_another_process_sees_the_same_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))
    get_settings.cache_clear()
    try:
        manager = get_ab_test_manager()
        assert get_ab_test_manager() is manager
        started(manager)
        here = [manager.get_variant(str(user))[1] for user in range(60)]
        run = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, text=True, check=True)
        found = json.loads(run.stdout)
        assert found["assigned"] == here and all(found["counted"])
        assert sum(found["users"].values()) == 60
        assert found["told"].startswith("ModelNotFound: variant 'model_v1'") and "another" not in found["told"]
        assert not manager.record_conversion("comparison", here[0], "0").counted
        manager.stop("comparison", winner="model_v1")
        other = ABTestManager(Ledger(get_settings().ledger))
        with pytest.raises(ExperimentNotFound, match=r"no experiment runs; known: comparison \(stopped\)"):
            other.get_variant("ana")
    finally:
        get_settings.cache_clear()


def test_a_state_changed_elsewhere_is_seen_within_a_second(url: str) -> None:
    here, there = ABTestManager(Ledger(url), refresh_seconds=0.0), ABTestManager(Ledger(url))
    started(here)
    there.pause("comparison")
    assert {here.get_variant(user, "comparison")[1] for user in range(30)} == {"model_v1"}


def test_equal_models_have_equal_fingerprints_and_others_have_others() -> None:
    rows, target = [[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1]
    fitted = [LogisticRegression(C=c).fit(rows, target) for c in (1.0, 1.0, 5.0)]
    assert fingerprint(fitted[0]) == fingerprint(fitted[1]) != fingerprint(fitted[2])
    assert fingerprint(lambda x: x) is not None and fingerprint(threading.Lock()) is None


def test_a_version_that_is_gone_is_told_and_what_was_recorded_stays(
    manager: ABTestManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    import forge_core.tracking.registry as registry

    def gone(reference: str, *, tracking_uri: str | None = None) -> Any:
        raise ModelNotFound(f"no version of {reference}; versions: 1")

    manager.create_experiment(
        "versions", {"a": "models:/flights/1", "b": "models:/flights/2"}, {"a": 0.5, "b": 0.5}, auto_start=True
    )
    _, met = manager.get_variant("ana")
    monkeypatch.setattr(registry, "load_version", gone)
    with pytest.raises(
        ModelNotFound, match=r"is models:/flights/2, which is not there any more .* stop the experiment"
    ):
        manager.get_experiment("versions").variants["b"]
    assert manager.record_conversion("versions", met, "ana").counted
    assert sum(manager.results("versions").users.values()) == 1
    with pytest.raises(ConfigurationError, match="models:/flights/3"):
        manager.create_experiment("typo", {"a": "flights 1", "b": "models:/flights/2"}, {"a": 0.5, "b": 0.5})


def test_outcomes_are_kept_once_however_often_they_are_sent(url: str) -> None:
    records = ExperimentRecords(Ledger(url))
    records.create(definition(), actor="test")
    sent = [Outcome("conversion", "a" * 16, "old", 1.0, NOW), Outcome("conversion", "", "old", 1.0, NOW, "key-1")]
    for _ in range(3):
        records.add_outcomes("checkout", sent)
    found = records.outcomes("checkout")
    assert len(found) == 2 and found["repeats"].tolist() == [2, 2]


@pytest.mark.postgres
def test_postgresql_keeps_experiments_by_the_same_code() -> None:
    with postgres_server() as address:
        url = address.replace("postgresql://", "postgresql+psycopg://")
        here, there = ABTestManager(Ledger(url)), ABTestManager(Ledger(url))
        started(here)
        started(there)
        _, met = here.get_variant("ana")
        assert there.get_variant("ana")[1] == met
        assert here.record_conversion("comparison", met, "ana").counted
        assert there.record_conversion("comparison", met, "ana").reason == "twice"
        records = there.records
        records.add_outcomes("comparison", [Outcome("conversion", "", met, 1.0, NOW, "key")] * 2)
        assert here.results("comparison").not_counted == {"twice": 2, "more than exposures": 1}
        there.stop("comparison", winner=met)
        for ledger in (here.records.engine, there.records.engine):
            ledger.dispose()
