"""Rows on the wire: what comes out is what went in, and its times make the same features."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_core.data.encoding import moment_parts, time_parts
from serve_app.columns import Moments, n_rows, packed, unpacked

MOMENTS = st.none() | st.datetimes(timezones=st.just(UTC))
ROWS = st.lists(st.tuples(MOMENTS, st.text(), st.none() | st.floats(allow_nan=False), st.booleans()), min_size=1)


@given(ROWS)
def test_unpacked_columns_hold_the_rows(rows: list[tuple[Any, ...]]) -> None:
    columns = packed(rows)
    assert n_rows(columns) == len(rows)
    moments, *others = unpacked(columns)
    assert list(zip(*others, strict=True)) == [row[1:] for row in rows]
    back = [None if m is None or np.isnat(m) else m.astype(datetime).replace(tzinfo=UTC) for m in moments]
    assert back == [row[0] for row in rows]


@given(st.lists(MOMENTS, min_size=1))
def test_parts_of_an_array_are_those_of_its_moments(moments: list[datetime | None]) -> None:
    (column,) = unpacked(packed([(m,) for m in moments]))
    expected = np.array([time_parts(m) for m in moments])
    np.testing.assert_array_equal(moment_parts(np.asarray(column, "datetime64[us]")), expected)


@pytest.mark.parametrize("missing", [0, 1, 3])
def test_a_column_of_times_goes_as_numbers(missing: int) -> None:
    times = [None] * missing + [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(microseconds=1)]
    (column,) = packed([(t,) for t in times])
    assert column == Moments([None] * missing + [1_704_067_200_000_001])
