"""Splits: nothing in two parts, nothing lost, no future in the training rows."""

import numpy as np
import pandas as pd
import pytest

from forge_core.data.loaders import get_data_loader
from forge_core.data.sample import generate_sample_data
from forge_core.data.splits import DataSplit, split_frame
from forge_core.errors import ConfigurationError, EmptyData, SchemaViolation, UnusableTarget


def parts(split: DataSplit) -> list[pd.DataFrame]:
    return [split.train, split.validation, split.test]


def test_a_split_by_time_has_no_future_in_its_past() -> None:
    rows = generate_sample_data(1000).sample(frac=1, random_state=0)
    split = split_frame(rows, "target", time_column="event_time", feature_columns=["feature1", "feature2"])
    train, validation, test = parts(split)
    assert train["event_time"].max() < validation["event_time"].min()
    assert validation["event_time"].max() < test["event_time"].min()
    assert [len(p) for p in parts(split)] == [700, 150, 150]
    assert list(split.X_test.columns) == ["feature1", "feature2"]
    assert split.y_val.name == "target"


def test_rows_of_one_moment_never_straddle_a_border() -> None:
    rows = generate_sample_data(500)
    rows["event_time"] = rows["event_time"].dt.floor("h")
    split = split_frame(rows, "target", time_column="event_time")
    moments = [set(p["event_time"]) for p in parts(split)]
    assert not (moments[0] & moments[1] or moments[1] & moments[2] or moments[0] & moments[2])
    assert sum(map(len, parts(split))) == 500


def test_more_than_two_weeks_are_cut_between_days() -> None:
    rows = generate_sample_data(2000, rows_per_hour=2.7)
    split = split_frame(rows, "target", time_column="event_time")
    assert split.validation["event_time"].min().hour == 0
    assert split.test["event_time"].min().hour == 0
    assert 0.11 < len(split.test) / 2000 < 0.19


def test_a_split_by_hash_keeps_the_class_balance() -> None:
    rows = generate_sample_data(5000)
    split = split_frame(rows, "target")
    for part, share in zip(parts(split), (0.7, 0.15, 0.15), strict=True):
        assert len(part) / 5000 == pytest.approx(share, abs=0.02)
        assert part["target"].mean() == pytest.approx(rows["target"].mean(), abs=0.05)


def test_added_rows_move_no_row_to_another_part() -> None:
    rows = generate_sample_data(2000)
    few, many = split_frame(rows.iloc[:1200], "target"), split_frame(rows.sample(frac=1, random_state=1), "target")
    for before, after in zip(parts(few), parts(many), strict=True):
        assert set(before["sample_id"]) <= set(after["sample_id"])


def test_the_seed_changes_the_split_and_repeats_it() -> None:
    rows = generate_sample_data(300)
    first, again, other = (split_frame(rows, "target", random_state=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first.test, again.test)
    assert set(first.test["sample_id"]) != set(other.test["sample_id"])


def test_equal_rows_stay_together() -> None:
    rows = generate_sample_data(200)
    split = split_frame(pd.concat([rows, rows]), "target")
    ids = [set(p["sample_id"]) for p in parts(split)]
    assert sum(map(len, ids)) == 200


def test_a_rare_class_is_in_every_part() -> None:
    rows = generate_sample_data(100)
    rows["target"] = (np.arange(100) < 3).astype(int)
    assert [p["target"].sum() for p in parts(split_frame(rows, "target"))] == [1, 1, 1]


def test_a_number_to_predict_can_be_split_too() -> None:
    rows = generate_sample_data(200)
    assert sum(map(len, parts(split_frame(rows, "feature1")))) == 200


def test_times_as_text_are_understood_and_gaps_are_refused() -> None:
    rows = generate_sample_data(100).astype({"event_time": "str"})
    split = split_frame(rows, "target", time_column="event_time")
    assert split.train["event_time"].max() < split.test["event_time"].min()
    rows.loc[3, "event_time"] = None
    with pytest.raises(SchemaViolation, match="1 rows without one"):
        split_frame(rows, "target", time_column="event_time")


def test_what_cannot_be_split_says_why() -> None:
    rows = generate_sample_data(50)
    with pytest.raises(ConfigurationError, match="less than 1"):
        split_frame(rows, "target", test_share=0.9, validation_share=0.1)
    with pytest.raises(SchemaViolation, match="when"):
        split_frame(rows, "target", time_column="when")
    with pytest.raises(EmptyData, match=r"validation|test|training"):
        split_frame(rows.assign(event_time=rows["event_time"].iloc[0]), "target", time_column="event_time")
    with pytest.raises(UnusableTarget):
        get_data_loader().split_data(rows.assign(target=1))


def test_the_loader_splits_the_same_way() -> None:
    rows = generate_sample_data(200)
    pd.testing.assert_frame_equal(get_data_loader().split_data(rows).test, split_frame(rows, "target").test)
