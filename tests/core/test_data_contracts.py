"""The contract: what is good goes on, what is bad is set aside with its reason, what changed wholesale stops."""

import math
import time

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_core.data.coercion import Kind, coerce
from forge_core.data.contracts import Contract, infer_contract
from forge_core.data.flights import flights_contract
from forge_core.data.quarantine import QUARANTINE_COLUMNS
from forge_core.data.sample import generate_sample_data, sample_contract
from forge_core.errors import ConfigurationError, SchemaViolation, TooManyBadRows


@pytest.fixture
def rows() -> pd.DataFrame:
    return generate_sample_data(200, random_state=1)


def test_clean_rows_pass_unchanged(rows: pd.DataFrame) -> None:
    checked = sample_contract().check(rows, 0.0)
    pd.testing.assert_frame_equal(checked.good, rows)
    assert (checked.n_rows, checked.n_bad, len(checked.quarantine)) == (200, 0, 0)


def test_single_unreadable_cells_are_quarantined_row_by_row(rows: pd.DataFrame) -> None:
    rows["feature1"] = rows["feature1"].astype(object)
    rows.loc[7, "feature1"] = "n.a."
    rows.loc[9, "feature1"] = "1.5"
    rows.loc[11, "feature1"] = float("inf")
    checked = sample_contract().check(rows, 0.05)
    assert checked.quarantine["row_number"].tolist() == [7, 11]
    assert checked.quarantine["check"].tolist() == ["is_number", "is_finite"]
    assert checked.good.loc[9, "feature1"] == 1.5
    assert checked.good["feature1"].dtype == "float64"


def test_all_faults_of_all_columns_are_told_at_once(rows: pd.DataFrame) -> None:
    rows.loc[0, "feature1"] = 1e6
    rows.loc[1, "feature2"] = None
    rows.loc[2, "target"] = 7
    rows.loc[4, "sample_id"] = rows.loc[3, "sample_id"]
    checked = sample_contract().check(rows, 0.05)
    assert list(checked.quarantine.columns) == QUARANTINE_COLUMNS
    found = dict(zip(checked.quarantine["row_number"], checked.quarantine["column"], strict=True))
    assert found == {0: "feature1", 1: "feature2", 2: "target", 4: "sample_id"}
    reasons = checked.quarantine.set_index("row_number")["reason"]
    assert reasons[0] == "expected at most 100, found 1000000.0"
    assert reasons[2] == "expected one of 0, 1, found 7"
    assert checked.quarantine.set_index("row_number")["row_key"][1] == rows.loc[1, "sample_id"]


def test_a_repeated_key_keeps_its_first_row(rows: pd.DataFrame) -> None:
    rows.loc[5, "sample_id"] = rows.loc[4, "sample_id"]
    checked = sample_contract().check(rows, 0.05)
    assert checked.quarantine["row_number"].tolist() == [5]
    assert 4 in checked.good.index


def test_a_good_row_stays_where_only_a_bad_one_had_its_key(rows: pd.DataFrame) -> None:
    rows.loc[5, "sample_id"], rows.loc[4, "feature1"] = rows.loc[4, "sample_id"], 1e6
    checked = sample_contract().check(rows, 0.05)
    assert checked.quarantine["row_number"].tolist() == [4]
    assert 5 in checked.good.index


def test_a_duplicate_index_loses_no_good_row(rows: pd.DataFrame) -> None:
    rows.loc[3, "feature1"] = 1e6
    rows.index = pd.Index([0] * len(rows))
    checked = sample_contract().check(rows, 0.05)
    assert len(checked.good) == 199
    assert checked.quarantine["row_number"].tolist() == [3]
    assert (checked.good.index == 0).all()


def test_a_missing_column_names_itself(rows: pd.DataFrame) -> None:
    with pytest.raises(SchemaViolation, match=r"'feature1': expected number, found missing \(200 rows\)"):
        sample_contract().check(rows.drop(columns="feature1"), 1.0)


@pytest.mark.parametrize(
    ("column", "values", "expected", "found"),
    [
        ("feature1", "high", "number", "text"),
        ("feature2", 4, "category", "number"),
        ("event_time", 3.5, "datetime", "number"),
    ],
)
def test_a_column_of_another_type_names_expected_found_and_count(
    rows: pd.DataFrame, column: str, values: object, expected: str, found: str
) -> None:
    rows[column] = values
    with pytest.raises(SchemaViolation, match=f"expected {expected}, found {found} \\(200 rows\\)") as error:
        sample_contract().check(rows, 1.0)
    assert error.value.context["faults"] == [{"column": column, "expected": expected, "found": found, "count": 200}]


def test_the_budget_names_counts_and_the_worst_check(rows: pd.DataFrame) -> None:
    rows.loc[:29, "feature1"] = 500.0
    with pytest.raises(TooManyBadRows, match=r"30 of 200 rows \(15\.0%\).*feature1 less_than_or_equal_to") as error:
        sample_contract().check(rows, 0.1)
    assert error.value.context["n_bad"] == 30
    assert sample_contract().check(rows, 0.15).n_bad == 30


def test_text_times_and_whole_floats_come_back_typed() -> None:
    raw = generate_sample_data(20).astype({"event_time": "str", "known_at": "str"})
    raw["target"] = raw["target"].astype(float)
    good = sample_contract().check(raw, 0.0).good
    assert str(good["event_time"].dtype) == "datetime64[us, UTC]"
    assert good["target"].dtype == "int64"


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.one_of(st.floats(-1e3, 1e3), st.none(), st.sampled_from(["1.5", "x", ""]), st.just(math.inf), st.booleans()),
        min_size=1,
        max_size=30,
    )
)
def test_every_row_is_either_good_or_quarantined(cells: list[object]) -> None:
    frame = pd.DataFrame({"a": pd.Series(cells, dtype=object), "b": np.arange(len(cells))})
    schema = pa.DataFrameSchema({"a": pa.Column("float64", pa.Check.ge(0), nullable=False), "b": pa.Column("int64")})
    try:
        checked = Contract(schema).check(frame, 1.0)
    except SchemaViolation:
        return
    bad = set(checked.quarantine["row_number"])
    assert len(checked.good) + len(bad) == len(frame) == checked.n_rows
    assert len(bad) == checked.n_bad
    assert set(checked.good["b"]) | bad == set(range(len(frame)))
    assert checked.good["a"].ge(0).all()


def test_inference_finds_kinds_and_roles(rows: pd.DataFrame) -> None:
    rows["flag"], rows["price"], rows["code"] = True, rows["feature1"].astype("str"), "07"
    rows.loc[3, "price"] = "unknown"
    rows["gap"] = rows["feature1"].where(rows.index > 5)
    contract = infer_contract(rows, target="target", key="sample_id", time="event_time", label_time="known_at")
    assert contract.feature_columns == ["feature1", "feature2", "flag", "price", "code", "gap"]
    assert contract.kinds == {
        "sample_id": "category", "event_time": "datetime", "known_at": "datetime", "feature1": "number",
        "feature2": "category", "target": "integer", "flag": "boolean", "price": "number", "code": "category",
        "gap": "number",
    }  # fmt: skip
    assert [c for c, column in contract.schema.columns.items() if column.nullable] == ["gap"]
    checked = contract.check(rows, 0.05)
    assert checked.quarantine["row_number"].tolist() == [3]
    with pytest.raises(SchemaViolation, match="'answer' \\(target\\)"):
        infer_contract(rows, target="answer")


@pytest.mark.parametrize("contract", [flights_contract(), sample_contract()])
def test_yaml_keeps_everything(contract: Contract) -> None:
    again = Contract.from_yaml(contract.to_yaml())
    assert again.digest == contract.digest
    assert again.kinds == contract.kinds
    assert (again.target, again.key, again.time, again.label_time) == (
        contract.target, contract.key, contract.time, contract.label_time,
    )  # fmt: skip
    assert again._rules == contract._rules


def test_an_inferred_contract_survives_yaml(rows: pd.DataFrame) -> None:
    rows["maybe"] = pd.Series([True, None] * 100, dtype="boolean")
    contract = infer_contract(rows, target="target")
    again = Contract.from_yaml(contract.to_yaml())
    assert again.kinds == contract.kinds
    pd.testing.assert_frame_equal(again.check(rows, 0).good, contract.check(rows, 0).good)


@pytest.mark.parametrize("text", ["", "schema: 3", "a: [", "roles: {target: x}\nschema: {columns: {}}"])
def test_foreign_yaml_is_a_configuration_error(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Contract.from_yaml(text)


def test_an_unknown_check_or_role_is_refused_when_the_contract_is_made() -> None:
    with pytest.raises(ConfigurationError, match="str_matches"):
        Contract(pa.DataFrameSchema({"a": pa.Column("str", pa.Check.str_matches("x"))}))
    with pytest.raises(ConfigurationError, match="gives a role to b"):
        Contract(pa.DataFrameSchema({"a": pa.Column("str")}), target="b")


def test_a_request_is_typed_and_ordered() -> None:
    row = sample_contract().check_row({"feature2": "category1", "feature1": 1})
    assert row == {"feature1": 1.0, "feature2": "category1"}
    assert list(row) == ["feature1", "feature2"]
    assert type(row["feature1"]) is float


def test_a_request_with_many_faults_hears_all_of_them() -> None:
    with pytest.raises(SchemaViolation) as error:
        flights_contract().check_row(
            {"carrier": 7, "origin": "EWR", "distance": 0, "hour": math.nan, "temp": "hot", "humid": math.inf,
             "wind_dir": True, "visib": 21, "wind": 3}
        )  # fmt: skip
    faults = {fault["field"]: fault["reason"] for fault in error.value.context["faults"]}
    assert faults == {
        "carrier": "expected text, found a number",
        "dest": "is required and was missing",
        "distance": "expected more than 0 and at most 12500, found 0",
        "hour": "is required and was missing",
        "temp": "expected a number, found text",
        "humid": "expected a finite number",
        "wind_dir": "expected a number, found a boolean",
        "visib": "expected at least 0 and at most 20, found 21",
        "wind": "is no feature of this model",
    }


def test_a_request_may_leave_out_what_may_be_missing() -> None:
    row = flights_contract().check_row(
        {"carrier": "UA", "origin": "EWR", "dest": "IAH", "distance": np.float32(9), "hour": np.int64(5), "temp": None}
    )
    assert math.isnan(row["temp"]) and math.isnan(row["visib"])
    assert (row["distance"], row["hour"]) == (9.0, 5.0)


def test_integers_flags_and_times_of_a_request() -> None:
    schema = pa.DataFrameSchema(
        {
            "n": pa.Column("int64", pa.Check.isin([1, 2])),
            "flag": pa.Column("bool"),
            "when": pa.Column("datetime64[us, UTC]"),
        }
    )
    contract = Contract(schema)
    row = contract.check_row({"n": 2.0, "flag": True, "when": "2024-01-01T00:00:00+02:00"})
    assert (row["n"], type(row["n"])) == (2, int)
    assert row["when"].isoformat() == "2023-12-31T22:00:00+00:00"
    with pytest.raises(SchemaViolation) as error:
        contract.check_row({"n": 3, "flag": 1, "when": "soon"})
    assert [f["field"] for f in error.value.context["faults"]] == ["n", "flag", "when"]
    with pytest.raises(SchemaViolation, match="expected an integer"):
        contract.check_row({"n": 1.5, "flag": False, "when": "2024-01-01"})


def test_a_request_of_twelve_fields_takes_microseconds() -> None:
    contract = flights_contract()
    row = contract.check_row({"carrier": "UA", "origin": "EWR", "dest": "IAH", "distance": 1400.0, "hour": 5.0})
    best = math.inf
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(500):
            contract.check_row(row)
        best = min(best, (time.perf_counter() - started) / 500)
    assert best < 60e-6  # 9 microseconds when nothing else runs


@pytest.mark.parametrize("kind", ["integer", "number", "boolean", "datetime", "category"])
def test_coercing_text_keeps_each_cell_in_its_row_whatever_the_index(kind: Kind) -> None:
    cells = {"boolean": ["true", "false", "true"], "datetime": ["2024-01-01", "2024-01-02", "2024-01-03"]}
    texts = pd.Series(cells.get(kind, ["10", "20", "30"]), dtype="str")
    expected = coerce(texts, kind).values.tolist()
    for index in ([2, 1, 0], [7, 7, 7], ["a", "b", "c"]):
        found = coerce(texts.set_axis(index), kind).values
        assert found.tolist() == expected and found.index.tolist() == index
    gap = coerce(pd.Series(["1", None, "3"], index=[5, 4, 3], dtype="str"), "integer").values
    assert gap.tolist() == [1, pd.NA, 3] and str(gap.dtype) == "Int64"
