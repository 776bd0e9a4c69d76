"""Splits: nothing in two parts, nothing lost, no future in the training rows."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from forge_core.data.loaders import get_data_loader
from forge_core.data.sample import generate_sample_data
from forge_core.data.splits import DataSplit, split_frame
from forge_core.errors import ConfigurationError, EmptyData, SchemaViolation, UnusableTarget

SLOW_START = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
HASHED: dict[str, dict[str, Any]] = {
    "row": {},
    "key": {"key_column": "row"},
    "group": {"group_column": "group"},
}


def table(n_rows: int, seed: int = 0, n_groups: int = 60) -> pd.DataFrame:
    """Return rows of every kind of column."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "row": np.arange(n_rows),
            "size": rng.integers(0, 9, n_rows),
            "flag": rng.random(n_rows) < 0.5,
            "text": pd.Series(rng.choice(["a", "b", "c"], n_rows), dtype="str"),
            "when": pd.date_range("2024-01-01", periods=n_rows, freq="h", tz="UTC"),
            "group": pd.Series(rng.integers(0, n_groups, n_rows)).astype("str"),
            "y": rng.integers(0, 2, n_rows),
        }
    )


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


@pytest.mark.slow
@SLOW_START
@given(extra=st.integers(1, 60), gaps=st.booleans(), shuffle=st.integers(0, 99), how=st.sampled_from(sorted(HASHED)))
def test_no_added_row_ever_moves_another(extra: int, gaps: bool, shuffle: int, how: str) -> None:
    rows = table(150)
    more = pd.concat([rows, table(extra, seed=shuffle + 1).assign(row=np.arange(extra) + 10_000)])
    if gaps:  # the first missing cell turns integers into floats and flags into objects
        more = more.assign(size=more["size"].where(more["row"] != 10_000), flag=more["flag"].astype(object))
        more.loc[more["row"] == 10_000, "flag"] = None
        assert more["size"].dtype == np.float64 and more["flag"].dtype == object
    more = more.sample(frac=1, random_state=shuffle)[["y", "group", "flag", "size", "text", "when", "row"]]
    before, after = (split_frame(f, "y", validation_share=0.3, test_share=0.3, **HASHED[how]) for f in (rows, more))
    for few, many in zip(parts(before), parts(after), strict=True):
        assert set(few["row"]) <= set(many["row"])


@SLOW_START
@given(n_groups=st.integers(12, 200), seed=st.integers(0, 99))
def test_no_group_straddles_parts(n_groups: int, seed: int) -> None:
    rows = table(600, n_groups=n_groups)
    try:
        split = split_frame(rows, "y", group_column="group", test_share=0.3, validation_share=0.3, random_state=seed)
    except EmptyData:
        assume(False)
    groups = [set(part["group"]) for part in parts(split)]
    assert sum(map(len, groups)) == len(set(rows["group"])) and set.union(*groups) == set(rows["group"])


def test_shares_are_kept_within_chance() -> None:
    rows = table(20_000, n_groups=4_000)
    for how in ({}, {"key_column": "row"}, {"group_column": "group"}):
        spread = 5 * np.sqrt(0.2 * 0.8 / (4_000 if "group_column" in how else 20_000))
        split = split_frame(rows, "y", validation_share=0.2, test_share=0.2, **how)
        assert abs(len(split.test) / 20_000 - 0.2) < spread + 0.005
        assert abs(len(split.validation) / 20_000 - 0.2) < spread + 0.005


def test_a_stratified_split_keeps_each_class_exactly_and_a_rare_one_everywhere() -> None:
    rows = generate_sample_data(1000)
    rows["target"] = np.select([np.arange(1000) < 3, np.arange(1000) < 203], ["rare", "some"], "many")
    split = split_frame(rows, "target", stratify=True)
    assert [int((p["target"] == "rare").sum()) for p in parts(split)] == [1, 1, 1]
    assert [int((p["target"] == "some").sum()) for p in parts(split)] == [140, 30, 30]
    assert sum(map(len, parts(split))) == 1000
    shuffled = split_frame(rows.sample(frac=1, random_state=3), "target", stratify=True)
    assert set(shuffled.test["sample_id"]) == set(split.test["sample_id"])
    assert set(split_frame(rows, "target", stratify=True, random_state=1).test["sample_id"]) != set(
        split.test["sample_id"]
    )


def test_a_class_too_rare_to_stratify_is_named() -> None:
    rows = generate_sample_data(100)
    rows["target"] = (np.arange(100) < 2).astype(int)
    with pytest.raises(UnusableTarget, match=r"expected 3 different rows or more of every class .* found 2 of '1'"):
        split_frame(rows, "target", stratify=True)
    assert split_frame(rows, "target", stratify=True, validation_share=0).test["target"].sum() == 1
    wide = split_frame(rows.assign(target=np.arange(100) < 3), "target", stratify=True, test_share=0.8)
    assert [int(p["target"].sum()) for p in parts(wide)] == [1, 1, 1]
    with pytest.raises(UnusableTarget, match="1 rows without one"):
        split_frame(
            rows.assign(target=rows["target"].astype(float).replace(0.0, 2.0).where(rows.index > 0)),
            "target",
            stratify=True,
        )


def test_a_key_keeps_a_corrected_row_in_its_part_and_is_no_feature() -> None:
    rows = table(300)
    before = split_frame(rows, "y", key_column="row")
    after = split_frame(rows.assign(text="corrected", y=1 - rows["y"]), "y", key_column="row")
    assert [list(p["row"]) for p in parts(before)] == [list(p["row"]) for p in parts(after)]
    assert before.feature_columns == ["size", "flag", "text", "when", "group"]
    grouped = split_frame(rows, "y", key_column="row", group_column="group")
    assert grouped.feature_columns == ["size", "flag", "text", "when"]
    assert not set(grouped.train["group"]) & set(grouped.test["group"])


def test_more_than_one_strategy_or_a_row_without_its_group_is_refused() -> None:
    rows = table(100)
    with pytest.raises(ConfigurationError, match="found time_column and group_column; choose one"):
        split_frame(rows, "y", time_column="when", group_column="group")
    with pytest.raises(ConfigurationError, match="found group_column and stratify"):
        split_frame(rows, "y", group_column="group", stratify=True)
    for name in ("group_column", "key_column", "time_column"):
        with pytest.raises(SchemaViolation, match="expected the columns nowhere"):
            split_frame(rows, "y", **{name: "nowhere"})
    for name in ("group_column", "key_column"):
        with pytest.raises(SchemaViolation, match="every row of 'group', found 1 rows without one"):
            split_frame(rows.assign(group=rows["group"].where(rows.index > 0)), "y", **{name: "group"})
    with pytest.raises(EmptyData, match="among 100 rows in 1 groups; add groups"):
        split_frame(rows.assign(group="one"), "y", group_column="group")


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
    with pytest.raises(SchemaViolation, match="expected times in 'event_time', found 'soon'"):
        split_frame(rows.fillna({"event_time": "soon"}), "target", time_column="event_time")


def test_times_of_any_type_give_the_same_split() -> None:
    rows = generate_sample_data(2000, rows_per_hour=2.7)
    wanted = split_frame(rows, "target", time_column="event_time")
    for times in (
        rows["event_time"].astype("str"),
        rows["event_time"].astype(object),
        rows["event_time"].dt.tz_localize(None),
    ):
        split = split_frame(rows.assign(event_time=times), "target", time_column="event_time")
        assert [list(p["sample_id"]) for p in parts(split)] == [list(p["sample_id"]) for p in parts(wanted)]


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
