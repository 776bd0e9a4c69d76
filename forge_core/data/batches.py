"""What every source gives: rows in batches, columns of Python cells with types, and the lines that were no rows."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import time, timedelta
from decimal import Decimal
from typing import Any, Protocol
from uuid import UUID

import pandas as pd

from forge_core.data.coercion import Kind
from forge_core.data.contracts import Contract
from forge_core.data.quarantine import no_faults
from forge_core.errors import SchemaViolation, UnreadableData

BATCH_ROWS = 131_072
# A line, a cell included, may be so long.
LONGEST_LINE = 16 * 2**20

# So much of a rejected line is kept.
_SHOWN = 100
_MANY = 100_000
_USER = re.compile(r"(://[^/:@\s]*):[^/@\s]+@")
_SECRET = re.compile(r"([?&][^=&\s]*(?:pass|secret|token|key|sig|credential)[^=&\s]*=)[^&\s'\")]+", re.IGNORECASE)


class Source(Protocol):
    """An address that was understood; nothing is read before it is asked for.

    A subclass that says no more gives rows only, whose contract is inferred, and that nobody can tell to be the same
    again.

    Attributes
    ----------
    address : str
        As shown to people: passwords are `***`.
    untyped : bool
        Every cell is text (CSV, TSV); a contract, or inference, gives the types.
    rejects : DataFrame
        Lines that were no rows, as far as `batches` came: `row_number` (counted from 0 among data lines, -1
        where the reader does not know), `column` (empty), `check`, `value` (its first 100 characters), `reason`.
    """

    address: str

    @property
    def untyped(self) -> bool:
        """Whether every cell is text."""
        return False

    @property
    def rejects(self) -> pd.DataFrame:
        """Lines that were no rows."""
        return no_faults()

    def batches(self, kinds: Mapping[str, Kind] | None = None) -> Iterator[pd.DataFrame]:
        """Give the rows, at most `BATCH_ROWS` at a time, all batches with the same columns; may be called again.

        An untyped source may give columns as the numbers that `kinds` says they are, batch by batch, where every
        cell is one.
        """
        ...

    def fingerprint(self) -> str | None:
        """Return a hash that changes when the rows may have; None where nobody can tell."""
        return None

    def contract(self) -> Contract | None:
        """Return the contract written by hand for this source, or None where one has to be inferred."""
        return None


@dataclass
class Rejects:
    """Lines that were no rows, collected while a source is read."""

    address: str
    n_rows: int = 0
    n_rejected: int = 0
    _lines: list[tuple[int, str, str, str, str]] = field(default_factory=list)
    _tables: list[pd.DataFrame] = field(default_factory=list)

    def add(self, row_number: int, check: str, value: str, reason: str) -> None:
        """Note a line; `row_number` is its position among the data lines, or -1."""
        self.n_rejected += 1
        self._lines.append((row_number, "", check, value[:_SHOWN], reason))
        if len(self._lines) >= 10_000:
            self._pack()

    def table(self) -> pd.DataFrame:
        """Return one line for each rejected line, see `Source`."""
        self._pack()
        return pd.concat([no_faults(), *self._tables], ignore_index=True) if self._tables else no_faults()

    def check_share(self, least: int = _MANY) -> None:
        """Pass a source most of whose lines are rows, or so few of them that nobody can tell yet.

        Raises
        ------
        UnreadableData
            From `least` rejected lines on, when they are more than half of all.
        """
        if self.n_rejected >= max(1, least) and self.n_rejected > self.n_rows:
            first = "; ".join(self.table()["reason"].head(3))
            n_lines = self.n_rejected + self.n_rows
            raise UnreadableData(
                f"expected rows at {self.address}, found that {self.n_rejected:,} of {n_lines:,} lines "
                f"are none ({first}); give the right delimiter=… or format=…, or repair the source",
                context={"address": self.address, "n_rejected": self.n_rejected},
            )

    def _pack(self) -> None:
        if self._lines:
            table = pd.DataFrame(self._lines, columns=["row_number", "column", "check", "value", "reason"])
            self._tables.append(table.astype(no_faults().dtypes.to_dict()))
            self._lines.clear()


def slices(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Give a frame in batches, each numbered from 0."""
    for start in range(0, len(frame), BATCH_ROWS):
        yield frame.iloc[start : start + BATCH_ROWS].reset_index(drop=True)


def check_names(names: Iterable[object], address: str) -> list[str]:
    """Return column names as text; one without a name is called after its position, as pandas does.

    Raises
    ------
    SchemaViolation
        Naming those that are there more than once.
    """
    texts = [str(name) if name not in (None, "") else f"Unnamed: {i}" for i, name in enumerate(names)]
    if twice := [name for name, count in Counter(texts).items() if count > 1]:
        raise SchemaViolation(
            f"expected each column once in {address}, found {', '.join(twice)} more than once; "
            "rename or leave out all but one",
            context={"address": address, "columns": twice},
        )
    return texts


def typed_frame(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """Return rows of Python cells as a frame; see `typed_column`."""
    columns = zip(*rows, strict=True)
    return pd.DataFrame({name: typed_column(cells) for name, cells in zip(names, columns, strict=True)})


def typed_column(cells: Iterable[Any]) -> pd.Series:
    """Return Python cells (JSON, Excel, databases) as one column.

    Integers with missing cells become `Int64`, booleans `boolean`, decimals float64; objects and lists compact
    JSON. Cells of several kinds stay as they are: the contract tells which of them are wrong.
    """
    values = cells if isinstance(cells, pd.Series) else pd.Series(list(cells), dtype=object)
    settled = _settle(values)
    if settled is not values or not len(values):
        return settled
    plain = values.map(_plain, na_action="ignore")
    return _settle(plain)


def hide_secrets(text: str) -> str:
    """Return an address, or a sentence with one, in which passwords, keys and tokens are `***`."""
    return _SECRET.sub(r"\1***", _USER.sub(r"\1:***@", text))


def _settle(values: pd.Series) -> pd.Series:
    kind = pd.api.types.infer_dtype(values, skipna=True)
    missing = bool(values.isna().any())
    try:
        if kind == "integer":
            return values.astype("Int64" if missing else "int64")
        if kind in ("floating", "mixed-integer-float", "decimal"):
            return values.astype("float64")
        if kind == "boolean":
            return values.astype("boolean" if missing else "bool")
        if kind == "string":
            return values.astype("str")
        if kind in ("datetime", "datetime64", "date"):
            aware = kind == "datetime" and any(v.tzinfo is not None for v in values[values.notna()])
            return pd.to_datetime(values, utc=aware)
    except (OverflowError, ValueError, TypeError):
        pass  # integers beyond int64, dates beyond pandas': left for the contract to judge
    return values


def _plain(cell: Any) -> Any:
    if isinstance(cell, Decimal):
        return float(cell)
    if isinstance(cell, dict | list | tuple | set):
        value = sorted(cell, key=str) if isinstance(cell, set) else cell
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)
    if isinstance(cell, UUID | time | timedelta):
        return str(cell)
    return bytes(cell) if isinstance(cell, memoryview) else cell
