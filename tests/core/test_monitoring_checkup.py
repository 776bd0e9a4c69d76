"""Whole checks on a real folder and ledger: what was served, what was true, and what is decided."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forge_core.errors import NotEnoughSamples
from forge_core.ledger import Feedback, Ledger
from forge_core.monitoring.check_gauges import check_gauges
from forge_core.monitoring.checkup import Checkup, check_live_version
from forge_core.monitoring.live_rows import Known
from forge_core.monitoring.metrics import Tally, exposition
from forge_core.monitoring.page import advise, check_page
from forge_core.monitoring.prediction_log import PredictionLog
from forge_core.monitoring.windows import ReferenceProfile, WindowStore
from forge_core.policy import ModelPolicy
from forge_core.statistics.expectation import Expectation
from forge_core.statistics.quality import all_metrics
from forge_core.storage import Storage

DAY = datetime(2024, 6, 1, tzinfo=UTC)
POLICY = ModelPolicy.model_validate(
    {
        "data": {"source": "sample:", "target": "late"},
        "gate": {"metric": "log_loss"},
        "retrain": {"min_samples_required": 500},
        "monitor": {"lookback_windows": 10},
    }
)


def _rows(rng: np.random.Generator, n: int, shift: float = 0.0) -> pd.DataFrame:
    age = rng.normal(40 + 10 * shift, 10, n)
    return pd.DataFrame(
        {"age": age, "city": rng.choice(["a", "b"], n), "probability": 1 / (1 + np.exp((age - 40) / 8))}
    )


def _truth(rng: np.random.Generator, rows: pd.DataFrame, wrong: float = 0.0) -> np.ndarray:
    y = rng.random(len(rows)) < rows["probability"]
    return np.where(rng.random(len(rows)) < wrong, ~y, y).astype(float)


@pytest.fixture(scope="module")
def known() -> Known:
    rng = np.random.default_rng(0)
    train, held = _rows(rng, 12_000), _rows(rng, 4000)
    times = pd.Series([DAY - timedelta(hours=i / 8) for i in range(len(train))])
    reference = ReferenceProfile.build(
        train[["age", "city"]], ["city"], ["age"], outputs=held[["probability"]], times=times
    )
    y = _truth(rng, held)
    quality = all_metrics("classification", y, held["probability"])
    return Known("7", reference, Expectation.fit("classification", y, held["probability"]), quality, "classification")


class Service:
    """What the router, profiler and recorder leave behind, without them."""

    def __init__(self, folder: Path, known: Known) -> None:
        self.storage, self.ledger, self.known = Storage(str(folder)), Ledger("sqlite://"), known
        self.rng = np.random.default_rng(1)
        self.days = 0

    def serve(self, days: int, *, shift: float = 0.0, wrong: float = 0.0, labels: bool = True, **broken: float) -> None:
        """Answer 300 rows a day; labels come a day later."""
        for _ in range(days):
            start = DAY + timedelta(days=self.days)
            rows = _rows(self.rng, 300, shift).assign(**broken)
            ids = [f"{self.days}-{i}" for i in range(300)]
            counts = self.known.reference.grid.count(rows)
            WindowStore(self.storage, "m").write_part("7", start, "one", counts, b"")
            at = [start + timedelta(minutes=4 * i) for i in range(300)]
            log = rows.assign(request_id=ids, event_time=at, received_at=at, version="7", variant="champion")
            PredictionLog(self.storage, "m").append(log.assign(prediction=rows["probability"] > 0.5))
            if labels:
                truth = _truth(self.rng, rows, wrong)
                told = [Feedback(i, y, t + timedelta(days=1)) for i, y, t in zip(ids, truth, at, strict=True)]
                self.ledger.record_feedback("m", self.rng.permutation(np.array(told, object)).tolist())
            self.days += 1

    def check(self, policy: ModelPolicy = POLICY) -> Checkup:
        """Check at the end of the newest day."""
        now = DAY + timedelta(days=self.days)
        return check_live_version(
            self.storage, self.ledger, "m", self.known, policy=policy, now=now, last_retrained=None
        )


@pytest.fixture
def service(tmp_path: Path, known: Known) -> Service:
    return Service(tmp_path, known)


@pytest.mark.slow
def test_calm_traffic_is_calm_and_its_page_says_so(service: Service, known: Known) -> None:
    service.serve(12)
    found = service.check()
    assert not found.retrain and not found.alarm.alarm and not found.loss_alarm and found.drift.level == "none"
    assert found.alarm.lane == "independent rows"
    assert found.quality is not None and not found.quality.alarm and len(found.over_time) >= 9
    assert found.estimate is not None and not found.estimate.alarm and "invisible" in found.estimate.reason
    assert found.slices["level"].tolist() in (["a", "b"], ["b", "a"]) and found.slices["value"].is_monotonic_decreasing
    page = check_page(found, known.reference)
    assert "All is as in training" in page and page.count("data:image/png;base64,") == 3


@pytest.mark.slow
def test_turned_labels_retrain_whatever_the_inputs_look_like(service: Service, known: Known) -> None:
    service.serve(6)
    service.serve(6, wrong=0.35)
    found = service.check()
    assert found.retrain and found.reason.startswith("quality loss") and found.loss_alarm
    assert found.drift.level == "none" and not found.alarm.alarm
    assert advise(found).headline == "Predictions have become worse"


@pytest.mark.slow
def test_drift_with_quality_that_holds_is_information(service: Service) -> None:
    service.serve(6)
    service.serve(10, shift=0.8)
    found = service.check()
    assert found.alarm.alarm and "age" in found.alarm.features and set(found.drift.drifted) == {"age", "probability"}
    assert not found.retrain and "quality holds on the labels" in found.reason
    assert advise(found).headline == "Inputs have changed"


def test_without_labels_an_estimate_decides(service: Service) -> None:
    service.serve(10, shift=-0.8, labels=False)
    found = service.check()
    assert found.quality is None and found.estimate is not None and not found.estimate.alarm
    assert not found.retrain and "estimated quality holds" in found.reason


def test_without_labels_and_estimate_drift_decides_alone(service: Service, known: Known) -> None:
    blind = Expectation(known.expectation.loss, None)
    service.known = Known("7", known.reference, blind, known.quality, "classification")
    service.serve(10, shift=0.8, labels=False)
    found = service.check()
    assert found.retrain and found.reason.startswith("drift only")


@pytest.mark.slow
def test_broken_values_alert_and_are_never_learnt(service: Service, known: Known) -> None:
    service.serve(5, labels=False)
    service.serve(10, labels=False, age=40_000.0)
    found = service.check()
    assert not found.retrain and "repair" in found.reason
    assert advise(found).headline == "Data must be repaired: age"
    assert "another unit?" in check_page(found, known.reference)


def test_windows_are_ranked_where_the_policy_asks(service: Service) -> None:
    policy = POLICY.model_copy(update={"monitor": POLICY.monitor.model_copy(update={"lane": "exchangeable windows"})})
    service.serve(5)
    found = service.check(policy)
    assert found.alarm.lane == "exchangeable windows" and found.alarm.enough and not found.alarm.alarm
    assert found.alarm.reason.startswith("evidence")


@pytest.mark.slow
def test_labels_late_shuffled_and_twice_give_the_figures_of_an_offline_join(service: Service) -> None:
    service.serve(8)
    again = service.ledger.feedback("m")
    service.ledger.record_feedback("m", [Feedback(f.request_id, 1 - f.label, f.event_time) for f in again[::-1]])
    found = service.check()
    now = DAY + timedelta(days=service.days)
    log = PredictionLog(service.storage, "m").read(until=now)
    labels = {f.request_id: f.label for f in again if f.event_time <= now}
    joined = log[log["request_id"].isin(labels)]
    offline = all_metrics("classification", joined["request_id"].map(labels), joined["probability"])
    assert found.quality is not None
    assert found.quality.value == offline["log_loss"] and found.quality.n_rows == len(joined)


@pytest.mark.slow
def test_labels_ahead_of_the_log_are_pending_and_then_orphans(service: Service) -> None:
    service.serve(4)
    now = DAY + timedelta(days=4)
    unknown = [Feedback(f"u{i}", 1.0, now - timedelta(hours=h)) for i, h in enumerate((1, 2, 30, 50, 70))]
    service.ledger.record_feedback("m", unknown)
    found = service.check()
    assert (found.n_pending, found.n_orphans) == (2, 3)
    assert "2 labels wait for their prediction, 3 belong to none known" in check_page(found, service.known.reference)


def test_nothing_served_is_told(service: Service) -> None:
    with pytest.raises(NotEnoughSamples, match="found none"):
        service.check()


@pytest.mark.slow
def test_the_newest_check_of_each_model_is_a_gauge(service: Service) -> None:
    service.serve(10, shift=0.8)
    found = service.check()
    for _ in range(2):
        service.ledger.append_event("checked", "m", version="7", actor="t", reason="", details=found.summary())
    text = exposition(Tally(), check_gauges(service.ledger.newest_events("checked"))).decode()
    assert 'forge_drift_alarm{model="m",version="7"} 1.0' in text
    assert 'forge_quality_alarm{metric="log_loss",model="m",source="labels",version="7"} 0.0' in text
    assert 'forge_feature_psi{feature="age",model="m",version="7"}' in text
