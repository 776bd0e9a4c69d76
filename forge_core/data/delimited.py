"""CSV and TSV, streamed: every cell is text, and a line with too few or too many cells stops nothing."""

import codecs
import csv
import io
import re
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pc

from forge_core.data.batches import BATCH_ROWS, LONGEST_LINE, Rejects, check_names
from forge_core.data.coercion import Kind, cast_texts
from forge_core.data.opening import File
from forge_core.errors import ConfigurationError, UnreadableData

# The words that pandas reads as missing.
MISSING = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
]  # fmt: skip
_CHUNK = 2**20
_BREAK = re.compile(rb'"|\r\n|\n|\r')


def read_delimited(file: File, rejects: Rejects) -> Iterator[pd.DataFrame]:
    """Give the rows of a CSV or TSV file, all columns `str`; options `delimiter` and `encoding`."""
    with file.open() as raw:
        text = _Utf8(raw, file)
        names = _header(text, file)
        if names is None or not text.fill():
            return

        n_rows, before, last = 0, rejects.n_rejected, None

        def reject(row: pc.InvalidRow) -> str:
            reason = f"expected {row.expected_columns} cells, found {row.actual_columns}"
            rejects.add(row.number - 1, "is_row", row.text or "", reason + file.suffix_of_reason)
            return "skip"

        reader = pc.open_csv(
            text,
            read_options=pc.ReadOptions(column_names=names, block_size=LONGEST_LINE, use_threads=False),
            parse_options=pc.ParseOptions(
                delimiter=_delimiter(file), newlines_in_values=True, invalid_row_handler=reject
            ),
            convert_options=pc.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), null_values=MISSING, strings_can_be_null=True
            ),
        )
        for block in reader:
            for start in range(0, len(block), BATCH_ROWS):
                last = _typed(block.slice(start, BATCH_ROWS), file.kinds).to_pandas()
                n_rows += len(last)
                yield last
        _check_quotes(text, file, last, rejects, n_rows + rejects.n_rejected - before)


def _typed(batch: pa.RecordBatch, kinds: Mapping[str, Kind]) -> pa.RecordBatch:
    """Return a batch in which columns are numbers or times that should be, and are in every cell; others stay text."""
    columns = []
    for name, texts in zip(batch.schema.names, batch.columns, strict=True):
        kind = kinds.get(name)
        # Whole numbers with gaps would become floats on their way through pandas.
        wanted = kind in ("number", "datetime") or (kind == "integer" and not texts.null_count)
        numbers = cast_texts(texts, kind) if kind and wanted else None
        columns.append(texts if numbers is None else numbers)
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def delimited_columns(file: File) -> list[str]:
    """Return the names in the first line; none for a file without one."""
    with file.open() as raw:
        return _header(_Utf8(raw, file), file) or []


class _Utf8(io.RawIOBase):
    """A stream of bytes in any encoding, read as UTF-8; counts quotes on its way."""

    def __init__(self, raw: BinaryIO, file: File) -> None:
        self._raw, self._file, self._left = raw, file, b""
        self._encoding = str(file.options.get("encoding", "utf-8"))
        try:
            codec = codecs.lookup(self._encoding)
            self._decoder = codec.incrementaldecoder("strict")
        except (LookupError, TypeError):
            raise ConfigurationError(
                f"expected an encoding that Python knows (utf-8, latin-1, cp1252, utf-16, …) for {file.address}, "
                f"found {self._encoding!r}"
            ) from None
        self._same = codec.name == "utf-8"
        self._offset = self.quotes = 0
        self._ended = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts, length = [self._left], len(self._left)
        while (size < 0 or length < size) and (chunk := self._next()):
            parts.append(chunk)
            length += len(chunk)
        whole = b"".join(parts)
        self._left = whole[size:] if size >= 0 else b""
        return whole[:size] if size >= 0 else whole

    def fill(self) -> bool:
        """Tell whether anything but line breaks is left."""
        self._left = self._left.lstrip(b"\r\n")
        while not self._left and (chunk := self._next()):
            self._left = chunk.lstrip(b"\r\n")
        return bool(self._left)

    def first_line(self) -> bytes:
        """Take the first line that is not empty, with the line breaks inside its quotes."""
        if not self.fill():
            return b""
        while (end := _end_of_line(self._left)) is None:
            chunk = self._next()
            if not chunk:
                end = len(self._left)
                break
            self._left += chunk
            if len(self._left) > LONGEST_LINE:
                raise UnreadableData(
                    f"expected a line with the columns' names at {self._file.address}, found none that ends in "
                    f"the first {LONGEST_LINE // 2**20} MiB; close its quotes, or give the right format=…"
                )
        line, self._left = self._left[:end], self._left[end:]
        return line

    def _next(self) -> bytes:
        if self._ended:
            return b""
        chunk = self._raw.read(_CHUNK)
        self._ended = not chunk
        try:
            text = self._decoder.decode(chunk, self._ended)
        except UnicodeDecodeError as error:
            at = self._offset - (len(error.object) - len(chunk)) + error.start
            utf16 = self._offset == 0 and chunk[:2] in (b"\xff\xfe", b"\xfe\xff")
            likely = "utf-16" if utf16 else "latin-1 or cp1252"
            raise UnreadableData(
                f"expected {self._encoding} at {self._file.address}, found byte 0x{error.object[error.start]:02x} at "
                f"offset {at:,}, which it does not have; give encoding=… ({likely}?)",
                context={"address": self._file.address, "encoding": self._encoding, "offset": at},
            ) from None
        data = chunk if self._same else text.encode()
        if self._offset == 0:
            data = data.removeprefix(codecs.BOM_UTF8)
        self._offset += len(chunk)
        self.quotes += data.count(b'"')
        return data or (self._next() if chunk else b"")


def _end_of_line(data: bytes) -> int | None:
    quoted = False
    for found in _BREAK.finditer(data):
        if found.group() == b'"':
            quoted = not quoted
        elif not quoted:
            return found.end()
    return None


def _header(text: _Utf8, file: File) -> list[str] | None:
    line = text.first_line().decode()
    if not line:
        return None
    try:
        names = next(csv.reader(io.StringIO(line, newline=""), delimiter=_delimiter(file)))
    except csv.Error as error:
        raise UnreadableData(f"expected the columns' names in the first line of {file.address}: {error}") from error
    others = ";\t|,".replace(_delimiter(file), "")
    if len(names) == 1 and "delimiter" not in file.options and (other := re.search(f"[{others}]", names[0])):
        raise UnreadableData(
            f"expected cells parted by {_delimiter(file)!r} at {file.address}, found one column named "
            f"{names[0][:80]!r}; give delimiter={other.group()!r}"
        )
    return check_names(names, file.address)


def _delimiter(file: File) -> str:
    delimiter = file.options.get("delimiter", "\t" if file.ending == ".tsv" else ",")
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n' or not delimiter.isascii():
        raise ConfigurationError(f"expected one ASCII character as delimiter for {file.address}, found {delimiter!r}")
    return delimiter


def _check_quotes(text: _Utf8, file: File, last: pd.DataFrame | None, rejects: Rejects, n_lines: int) -> None:
    """Refuse a file in which a quote that was never closed swallowed the rest."""
    if text.quotes % 2 == 0:
        return
    tail = "" if last is None else "".join(map(str, last.iloc[-1]))
    if rejects.n_rejected:
        line = rejects.table().iloc[-1]
        tail += line["value"] if line["row_number"] == n_lines - 1 else ""
    if "\n" in tail or "\r" in tail:
        raise UnreadableData(
            f"expected an even number of quotes at {file.address}, found that the one opened in data line {n_lines:,} "
            "is never closed, so that the lines after it are one cell; close or double it",
            context={"address": file.address, "line": n_lines},
        )
