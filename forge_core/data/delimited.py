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
# Blocks that stay in a core's cache are parsed in half the time of long ones.
_BLOCK = 2**21
_BREAK = re.compile(rb'"|\r\n|\n|\r')


def read_delimited(file: File, rejects: Rejects) -> Iterator[pd.DataFrame]:
    """Give the rows of a CSV or TSV file, all columns `str`; options `delimiter` and `encoding`."""
    reading = _Reading(file, rejects)
    for size in (_BLOCK, LONGEST_LINE):
        try:
            yield from reading.batches(size)
            return
        except pa.ArrowInvalid as error:
            if size == LONGEST_LINE or "straddling" not in str(error):
                raise


class _Reading:
    """How far a file has been read, so that it can be read again from there in longer blocks, for a longer line."""

    def __init__(self, file: File, rejects: Rejects) -> None:
        self.file, self.rejects = file, rejects
        self.n_rows = self.last_told = 0
        self._rejected_before = rejects.n_rejected

    def batches(self, block_size: int) -> Iterator[pd.DataFrame]:
        """Give the rows that no batch had yet."""
        with self.file.open() as raw:
            text = _Utf8(raw, self.file)
            names = _header(text, self.file)
            if names is None or not text.fill():
                return
            last = None
            for table in _batched(self._blocks(text, names, block_size), self.n_rows):
                last = _typed(table, self.file.kinds).to_pandas()
                self.n_rows += len(last)
                yield last
            n_lines = self.n_rows + self.rejects.n_rejected - self._rejected_before
            _check_quotes(text, self.file, last, self.rejects, n_lines)

    def _blocks(self, text: "_Utf8", names: list[str], block_size: int) -> Iterator[pa.RecordBatch]:
        # Each call of our own stream waits for Python's lock: few of them, for many blocks each.
        return pc.open_csv(
            pa.BufferedInputStream(pa.PythonFile(text, "r"), LONGEST_LINE),
            read_options=pc.ReadOptions(column_names=names, block_size=block_size, use_threads=False),
            parse_options=pc.ParseOptions(
                delimiter=_delimiter(self.file), newlines_in_values=True, invalid_row_handler=self._reject
            ),
            convert_options=pc.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), null_values=MISSING, strings_can_be_null=True
            ),
        )

    def _reject(self, row: pc.InvalidRow) -> str:
        if row.number > self.last_told:
            self.last_told = row.number
            reason = f"expected {row.expected_columns} cells, found {row.actual_columns}"
            self.rejects.add(row.number - 1, "is_row", row.text or "", reason + self.file.suffix_of_reason)
        return "skip"


def _batched(blocks: Iterator[pa.RecordBatch], skipped: int) -> Iterator[pa.Table]:
    """Give blocks together, as many rows as a batch has, without the first rows."""
    waiting: list[pa.RecordBatch] = []
    n_waiting = 0
    for block in blocks:
        fresh = block.slice(min(skipped, len(block)))
        skipped -= len(block) - len(fresh)
        for start in range(0, len(fresh), BATCH_ROWS):
            piece = fresh.slice(start, BATCH_ROWS)
            if n_waiting + len(piece) > BATCH_ROWS:
                yield pa.Table.from_batches(waiting)
                waiting, n_waiting = [], 0
            waiting.append(piece)
            n_waiting += len(piece)
    if waiting:
        yield pa.Table.from_batches(waiting)


def _typed(batch: pa.Table, kinds: Mapping[str, Kind]) -> pa.Table:
    """Return a batch in which columns are numbers or times that should be, and are in every cell; others stay text."""
    columns = []
    for name, texts in zip(batch.column_names, batch.columns, strict=True):
        kind = kinds.get(name)
        # Whole numbers with gaps would become floats on their way through pandas.
        wanted = kind in ("number", "datetime") or (kind == "integer" and not texts.null_count)
        columns.append(_cast(texts, kind) if kind and wanted else texts)
    return pa.Table.from_arrays(columns, names=batch.column_names)


def _cast(texts: pa.ChunkedArray, kind: Kind) -> pa.ChunkedArray:
    """Return the texts as what they should be, or as they are where one of them is not."""
    chunks: list[pa.Array] = []
    for chunk in texts.chunks:
        cells = cast_texts(chunk, kind)
        if cells is None or (chunks and cells.type != chunks[0].type):
            return texts
        chunks.append(cells)
    return pa.chunked_array(chunks)


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
