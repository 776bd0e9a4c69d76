"""From an address to a frame: `flights:`, `sample:`, or a file; and what happens to it before the contract.

flights:?since=2013-01-01&until=2013-04-01&labels_until=2013-04-01
sample:?rows=5000&drift=1.0&seed=3&label_delay_hours=24
data/rows.csv   s3://bucket/rows.parquet   https://host/rows.jsonl
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pandas as pd

from forge_core.data.coercion import coerce
from forge_core.data.contracts import Contract
from forge_core.data.files import file_fingerprint, read_table
from forge_core.data.flights import flights_contract, load_flights
from forge_core.data.sample import generate_sample_data, sample_contract
from forge_core.data.splits import DataSplit, split_frame
from forge_core.errors import ConfigurationError, EmptyData, UnusableTarget

logger = logging.getLogger(__name__)

_ISO_TIME = r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?"
_TIMES = ("since", "until", "labels_until")


class DataLoader:
    """Loads, tidies and splits tables; see the module for the addresses.

    Examples
    --------
    >>> loader = get_data_loader()
    >>> rows = loader.preprocess_data(loader.load_data("sample:?rows=200"))
    >>> loader.split_data(rows, target_column="target", time_column="event_time").test.shape
    (30, 6)
    """

    def load_data(self, source: str | Path | pd.DataFrame, **options: Any) -> pd.DataFrame:
        """Return the rows at an address; a frame comes back as it is.

        Parameters
        ----------
        source : str, Path or DataFrame
            An address as in the module's head.
        **options
            As in the address' query, over which they win; None says nothing. `since`, `until` and
            `labels_until` (ISO times or datetimes, UTC) choose rows of `flights:` and `sample:` only, since
            a file does not say which column is its time.

        Raises
        ------
        ConfigurationError
            For an unknown kind of source or option, listing the known ones.
        DataNotFound, EmptyData, UnreadableData
            Naming the address.
        """
        options = {name: value for name, value in options.items() if value is not None}
        if not isinstance(source, pd.DataFrame) and (parsed := _scheme(str(source))):
            name, query = parsed
            frame = _SCHEMES[name][0](name, {**query, **options})
            if frame.empty:
                raise EmptyData(f"{source} has no rows with {options or query}; widen the time span")
            return frame
        if unknown := sorted(set(options) - set(_TIMES)):
            raise ConfigurationError(
                f"files and frames have no option {', '.join(unknown)}; known: {', '.join(_TIMES)}"
            )
        if isinstance(source, pd.DataFrame):
            return source
        if options:
            logger.info("source=%s ignored=%s reason=files_are_taken_whole", source, ",".join(sorted(options)))
        return read_table(str(source))

    def preprocess_data(self, data: pd.DataFrame) -> pd.DataFrame:
        """Return the rows with tidy types and without exact duplicates; learns nothing from them.

        Text in which every cell is an ISO 8601 time becomes UTC datetimes, naive datetimes become UTC, mixed
        columns become text, column names become text without outer spaces. `attrs["duplicates_dropped"]`
        has the number of rows dropped.
        """
        columns = [str(c).strip() for c in data.columns]
        tidy = data.set_axis(columns, axis=1).infer_objects()
        tidy = tidy.assign(**{c: _tidy(tidy[c]) for c in tidy.columns if not _is_plain(tidy[c])})
        kept = tidy.drop_duplicates(ignore_index=True)
        kept.attrs["duplicates_dropped"] = len(tidy) - len(kept)
        return kept

    def split_data(
        self,
        data: pd.DataFrame,
        target_column: str = "target",
        *,
        time_column: str | None = None,
        feature_columns: Sequence[str] | None = None,
        validation_share: float = 0.15,
        test_share: float = 0.15,
        random_state: int = 0,
    ) -> DataSplit:
        """Return training, validation and test part; see `forge_core.data.splits.split_frame`.

        Raises
        ------
        UnusableTarget
            See `check_target`.
        """
        check_target(data, target_column)
        return split_frame(
            data,
            target_column,
            time_column=time_column,
            feature_columns=feature_columns,
            validation_share=validation_share,
            test_share=test_share,
            random_state=random_state,
        )


def get_data_loader() -> DataLoader:
    """Return a loader for all known kinds of source."""
    return DataLoader()


def get_contract(source: str) -> Contract | None:
    """Return the contract written by hand for a source, or None where one has to be inferred."""
    parsed = _scheme(source)
    return _SCHEMES[parsed[0]][1]() if parsed else None


def source_fingerprint(source: str) -> str | None:
    """Return a hash that changes when the rows behind an address may have; None where nothing is there."""
    if _scheme(source):
        # Rows of flights: and sample: follow from the address and the code alone.
        return hashlib.sha256(source.encode()).hexdigest()
    return file_fingerprint(source)


def check_target(frame: pd.DataFrame, target: str, *, source: str = "the data") -> None:
    """Pass a target that something can be learnt from.

    Raises
    ------
    UnusableTarget
        The column is missing, has no values, or has one value only.
    """
    if target not in frame:
        raise UnusableTarget(
            f"expected the target column {target!r} in {source}, found {', '.join(map(str, frame.columns))}",
            context={"target": target},
        )
    counts = frame[target].value_counts()
    missing = int(frame[target].isna().sum())
    if len(counts) == 0:
        raise UnusableTarget(
            f"expected values in the target {target!r} of {source}, found {missing:,} missing and none present",
            context={"target": target, "missing": missing},
        )
    if len(counts) == 1:
        raise UnusableTarget(
            f"expected at least two values in the target {target!r} of {source}, found only "
            f"{str(counts.index[0])!r} ({counts.iloc[0]:,} rows, {missing:,} missing); add rows of the other class",
            context={"target": target, "counts": {str(counts.index[0]): int(counts.iloc[0])}},
        )


def _scheme(source: str) -> tuple[str, dict[str, str]] | None:
    name, colon, rest = source.partition(":")
    if not colon or name not in _SCHEMES:
        return None
    return name, dict(parse_qsl(rest.removeprefix("?"), keep_blank_values=True))


def _flights(name: str, options: Mapping[str, Any]) -> pd.DataFrame:
    return load_flights(**_read_options(name, options, dict.fromkeys(_TIMES, _moment)))


def _sample(name: str, options: Mapping[str, Any]) -> pd.DataFrame:
    known: dict[str, Callable[[Any], Any]] = {
        "rows": int, "drift": float, "seed": int, "label_delay_hours": float, "rows_per_hour": float,
        "start": _moment, **dict.fromkeys(_TIMES, _moment),
    }  # fmt: skip
    chosen = _read_options(name, options, known)
    since, until, labels_until = (chosen.pop(option, None) for option in _TIMES)
    names = {"rows": "n_rows", "seed": "random_state"}
    frame = generate_sample_data(**{names.get(option, option): value for option, value in chosen.items()})
    keep = pd.Series(True, index=frame.index)
    if since is not None:
        keep &= frame["event_time"] >= since
    if until is not None:
        keep &= frame["event_time"] < until
    if labels_until is not None:
        keep &= frame["known_at"] <= labels_until
    return frame[keep].reset_index(drop=True)


_SCHEMES: dict[str, tuple[Callable[[str, Mapping[str, Any]], pd.DataFrame], Callable[[], Contract]]] = {
    "flights": (_flights, flights_contract),
    "sample": (_sample, sample_contract),
}


def _read_options(name: str, options: Mapping[str, Any], known: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    if unknown := sorted(set(options) - set(known)):
        raise ConfigurationError(f"{name}: has no option {', '.join(unknown)}; known: {', '.join(known)}")
    read = {}
    for option, value in options.items():
        try:
            read[option] = known[option](value)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{name}: cannot use {option}={value!r}: {error}") from error
    return read


def _moment(value: str | datetime) -> datetime:
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _is_plain(values: pd.Series) -> bool:
    return values.dtype.kind in "iufb" and not pd.api.types.is_extension_array_dtype(values.dtype)


def _tidy(values: pd.Series) -> pd.Series:
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return coerce(values, "datetime").values
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.astype("str")
    if pd.api.types.is_bool_dtype(values.dtype):
        return coerce(values, "boolean").values
    if pd.api.types.is_numeric_dtype(values.dtype):
        whole = pd.api.types.is_integer_dtype(values.dtype) and not values.hasnans
        return values.astype("int64" if whole else "float64")
    present = values.dropna()
    if values.dtype == object and len(present) and present.map(lambda v: isinstance(v, bool)).all():
        return coerce(values, "boolean").values
    texts = values.where(values.isna(), values.astype(str)).astype("str") if values.dtype == object else values
    present = texts.dropna()
    if len(present) and pd.Series(present.iloc[:1]).str.fullmatch(_ISO_TIME).all():
        times = coerce(texts, "datetime")
        if present.str.fullmatch(_ISO_TIME).all() and not times.bad.any():
            return times.values
    return texts
