"""Features: fitted on training rows, the same numbers ever after."""

import json
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
from forge_core.errors import ConfigurationError, DataNotFound, SchemaViolation, UnreadableData

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
