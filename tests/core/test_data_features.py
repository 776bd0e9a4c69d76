"""Features: fitted on training rows, the same numbers ever after."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from skops.io import dumps, get_untrusted_types, loads

from forge_core.data.feature_engineering import FeatureEngineer, get_feature_engineer, load_features
from forge_core.data.sample import generate_sample_data
from forge_core.errors import ConfigurationError, DataNotFound, EmptyData, SchemaViolation, UnreadableData
from forge_core.models.feature_graph import feature_graph

OURS = "forge_core.data.feature_engineering.FeatureEngineer"


@pytest.fixture
def rows() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": [20.0, None, 40.0, 50.0],
            "count": [1, 2, 3, 4],
            "flag": [True, False, True, False],
            "town": ["Oslo", "Bergen", None, "Oslo"],
            "when": pd.to_datetime(["2024-01-01T05:00Z", "2024-02-03T06:00Z", "2024-03-01T07:00Z", None], utc=True),
        }
    )


def test_outputs_are_named_in_the_order_of_the_columns(rows: pd.DataFrame) -> None:
    engineer = FeatureEngineer().fit(rows)
    assert engineer.get_feature_names_out().tolist() == [
        "age", "age__missing", "count", "flag", "town=", "town=Bergen", "town=Oslo",
        "when__hour", "when__weekday", "when__month", "when__missing",
    ]  # fmt: skip
    assert engineer.input_kinds == {
        "age": "number", "count": "number", "flag": "number", "town": "category", "when": "datetime",
    }  # fmt: skip


def test_numbers_stay_and_gaps_get_the_training_median(rows: pd.DataFrame) -> None:
    matrix = FeatureEngineer().fit_transform(rows)
    assert matrix.dtype == np.float32
    expected = [
        [20, 0, 1, 1, 0, 0, 1, 5, 0, 1, 0],
        [40, 1, 2, 0, 0, 1, 0, 6, 5, 2, 0],
        [40, 0, 3, 1, 1, 0, 0, 7, 4, 3, 0],
        [50, 0, 4, 0, 0, 0, 1, 6, 4, 2, 1],
    ]
    np.testing.assert_array_equal(matrix, np.array(expected, np.float32))


def test_only_training_rows_are_learnt_from(rows: pd.DataFrame) -> None:
    engineer = FeatureEngineer().fit(rows)
    before = engineer.state_hash
    new = rows.assign(town="Tromsø", age=np.nan, when=pd.NaT)
    matrix = engineer.transform(new)
    assert (matrix[:, 4:7] == 0).all()
    assert (matrix[:, :2] == [40, 1]).all()
    assert np.isfinite(matrix).all()
    assert engineer.state_hash == before


def test_a_gap_that_training_never_saw_is_filled_without_an_output() -> None:
    engineer = FeatureEngineer().fit(pd.DataFrame({"a": [1.0, 2.0, 9.0]}))
    np.testing.assert_array_equal(engineer.transform(pd.DataFrame({"a": [None, 4.0]})), np.float32([[2], [4]]))


def test_empty_text_counts_as_missing() -> None:
    engineer = FeatureEngineer().fit(pd.DataFrame({"c": ["a", ""]}))
    np.testing.assert_array_equal(engineer.transform(pd.DataFrame({"c": [None, np.nan, ""]})), np.float32([[1, 0]] * 3))


def test_many_levels_become_a_code_by_frequency_and_a_share() -> None:
    cells = ["b"] * 3 + ["a"] * 3 + ["c"] * 2 + ["d", None]
    engineer = FeatureEngineer(max_one_hot=2, max_levels=3).fit(pd.DataFrame({"c": cells}))
    assert engineer.columns_[0]["levels"] == ["a", "b", "c"]
    matrix = engineer.transform(pd.DataFrame({"c": ["a", "b", "c", "d", "new", None]}))
    assert matrix[:, 0].tolist() == [0, 1, 2, -1, -1, -1]
    np.testing.assert_array_equal(matrix[:, 1], np.float32([0.3, 0.3, 0.2, 0, 0, 0]))


def test_numbers_named_as_categories_match_with_and_without_gaps() -> None:
    engineer = FeatureEngineer(categorical_features=["zip"]).fit(pd.DataFrame({"zip": [10, 20]}))
    matrix = engineer.transform(pd.DataFrame({"zip": [20.0, None]}))
    assert matrix.tolist() == [[0.0, 1.0], [0.0, 0.0]]


def test_scaling_standardises_numbers_and_leaves_flags(rows: pd.DataFrame) -> None:
    engineer = FeatureEngineer(scale=True).fit(rows)
    matrix = engineer.transform(rows)
    names = engineer.get_feature_names_out().tolist()
    for name in ("age", "count", "when__hour"):
        assert matrix[:, names.index(name)].mean() == pytest.approx(0, abs=1e-6)
        assert matrix[:, names.index(name)].std() == pytest.approx(1, abs=1e-6)
    assert set(matrix[:, names.index("town=Oslo")]) == {0, 1}
    assert matrix.dtype == np.float32


def test_the_guides_call_takes_exactly_the_named_columns() -> None:
    data = generate_sample_data(100)
    engineer = get_feature_engineer()
    matrix = engineer.fit_transform(data, categorical_features=["feature2"], numerical_features=["feature1"])
    assert engineer.input_columns == ["feature1", "feature2"]
    assert matrix.shape == (100, 5)


def test_a_target_among_the_features_is_refused_or_warned_about() -> None:
    data = generate_sample_data(50)
    with pytest.raises(ConfigurationError, match="'target' is among the features"):
        get_feature_engineer("target").fit(data)
    with pytest.warns(UserWarning, match="'target' among the features looks like a target"):
        get_feature_engineer().fit_transform(data, categorical_features=[], numerical_features=["feature1", "target"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_feature_engineer("target").fit(data[["feature1", "feature2"]])


def test_wrong_columns_are_named(rows: pd.DataFrame) -> None:
    engineer = FeatureEngineer().fit(rows)
    with pytest.raises(SchemaViolation, match="missing: age, town"):
        engineer.transform(rows.drop(columns=["age", "town"]))
    with pytest.raises(SchemaViolation, match="'age': expected numbers"):
        engineer.transform(rows.assign(age="old"))
    with pytest.raises(SchemaViolation, match="height"):
        FeatureEngineer(numerical_features=["height"]).fit(rows)
    with pytest.raises(ConfigurationError, match="at once"):
        FeatureEngineer(["age"], ["age"]).fit(rows)


def test_the_state_gives_back_the_engineer(rows: pd.DataFrame, tmp_path: Path) -> None:
    engineer = FeatureEngineer(scale=True).fit(rows)
    state = json.loads(json.dumps(engineer.state()))
    again = FeatureEngineer.from_state(state)
    assert again.state_hash == engineer.state_hash
    np.testing.assert_array_equal(again.transform(rows), engineer.transform(rows))
    loaded = load_features(engineer.save_features(tmp_path / "models" / "feature_metadata.json"))
    assert loaded.state() == engineer.state()


def test_changed_or_missing_feature_files_are_told(rows: pd.DataFrame, tmp_path: Path) -> None:
    file = FeatureEngineer().fit(rows).save_features(tmp_path / "f.json")
    file.write_text(file.read_text().replace("Bergen", "Berlin"))
    with pytest.raises(UnreadableData, match="were changed"):
        load_features(file)
    with pytest.raises(DataNotFound):
        load_features(tmp_path / "none.json")


def test_it_works_in_a_pipeline_that_is_cloned_and_loaded_without_pickle() -> None:
    data = generate_sample_data(300)
    X, y = data[["feature1", "feature2"]], data["target"]
    pipeline = Pipeline([("features", FeatureEngineer(target="target")), ("estimator", LogisticRegression())])
    fitted = clone(pipeline).fit(X, y)
    saved = dumps(fitted)
    assert set(get_untrusted_types(data=saved)) <= {OURS}
    again = loads(saved, trusted=[OURS])
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
    assert again.named_steps["features"].state_hash == fitted.named_steps["features"].state_hash


def test_rows_of_python_objects_give_the_same_numbers(rows: pd.DataFrame) -> None:
    engineer = FeatureEngineer().fit(rows)
    objects = pd.DataFrame({c: rows[c].astype(object).where(rows[c].notna(), None) for c in rows})
    np.testing.assert_array_equal(engineer.transform(objects), engineer.transform(rows))


EVERY_NUMBER = [
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
]


@pytest.mark.parametrize("dtype", [*EVERY_NUMBER, "Int8", "Int64", "UInt32", "Float32", "Float64"])
def test_every_number_dtype_is_a_number(dtype: str) -> None:
    rows = pd.DataFrame({"a": pd.Series([1, 2, 7], dtype=dtype)})
    engineer = FeatureEngineer().fit(rows)
    assert engineer.input_kinds == {"a": "number"}
    np.testing.assert_array_equal(engineer.transform(rows), np.float32([[1], [2], [7]]))
    if dtype[0] in "IUF":
        gap = pd.DataFrame({"a": pd.Series([1, pd.NA, 7], dtype=dtype)})
        np.testing.assert_array_equal(engineer.transform(gap), np.float32([[1], [2], [7]]))
        assert FeatureEngineer().fit(gap).transform(gap).tolist() == [[1, 0], [4, 1], [7, 0]]


@pytest.mark.parametrize("dtype", ["bool", "boolean", "object"])
def test_flags_are_numbers_with_and_without_gaps(dtype: str) -> None:
    engineer = FeatureEngineer().fit(pd.DataFrame({"f": pd.Series([True, False, True], dtype=dtype)}))
    assert engineer.input_kinds == {"f": "number"}
    for missing in (None, pd.NA, np.nan):
        cells = pd.DataFrame({"f": pd.Series([True, False, missing], dtype="boolean" if dtype == "bool" else dtype)})
        assert engineer.transform(cells).tolist() == [[1], [0], [1]]


@pytest.mark.parametrize("max_one_hot", [20, 0])
@pytest.mark.parametrize("dtype", ["str", "string[python]", "string[pyarrow]", "category", "object"])
def test_every_text_dtype_gives_the_same_levels(dtype: str, max_one_hot: int) -> None:
    cells = ["b", "a", "b", "", None, "ü"]
    wanted = FeatureEngineer(max_one_hot=max_one_hot).fit(pd.DataFrame({"c": pd.Series(cells, dtype="str")}))
    rows = pd.DataFrame({"c": pd.Series(cells, dtype=dtype)})
    engineer = FeatureEngineer(max_one_hot=max_one_hot).fit(rows)
    assert engineer.state() == wanted.state()
    np.testing.assert_array_equal(engineer.transform(rows), wanted.transform(rows))
    new = pd.DataFrame({"c": pd.Series(["never seen", "a"], dtype=dtype)})
    assert engineer.transform(new).tolist()[0] == ([-1, 0] if max_one_hot == 0 else [0, 0, 0, 0])
    np.testing.assert_array_equal(engineer.transform(new), wanted.transform(new))


def test_cells_that_python_finds_equal_stay_different_levels() -> None:
    mixed = pd.DataFrame({"c": pd.Series([1, True, 1.0, "1", 2.5, None, pd.NA], dtype=object)})
    engineer = FeatureEngineer(categorical_features=["c"]).fit(mixed)
    assert engineer.columns_[0]["levels"] == ["", "1", "2.5", "True"]
    assert engineer.transform(mixed).argmax(axis=1).tolist() == [1, 3, 1, 1, 2, 0, 0]


@pytest.mark.parametrize("dtype", ["int64", "Int64", "float32", "float64", "Float64", "object", "category"])
def test_numbers_as_categories_have_the_same_text_in_every_dtype(dtype: str) -> None:
    engineer = FeatureEngineer(categorical_features=["zip"]).fit(pd.DataFrame({"zip": ["10", "20"]}))
    assert engineer.transform(pd.DataFrame({"zip": pd.Series([20, 10], dtype=dtype)})).tolist() == [[0, 1], [1, 0]]


def test_half_a_character_is_an_unknown_level_and_no_failure() -> None:
    rows = pd.DataFrame({"c": pd.Series(["a", "\ud800", None], dtype=object)})
    assert FeatureEngineer().fit(pd.DataFrame({"c": ["a", "b"]})).transform(rows).tolist() == [[1, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize("scale", [False, True])
def test_infinities_count_as_missing_and_every_output_is_finite(scale: bool) -> None:
    cells = [1.0, 3.0, np.inf, -np.inf, 1e300, None, -5e38]
    rows = pd.DataFrame({"a": cells, "b": np.arange(7.0)})
    engineer = FeatureEngineer(scale=scale).fit(rows)
    assert engineer.columns_[0]["fill"] == 2 and engineer.columns_[0]["missing"]
    matrix = engineer.transform(rows)
    assert np.isfinite(matrix).all()
    assert matrix[:, 1].tolist() == [0, 0, 1, 1, 1, 1, 1]
    extremes = pd.DataFrame({"a": [3.4e38, -3.4e38, np.inf], "b": [-3.4e38, 3.4e38, -np.inf]})
    assert np.isfinite(engineer.transform(extremes)).all()
    # The median of two huge numbers is their mean, not infinity.
    assert FeatureEngineer().fit(pd.DataFrame({"a": [3e38, 3.2e38, None]})).columns_[0]["fill"] < 3.3e38


@pytest.mark.parametrize("scale", [False, True])
def test_the_onnx_form_gives_the_same_numbers_infinities_included(rows: pd.DataFrame, scale: bool) -> None:
    import onnxruntime

    train = rows.drop(columns="when").assign(long=["x", "y", "y", None], size=[0.1, 0.2, 0.5, 0.9])
    engineer = FeatureEngineer(scale=scale)
    engineer.fit(train.astype({"long": "str"}))
    hot = FeatureEngineer(["town", "long"], max_one_hot=2, scale=scale).fit(train)
    odd = train.assign(age=[np.inf, -np.inf, np.nan, 3.4e38], size=[np.inf, 1e300, -3.4e38, np.nan], long="new")
    for fitted in (engineer, hot):
        graph = feature_graph(fitted, output="out", opset={"": 17, "ai.onnx.ml": 3}, ir_version=8)
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        for frame in (train, odd):
            feed = {}
            for name, kind in fitted.input_kinds.items():
                cells = frame[name].fillna("") if kind == "category" else frame[name]
                with np.errstate(over="ignore"):
                    feed[name] = cells.to_numpy(object if kind == "category" else np.float32).reshape(-1, 1)
            answer = session.run(None, feed)[0]
            assert np.isfinite(answer).all()
            np.testing.assert_array_equal(answer, fitted.transform(frame))


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_parts_of_times_are_pandas_own_in_utc(unit: str, zone: str | None) -> None:
    times = pd.Series(pd.date_range("1965-02-27 23:17", periods=400, freq="61h37min", tz=zone)).dt.as_unit(unit)
    matrix = FeatureEngineer().fit_transform(pd.DataFrame({"t": times}))
    utc = times if zone is None else times.dt.tz_convert("UTC")
    np.testing.assert_array_equal(matrix, np.column_stack([utc.dt.hour, utc.dt.day_of_week, utc.dt.month]))


def test_many_rows_give_what_few_at_a_time_give() -> None:
    rng = np.random.default_rng(0)
    n_rows = 40_000
    long = pd.Series(rng.integers(0, 500, n_rows)).astype("str").where(rng.random(n_rows) > 0.01)
    rows = pd.DataFrame({"a": rng.normal(size=n_rows), "c": rng.choice(["x", "y"], n_rows), "long": long})
    rows.loc[rng.random(n_rows) < 0.1, "a"] = np.nan
    engineer = FeatureEngineer(scale=True).fit(rows)
    whole = engineer.transform(rows)
    assert whole.flags.c_contiguous and whole.shape == (n_rows, 6)
    parts = [engineer.transform(rows.iloc[start : start + 777]) for start in range(0, n_rows, 777)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert engineer.transform(rows.head(0)).shape == (0, 6)


@pytest.mark.slow
def test_a_new_process_gives_the_same_bytes(rows: pd.DataFrame, tmp_path: Path) -> None:
    rows["long"] = [f"ü{i}" for i in range(4)]
    engineer = FeatureEngineer(max_one_hot=3, scale=True).fit(rows)
    engineer.save_features(tmp_path / "features.json")
    rows.to_parquet(tmp_path / "rows.parquet")
    code = (
        "import sys, pandas as pd; from pathlib import Path\n"
        "from forge_core.data.feature_engineering import load_features\n"
        "engineer = load_features('features.json'); matrix = engineer.transform(pd.read_parquet('rows.parquet'))\n"
        "Path('out.bin').write_bytes(matrix.tobytes()); sys.stdout.write(engineer.state_hash)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "PYTHONHASHSEED": "7"}
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout == engineer.state_hash
    assert (tmp_path / "out.bin").read_bytes() == engineer.transform(rows).tobytes()


def test_a_key_among_the_features_is_refused() -> None:
    data = generate_sample_data(50)
    with pytest.raises(ConfigurationError, match="the key 'sample_id' is among the features"):
        get_feature_engineer(target="target", key="sample_id").fit(data[["sample_id", "feature1"]])
    with pytest.raises(ConfigurationError, match="the key 'known_at'"):
        FeatureEngineer(key=["no", "known_at"]).fit(data[["known_at"]])
    engineer = get_feature_engineer("target", key=["sample_id"]).fit(data[["feature1"]])
    assert FeatureEngineer.from_state(json.loads(json.dumps(engineer.state()))).state_hash == engineer.state_hash
    assert clone(engineer).key == ["sample_id"]


@pytest.mark.parametrize("name", ["id", "ID", "order_id"])
def test_a_column_named_like_an_id_is_warned_about_unless_a_key_was_told(name: str) -> None:
    rows = pd.DataFrame({name: [1, 2, 3], "a": [1.0, 2.0, 3.0]})
    with pytest.warns(UserWarning, match=f"'{name}' among the features looks like an id") as told:
        FeatureEngineer().fit_transform(rows)
    assert len(told) == 1 and told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FeatureEngineer(key="row").fit(rows)
        FeatureEngineer().fit(rows.rename(columns={name: "humid"}))


def test_text_that_names_every_row_is_warned_about() -> None:
    names = pd.DataFrame({"who": [f"person {i}" for i in range(2000)]})
    with pytest.warns(UserWarning, match="'who' among the features looks like an id"):
        FeatureEngineer(key="row").fit(names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FeatureEngineer().fit(pd.DataFrame({"who": [f"person {i % 1200}" for i in range(2000)]}))
        FeatureEngineer().fit(names.head(50))
        FeatureEngineer().fit(pd.DataFrame({"amount": np.arange(2000.0)}))


def test_engineers_of_before_there_were_keys_still_load(rows: pd.DataFrame) -> None:
    engineer = FeatureEngineer().fit(rows)
    assert "key" not in engineer.state()["parameters"]
    hash_before = engineer.state_hash
    del engineer.__dict__["key"]
    assert engineer.state_hash == hash_before and clone(engineer).key is None


def test_columns_of_one_name_and_frames_without_rows_are_refused(rows: pd.DataFrame) -> None:
    twice = pd.concat([rows, rows[["age"]]], axis=1)
    with pytest.raises(SchemaViolation, match="one column of each name, found age"):
        FeatureEngineer().fit(twice)
    with pytest.raises(SchemaViolation, match="one column of each name, found age"):
        FeatureEngineer().fit(rows).transform(twice)
    with pytest.raises(EmptyData, match="expected rows to learn"):
        FeatureEngineer().fit(rows.head(0))
