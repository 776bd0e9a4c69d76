"""Parquet and Excel: files that know their cells' types, read a batch at a time."""

import itertools
import json
from collections.abc import Iterator
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from forge_core.data.batches import BATCH_ROWS, Rejects, check_names, typed_column, typed_frame
from forge_core.data.opening import File
from forge_core.errors import ConfigurationError, UnreadableData

_BUFFER = 2**20
_NULLABLE = {
    getattr(pa, name.lower())(): getattr(pd, f"{name}Dtype")()
    for name in ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")
}


def read_parquet(file: File, rejects: Rejects) -> Iterator[pd.DataFrame]:
    """Give the rows of a Parquet file: `Int64` and `boolean` where cells are missing, decimals float64, dates
    datetimes, dictionaries `str`, nested values compact JSON."""
    with file.random_access() as raw, pq.ParquetFile(raw, buffer_size=_BUFFER, pre_buffer=False) as table:
        names = _parquet_names(table, file)
        for batch in table.iter_batches(BATCH_ROWS):
            if len(batch):
                columns = zip(names, batch.columns, strict=True)
                yield pd.DataFrame({n: pandas_column(array) for n, array in columns if not _is_index(n)})


def parquet_columns(file: File) -> list[str]:
    """Return the names of a Parquet file's columns."""
    with file.random_access() as raw, pq.ParquetFile(raw) as table:
        return [name for name in _parquet_names(table, file) if not _is_index(name)]


def pandas_column(array: pa.Array) -> pd.Series:
    """Return an Arrow column as pandas, with the types that `read_parquet` gives."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_decimal(kind) or kind == pa.float16():
        return array.cast(pa.float64()).to_pandas()
    if pa.types.is_date(kind):
        return array.cast(pa.timestamp("ms")).to_pandas()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return array.cast(pa.large_string()).to_pandas().astype("str")
    if pa.types.is_nested(kind):
        cells = array.to_pylist(maps_as_pydicts="lossy")
        return pd.Series([None if cell is None else json.dumps(cell, **_COMPACT) for cell in cells], dtype="str")
    if pa.types.is_time(kind) or pa.types.is_duration(kind):
        return typed_column(array.to_pylist())
    if array.null_count and kind in _NULLABLE:
        return array.to_pandas(types_mapper=_NULLABLE.get)
    if array.null_count and pa.types.is_boolean(kind):
        return array.to_pandas(types_mapper={pa.bool_(): pd.BooleanDtype()}.get)
    return pd.Series(np.full(len(array), None, object)) if pa.types.is_null(kind) else array.to_pandas()


def read_excel(file: File, rejects: Rejects) -> Iterator[pd.DataFrame]:
    """Give the rows of one sheet: the first, or the option `sheet` (name, or position from 0). Formulas give
    the values that were stored with them; lines without any cell are skipped."""
    with file.random_access() as raw:
        lines = _sheet(raw, file)
        names = _excel_names(lines, file)
        while batch := list(itertools.islice(lines, BATCH_ROWS)):
            kept = []
            for number, cells in batch:
                if len(cells) > len(names):
                    found = sum(1 for cell in cells if cell is not None)
                    reason = f"expected {len(names)} cells, found one in column {len(cells)}"
                    value = ",".join(str(c) for c in cells if c is not None)
                    rejects.add(number, "is_row", value, (reason if found else "no cells") + file.suffix_of_reason)
                else:
                    kept.append([*cells, *[None] * (len(names) - len(cells))])
            if kept:
                yield typed_frame(names, kept)


def excel_columns(file: File) -> list[str]:
    """Return the cells of the sheet's first line that has any."""
    with file.random_access() as raw:
        return _excel_names(_sheet(raw, file), file)


def _parquet_names(table: pq.ParquetFile, file: File) -> list[str]:
    return check_names(table.schema_arrow.names, file.address)


def _is_index(name: str) -> bool:
    # pandas writes an index without a name so.
    return name.startswith("__index_level_")


_COMPACT: dict[str, Any] = {"separators": (",", ":"), "ensure_ascii": False, "default": str}


def _sheet(raw: Any, file: File) -> Iterator[tuple[int, list[Any]]]:
    """Give the lines of the sheet that have cells, numbered from -1 (the header), without empty cells at the end."""
    import openpyxl

    try:
        book = openpyxl.load_workbook(raw, read_only=True, data_only=True)
    except (BadZipFile, KeyError, ValueError, OSError, EOFError) as error:
        raise UnreadableData(
            f"expected .xlsx at {file.address}, which cannot be read as such: {str(error)[:200]}; save it as .xlsx, "
            "without a password",
            context={"address": file.address},
        ) from error
    number = -1
    try:
        sheet = _chosen(book, file)
        sheet.reset_dimensions()
        for row in sheet.iter_rows(values_only=True):
            cells = [None if cell in ("", "#N/A") else cell for cell in row]
            while cells and cells[-1] is None:
                cells.pop()
            if cells:
                yield number, cells
                number += 1
    finally:
        book.close()


def _chosen(book: Any, file: File) -> Any:
    sheets = {sheet.title: sheet for sheet in book.worksheets}
    wanted = file.options.get("sheet", 0)
    if isinstance(wanted, str) and wanted in sheets:
        return sheets[wanted]
    if isinstance(wanted, int) and 0 <= wanted < len(sheets):
        return book.worksheets[wanted]
    raise ConfigurationError(
        f"expected a sheet of {file.address} ({', '.join(sheets)}, or its position from 0), found sheet={wanted!r}"
    )


def _excel_names(lines: Iterator[tuple[int, list[Any]]], file: File) -> list[str]:
    _, cells = next(lines, (0, []))
    return check_names(cells, file.address)
