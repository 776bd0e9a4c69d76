import json

import numpy as np
import pandas as pd
import pytest

from forge_core.errors import EmptyData, SchemaViolation
from forge_core.statistics.cells import MAX_LEVELS, NumericCells
from forge_core.statistics.counts import GridCounts
from forge_core.statistics.distributions import ReferenceGrid


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def frame(rng: np.random.Generator) -> pd.DataFrame:
    n = 3000
    return pd.DataFrame(
        {
            "age": np.where(rng.random(n) < 0.05, np.nan, rng.normal(40, 10, n)),
            "rain": np.where(rng.random(n) < 0.7, 0.0, rng.exponential(size=n)),
            "hour": rng.integers(0, 24, n),
            "city": rng.choice(np.array(["a", "b", None], dtype=object), n),
        }
    )


def grid_of(frame: pd.DataFrame) -> ReferenceGrid:
    return ReferenceGrid.fit(frame, categorical=["city"], numerical=["age", "rain", "hour"])


def test_every_reference_row_is_counted_once_and_none_is_out_of_range(frame: pd.DataFrame) -> None:
    counts = grid_of(frame).count(frame)
    for name in frame:
        assert counts[name].n_rows == 3000
        assert counts[name].below == counts[name].above == counts[name].unseen == 0
        assert counts[name].missing == frame[name].isna().sum()


def test_quantile_cells_of_a_continuous_column_hold_equal_shares(frame: pd.DataFrame) -> None:
    cells = grid_of(frame).count(frame)["age"].cells
    assert len(cells) == 64
    assert cells.max() - cells.min() <= 2


def test_discrete_values_have_exact_cells(frame: pd.DataFrame) -> None:
    counts = grid_of(frame).count(frame)
    np.testing.assert_array_equal(counts["hour"].cells, frame["hour"].value_counts().sort_index())
    assert counts["rain"].cells[0] == (frame["rain"] == 0).sum()


def test_a_value_on_an_edge_belongs_to_the_cell_that_it_closes() -> None:
    grid = ReferenceGrid.fit(pd.DataFrame({"x": [1, 2, 3]}), [], ["x"])
    counts = grid.count(pd.DataFrame({"x": [0.999, 1, 2, 2.5, 3, 3.001, np.inf, -np.inf, None]}))["x"]
    assert counts.cells.tolist() == [1, 1, 2]
    assert (counts.below, counts.above, counts.missing) == (2, 2, 1)


def test_a_constant_column_has_one_cell_and_still_sees_changes() -> None:
    grid = ReferenceGrid.fit(pd.DataFrame({"x": [5.0] * 100}), [], ["x"])
    counts = grid.count(pd.DataFrame({"x": [5.0, 4.9, 5.1]}))["x"]
    assert (counts.cells.tolist(), counts.below, counts.above) == ([1], 1, 1)


def test_values_of_a_column_that_was_empty_are_unseen() -> None:
    grid = ReferenceGrid.fit(pd.DataFrame({"x": [np.nan] * 10}), [], ["x"])
    assert grid.count(pd.DataFrame({"x": [1.0, np.nan]}))["x"].unseen == 1
    assert ReferenceGrid.from_dict(json.loads(json.dumps(grid.to_dict()))).digest == grid.digest


def test_text_in_a_numeric_column_is_unseen_and_not_missing() -> None:
    grid = ReferenceGrid.fit(pd.DataFrame({"x": [1, 2, 3]}), [], ["x"])
    counts = grid.count(pd.DataFrame({"x": ["2", "n/a", None]}))["x"]
    assert (counts.cells.tolist(), counts.unseen, counts.missing) == ([0, 1, 0], 1, 1)


def test_integers_stay_the_same_level_when_a_missing_value_makes_them_floats() -> None:
    grid = ReferenceGrid.fit(pd.DataFrame({"k": [1, 2, 2]}), ["k"], [])
    counts = grid.count(pd.DataFrame({"k": [1.0, 2.0, np.nan]}))["k"]
    assert (counts.cells.tolist(), counts.unseen, counts.missing) == ([1, 1], 0, 1)


def test_pandas_categories_booleans_and_text_count_alike() -> None:
    grid = ReferenceGrid.fit(pd.DataFrame({"k": ["x", "y", "y"], "b": [True, False, True]}), ["k", "b"], [])
    now = pd.DataFrame({"k": pd.Categorical(["y", "x", None]), "b": pd.Series([True, None, False], dtype=object)})
    counts = grid.count(now)
    assert counts["k"].cells.tolist() == [1, 1] and counts["k"].missing == 1
    assert counts["b"].cells.tolist() == [1, 1] and counts["b"].missing == 1


def test_levels_beyond_the_most_frequent_go_to_the_rest() -> None:
    levels = [f"l{i}" for i in range(MAX_LEVELS + 50)]
    grid = ReferenceGrid.fit(pd.DataFrame({"k": levels + levels[:MAX_LEVELS]}), ["k"], [])
    assert grid.count(pd.DataFrame({"k": levels}))["k"].unseen == 50


def test_counts_of_parts_add_up_to_the_counts_of_the_whole_in_any_order(frame: pd.DataFrame) -> None:
    grid = grid_of(frame)
    a, b, c = (grid.count(part) for part in (frame[:10], frame[10:1500], frame[1500:]))
    whole = grid.count(frame).to_dict()
    assert ((a + b) + c).to_dict() == (a + (b + c)).to_dict() == ((c + a) + b).to_dict() == whole
    assert (grid.empty() + a).to_dict() == a.to_dict()


def test_counts_of_different_grids_do_not_add_up(frame: pd.DataFrame) -> None:
    other = ReferenceGrid.fit(frame[:100], ["city"], ["age", "rain", "hour"])
    with pytest.raises(ValueError, match="same reference"):
        _ = grid_of(frame).count(frame) + other.count(frame)


def test_grid_and_counts_survive_json(frame: pd.DataFrame) -> None:
    grid = grid_of(frame)
    again = ReferenceGrid.from_dict(json.loads(json.dumps(grid.to_dict())))
    assert again == grid and again.digest == grid.digest
    counts = grid.count(frame)
    assert GridCounts.from_dict(json.loads(json.dumps(counts.to_dict()))).to_dict() == counts.to_dict()


def test_missing_columns_and_empty_references_are_errors_that_say_so(frame: pd.DataFrame) -> None:
    with pytest.raises(SchemaViolation, match="income"):
        ReferenceGrid.fit(frame, [], ["income"])
    with pytest.raises(SchemaViolation, match="city"):
        grid_of(frame).count(frame.drop(columns="city"))
    with pytest.raises(EmptyData):
        grid_of(frame[:0])


def test_one_outlier_in_the_reference_widens_only_the_last_cell(rng: np.random.Generator) -> None:
    values = rng.normal(size=1000)
    clean = ReferenceGrid.fit(pd.DataFrame({"x": values}), [], ["x"]).features["x"]
    dirty = ReferenceGrid.fit(pd.DataFrame({"x": [*values, 1e6]}), [], ["x"]).features["x"]
    assert isinstance(clean, NumericCells) and isinstance(dirty, NumericCells)
    assert dirty.edges[-1] == 1e6
    np.testing.assert_allclose(clean.edges[:-1], dirty.edges[:-1], atol=0.3)
