"""Rows on the wire: what comes out is what went in, and its times make the same features."""

import pickle
from datetime import UTC, datetime
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from forge_core.data.encoding import moment_parts, time_parts
from serve_app.columns import Packed, Same, Table, n_rows, packed

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


@given(st.lists(MOMENTS, min_size=1))
def test_parts_of_an_array_are_those_of_its_moments(moments: list[datetime | None]) -> None:
    (column,) = packed([(m,) for m in moments])
    expected = np.array([time_parts(m) for m in moments])
    np.testing.assert_array_equal(moment_parts(np.asarray(column, "datetime64[us]")), expected)
