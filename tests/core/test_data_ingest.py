"""Ingest: batch by batch the same as at once, nothing good lost, nothing bad in, every refusal told."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_core.data.checking import Checker
from forge_core.data.coercion import Kind
from forge_core.data.contracts import Contract, infer_contract
from forge_core.data.data_report import data_figure, describe_columns, ingestion_markdown
from forge_core.data.dataset_diff import diff_datasets
from forge_core.data.hashing import sum_of_hashes
from forge_core.data.ingest import ingest
from forge_core.data.quarantine import no_faults
from forge_core.data.sample import generate_sample_data, sample_contract
from forge_core.data.versions import (
    list_datasets,
    load_contract,
    load_dataset,
    load_quarantine,
    load_sample,
    save_dataset,
    stream_dataset,
)
from forge_core.errors import (
    ConfigurationError,
    DataNotFound,
    EmptyData,
    SchemaViolation,
    TooManyBadRows,
    UnusableTarget,
)
from forge_core.policy import DataPolicy
from forge_core.storage import Storage
from tests.planted import KINDS, POLICY, found_kinds, planted_contract, write_planted

pytestmark = pytest.mark.slow

NOW = datetime(2024, 2, 1, tzinfo=UTC)
SAMPLE = DataPolicy(
    source="-", target="target", time_column="event_time", key_column="sample_id", label_time_column="known_at"
)


@dataclass
class Batches:
    """A source whose batches the test chooses."""

    frames: list[pd.DataFrame]
    address: str = "batches"
    untyped: bool = False
    rejects: pd.DataFrame = field(default_factory=no_faults)

    def batches(self, kinds: Mapping[str, Kind] | None = None) -> Iterator[pd.DataFrame]:
        yield from self.frames

    def fingerprint(self) -> str | None:
        return None

    def contract(self) -> Contract | None:
        return None


def cut(frame: pd.DataFrame, *borders: int) -> list[pd.DataFrame]:
    """Return a frame in pieces."""
    edges = [0, *sorted(borders), len(frame)]
    return [frame.iloc[a:b] for a, b in itertools.pairwise(edges) if b > a]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "storage"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 120), max_size=6))
def test_any_batches_give_what_one_batch_gives(borders: list[int]) -> None:
    rows = generate_sample_data(120, random_state=2).astype({"feature1": object})
    rows.loc[3, "feature1"], rows.loc[77, "feature2"], rows.loc[50, "target"] = "broken", None, 7
    rows.loc[90, "sample_id"] = rows.loc[10, "sample_id"]
    rows.loc[100] = rows.loc[20]
    whole, parts = (Checker(sample_contract(), drop_duplicates=True) for _ in range(2))
    once = whole.check(rows)
    batches = [parts.check(batch) for batch in cut(rows, *borders)]
    assert once.hashes is not None
    pd.testing.assert_frame_equal(pd.concat([b.good for b in batches]), once.good)
    pd.testing.assert_frame_equal(pd.concat([b.faults for b in batches], ignore_index=True), once.faults)
    sums = [sum_of_hashes(b.hashes) for b in batches if b.hashes is not None]
    assert sum(sums) % 2**128 == sum_of_hashes(once.hashes)
    assert (whole.n_rows, whole.n_bad, whole.n_duplicates) == (parts.n_rows, parts.n_bad, parts.n_duplicates)
    assert (whole.n_bad, whole.n_duplicates) == (4, 1)


def test_twenty_kinds_of_planted_faults_are_found_and_no_good_row_is_lost(storage: Storage, tmp_path: Path) -> None:
    planted = write_planted(tmp_path / "rows.csv", 4000, 15)
    (tmp_path / "contract.yaml").write_text(planted_contract().to_yaml())
    policy = POLICY.model_copy(update={"contract": str(tmp_path / "contract.yaml")})
    found = ingest(storage, str(tmp_path / "rows.csv"), policy)
    quarantine = load_quarantine(storage, found.version.id)
    assert found_kinds(quarantine, planted) == dict.fromkeys(KINDS, 15)
    assert found.n_bad == 15 * len(KINDS) == found.faults["rows"].sum()
    assert found.version.n_rows == found.n_read - found.n_bad == 4000
    assert quarantine["source"].eq(str(tmp_path / "rows.csv")).all()


def test_exact_duplicates_are_left_out_and_counted(storage: Storage) -> None:
    rows = generate_sample_data(50)
    found = ingest(storage, Batches([rows, rows.iloc[::-1], rows]), SAMPLE)
    assert (found.version.n_rows, found.n_duplicates, found.n_bad, found.n_read) == (50, 100, 0, 150)
    assert found.version.id == ingest(storage, Batches([rows]), SAMPLE).version.id


def test_integers_with_and_without_gaps_in_a_batch_are_one_column(storage: Storage) -> None:
    schema = {"n": pa.Column("Int64", nullable=True), "flag": pa.Column("boolean", nullable=True)}
    contract = Contract(pa.DataFrameSchema({**schema, "late": pa.Column("int64")}), target="late")
    big = 2**53 + 1
    rows = pd.DataFrame(
        {"n": pd.array([1, big, None, 4], "Int64"), "flag": [True, None, False, True], "late": [0, 1] * 2}
    )
    file = storage.path("c.yaml")
    storage.write_bytes("c.yaml", contract.to_yaml().encode())
    policy = DataPolicy(source="-", target="late", contract=file)
    ids = {ingest(storage, Batches(cut(rows, at)), policy).version.id for at in (1, 2, 3)}
    assert len(ids) == 1
    kept = load_dataset(storage, ids.pop())
    assert kept["n"].tolist() == [1, big, pd.NA, 4]
    assert (str(kept["n"].dtype), str(kept["flag"].dtype)) == ("Int64", "boolean")


def test_the_budget_holds_per_check(storage: Storage) -> None:
    rows = generate_sample_data(200)
    rows.loc[:9, "feature1"] = 1e6
    policy = SAMPLE.model_copy(update={"max_bad_share": 0.1})
    contract = storage.path("contract.yaml")
    storage.write_bytes("contract.yaml", sample_contract().to_yaml().encode())
    policy = policy.model_copy(update={"contract": contract})
    assert ingest(storage, Batches([rows]), policy).n_bad == 10
    check = "feature1 less_than_or_equal_to(100)"
    for name in (check, "less_than_or_equal_to(100)"):
        strict = policy.model_copy(update={"max_bad_share_per_check": {name: 0.04}})
        with pytest.raises(TooManyBadRows, match=r"feature1 less_than_or_equal_to\(100\): 10 rows, allowed are 4.0%"):
            ingest(storage, Batches([rows]), strict)


def test_refused_rows_are_listed_where_the_message_says(storage: Storage) -> None:
    rows = generate_sample_data(100)
    storage.write_bytes("contract.yaml", sample_contract().to_yaml().encode())
    policy = SAMPLE.model_copy(update={"contract": storage.path("contract.yaml")})
    rows.loc[:49, "feature1"] = 1e6
    with pytest.raises(TooManyBadRows, match="every refused row is listed in") as error:
        ingest(storage, Batches([rows]), policy, now=NOW)
    address = str(error.value).rpartition(" ")[2]
    assert pd.read_parquet(address)["row_key"].tolist() == rows["sample_id"].head(50).tolist()
    assert list_datasets(storage) == []


def test_a_column_that_changed_its_type_in_a_later_batch_is_told(storage: Storage) -> None:
    rows = generate_sample_data(100)
    text = rows.assign(feature1="high")
    storage.write_bytes("contract.yaml", sample_contract().to_yaml().encode())
    policy = SAMPLE.model_copy(update={"contract": storage.path("contract.yaml"), "max_bad_share": 1.0})
    with pytest.raises(SchemaViolation, match=r"'feature1': expected number, found text \(200 rows\)"):
        ingest(storage, Batches([rows, text.assign(sample_id=text["sample_id"] + "b"), text]), policy)


def test_a_contract_is_inferred_over_all_batches(storage: Storage) -> None:
    rows = generate_sample_data(300)
    rows["gap"] = rows["feature1"].where(rows.index < 250)
    rows["size"] = np.arange(300, dtype="int64")
    late = rows.iloc[200:].assign(size=0.5)
    found = ingest(storage, Batches([rows.iloc[:100], rows.iloc[100:200], late]), SAMPLE)
    contract = load_contract(storage, found.version.id)
    assert found.n_bad == 0
    assert contract.kinds["size"] == "number"
    assert [name for name, column in contract.schema.columns.items() if column.nullable] == ["gap"]


def test_text_is_judged_by_what_it_reads_as_only_where_the_format_knows_no_types() -> None:
    rows = pd.DataFrame(
        {
            "whole": ["1", "2", "-3"], "number": ["1.5", "2", None], "code": ["007", "012", "100"],
            "flag": ["true", "False", "true"], "day": ["2024-01-01", "2024-01-02T03:04:05Z", "2024-01-03"],
            "word": ["x", "1", "2"],
        },
        dtype="str",
    )  # fmt: skip
    assert infer_contract(rows, untyped=True).kinds == {
        "whole": "integer", "number": "number", "code": "category", "flag": "boolean", "day": "datetime",
        "word": "category",
    }  # fmt: skip
    typed = infer_contract(rows).kinds
    assert (typed["whole"], typed["flag"], typed["day"]) == ("category", "category", "datetime")


def test_the_same_source_again_follows_its_parent_and_tells_what_changed(storage: Storage) -> None:
    more = generate_sample_data(150).assign(size=1.0)
    first = ingest(storage, Batches([more.head(100).drop(columns="size")]), SAMPLE, now=NOW)
    more.loc[3, "feature1"] = np.nan
    second = ingest(storage, Batches([more]), SAMPLE)
    assert second.version.parent == first.version.id
    assert second.contract_changes == [
        "size: new, number",
        "feature1: number became number, may be missing",
    ]
    diff = diff_datasets(storage, first.version.id, second.version.id)
    assert (diff.n_added, diff.n_removed, diff.n_common) == (51, 1, 99)
    assert "feature1: number became number, may be missing" in diff.to_markdown()
    assert diff.columns["column"].tolist()[0] in ("sample_id", "event_time", "known_at")
    same = diff_datasets(storage, first.version.id, first.version.id)
    assert (same.n_added, same.n_removed, same.n_common) == (0, 0, 100)
    assert same.columns["distance"].max() == 0


def test_columns_that_the_contract_does_not_know_are_left_out_and_named(storage: Storage) -> None:
    storage.write_bytes("contract.yaml", sample_contract().to_yaml().encode())
    policy = SAMPLE.model_copy(update={"contract": storage.path("contract.yaml")})
    found = ingest(storage, Batches([generate_sample_data(40).assign(extra="x")]), policy)
    assert found.left_out == ["extra"]
    assert "extra" not in load_dataset(storage, found.version.id)


def test_the_sample_is_the_same_whatever_the_order(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forge_core.data.dataset_writer.SAMPLE_ROWS", 40)
    rows = generate_sample_data(1000)
    first = ingest(storage, Batches(cut(rows, 300, 700)), SAMPLE)
    other = Storage(storage.url + "-other")
    second = ingest(other, Batches(cut(rows.iloc[::-1], 11, 500)), SAMPLE)
    assert first.version.id == second.version.id
    pd.testing.assert_frame_equal(load_sample(storage, first.version.id), load_sample(other, second.version.id))
    assert len(load_sample(storage, first.version.id)) == 40
    assert load_sample(storage, first.version.id)["feature1"].mean() == pytest.approx(0, abs=0.5)


def test_versions_stream_in_batches(storage: Storage) -> None:
    rows = generate_sample_data(1000)
    version = save_dataset(storage, rows, source="a")
    batches = list(stream_dataset(storage, version.id, batch_rows=300))
    assert [len(batch) for batch in batches] == [300, 300, 300, 100]
    pd.testing.assert_frame_equal(pd.concat(batches, ignore_index=True), rows)


@pytest.mark.parametrize("id", ["../../etc", "ds-..", "ds-0123456789abcdef/../x", "", "ds-0123456789ABCDEF"])
def test_what_is_no_dataset_id_never_reaches_the_storage(storage: Storage, id: str) -> None:
    with pytest.raises(ConfigurationError, match="expected a dataset id"):
        load_dataset(storage, id)


def test_a_source_without_good_rows_or_with_one_class_keeps_nothing(storage: Storage) -> None:
    rows = generate_sample_data(20)
    with pytest.raises(UnusableTarget, match="found only '1'"):
        ingest(storage, Batches([rows.assign(target=1)]), SAMPLE)
    with pytest.raises(EmptyData):
        ingest(storage, Batches([]), SAMPLE)
    assert list_datasets(storage) == []
    assert not list(Path(storage.root).glob(".drafts/*"))


def test_a_huge_cell_is_set_aside_and_named(storage: Storage) -> None:
    rows = generate_sample_data(100)
    rows.loc[5, "feature2"] = "x" * 10_000_000
    found = ingest(storage, Batches([rows]), SAMPLE)
    lines = load_quarantine(storage, found.version.id)
    assert (found.n_bad, lines["column"].tolist(), lines["check"].tolist()) == (1, ["feature2"], ["is_category"])
    assert len(lines["value"][0]) == 100


def test_no_quarantine_is_said(storage: Storage) -> None:
    version = ingest(storage, Batches([generate_sample_data(20)]), SAMPLE).version
    with pytest.raises(DataNotFound, match="no row of dataset version"):
        load_quarantine(storage, version.id)


def test_the_report_has_every_column_and_reason(storage: Storage) -> None:
    rows = generate_sample_data(500).astype({"feature1": object})
    rows.loc[3, "feature1"] = "broken"
    found = ingest(storage, Batches([rows]), SAMPLE)
    sample, contract = load_sample(storage, found.version.id), load_contract(storage, found.version.id)
    page = ingestion_markdown(found, sample, contract)
    assert f"**499 rows** of `batches` are dataset `{found.version.id}`" in page
    assert "is_number" in page
    table = describe_columns(sample, contract).set_index("column")
    assert table.loc["target", "role"] == "target"
    assert table.loc["feature2", "low"].startswith("category1 4")
    assert data_figure(sample, contract).startswith(b"\x89PNG")
