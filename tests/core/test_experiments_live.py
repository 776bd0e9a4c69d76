"""Live traffic for variants: the desired state, what is refused, and verdicts from the prediction log."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows.experiment import _end, _lost_its_traffic
from flows.house import House
from forge_core.deployment.routing import nominate, promote, read_state, roll_back
from forge_core.deployment.splits import put_split
from forge_core.errors import Conflict, ModelError
from forge_core.experiments.ab_testing import ABTestManager
from forge_core.experiments.assignment import assign, segments_of, unit_id, unit_point
from forge_core.experiments.records import Outcome
from forge_core.experiments.table import verdict_markdown, verdict_rows
from forge_core.experiments.traffic import LiveTraffic, split_of
from forge_core.ledger import Ledger
from forge_core.monitoring.prediction_log import PredictionLog
from forge_core.policy import ExperimentPolicy, load_policy
from forge_core.settings import Settings
from forge_core.storage import Storage
from tests.core.test_deployment import RecordedServe

pytestmark = pytest.mark.slow

WHO: dict[str, Any] = {"actor": "ana", "reason": "because"}
VARIANTS = {"champion": "models:/sample/2", "challenger": "models:/sample/1"}
HALVES = {"champion": 0.5, "challenger": 0.5}


class Ground:
    """A model whose version 2 is live, and version 1 was, so that nothing has to be replayed to either."""

    def __init__(self, home: Path, failing: tuple[str, ...] = ()) -> None:
        self.settings = Settings(home=home, model="sample", tracking_uri="")
        self.ledger, self.storage = Ledger("sqlite://"), Storage(str(home / "storage"))
        self.serve = RecordedServe(failing)
        for version in ("1", "2"):
            nominate(self.ledger, "sample", version, **WHO)
            promote(self.ledger, "sample", version, **WHO)
            self.storage.write_bytes(f"versions/sample/{version}/parts.json", b"{}")
        self.serve.reconcile(self.ledger)

        def no_registry() -> Any:
            raise AssertionError("the registry is not needed for versions that are mirrored")

        traffic = LiveTraffic(self.storage, self.ledger, self.serve, no_registry, self.settings)
        self.manager = ABTestManager(self.ledger, storage=self.storage, traffic=lambda: traffic)

    @property
    def entry(self) -> dict[str, Any]:
        return read_state(self.ledger)[1]["models"]["sample"]

    def start(self, name: str = "live", **rule: Any) -> Any:
        return self.manager.create_experiment(name, VARIANTS, HALVES, auto_start=True, live=True, **rule)

    def serve_rows(self, users: range, **columns: Any) -> pd.DataFrame:
        """Log a prediction for each user, as a router does."""
        salt, now = "experiment:live", datetime.now(UTC)
        names = [assign(segments_of(HALVES), unit_point(salt, f"u{user}")) for user in users]
        rows = pd.DataFrame(
            {
                "request_id": [f"r{user}" for user in users], "event_time": now, "received_at": now, "version": "2",
                "variant": names, "owner": "", "prediction": 1, "probability": 0.7, "assigned": names, "split": salt,
                "propensity": 0.5, "unit": [unit_id(salt, f"u{user}") for user in users], "latency_ms": 3.0,
                "fault": "",
            }
        ).assign(**columns)  # fmt: skip
        PredictionLog(self.storage, "sample").append(rows)
        return rows


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


def test_variants_are_loaded_before_they_get_traffic_and_unloaded_after(ground: Ground) -> None:
    ground.serve.puts.clear()
    assert ground.start().status == "running"
    tables = [table["sample"]["split"]["segments"] for _, table in ground.serve.puts if "split" in table["sample"]]
    assert tables[0] == [[1.0, "champion"]] and tables[-1] == [[0.5, "champion"], [1.0, "challenger"]]
    loaded_first = next(variants for variants, table in ground.serve.puts)
    assert loaded_first == ["variant-sample-v1", "variant-sample-v2"]
    assert ground.entry["split"]["id"] == "experiment:live" and ground.entry["champion"] == "2"
    ground.manager.start("live")
    ground.manager.pause("live")
    assert "split" not in ground.entry and ground.serve.puts[-1][0] == ["variant-sample-v2"]
    ground.manager.start("live")
    ground.manager.stop("live", winner="challenger")
    assert "split" not in ground.entry
    kinds = [e["kind"] for e in ground.ledger.events("sample") if e["kind"].startswith(("split", "experiment"))]
    assert kinds == [
        "experiment_created", "split_tried", "split_changed", "experiment_running", "split_dropped",
        "experiment_paused", "split_tried", "split_changed", "experiment_running", "split_dropped",
        "experiment_stopped",
    ]  # fmt: skip


def test_a_model_has_one_experiment_or_rollout_at_a_time(ground: Ground) -> None:
    ground.start()
    with pytest.raises(Conflict, match="shared out by 'experiment:live'"):
        ground.start("second")
    assert ground.manager.get_experiment("second").status == "created"
    ground.manager.stop("live")
    definition = ground.manager.get_experiment("live").definition
    put_split(ground.ledger, "sample", {**split_of(definition), "id": "rollout:1"})
    with pytest.raises(Conflict, match="shared out by 'rollout:1'"):
        ground.manager.start("second")


def test_a_variant_that_does_not_start_leaves_the_champion_all_traffic(tmp_path: Path) -> None:
    ground = Ground(tmp_path, failing=("variant-sample-v1",))
    with pytest.raises(ModelError, match="variant-sample-v1 did not start"):
        ground.start()
    assert "split" not in ground.entry and ground.manager.get_experiment("live").status == "created"


def test_a_start_that_was_killed_half_way_is_started_again(ground: Ground) -> None:
    experiment = ground.manager.create_experiment("live", VARIANTS, HALVES, live=True)
    put_split(ground.ledger, "sample", split_of(experiment.definition, {"champion": 1.0}))
    assert ground.manager.start("live").status == "running"
    assert len(ground.entry["split"]["segments"]) == 2


def test_the_verdict_comes_from_the_prediction_log(ground: Ground) -> None:
    ground.start()
    ground.serve_rows(range(200))
    ground.serve_rows(range(200))  # they come again: nobody counts twice
    ground.serve_rows(range(200, 210), fault="contract", request_id=[f"c{n}" for n in range(10)])
    ground.serve_rows(range(210, 220), propensity=1.0, request_id=[f"p{n}" for n in range(10)])
    ground.serve_rows(range(220, 230), split="experiment:other", request_id=[f"o{n}" for n in range(10)])
    verdict = ground.manager.results("live")
    assert sum(verdict.users.values()) == 200
    early = ground.manager.record_conversion("live", "champion", "nobody-yet")
    assert (early.counted, early.reason) == (False, "pending")
    assigned = dict(ground.manager.get_variant(f"u{n}")[::-1] for n in range(40))
    assert set(assigned) == {"champion", "challenger"}


def test_conversions_by_user_and_by_request_join_the_log(ground: Ground) -> None:
    ground.start()
    ground.serve_rows(range(100))
    salt, later = "experiment:live", datetime.now(UTC) + timedelta(seconds=5)
    sent = [Outcome("conversion", unit_id(salt, f"u{n}"), "", 1.0, later) for n in range(10)]
    sent += [Outcome("conversion", unit_id(salt, f"r{n}"), "", 1.0, later) for n in range(10, 15)]
    ground.manager.records.add_outcomes("live", sent)
    verdict = ground.manager.results("live")
    assert sum(round((c.mean or 0) * c.n) for c in verdict.variants) == 15 and verdict.not_counted == {}


def test_a_manager_without_serve_says_what_it_lacks(tmp_path: Path) -> None:
    manager = ABTestManager(Ledger("sqlite://"))
    manager.create_experiment("live", VARIANTS, HALVES, live=True)
    with pytest.raises(Conflict, match="which this manager cannot reach"):
        manager.start("live")


def test_a_promotion_takes_the_traffic_and_the_flow_notices(ground: Ground) -> None:
    ground.start()
    house = house_of(ground)
    assert not _lost_its_traffic(house, ground.manager.records.get("live"))
    roll_back(ground.ledger, "sample", **WHO)
    assert _lost_its_traffic(house, ground.manager.records.get("live"))


def house_of(ground: Ground, **rule: Any) -> House:
    policy = load_policy("deployments/policy.yaml", "sample")
    house = House("sample", ground.settings, policy.model_copy(update={"experiment": ExperimentPolicy(**rule)}))
    house.__dict__["ledger"] = ground.ledger
    return house


def test_the_policy_ends_an_experiment(ground: Ground) -> None:
    ground.start()
    record = ground.manager.records.get("live")
    verdict, now = ground.manager.results("live"), datetime.now(UTC)
    assert _end(house_of(ground), record, verdict, now) is None
    late = _end(house_of(ground, max_days=3), record, verdict, now + timedelta(days=4))
    assert late is not None and late.startswith("the policy's 3 days are over")
    ground.serve_rows(range(900), assigned="champion")
    frozen = ground.manager.results("live")
    assert frozen.state == "frozen"
    assert "did not come in the declared shares" in (_end(house_of(ground), record, frozen, now) or "")
    assert _end(house_of(ground, end=False), record, frozen, now) is None


def test_a_verdict_is_a_table_and_a_page(ground: Ground) -> None:
    ground.start(guard_rails=[{"name": "minutes", "kind": "mean"}])
    ground.serve_rows(range(50))
    verdict = ground.manager.results("live")
    rows = verdict_rows(verdict)
    assert [row["variant"] for row in rows] == ["champion", "challenger"] and sum(row["users"] for row in rows) == 50
    page = verdict_markdown(verdict)
    assert "**not yet**" in page and "| minutes | challenger | open |" in page and verdict.advice in page
