"""Many rows at a glance against the same rows one by one."""

import math
from typing import Any

import pandera.pandas as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_core.data.contracts import Contract
from forge_core.errors import SchemaViolation
from serve_app.columns import Table

CONTRACT = Contract(
    pa.DataFrameSchema(
        {
            "x": pa.Column("float64", [pa.Check.ge(0), pa.Check.lt(10)], nullable=True),
            "n": pa.Column("int64", pa.Check.isin([1, 2, 3])),
            "town": pa.Column("str", pa.Check.isin(["Oslo", "Bergen"]), nullable=True),
            "free": pa.Column("str", pa.Check.notin(["none"])),
            "flag": pa.Column("boolean", nullable=True),
            "when": pa.Column("datetime64[ns, UTC]", nullable=True),
        }
    )
)
GOOD = {
    "x": [0, 0.5, 9.99, None, 3],
    "n": [1, 2, 3, 2.0],
    "town": ["Oslo", "Bergen", None],
    "free": ["a", "", "half a \ud83d"],
    "flag": [True, False, None],
    "when": ["2024-01-01", "2024-01-01T10:00:00+02:00", "20240101T1000", "9999-12-31 10:00:00.1234567", None],
}
BAD = {
    "x": [10, -1, "1", True, 1e300, math.inf, math.nan, [1], 10**400],
    "n": [None, 4, 1.5, False, "1"],
    "town": ["oslo", 3, {}],
    "free": ["none", None, 1.0],
    "flag": [0, "true", 1.0],
    "when": ["soon", 5, [], "0000-01-01", "0001-01-01T01+02:00", "9999-12-31T23:00-14:00"],
}


@st.composite
def records(draw: Any, share_bad: float) -> list[dict[str, Any]]:
    rows = draw(st.integers(1, 6))
    made = []
    for _ in range(rows):
        row = {}
        for name in GOOD:
            bad = draw(st.floats(0, 1)) < share_bad
            row[name] = draw(st.sampled_from((BAD if bad else GOOD)[name]))
        if draw(st.floats(0, 1)) < share_bad:
            row["more"] = 1
        for name in draw(st.lists(st.sampled_from(["x", "town", "flag"]), max_size=2)):
            row.pop(name, None)
        made.append(row)
    return made


def one_by_one(rows: list[dict[str, Any]]) -> tuple[list[Any], list[dict[str, Any]]]:
    good, faults = [], []
    for number, row in enumerate(rows):
        try:
            good.append(tuple(CONTRACT.check_row(row).values()))
        except SchemaViolation as error:
            faults += [{**fault, "row": number} for fault in error.context["faults"]]
    return good, faults


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.one_of(records(0.0), records(0.05)))
def test_many_rows_are_judged_like_each_one_alone(rows: list[dict[str, Any]]) -> None:
    good, faults = one_by_one(rows)
    if not faults:
        assert repr(CONTRACT.check_rows(rows)) == repr(good)
        return
    with pytest.raises(SchemaViolation) as caught:
        CONTRACT.check_rows(rows)
    told = [{"row": 0, **fault} for fault in caught.value.context["faults"]]
    assert sorted(map(repr, (sorted(f.items()) for f in told))) == sorted(
        map(repr, (sorted(f.items()) for f in faults))
    )


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.one_of(records(0.0), records(0.05)))
def test_columns_are_judged_like_their_rows(rows: list[dict[str, Any]]) -> None:
    names = [*GOOD, *(["more"] if any("more" in row for row in rows) else [])]
    columns = {name: [row.get(name) for row in rows] for name in names}
    good, faults = one_by_one([dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)])
    if not faults:
        assert repr(CONTRACT.check_rows(columns)) == repr(good)
        assert repr(list(Table.of(CONTRACT.check_columns(columns)))) == repr(good)
    else:
        with pytest.raises(SchemaViolation):
            CONTRACT.check_rows(columns)


def test_the_row_of_a_fault_is_named() -> None:
    rows = [{"x": 1, "n": 1, "town": "Oslo", "free": "a", "flag": True, "when": None} for _ in range(5)]
    rows[3] = {**rows[3], "n": 9}
    with pytest.raises(SchemaViolation, match=r"row 3, n: expected one of 1, 2, 3, found '9'"):
        CONTRACT.check_rows(rows)
