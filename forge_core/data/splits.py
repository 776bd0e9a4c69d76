"""Rows in three parts, before anything is fitted: by time where there is one, else by a hash of each row."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forge_core.data.hashing import row_hashes
from forge_core.errors import ConfigurationError, EmptyData, SchemaViolation

# From this span on, a border falls between two days.
_DAYS = pd.Timedelta(days=14)


@dataclass(frozen=True)
class DataSplit:
    """Training, validation and test rows with all their columns, and the views that models take.

    `X_…` hold `feature_columns` in their order, `y_…` the target.
    """

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    target_column: str
    feature_columns: list[str]

    @property
    def X_train(self) -> pd.DataFrame:
        """Features of the training rows."""
        return self.train[self.feature_columns]

    @property
    def y_train(self) -> pd.Series:
        """Target of the training rows."""
        return self.train[self.target_column]

    @property
    def X_val(self) -> pd.DataFrame:
        """Features of the validation rows."""
        return self.validation[self.feature_columns]

    @property
    def y_val(self) -> pd.Series:
        """Target of the validation rows."""
        return self.validation[self.target_column]

    @property
    def X_test(self) -> pd.DataFrame:
        """Features of the test rows."""
        return self.test[self.feature_columns]

    @property
    def y_test(self) -> pd.Series:
        """Target of the test rows."""
        return self.test[self.target_column]


def split_frame(
    frame: pd.DataFrame,
    target_column: str,
    *,
    time_column: str | None = None,
    feature_columns: Sequence[str] | None = None,
    validation_share: float = 0.15,
    test_share: float = 0.15,
    random_state: int = 0,
) -> DataSplit:
    """Return the rows in three parts.

    With a time column the newest rows are the test part and those before them the validation part; rows of one
    moment stay together, and where the rows span more than 14 days, rows of one day (UTC). Without one each
    row's own hash decides, so that classes keep their balance, equal rows stay together, and no row changes
    its part when others are added.

    Parameters
    ----------
    feature_columns : sequence of str, optional
        Columns of `X_…`; by default all but the target and the time column.
    validation_share, test_share : float
        Shares in [0, 1) that leave something to train on. Borders between moments make them approximate.
    random_state : int
        Salt of the hash; a split by time does not depend on it.

    Raises
    ------
    SchemaViolation
        When a named column is missing, or a row has no time.
    EmptyData
        When a part with a positive share would be empty.
    """
    shares = (validation_share, test_share)
    if min(shares) < 0 or sum(shares) >= 1:
        raise ConfigurationError(f"expected shares from 0 on that add up to less than 1, found {shares}")
    named = [target_column, *([time_column] if time_column else []), *(feature_columns or [])]
    if missing := [c for c in named if c not in frame]:
        raise SchemaViolation(
            f"expected the columns {', '.join(missing)}, found {', '.join(map(str, frame.columns))}",
            context={"missing": missing},
        )
    if time_column:
        parts = _by_time(frame[time_column], *shares)
    else:
        parts = _by_hash(frame, frame[target_column], *shares, random_state)
    if feature_columns is None:
        feature_columns = [c for c in frame.columns if c not in (target_column, time_column)]
    train, validation, test = (frame.iloc[part].reset_index(drop=True) for part in parts)
    for name, part, share in (
        ("training", train, 1.0),
        ("validation", validation, validation_share),
        ("test", test, test_share),
    ):
        if share and part.empty:
            raise EmptyData(f"expected rows for the {name} part, found none among {len(frame)} rows; add rows")
    return DataSplit(train, validation, test, target_column, list(feature_columns))


def _by_time(times: pd.Series, validation_share: float, test_share: float) -> list[NDArray[np.intp]]:
    moments = pd.to_datetime(times, utc=True, format="ISO8601") if times.dtype == "str" else times
    if missing := int(moments.isna().sum()):
        raise SchemaViolation(f"expected a time in every row of {times.name!r}, found {missing} rows without one")
    order = moments.argsort(kind="stable").to_numpy()
    ordered = moments.iloc[order].reset_index(drop=True)
    if pd.api.types.is_datetime64_any_dtype(ordered) and ordered.iloc[-1] - ordered.iloc[0] > _DAYS:
        ordered = ordered.dt.floor("D")
    borders = np.flatnonzero(ordered.ne(ordered.shift()).to_numpy())[1:]
    n_rows = len(order)
    last = _nearest(borders, n_rows * (1 - test_share), n_rows) if test_share else n_rows
    below = borders[borders < last]
    first = _nearest(below, n_rows * (1 - test_share - validation_share), last) if validation_share else last
    return [order[:first], order[first:last], order[last:]]


def _nearest(borders: NDArray[np.intp], wanted: float, otherwise: int) -> int:
    return int(borders[np.argmin(np.abs(borders - wanted))]) if len(borders) else otherwise


def _by_hash(
    frame: pd.DataFrame, target: pd.Series, validation_share: float, test_share: float, random_state: int
) -> list[NDArray[np.intp]]:
    salted = frame.assign(**{"": np.int64(random_state)})
    place = row_hashes(salted)[:, 0] / 2.0**64
    part = np.where(place < test_share, 2, np.where(place < test_share + validation_share, 1, 0))
    classes = target.astype("category").cat.codes.to_numpy()
    if len(np.unique(classes)) <= 20:
        for label in np.unique(classes):
            _represent(part, place, np.flatnonzero(classes == label), validation_share, test_share)
    return [np.flatnonzero(part == number) for number in range(3)]


def _represent(part: NDArray[np.int_], place: NDArray[np.float64], rows: NDArray[np.intp], *shares: float) -> None:
    """Give a rare class one row in each part that chance left without any, from the part that has most."""
    wanted = [0, *(number for number, share in enumerate(shares, start=1) if share)]
    for number in wanted:
        counts = np.bincount(part[rows], minlength=3)
        if counts[number] == 0 and counts.max() > 1:
            donors = rows[part[rows] == counts.argmax()]
            part[donors[place[donors].argmin()]] = number
