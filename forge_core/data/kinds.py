"""What kind a column shows, from its cells, batch by batch."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal

import numpy as np
import pandas as pd

from forge_core.data.coercion import Kind, coerce, kind_of_dtype

# A text column with at least this share of numbers is a number column with some unreadable cells.
MOSTLY = 0.9
# Once so many texts were seen and less than half of them are numbers, nobody asks any more.
_ENOUGH = 10_000
ISO_TIME = r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:?\d\d)?)?)?"
_PADDED = r"[+-]?0\d+"


@dataclass
class KindTally:
    """What the cells of one column were so far.

    Parameters
    ----------
    untyped : bool
        The cells are text only because their format knows nothing else (CSV). Otherwise text in which every
        cell reads as a number was text on purpose: codes, years as labels.
    """

    untyped: bool = False
    missing: int = 0
    blank: int = 0
    texts: int = 0
    padded: bool = False
    of_kind: Counter[Kind] = field(default_factory=Counter)
    reads_as: Counter[Kind] = field(default_factory=Counter)

    def add(self, values: pd.Series) -> None:
        """Look at a batch of the column's cells."""
        present = values[values.notna().to_numpy()]
        self.missing += len(values) - len(present)
        if not len(present):
            return
        if isinstance(values.dtype, pd.CategoricalDtype):
            self.of_kind["category"] += len(present)
        elif values.dtype == object:
            self._sort(present)
        elif pd.api.types.is_string_dtype(values.dtype):
            self._read(present)
        else:
            self.of_kind[kind_of_dtype(values.dtype)] += len(present)

    @property
    def kind(self) -> Kind:
        """The kind that the cells show; category where there are none."""
        if self.texts:
            return self._kind_of_texts()
        if len(self.of_kind) == 1:
            return next(iter(self.of_kind))
        return "number" if self.of_kind and set(self.of_kind) <= {"integer", "number"} else "category"

    @property
    def clean(self) -> bool:
        """Whether every cell that is there is of the column's kind."""
        kind = self.kind
        return kind == "category" or self._count(kind) == self._present

    @property
    def nullable(self) -> bool:
        """Whether a cell was missing."""
        return self.missing > 0 or (self.blank > 0 and self.kind != "category")

    @property
    def _present(self) -> int:
        return self.texts + sum(self.of_kind.values())

    def _count(self, kind: Kind) -> int:
        whole = self.of_kind["integer"] if kind == "number" else 0
        return self.reads_as[kind] + self.of_kind[kind] + whole

    def _kind_of_texts(self) -> Kind:
        if self._count("datetime") == self._present:
            return "datetime"
        if self.untyped and not self.padded:
            for kind in ("boolean", "integer"):
                if self.reads_as[kind] == self._present:
                    return kind
        # Some cells that are no numbers, or some that are no text, show that the rest should have been.
        dirty = self._count("number") < self._present or bool(self.of_kind)
        believed = not self.padded if self.untyped else dirty
        return "number" if believed and self._count("number") >= MOSTLY * self._present else "category"

    def _sort(self, present: pd.Series) -> None:
        """Look at cells of any Python type."""
        for kind_of_cell, count in present.map(type).value_counts().items():
            if kind_of_cell is not str:
                self.of_kind[_kind_of_type(kind_of_cell)] += int(count)
        texts = present[present.map(lambda v: isinstance(v, str)).to_numpy(bool)]
        if len(texts):
            self._read(texts.astype("str"))

    def _read(self, texts: pd.Series) -> None:
        """Look at what texts read as; the first ones show which questions need not be asked of the rest."""
        if not self.texts and len(texts) > 2 * _ENOUGH:
            self._read(texts.iloc[:_ENOUGH])
            texts = texts.iloc[_ENOUGH:]
        blank = (texts.str.strip() == "").to_numpy(bool)
        if blank.any():
            self.blank += int(blank.sum())
            texts = texts[~blank]
        before, self.texts = self.texts, self.texts + len(texts)
        if self.reads_as["integer"] == before:
            self.reads_as["integer"] += int((~coerce(texts, "integer").bad).sum())
        if before < _ENOUGH or 2 * self.reads_as["number"] > before:
            self.reads_as["number"] += int((~coerce(texts, "number").bad).sum())
        if self.reads_as["boolean"] == before:
            self.reads_as["boolean"] += int(texts.str.strip().str.lower().isin(["true", "false"]).sum())
        if self.reads_as["datetime"] == before and pd.Series(texts.iloc[:1]).str.fullmatch(ISO_TIME).all():
            iso = texts.str.fullmatch(ISO_TIME).to_numpy(bool)
            self.reads_as["datetime"] += int((iso & ~coerce(texts, "datetime").bad).sum())
        if not self.padded and 2 * self.reads_as["number"] > before:
            self.padded = bool(texts.str.fullmatch(_PADDED).any())


def tally_kinds(batches: Iterable[pd.DataFrame], *, untyped: bool = False) -> dict[str, KindTally]:
    """Return what each column's cells are, over all batches; a column that a batch lacks is missing there."""
    tallies: dict[str, KindTally] = {}
    n_rows = 0
    for batch in batches:
        for name in batch.columns:
            tallies.setdefault(str(name), KindTally(untyped, missing=n_rows)).add(batch[name])
        for name in set(tallies) - set(map(str, batch.columns)):
            tallies[name].missing += len(batch)
        n_rows += len(batch)
    return tallies


def kind_of_column(values: pd.Series) -> Kind:
    """Return the kind that a column's cells show; text that is numbers but for a few cells counts as numbers."""
    tally = KindTally()
    tally.add(values)
    return tally.kind


def _kind_of_type(cell: type) -> Kind:
    for kind, types in _TYPES.items():
        if issubclass(cell, types):
            return kind
    return "category"


# bool comes first, since Python counts it among the integers.
_TYPES: dict[Kind, tuple[type, ...]] = {
    "boolean": (bool, np.bool_),
    "integer": (int, np.integer),
    "number": (float, np.floating, Decimal),
    "datetime": (date, np.datetime64),
}
