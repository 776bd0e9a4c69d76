import os
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_core.errors import ConfigurationError, DataNotFound, NotEnoughSamples, SchemaViolation
from forge_core.ledger import Feedback
from forge_core.monitoring.performance import join_feedback, live_quality, quality_over_time
from forge_core.monitoring.prediction_log import REQUIRED, PredictionLog
from forge_core.monitoring.profiles import describe_profile, merge_profiles, profile_frame
from forge_core.monitoring.windows import ReferenceProfile, Window, WindowStore, window_start, window_starts
from forge_core.storage import Storage

DAY = datetime(2024, 1, 1, tzinfo=UTC)


def features(n: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    age = np.where(rng.random(n) < 0.1, np.nan, rng.normal(40, 10, n))
    return pd.DataFrame({"age": age, "city": rng.choice(np.array(["a", "b", None], dtype=object), n)})


def test_a_profile_describes_every_column_and_leaves_times_out() -> None:
    frame = features(500).assign(at=pd.Timestamp(DAY), flag=True, kind=pd.Categorical(["x", "y"] * 250))
    table = describe_profile(profile_frame(frame))
    assert table.index.tolist() == ["age", "city", "flag", "kind"]
    assert table.loc["age", "n"] == 500
    assert table.loc["age", "missing"] == frame["age"].isna().sum()
    assert table.loc["city", "missing"] == frame["city"].isna().sum()
    assert table.loc["age", "mean"] == pytest.approx(frame["age"].mean())
    assert table.loc["age", "median"] == pytest.approx(frame["age"].median(), abs=0.2)
    assert table.loc["age", "min"] == pytest.approx(frame["age"].min())
    assert dict(table.loc["kind", "top"]) == {"x": 250, "y": 250}


def test_a_profile_says_what_whylogs_own_tracking_says() -> None:
    from whylogs.core import DatasetProfile, DatasetProfileView

    from forge_core.monitoring.profiles import _schema

    frame = pd.DataFrame(
        {"x": [1.5, np.nan, np.inf, -2.0], "n": [1, 2, 2, 3], "t": ["a", None, "b", "a"], "none": [np.nan] * 4}
    )
    theirs = DatasetProfile(schema=_schema())
    theirs.track(pandas=frame)
    pd.testing.assert_frame_equal(describe_profile(profile_frame(frame)), describe_profile(theirs.view().serialize()))
    ours, plain = (
        DatasetProfileView.deserialize(blob).to_pandas() for blob in (profile_frame(frame), theirs.view().serialize())
    )
    pd.testing.assert_frame_equal(ours, plain)


def test_merged_profiles_describe_all_rows() -> None:
    a, b = features(400, 1), features(600, 2)
    merged = describe_profile(
        merge_profiles([profile_frame(a), profile_frame(b), profile_frame(pd.DataFrame({"p": [1]}))])
    )
    assert merged.loc["age", "n"] == 1000 and merged.loc["p", "n"] == 1
    assert merged.loc["age", "mean"] == pytest.approx(pd.concat([a, b])["age"].mean())
    with pytest.raises(ValueError, match="at least one"):
        merge_profiles([])


def test_profiles_of_different_columns_do_not_mix() -> None:
    profile_frame(pd.DataFrame({"left": [1, 2]}))
    assert describe_profile(profile_frame(pd.DataFrame({"right": [1, 2]}))).index.tolist() == ["right"]


@pytest.mark.slow
def test_importing_the_room_loads_no_whylogs_and_sets_no_variable() -> None:
    code = (
        "import os, sys; import forge_core.monitoring.windows, forge_core.monitoring.profiles;"
        "assert 'whylogs' not in sys.modules and 'WHYLOGS_NO_ANALYTICS' not in os.environ"
    )
    clean = {k: v for k, v in os.environ.items() if k != "WHYLOGS_NO_ANALYTICS"}
    subprocess.run([sys.executable, "-c", code], check=True, env=clean)


def test_windows_are_aligned_to_utc_midnight_and_to_odd_lengths() -> None:
    moment = datetime(2024, 1, 2, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    assert window_start(moment, 24) == DAY
    assert window_start(datetime(2024, 1, 1, 13, 59, tzinfo=UTC), 0.5) == datetime(2024, 1, 1, 13, 30, tzinfo=UTC)
    for bad in (0, -1, 1e-5):
        with pytest.raises(ValueError, match="whole seconds"):
            window_start(DAY, bad)
    with pytest.raises(ValueError, match="time zone"):
        window_start(DAY.replace(tzinfo=None), 24)


@pytest.mark.slow
@given(
    st.lists(st.datetimes(timezones=st.timezones(), allow_imaginary=False), min_size=1),
    st.sampled_from((0.5, 1, 7, 24, 168)),
)
def test_the_windows_of_a_column_are_those_of_its_moments(moments: list[datetime], hours: float) -> None:
    column = pd.Series(pd.to_datetime(moments, utc=True).as_unit("us"), index=range(7, 7 + len(moments)))
    starts = window_starts(column, hours)
    assert starts.index.equals(column.index)
    assert starts.dt.to_pydatetime().tolist() == [window_start(moment, hours) for moment in moments]


def test_windows_of_a_column_need_all_moments_and_their_zone() -> None:
    for bad in (pd.Series([DAY.replace(tzinfo=None)]), pd.Series([DAY, None])):
        with pytest.raises(ValueError, match="time zone and none missing"):
            window_starts(bad, 24)


@pytest.fixture
def reference() -> ReferenceProfile:
    return ReferenceProfile.build(features(2000), ["city"], ["age"])


def write(store: WindowStore, reference: ReferenceProfile, start: datetime, frame: pd.DataFrame) -> None:
    store.write_part("1", start, uuid.uuid4().hex, reference.grid.count(frame), profile_frame(frame))


def test_windows_add_up_what_their_parts_saw(tmp_path: Path, reference: ReferenceProfile) -> None:
    store = WindowStore(Storage(str(tmp_path)), "demo")
    first, second = features(100, 1), features(50, 2)
    write(store, reference, DAY, first[:30])
    write(store, reference, DAY, first[30:])
    write(store, reference, DAY + timedelta(days=1), second)
    store.write_part("12", DAY, "other", reference.grid.empty(), b"")
    assert store.windows("1") == [Window("1", DAY, 100), Window("1", DAY + timedelta(days=1), 50)]
    whole = store.counts("1", reference.grid)
    assert whole.to_dict() == reference.grid.count(pd.concat([first, second])).to_dict()
    assert store.counts("1", reference.grid, [DAY]).to_dict() == reference.grid.count(first).to_dict()
    assert describe_profile(store.profile("1", [DAY])).loc["age", "n"] == 100


def test_an_interrupted_part_is_ignored(tmp_path: Path, reference: ReferenceProfile) -> None:
    storage = Storage(str(tmp_path))
    store = WindowStore(storage, "demo")
    write(store, reference, DAY, features(10))
    storage.write_bytes("windows/demo/1/20240101T000000Z/halfway.bin", b"profile without counts")
    assert store.windows("1") == [Window("1", DAY, 10)]
    assert store.counts("1", reference.grid).n_rows == 10


def test_a_writer_replaces_its_part_and_a_broken_one_is_told_and_left_out(
    tmp_path: Path, reference: ReferenceProfile, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage(str(tmp_path))
    store = WindowStore(storage, "demo")
    for n in (10, 30):
        frame = features(n)
        store.write_part("1", DAY, "writer", reference.grid.count(frame), profile_frame(frame))
    assert store.windows("1") == [Window("1", DAY, 30)]
    storage.write_bytes("windows/demo/1/20240101T000000Z/broken.json", b'{"grid": "abc", "n_ro')
    assert store.counts("1", reference.grid).n_rows == 30
    assert "broken.json" in caplog.text


def test_a_version_nobody_served_has_no_windows(tmp_path: Path, reference: ReferenceProfile) -> None:
    store = WindowStore(Storage(str(tmp_path)), "demo")
    assert store.windows("9") == [] and store.counts("9", reference.grid).n_rows == 0
    with pytest.raises(DataNotFound, match="version 9"):
        store.profile("9")


def test_a_reference_watches_outputs_on_rows_of_their_own() -> None:
    outputs = pd.DataFrame({"probability": np.linspace(0, 1, 300)})
    built = ReferenceProfile.build(features(2000), ["city"], ["age"], outputs=outputs)
    again = ReferenceProfile.from_files(built.to_files())
    assert again.grid == built.grid and again.counts.grid_digest == again.grid.digest
    assert again.counts["probability"].n_rows == 300 and again.counts["age"].n_rows == 2000
    assert set(describe_profile(again.profile).index) == {"age", "city", "probability"}


def served(n: int, start: datetime = DAY, seed: int = 0, **columns: object) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    at = [start + timedelta(minutes=20 * i) for i in range(n)]
    score = rng.random(n)
    core = {
        "request_id": [f"r{seed}-{i}" for i in range(n)], "event_time": at, "received_at": at, "version": "1",
        "variant": "champion", "prediction": (score > 0.5).astype(int), "probability": score,
    }  # fmt: skip
    return pd.DataFrame(core).assign(age=rng.integers(20, 60, n), city="a").assign(**columns)


@pytest.fixture
def log(tmp_path: Path) -> PredictionLog:
    return PredictionLog(Storage(str(tmp_path)), "demo")


def test_rows_land_under_the_date_of_their_event_time(log: PredictionLog, tmp_path: Path) -> None:
    log.append(served(100))
    days = sorted(path.name for path in (tmp_path / "predictions" / "demo").iterdir())
    assert days == ["date=2024-01-01", "date=2024-01-02"]
    assert len(log.read()) == 100


def test_one_line_of_pandas_reads_the_log_even_when_a_part_has_empty_columns(
    log: PredictionLog, tmp_path: Path
) -> None:
    log.append(served(10, seed=1))
    log.append(served(10, seed=2, city=None, age=[None] * 10))
    log.append(served(10, seed=3, age=[1.5, None] * 5, prediction=0.25))
    for frame in (pd.read_parquet(tmp_path / "predictions" / "demo"), log.read()):
        assert len(frame) == 30 and frame["age"].dtype == np.float64
        assert frame["age"].notna().sum() == 15 and frame["city"].notna().sum() == 20


def test_reading_prunes_days_and_selects_rows_and_columns(log: PredictionLog, tmp_path: Path) -> None:
    log.append(served(200))
    log.append(served(5, seed=1, version="2"))
    (tmp_path / "predictions" / "demo" / "date=2024-01-03" / "broken.parquet").write_bytes(b"not opened")
    since, until = DAY + timedelta(hours=1), DAY + timedelta(hours=2)
    frame = log.read(since, until, version="1", columns=["request_id", "age"])
    assert frame["request_id"].tolist() == ["r0-3", "r0-4", "r0-5"]
    assert list(frame.columns) == ["request_id", "age"]
    assert len(log.read(DAY, DAY + timedelta(days=1), version="2")) == 5


def test_the_first_received_of_a_repeated_request_counts(log: PredictionLog) -> None:
    log.append(served(3, age=2, received_at=pd.Timestamp("2024-01-09", tz="UTC")))
    log.append(served(3, age=1))
    assert log.read()["age"].tolist() == [1, 1, 1]


def test_finished_days_become_one_file_and_old_ones_go(log: PredictionLog, tmp_path: Path) -> None:
    for seed in range(3):
        log.append(served(5, seed=seed))
        log.append(served(5, start=DAY + timedelta(days=9), seed=10 + seed))
    log.append(served(5, seed=0, received_at=pd.Timestamp("2024-01-05", tz="UTC"), age=99))
    before = log.read()
    folder = tmp_path / "predictions" / "demo"
    assert log.maintain(DAY + timedelta(days=10, hours=3)) == (1, 0)
    assert len(list((folder / "date=2024-01-01").iterdir())) == 1
    assert len(list((folder / "date=2024-01-10").iterdir())) == 3
    pd.testing.assert_frame_equal(log.read(), before)
    assert log.maintain(DAY + timedelta(days=10, hours=3)) == (0, 0)
    assert log.maintain(DAY + timedelta(days=10), retention_days=5) == (0, 1)
    assert len(log.read()) == 15


def test_duckdb_reads_the_log_in_one_line(log: PredictionLog, tmp_path: Path) -> None:
    log.append(served(10, seed=1))
    log.append(served(10, seed=2, city=None))
    import duckdb

    found = duckdb.sql(f"from read_parquet('{log.storage.path(log.folder)}/*/*.parquet', union_by_name=true)").df()
    assert len(found) == 20 and found["city"].notna().sum() == 10


def test_an_empty_log_is_an_empty_frame_with_its_columns(log: PredictionLog) -> None:
    assert list(log.read().columns) == list(REQUIRED)
    assert list(log.read(columns=["request_id", "age"]).columns) == ["request_id", "age"]
    assert log.read()["event_time"].dt.tz is not None


def test_rows_without_the_required_columns_are_refused(log: PredictionLog) -> None:
    with pytest.raises(SchemaViolation, match="variant"):
        log.append(served(3).drop(columns="variant"))
    with pytest.raises(SchemaViolation, match="event time"):
        log.append(served(3, event_time=pd.NaT))


def labelled(n: int, good: float, seed: int = 0) -> pd.DataFrame:
    """Rows whose label agrees with the prediction in a share of `good`."""
    rows = served(n, seed=seed)
    rng = np.random.default_rng(seed + 100)
    right = rng.random(n) < good
    labels = np.where(right, rows["prediction"], 1 - rows["prediction"])
    feedback = [Feedback(i, float(y), DAY) for i, y in zip(rows["request_id"], labels, strict=True)]
    return join_feedback(rows, feedback)


def test_labels_join_by_request_id_and_the_first_counts() -> None:
    rows = served(3)
    later = DAY + timedelta(days=2)
    joined = join_feedback(
        rows, [Feedback("r0-1", 1.0, later), Feedback("r0-1", 0.0, later), Feedback("orphan", 1.0, DAY)]
    )
    assert joined["request_id"].tolist() == ["r0-1"]
    assert joined["label"].tolist() == [1.0] and joined["labelled_at"].tolist() == [later]
    assert list(join_feedback(rows, []).columns) == [*rows.columns, "label", "labelled_at"]


def test_quality_that_holds_does_not_alarm_and_lost_quality_does() -> None:
    kind = {"task": "classification", "metric": "accuracy", "reference": 0.8, "max_loss": 0.02}
    held, lost = live_quality(labelled(2000, 0.8), **kind), live_quality(labelled(2000, 0.7), **kind)  # type: ignore[arg-type]
    assert not held.alarm and lost.alarm
    assert lost.loss == pytest.approx(0.8 - lost.value) and lost.high < 0.78 and lost.n_rows == 2000
    assert "allowed 0.02" in lost.reason


def test_a_few_labels_are_no_proof() -> None:
    few = labelled(20, 0.7)
    report = live_quality(few, task="classification", metric="accuracy", reference=0.8, max_loss=0.02)
    assert not report.alarm and report.low < report.value < report.high


def test_a_higher_log_loss_is_a_loss() -> None:
    joined = labelled(2000, 0.5)
    worse = live_quality(joined, task="classification", metric="log_loss", reference=0.1, max_loss=0.02)
    better = live_quality(joined, task="classification", metric="log_loss", reference=5.0, max_loss=0.02)
    assert worse.loss > 0 and worse.alarm
    assert better.loss < 0 and not better.alarm


def test_days_that_differ_widen_the_interval() -> None:
    joined = labelled(2000, 0.8)
    days = joined["event_time"].dt.day
    joined["label"] = np.where(days % 4 == 0, 1 - joined["label"], joined["label"])
    wide = live_quality(joined, task="classification", metric="accuracy", reference=0.8, max_loss=0.02)
    narrow = live_quality(
        joined, task="classification", metric="accuracy", reference=0.8, max_loss=0.02, groups="20min"
    )
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_regression_judges_the_prediction() -> None:
    rows = served(500, prediction=1.0)
    joined = join_feedback(rows, [Feedback(i, 3.0, DAY) for i in rows["request_id"]])
    report = live_quality(joined, task="regression", metric="rmse", reference=1.0, max_loss=0.5)
    assert report.value == pytest.approx(2.0) and report.alarm


def test_quality_without_labels_or_with_one_class_says_so() -> None:
    kind = {"task": "classification", "reference": 0.7, "max_loss": 0.02}
    with pytest.raises(NotEnoughSamples):
        live_quality(labelled(10, 1)[:0], metric="roc_auc", **kind)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="roc_auc"):
        live_quality(labelled(10, 1), metric="beauty", **kind)  # type: ignore[arg-type]
    one = live_quality(labelled(300, 1).assign(label=1.0), metric="roc_auc", **kind)  # type: ignore[arg-type]
    assert not one.alarm and "one class" in one.reason


@pytest.mark.slow
@pytest.mark.parametrize(("freq", "windows"), [("D", 28), ("7D", 5), ("W", 4), ("M", 1)])
def test_quality_over_time_has_one_row_a_stretch(freq: str, windows: int) -> None:
    table = quality_over_time(labelled(2016, 0.8), "accuracy", freq=freq)
    assert len(table) == windows and table["n"].sum() == 2016
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert table["window"].dt.tz is not None
