"""Rows on the wire: what comes out is what went in, and its times make the same features."""

import math
import pickle
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_core.data.encoding import moment_parts, time_parts
from serve_app.columns import Packed, Same, Table, n_rows, packed

pytestmark = pytest.mark.slow

MOMENTS = st.none() | st.datetimes(timezones=st.just(UTC))
ROWS = st.lists(st.tuples(MOMENTS, st.text(), st.none() | st.floats(allow_nan=False), st.booleans()), min_size=1)
FACTS = st.datetimes(timezones=st.just(UTC)) | st.text() | st.none()


def _rows(columns: Packed) -> list[tuple[Any, ...]]:
    """Return what another process makes of columns."""
    return list(Table(pickle.loads(pickle.dumps(columns))))  # noqa: S301 (our own)


@given(ROWS)
def test_packed_columns_hold_the_rows_however_they_were_held(rows: list[tuple[Any, ...]]) -> None:
    rows = rows * 20  # many texts travel in another form than few
    table = Table.of(zip(*rows, strict=True))
    assert _rows(packed(rows)) == _rows(packed(table)) == list(table) == rows
    assert n_rows(packed(rows)) == len(table) == len(rows)


@given(ROWS, FACTS, st.integers(0, 9), st.integers(0, 9))
def test_a_fact_of_all_rows_is_in_each_and_in_each_part(
    rows: list[tuple[Any, ...]], fact: Any, start: int, n: int
) -> None:
    rows = rows * 20
    table = Table.of([*zip(*rows, strict=True), Same(fact, len(rows))])
    part = table[start : start + n]
    assert list(part) == [(*row, fact) for row in rows[start : start + n]]
    if len(part):
        assert _rows(packed(part)) == list(part)


@given(st.lists(st.tuples(ROWS, FACTS, st.booleans()), min_size=1, max_size=4))
def test_tables_put_together_hold_the_rows_of_each(parts: list[tuple[list[tuple[Any, ...]], Any, bool]]) -> None:
    kind = type(parts[0][1])
    facts = [fact if isinstance(fact, kind) else parts[0][1] for _, fact, _ in parts]
    tables, expected = [], []
    for (rows, _, long), fact in zip(parts, facts, strict=True):
        many = rows * (20 if long else 1)
        tables.append(Table.of([*zip(*many, strict=True), Same(fact, len(many))]))
        expected += [(*row, fact) for row in many]
    assert list(Table.joined(tables)) == expected


WHOLE = st.integers(-(2**63), 2**63 - 1) | st.just(math.nan)
PIECES = [
    st.tuples(st.just(kind), st.lists(st.tuples(st.lists(cells, min_size=1), st.booleans()), min_size=1, max_size=4))
    for kind, cells in ((pa.int64(), WHOLE), (pa.bool_(), st.none() | st.booleans()))
]


@given(st.one_of(PIECES), st.booleans())
def test_whole_numbers_and_truths_go_together_however_they_are_held(
    pieces: tuple[pa.DataType, list[tuple[list[Any], bool]]], beyond: bool
) -> None:
    """Batches that were judged at a glance hold them as Arrow does, others as lists of what Python takes."""
    kind, held = pieces
    held = [*held, ([2**70], False)] if beyond else held  # what no array of Arrow's takes
    tables = [Table.of([pa.array(v, kind, from_pandas=True) if typed else v]) for v, typed in held]
    assert repr([row[0] for row in Table.joined(tables)]) == repr([cell for v, _ in held for cell in v])


@given(st.lists(MOMENTS, min_size=1))
def test_parts_of_an_array_are_those_of_its_moments(moments: list[datetime | None]) -> None:
    (column,) = packed([(m,) for m in moments])
    expected = np.array([time_parts(m) for m in moments])
    np.testing.assert_array_equal(moment_parts(np.asarray(column, "datetime64[us]")), expected)
