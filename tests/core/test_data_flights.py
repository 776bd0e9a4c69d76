"""The demo's data, against figures that were counted independently."""

from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from forge_core.data.flights import COLUMNS, WEATHER, flights_contract, load_flights

pytestmark = pytest.mark.slow

LATE_BY_MONTH = [0.24, 0.24, 0.24, 0.29, 0.23, 0.32, 0.32, 0.25, 0.14, 0.18, 0.18, 0.34]


@pytest.fixture(scope="module")
def flights() -> pd.DataFrame:
    return load_flights()


def test_the_late_share_of_every_month_is_as_known(flights: pd.DataFrame) -> None:
    share = flights.groupby(flights["time_hour"].dt.tz_convert("America/New_York").dt.month)["late"].mean()
    assert share.tolist() == pytest.approx(LATE_BY_MONTH, abs=0.006)


def test_rows_are_unique_ordered_and_typed(flights: pd.DataFrame) -> None:
    assert list(flights.columns) == COLUMNS
    assert len(flights) == 327_346
    assert flights["flight_id"].is_unique
    assert "2013-01-01T0515-UA1545-EWR" in set(flights["flight_id"])
    pd.testing.assert_frame_equal(flights, flights.sort_values(["time_hour", "flight_id"], ignore_index=True))
    assert {str(flights[c].dtype) for c in ("time_hour", "known_at")} == {"datetime64[us, UTC]"}
    assert {str(flights[c].dtype) for c in ("carrier", "origin", "dest", "flight_id")} == {"str"}
    assert {str(flights[c].dtype) for c in ("distance", "hour", *WEATHER)} == {"float64"}


def test_a_label_is_known_an_hour_after_departure_at_the_earliest(flights: pd.DataFrame) -> None:
    assert (flights["known_at"] - flights["time_hour"]).min() >= timedelta(hours=1)


def test_most_flights_have_weather(flights: pd.DataFrame) -> None:
    assert 0.004 < flights["temp"].isna().mean() < 0.01


def test_the_contract_holds_for_all_flights(flights: pd.DataFrame) -> None:
    contract = flights_contract()
    assert contract.check(flights, 0.0).n_bad == 0
    assert contract.feature_columns == ["carrier", "origin", "dest", "distance", "hour", *WEATHER]


def test_time_limits_are_half_open_and_late_labels_stay_out() -> None:
    since, until = datetime(2013, 4, 1, tzinfo=UTC), datetime(2013, 4, 2, tzinfo=UTC)
    day = load_flights(since=since, until=until)
    assert day["time_hour"].min() >= since
    assert day["time_hour"].max() < until
    known = load_flights(since=since, until=until, labels_until=until)
    assert known["known_at"].max() <= until
    assert 0 < len(known) < len(day)
