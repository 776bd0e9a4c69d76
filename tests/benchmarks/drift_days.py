"""Flights by day, the days shuffled: days are exchangeable, the rows of a day are not."""

import numpy as np
import pandas as pd

from forge_core.data.flights import load_flights
from forge_core.monitoring.drift_alarm import CALIBRATION_WINDOWS
from forge_core.monitoring.window_series import WindowSeries
from forge_core.statistics.distributions import ReferenceGrid

CATEGORIES = ["carrier", "origin", "dest", "weekday"]
NUMBERS = ["distance", "hour", "temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"]
N_REFERENCE = 2 * CALIBRATION_WINDOWS


def load_days() -> list[pd.DataFrame]:
    """Return the flights of each day, 14 features."""
    rows = load_flights()
    local = rows["time_hour"].dt.tz_convert("America/New_York")
    rows = rows.assign(weekday=local.dt.day_name())
    return [part.reset_index(drop=True) for _, part in rows.groupby(local.dt.date)]


def shuffled(days: list[pd.DataFrame], rng: np.random.Generator) -> list[pd.DataFrame]:
    """Return 60 + 60 days of reference and 200 of stream, or as many as there are, in random order."""
    return [days[i] for i in rng.permutation(len(days))[: N_REFERENCE + 200]]


def series_of(days: list[pd.DataFrame]) -> WindowSeries:
    """Return the days as windows on the grid that the first 60 fix."""
    base = pd.concat(days[:CALIBRATION_WINDOWS], ignore_index=True)
    grid = ReferenceGrid.fit(base, CATEGORIES, NUMBERS)
    return WindowSeries.of(grid, [grid.count(day) for day in days])
