import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forge_core.errors import ConfigurationError, NotEnoughSamples
from forge_core.monitoring.drift_detection import AutomaticRetrainingTrigger, DriftReport, FeatureDriftDetector
from forge_core.monitoring.windows import ReferenceProfile
from forge_core.statistics.distributions import ReferenceGrid

pytestmark = pytest.mark.slow

NOW = datetime(2024, 3, 1, tzinfo=UTC)


def people(n_rows: int, seed: int, shift: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": rng.normal(40 + 10 * shift, 10, n_rows),
            "income": rng.lognormal(10, 1, n_rows),
            "rain": np.where(rng.random(n_rows) < 0.7, 0.0, rng.exponential(size=n_rows)),
            "flat": 1.0,
            "country": rng.choice(["de", "fr", "it"], n_rows, p=[0.6, 0.3, 0.1]),
        }
    )


@pytest.fixture(scope="module")
def reference() -> pd.DataFrame:
    return people(10_000, 0)


def detector(reference: pd.DataFrame, **options: float) -> FeatureDriftDetector:
    return FeatureDriftDetector(reference, ["country"], ["age", "income", "rain", "flat"], **options)  # type: ignore[arg-type]


def found(report: DriftReport, feature: str, kind: str) -> str:
    return next(f.level for f in report.features if (f.feature, f.kind) == (feature, kind))


def test_scores_on_a_seeded_stream_are_exactly_these(reference: pd.DataFrame) -> None:
    watch = detector(reference)
    scores = [round(watch.compute_drift(people(1000, 10 + i, shift=0.25 * i)).score, 6) for i in range(4)]
    assert scores == [0.0, 0.061733, 0.243223, 0.514664]


def test_the_warning_reads_as_the_guide_says(reference: pd.DataFrame, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        report = detector(reference).compute_drift(people(2000, 1, shift=0.7))
    assert caplog.messages == [f"Data drift detected with score {report.score:.2f} (threshold: 0.2)"]
    assert report.level == "drift" and report.drifted == ["age"] and report.feature == "age"


def test_no_drift_says_nothing(reference: pd.DataFrame, caplog: pytest.LogCaptureFixture) -> None:
    watch = detector(reference)
    report = watch.compute_drift(people(2000, 2))
    assert (report.score, report.feature, report.level, caplog.messages) == (0.0, None, "none", [])
    assert not watch.should_retrain()


def test_a_small_shift_in_many_rows_is_real_but_small(reference: pd.DataFrame) -> None:
    report = detector(reference).compute_drift(people(10_000, 3, shift=0.15))
    assert report["age"].level == "small but real"
    assert report["age"].psi_low < report["age"].psi < report["age"].psi_high < 0.1


def test_false_alarms_stay_within_the_budget() -> None:
    rng = np.random.default_rng(5)
    names = [f"x{i}" for i in range(7)]

    def null(n: int) -> pd.DataFrame:
        frame = pd.DataFrame(rng.normal(size=(n, 7)), columns=names)
        frame["x5"], frame["x6"] = rng.poisson(2, n), np.where(rng.random(n) < 0.05, np.nan, frame["x6"])
        zipf = 1 / np.arange(1, 51)
        return frame.assign(
            two=rng.choice(["a", "b"], n), rare=rng.choice(["a", "b"], n, p=[0.99, 0.01]),
            many=rng.choice(50, n, p=zipf / zipf.sum()).astype(str),
        )  # fmt: skip

    alarms = 0
    for _ in range(5):
        watch = FeatureDriftDetector(null(4000), ["two", "rare", "many"], names)
        alarms += sum(bool(watch.compute_drift(null(1000)).significant) for _ in range(40))
    assert alarms <= 14


def test_a_column_gone_missing_is_a_fault_and_no_crash(reference: pd.DataFrame) -> None:
    report = detector(reference).compute_drift(people(500, 4).assign(age=np.nan))
    assert report["age"].kind == "missing" and report["age"].level == "drift"
    assert found(report, "age", "distribution") == "none"
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_constant_column_has_p_one(reference: pd.DataFrame) -> None:
    report = detector(reference).compute_drift(people(500, 5))
    assert all(f.p_value == 1 and f.psi == 0 for f in report.features if f.feature == "flat")
    moved = detector(reference).compute_drift(people(500, 5).assign(flat=2.0))
    assert found(moved, "flat", "range") == "drift"


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_one_huge_outlier_on_either_side_changes_no_verdict(reference: pd.DataFrame, shift: float) -> None:
    now = people(1000, 6, shift)
    dirty_now, dirty_reference = now.copy(), reference.copy()
    dirty_now.loc[0, "age"] = dirty_reference.loc[0, "age"] = 1e6
    verdicts = [
        found(detector(a).compute_drift(b), "age", "distribution")
        for a, b in ((reference, now), (reference, dirty_now), (dirty_reference, now))
    ]
    assert len(set(verdicts)) == 1
    assert found(detector(reference).compute_drift(dirty_now), "income", "range") == "none"


def test_one_row_of_a_new_category_does_not_alarm_and_five_percent_do(reference: pd.DataFrame) -> None:
    now = people(1000, 7)
    now.loc[0, "country"] = "xx"
    assert detector(reference).compute_drift(now).level == "none"
    now.loc[:49, "country"] = "xx"
    report = detector(reference).compute_drift(now)
    assert report["country"].kind == "unseen" and report["country"].level == "drift"


def test_a_unit_change_in_five_percent_of_rows_is_named(reference: pd.DataFrame) -> None:
    now = people(1000, 8)
    now.loc[:49, "age"] *= 1000
    assert detector(reference).compute_drift(now)["age"].kind == "unit"


def test_rows_their_counts_and_the_stored_profile_give_the_same_report(reference: pd.DataFrame) -> None:
    stored = ReferenceProfile.build(reference, ["country"], ["age", "income", "rain", "flat"])
    again = ReferenceProfile.from_files(stored.to_files())
    now = people(1000, 9, shift=0.4)
    counts = again.grid.count(now[:300]) + again.grid.count(now[300:])
    want = detector(reference).compute_drift(now).to_frame().sort_values(["feature", "kind"])
    for current in (now, counts):
        got = FeatureDriftDetector(reference_profile=again).compute_drift(current).to_frame()
        pd.testing.assert_frame_equal(
            got.sort_values(["feature", "kind"]).reset_index(drop=True), want.reset_index(drop=True)
        )


def test_counts_on_another_grid_are_refused(reference: pd.DataFrame) -> None:
    other = ReferenceGrid.fit(people(500, 1), ["country"], ["age", "income", "rain", "flat"])
    with pytest.raises(ValueError, match="grid"):
        detector(reference).compute_drift(other.count(people(500, 2)))


def test_features_are_found_when_none_are_named(reference: pd.DataFrame) -> None:
    stamped = reference.assign(at=pd.Timestamp("2024-01-01", tz="UTC"))
    assert set(FeatureDriftDetector(stamped).watched) == {"age", "income", "rain", "flat", "country"}


def test_wrong_arguments_are_named(reference: pd.DataFrame) -> None:
    with pytest.raises(ConfigurationError, match="agee"):
        FeatureDriftDetector(reference, ["country"], ["agee"])
    with pytest.raises(ConfigurationError, match="neither"):
        FeatureDriftDetector()
    with pytest.raises(ConfigurationError, match="both"):
        FeatureDriftDetector(
            reference, ["country"], ["age"], reference_profile=ReferenceProfile.build(reference, [], ["age"])
        )
    with pytest.raises(ConfigurationError, match="both: age"):
        FeatureDriftDetector(reference, ["age"], ["age"])
    with pytest.raises(ConfigurationError, match="warning_threshold"):
        FeatureDriftDetector(reference, ["country"], ["age"], 0.3, 0.2)


def test_too_few_rows_on_either_side_are_an_error_that_says_how_many(reference: pd.DataFrame) -> None:
    with pytest.raises(NotEnoughSamples, match="at least 200 current rows, found 199"):
        detector(reference).compute_drift(people(199, 1))
    with pytest.raises(NotEnoughSamples, match="at least 200 reference rows, found 150; take a longer reference"):
        detector(people(150, 1)).compute_drift(people(500, 1))
    with pytest.raises(NotEnoughSamples, match="found 0"):
        detector(reference).compute_drift(people(500, 1).iloc[:0])


def test_a_column_that_is_gone_or_renamed_is_a_fault_of_the_schema(reference: pd.DataFrame) -> None:
    now = people(500, 1)
    gone = detector(reference).compute_drift(now.drop(columns="rain"))
    assert gone["rain"].kind == "schema" and gone.drifted == ["rain"] and gone.learnable_score == 0
    assert gone.notes == ("column rain is gone",)
    renamed = detector(reference).compute_drift(now.rename(columns={"age": "Age"}))
    assert renamed.notes == ("column age is gone; Age, which is new, looks like it: was it renamed?",)


def test_a_number_that_became_text_is_a_fault_of_the_schema_and_numbers_as_text_are_none(
    reference: pd.DataFrame,
) -> None:
    now = people(500, 1)
    report = detector(reference).compute_drift(now.assign(age="forty"))
    assert report["age"].kind == "schema" and report["age"].level == "drift"
    assert detector(reference).compute_drift(now.assign(age=now["age"].astype("str"))).level == "none"


def test_a_pair_that_goes_together_now_is_told_with_its_size(reference: pd.DataFrame) -> None:
    now = people(3000, 1)
    rank = (now["age"] + np.random.default_rng(0).normal(0, 10, 3000)).rank(method="first").astype(int) - 1
    now["income"] = np.sort(now["income"])[rank]
    report = detector(reference).compute_drift(now)
    pair = report["age × income"]
    assert pair.kind == "correlation" and pair.level == "drift" and pair.psi_low < pair.psi < pair.psi_high
    assert pair.statistic == pytest.approx(0.69, abs=0.06)
    assert [f.feature for f in report.significant] == ["age × income"]


def test_a_check_is_logged_to_a_tracker(reference: pd.DataFrame) -> None:
    logged: dict[str, object] = {}

    class Kept:
        def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
            logged.update(metrics)

        def log_dict(self, value: Mapping[str, object], name: str) -> None:
            logged[name] = value

        def log_bytes(self, data: bytes, name: str) -> None:
            logged[name] = data

    watch = detector(reference)
    report = watch.compute_drift(people(2000, 1, shift=0.7))
    watch.log_to_mlflow(Kept())
    assert logged["drift.score"] == report.score and logged["drift.psi.age"] == report["age"].psi
    assert {"drift/report.json", "drift/psi.png", "drift/report.md"} <= logged.keys()


def test_results_are_saved_as_json_and_read_like_a_mapping(reference: pd.DataFrame, tmp_path: Path) -> None:
    watch = detector(reference)
    report = watch.compute_drift(people(1000, 1, shift=1))
    watch.save_results(tmp_path / "new" / "drift.json")
    saved = json.loads((tmp_path / "new" / "drift.json").read_text())
    assert saved["drifted"] == ["age"] and saved["score"] == report.score
    assert "age" in report and set(dict(report)) == {"age", "income", "rain", "flat", "country"}
    with pytest.raises(KeyError, match="country"):
        report["shoe_size"]


def trigger(reference: pd.DataFrame, **options: object) -> AutomaticRetrainingTrigger:
    return AutomaticRetrainingTrigger(detector(reference), now=lambda: NOW, **options)  # type: ignore[arg-type]


def test_drift_alone_retrains_once_and_then_cools_down(reference: pd.DataFrame) -> None:
    watch = trigger(reference)
    now = people(1500, 1, shift=1)
    assert watch.check_drift(now)[0] and watch.reason.startswith("drift only")
    assert not watch.check_drift(now)[0] and watch.reason.startswith("cooldown")


def test_the_cooldown_ends_after_its_hours(reference: pd.DataFrame) -> None:
    now = people(1500, 1, shift=1)
    assert not trigger(reference, last_retrained=NOW - timedelta(hours=23)).check_drift(now)[0]
    assert trigger(reference, last_retrained=NOW - timedelta(hours=24)).check_drift(now)[0]


@pytest.mark.parametrize("n_rows", [50, 999])
def test_too_few_rows_never_retrain(reference: pd.DataFrame, n_rows: int) -> None:
    watch = trigger(reference, quality_alarm=True)
    answer, report = watch.check_drift(people(n_rows, 1, shift=2))
    assert not answer and watch.reason == f"too few rows: {n_rows} of 1000" and report.n_current == n_rows


def test_lost_quality_retrains_without_drift(reference: pd.DataFrame) -> None:
    watch = trigger(reference, quality_alarm=True)
    assert watch.check_drift(people(1500, 1))[0] and watch.reason.startswith("quality loss")
    assert not trigger(reference).check_drift(people(1500, 1))[0]


def test_missing_and_out_of_range_values_are_repaired_and_not_learnt(reference: pd.DataFrame) -> None:
    for fault in ({"age": np.nan}, {"flat": 1000.0}):
        watch = trigger(reference)
        answer, report = watch.check_drift(people(1500, 1).assign(**fault))
        assert report.level == "drift" and not answer and watch.reason.startswith("data fault")
        watch.quality_alarm = True
        assert watch.check_drift(people(1500, 1).assign(**fault))[0]
