"""Tables for a notebook: whatever the address, one frame; tidied, and split before anything is fitted."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from forge_core.data.batches import Rejects, slices, typed_column
from forge_core.data.coercion import coerce
from forge_core.data.contracts import Contract
from forge_core.data.kinds import ISO_TIME, tally_kinds
from forge_core.data.sources import Source, open_source
from forge_core.data.splits import DataSplit, split_frame
from forge_core.data.target import check_target
from forge_core.settings import get_settings

logger = logging.getLogger(__name__)

# So many rejected lines are listed in a frame's attributes.
_LISTED = 1000


class DataLoader:
    """Loads, tidies and splits tables; see `forge_core.data.sources` for the addresses.

    Parameters
    ----------
    catalogue : Path, optional
        File of named sources; without it, bare names are unknown.

    Examples
    --------
    >>> loader = get_data_loader()
    >>> rows = loader.preprocess_data(loader.load_data("sample:?rows=200"))
    >>> loader.split_data(rows, target_column="target", time_column="event_time").test.shape
    (30, 6)
    """

    def __init__(self, catalogue: Path | None = None) -> None:
        self.catalogue = catalogue

    def load_data(self, source: str | Path | pd.DataFrame, **options: Any) -> pd.DataFrame:
        """Return the rows at an address; a frame comes back as it is.

        Parameters
        ----------
        source : str, Path or DataFrame
            An address, a name in the catalogue, or rows.
        **options
            See `forge_core.data.sources.open_source`.

        Returns
        -------
        DataFrame
            Cells of CSV get the type that all of a column's cells read as; columns of mixed cells, and times, stay
            text. Where lines were no rows a warning is logged, `attrs["n_rejected"]` counts them and
            `attrs["rejects"]` lists the first 1 000 (row_number, check, value, reason).

        Raises
        ------
        ConfigurationError
            For an unknown kind of source or option, listing the known ones.
        DataNotFound, EmptyData, UnreadableData, SchemaViolation
            Naming the address.
        ServiceUnavailable
            When a server does not answer.
        """
        opened = open_source(source, catalogue=self.catalogue, **options)
        if isinstance(source, pd.DataFrame):
            return source
        frame = _joined(list(opened.batches()))
        if opened.untyped:
            frame = _typed(frame)
        if len(rejects := opened.rejects):
            Rejects(opened.address, len(frame), len(rejects), _tables=[rejects]).check_share(least=1)
            first = "; ".join(rejects["reason"].head(3))
            logger.warning("source=%s lines_that_are_no_rows=%d first=%s", opened.address, len(rejects), first)
            frame.attrs["n_rejected"] = len(rejects)
            # Plain records: pandas compares attributes when it joins frames, and writes them into Parquet as JSON.
            frame.attrs["rejects"] = rejects.drop(columns="column").head(_LISTED).to_dict("records")
        return frame

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

    def split_data(self, data: pd.DataFrame, target_column: str = "target", **strategy: Any) -> DataSplit:
        """Return training, validation and test part.

        Parameters
        ----------
        target_column : str
            Column to predict.
        **strategy
            See `forge_core.data.splits.split_frame`: `time_column`, `group_column`, `stratify`, `key_column`,
            `feature_columns`, `validation_share`, `test_share`, `random_state`.

        Raises
        ------
        UnusableTarget
            See `check_target`.
        """
        check_target(data, target_column)
        return split_frame(data, target_column, **strategy)


def get_data_loader() -> DataLoader:
    """Return a loader for all known kinds of source, and the names in the catalogue of the settings."""
    return DataLoader(get_settings().catalogue_file)


def resolve(source: str | Path | pd.DataFrame, **options: Any) -> Source:
    """Return a source by address, by its name in the catalogue of the settings, or of rows; see `open_source`."""
    return open_source(source, catalogue=get_settings().catalogue_file, **options)


def get_contract(source: str) -> Contract | None:
    """Return the contract written by hand for a source, or None where one has to be inferred."""
    return resolve(source).contract()


def source_fingerprint(source: str) -> str | None:
    """Return a hash that changes when the rows behind an address may have; None where nobody can tell."""
    return resolve(source).fingerprint()


def _joined(batches: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return batches as one frame; a column whose type differed between them gets the one that fits all."""
    if len(batches) == 1:
        return batches[0].reset_index(drop=True)
    frame = pd.concat(batches, ignore_index=True)
    differ = [name for name in frame if len({str(batch[name].dtype) for batch in batches}) > 1]
    return frame.assign(**{name: typed_column(frame[name].astype(object)) for name in differ})


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return text columns as what all of their cells read as; times stay text until they are tidied."""
    tallies = tally_kinds(slices(frame), untyped=True)
    kinds = {name: tally.kind for name, tally in tallies.items() if tally.clean}
    chosen = {name: kind for name, kind in kinds.items() if kind in ("number", "integer", "boolean")}
    return frame.assign(**{name: _plain_type(coerce(frame[name], kind).values) for name, kind in chosen.items()})


def _plain_type(values: pd.Series) -> pd.Series:
    """Return whole numbers with gaps as floats, as notebooks expect them from CSV."""
    return values.astype("float64") if values.dtype == "Int64" else values


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
        if not pd.api.types.is_integer_dtype(values.dtype):
            return values.astype("float64")
        return values.astype("Int64" if values.hasnans else "int64")
    present = values.dropna()
    if values.dtype == object and len(present) and present.map(lambda v: isinstance(v, bool)).all():
        return coerce(values, "boolean").values
    texts = values.where(values.isna(), values.astype(str)).astype("str") if values.dtype == object else values
    present = texts.dropna()
    if len(present) and pd.Series(present.iloc[:1]).str.fullmatch(ISO_TIME).all():
        times = coerce(texts, "datetime")
        if present.str.fullmatch(ISO_TIME).all() and not times.bad.any():
            return times.values
    return texts
