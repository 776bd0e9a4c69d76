"""Rows in three parts, before anything is fitted: by time, or by a hash of each row, key or group."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forge_core.data.coercion import Kind, coerce, kind_of_dtype
from forge_core.data.hashing import row_hashes
from forge_core.errors import ConfigurationError, EmptyData, SchemaViolation, UnusableTarget

Rows = NDArray[np.intp]
Parts = list[Rows]

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
    group_column: str | None = None,
    stratify: bool = False,
    key_column: str | None = None,
    feature_columns: Sequence[str] | None = None,
    validation_share: float = 0.15,
    test_share: float = 0.15,
    random_state: int = 0,
) -> DataSplit:
    """Return the rows in three parts.

    With nothing said each row's own hash decides: classes keep their balance by chance, equal rows stay together,
    and no row ever changes its part when others are added.

    Parameters
    ----------
    time_column : str, optional
        The newest rows are the test part and those before them the validation part; rows of one moment stay
        together, and where the rows span more than 14 days, rows of one day (UTC).
    group_column : str, optional
        The hash of a row's group decides, so that no group straddles parts, nor changes its part.
    stratify : bool
        Of each class of the target, those with the smallest hashes are the test part, and so on: shares are
        exact within one row a class, and a rare class is in every part; but rows beside a border change their
        part when others are added. At most one of `time_column`, `group_column` and `stratify`.
    key_column : str, optional
        What names a row: hashed in place of the whole row, so that a row whose other cells are corrected, or
        whose label comes later, keeps its part too. Rows of one key stay together.
    feature_columns : sequence of str, optional
        Columns of `X_…`; by default all but the target and the columns named above.
    validation_share, test_share : float
        Shares in [0, 1) that leave something to train on. Chance (by hash) or borders between moments make them
        approximate; groups count as one each, whatever their size.
    random_state : int
        Salt of the hash; a split by time does not depend on it.

    Raises
    ------
    ConfigurationError
        For more than one strategy, or shares that leave nothing to train on.
    SchemaViolation
        When a named column is missing, or a row has no time, group or key.
    UnusableTarget
        When a class has too few rows to be in every part of a stratified split, or a row has no class.
    EmptyData
        When a part with a positive share would be empty.
    """
    shares = (validation_share, test_share)
    if min(shares) < 0 or sum(shares) >= 1:
        raise ConfigurationError(f"expected shares from 0 on that add up to less than 1, found {shares}")
    strategies = {"time_column": time_column, "group_column": group_column, "stratify": stratify}
    if len(chosen := [name for name, value in strategies.items() if value]) > 1:
        raise ConfigurationError(f"expected one way to split, found {' and '.join(chosen)}; choose one of them")
    special = [c for c in (target_column, time_column, group_column, key_column) if c is not None]
    if missing := [c for c in (*special, *(feature_columns or [])) if c not in frame]:
        raise SchemaViolation(
            f"expected the columns {', '.join(missing)}, found {', '.join(map(str, frame.columns))}",
            context={"missing": missing},
        )
    if time_column:
        parts = _by_time(frame[time_column], *shares)
    else:
        places = row_places(frame, random_state, group_column or key_column)[:, 0]
        parts = _by_class(frame[target_column], places, *shares) if stratify else _by_place(places, *shares)
    if feature_columns is None:
        feature_columns = [c for c in frame.columns if c not in special]
    train, validation, test = (frame.iloc[part].reset_index(drop=True) for part in parts)
    for name, part, share in (
        ("training", train, 1.0),
        ("validation", validation, validation_share),
        ("test", test, test_share),
    ):
        if share and part.empty:
            groups = f" in {frame[group_column].nunique()} groups" if group_column else ""
            raise EmptyData(
                f"expected rows for the {name} part, found none among {len(frame)} rows{groups}; "
                f"add {'groups' if group_column else 'rows'}{'' if time_column else ' or take another random_state'}"
            )
    return DataSplit(train, validation, test, target_column, list(feature_columns))


def row_places(frame: pd.DataFrame, random_state: int, name: str | None = None) -> NDArray[np.float64]:
    """Return two independent numbers in [0, 1) for each row, shape (n_rows, 2), the same in whatever table it stands.

    Parameters
    ----------
    name : str, optional
        The column whose values are placed, such as a key or a group; by default whole rows.

    Raises
    ------
    SchemaViolation
        When a row has no value in that column.
    """
    named = frame if name is None else frame[[name]]
    if name is not None and (missing := int(named[name].isna().sum())):
        raise SchemaViolation(f"expected a value in every row of {name!r}, found {missing} rows without one")
    salted = named.assign(**{"": np.int64(random_state)})
    return row_hashes(salted, {str(c): _lasting_kind(salted[c]) for c in salted}) / 2.0**64


def part_numbers(places: NDArray[np.float64], validation_share: float, test_share: float) -> NDArray[np.int8]:
    """Return the part of each place: 0 training, 1 validation, 2 test."""
    return np.where(places < test_share, 2, np.where(places < test_share + validation_share, 1, 0)).astype(np.int8)


def _by_time(times: pd.Series, validation_share: float, test_share: float) -> Parts:
    moments = times
    if not pd.api.types.is_numeric_dtype(times.dtype) and not pd.api.types.is_datetime64_any_dtype(times.dtype):
        moments, bad = coerce(times, "datetime")
        if bad.any():
            raise SchemaViolation(
                f"expected times in {times.name!r}, found {times[bad].iloc[0]!r} ({int(bad.sum())} such rows); "
                "check the rows first"
            )
    if missing := int(moments.isna().sum()):
        raise SchemaViolation(f"expected a time in every row of {times.name!r}, found {missing} rows without one")
    order = moments.argsort(kind="stable").to_numpy()
    ordered = moments.iloc[order].reset_index(drop=True)
    if pd.api.types.is_datetime64_any_dtype(ordered) and len(ordered) and ordered.iloc[-1] - ordered.iloc[0] > _DAYS:
        ordered = ordered.dt.floor("D")
    borders = np.flatnonzero(ordered.ne(ordered.shift()).to_numpy())[1:]
    return _cut(order, borders, validation_share, test_share)


def _cut(order: Rows, borders: Rows, validation_share: float, test_share: float) -> Parts:
    """Return ordered rows in three parts, cut at the borders nearest to the shares; the last ones are the test part."""
    n_rows = len(order)
    above = borders[1:] if validation_share and len(borders) > 1 else borders
    last = _nearest(above, n_rows * (1 - test_share), n_rows) if test_share else n_rows
    below = borders[borders < last]
    first = _nearest(below, n_rows * (1 - test_share - validation_share), last) if validation_share else last
    return [order[:first], order[first:last], order[last:]]


def _nearest(borders: Rows, wanted: float, otherwise: int) -> int:
    return int(borders[np.argmin(np.abs(borders - wanted))]) if len(borders) else otherwise


def _lasting_kind(values: pd.Series) -> Kind:
    """Return the kind to hash a column as; the same before and after the first missing cell changes its dtype."""
    if values.dtype == object and pd.api.types.infer_dtype(values, skipna=True) == "boolean":
        return "boolean"
    kind = kind_of_dtype(values.dtype)
    return "number" if kind == "integer" else kind


def _by_place(places: NDArray[np.float64], *shares: float) -> Parts:
    part = part_numbers(places, *shares)
    return [np.flatnonzero(part == number) for number in range(3)]


def _by_class(target: pd.Series, places: NDArray[np.float64], *shares: float) -> Parts:
    codes, classes = pd.factorize(target)
    if missing := int((codes < 0).sum()):
        raise UnusableTarget(f"expected a class in every row of {target.name!r}, found {missing} rows without one")
    n_parts = 1 + sum(share > 0 for share in shares)
    cuts: list[Parts] = []
    for code, label in enumerate(classes):
        rows = np.flatnonzero(codes == code)
        rows = rows[np.argsort(-places[rows], kind="stable")]
        borders = np.flatnonzero(np.diff(places[rows])) + 1
        if len(borders) + 1 < n_parts:
            raise UnusableTarget(
                f"expected {n_parts} different rows or more of every class of {target.name!r} to stratify by, found "
                f"{len(borders) + 1} of {str(label)!r}; add rows, join classes, or split without stratify",
                context={"target": str(target.name), "class": str(label)},
            )
        cuts.append(_cut(rows, borders, *shares))
    return [np.sort(np.concatenate([cut[number] for cut in cuts])) for number in range(3)]
