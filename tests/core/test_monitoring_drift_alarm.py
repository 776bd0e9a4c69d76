import numpy as np
import pandas as pd
import pytest

from forge_core.monitoring.drift_alarm import (
    PAIRS,
    exchangeable_alarm,
    independent_alarm,
    rows_look_independent,
)
from forge_core.monitoring.window_series import WindowSeries
from forge_core.statistics.distributions import ReferenceGrid

pytestmark = pytest.mark.slow


def _rows(rng: np.random.Generator, n: int, day: float = 0.0) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": rng.normal(40 + day, 10, n),
            "income": rng.lognormal(3, 1, n),
            "city": rng.choice(["a", "b", "c"], n, p=[0.6, 0.3, 0.1]),
        }
    )


@pytest.fixture(scope="module")
def reference() -> pd.DataFrame:
    return _rows(np.random.default_rng(0), 10_000)


@pytest.fixture(scope="module")
def grid(reference: pd.DataFrame) -> ReferenceGrid:
    return ReferenceGrid.fit(reference, ["city"], ["age", "income"])


def _series(grid: ReferenceGrid, frames: list[pd.DataFrame]) -> WindowSeries:
    return WindowSeries.of(grid, [grid.count(frame) for frame in frames])


def test_independent_rows_alarm_on_drift_and_name_the_feature(reference: pd.DataFrame, grid: ReferenceGrid) -> None:
    rng = np.random.default_rng(1)
    frames = [_rows(rng, 400) for _ in range(30)]
    calm = independent_alarm(grid.count(reference), _series(grid, frames))
    assert calm.enough and not calm.alarm and calm.first is None
    frames += [_rows(rng, 400).assign(age=lambda f: f["age"] + 4) for _ in range(4)]
    found = independent_alarm(grid.count(reference), _series(grid, frames))
    assert found.alarm and found.features == ("age",) and found.first in (30, 31, 32)


def test_a_change_of_correlation_alone_is_seen(reference: pd.DataFrame, grid: ReferenceGrid) -> None:
    rng = np.random.default_rng(2)
    frames = []
    for _ in range(5):
        rows = _rows(rng, 400)
        order = np.argsort(np.argsort(rows["age"] + rng.normal(0, 8, 400)))
        frames.append(rows.assign(income=np.sort(rows["income"].to_numpy())[order]))
    found = independent_alarm(grid.count(reference), _series(grid, frames))
    assert found.alarm and found.features == (PAIRS,)


def test_days_that_differ_alarm_where_rows_are_called_independent_and_not_where_days_are_ranked(
    reference: pd.DataFrame, grid: ReferenceGrid
) -> None:
    rng = np.random.default_rng(3)
    days = [_rows(rng, 400, day=rng.normal(0, 4)) for _ in range(160)]
    series = _series(grid, days)
    assert not rows_look_independent(series)
    assert independent_alarm(grid.count(reference), series).first is not None
    calm = exchangeable_alarm(series)
    assert calm.enough and calm.first is None
    moved = exchangeable_alarm(_series(grid, [*days, *(_rows(rng, 400, day=rng.normal(18, 4)) for _ in range(10))]))
    assert moved.alarm and moved.features[0] == "age" and moved.first is not None and moved.first >= 100


def test_ranking_waits_for_enough_windows_and_says_so(grid: ReferenceGrid) -> None:
    rng = np.random.default_rng(4)
    few = exchangeable_alarm(_series(grid, [_rows(rng, 50) for _ in range(20)]))
    assert not few.enough and not few.alarm and "needs 60 windows" in few.reason and "has 20" in few.reason


def test_independent_rows_look_so(grid: ReferenceGrid) -> None:
    rng = np.random.default_rng(5)
    assert rows_look_independent(_series(grid, [_rows(rng, 300) for _ in range(60)]))


def test_weekdays_are_compared_with_weekdays(grid: ReferenceGrid) -> None:
    rng = np.random.default_rng(6)
    weekend = [number % 7 >= 5 for number in range(420)]
    series = _series(grid, [_rows(rng, 200, day=15.0 if off else 0.0) for off in weekend])
    assert exchangeable_alarm(series, strata=weekend).first is None


@pytest.mark.parametrize("value", [1e6, -1e6])
def test_one_wild_value_or_one_new_level_changes_no_verdict(
    reference: pd.DataFrame, grid: ReferenceGrid, value: float
) -> None:
    rows = _rows(np.random.default_rng(7), 1000)
    rows.loc[3, "age"] = value
    rows.loc[4, "city"] = "never seen"
    assert not independent_alarm(grid.count(reference), _series(grid, [rows])).alarm


def test_a_window_of_missing_values_alarms_and_a_constant_column_does_not(reference: pd.DataFrame) -> None:
    constant = reference.assign(same=1.0, age=reference["age"])
    grid = ReferenceGrid.fit(constant, ["city"], ["age", "same"])
    rows = _rows(np.random.default_rng(8), 500).assign(same=1.0)
    assert not independent_alarm(grid.count(constant), _series(grid, [rows])).alarm
    gone = independent_alarm(grid.count(constant), _series(grid, [rows.assign(age=np.nan)]))
    assert gone.alarm and gone.features == ("age",)


def test_no_window_and_an_empty_window_are_no_alarm(reference: pd.DataFrame, grid: ReferenceGrid) -> None:
    none = independent_alarm(grid.count(reference), _series(grid, []))
    assert not none.enough and not none.alarm
    assert not independent_alarm(grid.count(reference), _series(grid, [reference.iloc[:0]])).alarm
    assert not exchangeable_alarm(_series(grid, [reference.iloc[:0]] * 70)).alarm
