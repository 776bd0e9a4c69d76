"""Loading: every kind of address gives rows or an error that names it."""

from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from forge_core.data import get_data_loader as from_the_room
from forge_core.data.catalogue import load_catalogue
from forge_core.data.loaders import check_target, get_contract, get_data_loader, resolve, source_fingerprint
from forge_core.data.sample import generate_sample_data
from forge_core.errors import (
    ConfigurationError,
    DataNotFound,
    EmptyData,
    ServiceUnavailable,
    UnreadableData,
    UnusableTarget,
)
from forge_core.settings import get_settings


@pytest.fixture
def rows() -> pd.DataFrame:
    return generate_sample_data(40)


@pytest.mark.parametrize("name", ["r.csv", "r.csv.gz", "r.csv.zst", "r.parquet", "r.json", "r.jsonl"])
def test_a_file_of_any_kind_gives_the_same_rows(tmp_path: Path, rows: pd.DataFrame, name: str) -> None:
    file = tmp_path / name
    if name.endswith(".zst"):
        with pa.CompressedOutputStream(str(file), "zstd") as stream:
            stream.write(rows.to_csv(index=False).encode())
    elif ".csv" in name:
        rows.to_csv(file, index=False, compression="infer")
    elif name.endswith("parquet"):
        rows.to_parquet(file, index=False)
    else:
        rows.to_json(file, orient="records", lines=name.endswith("l"), date_format="iso", double_precision=15)
    loader = get_data_loader()
    tidy = loader.preprocess_data(loader.load_data(file))
    pd.testing.assert_frame_equal(tidy, rows)


def test_fsspec_addresses_are_read(rows: pd.DataFrame) -> None:
    with fsspec.open("memory://loaders/rows.parquet", "wb") as file:
        rows.to_parquet(file, index=False)
    pd.testing.assert_frame_equal(get_data_loader().load_data("memory://loaders/rows.parquet"), rows)


def test_a_frame_comes_back_as_it_is(rows: pd.DataFrame) -> None:
    assert get_data_loader().load_data(rows) is rows


def test_sample_addresses_choose_rows() -> None:
    frame = get_data_loader().load_data(
        "sample:?rows=600&seed=3&drift=1&label_delay_hours=2", since="2024-01-01T01:00", until="2024-01-01T05:00",
        labels_until="2024-01-01T05:00",
    )  # fmt: skip
    assert frame["event_time"].min() == pd.Timestamp("2024-01-01T01:00Z")
    assert frame["event_time"].max() == pd.Timestamp("2024-01-01T03:00Z")
    full = generate_sample_data(600, random_state=3, drift=1, label_delay_hours=2)
    assert frame["sample_id"].tolist() == full["sample_id"].iloc[60:181].tolist()


@pytest.mark.slow
def test_flights_addresses_choose_rows_and_options_win() -> None:
    frame = get_data_loader().load_data("flights:?since=2013-01-01&until=2013-12-31", until="2013-01-03")
    assert frame["time_hour"].max() < pd.Timestamp("2013-01-03", tz="UTC")


def test_a_missing_file_names_its_address(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"nothing\.csv"):
        get_data_loader().load_data(tmp_path / "nothing.csv")


def test_empty_files_are_empty_data(tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_bytes(b"")
    (tmp_path / "head.csv").write_text("a,b\n")
    for name in ("none.csv", "head.csv"):
        with pytest.raises(EmptyData, match=name):
            get_data_loader().load_data(tmp_path / name)
    with pytest.raises(EmptyData, match="sample:"):
        get_data_loader().load_data("sample:?rows=10&since=2030-01-01")


@pytest.mark.parametrize("name", ["r.csv", "r.csv.gz", "r.csv.zst", "r.parquet", "r.json", "r.jsonl", "r.xlsx"])
def test_broken_files_are_unreadable_data(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'\xff\xfe"a,b\n1,2,3\n\x00{')
    with pytest.raises(UnreadableData, match=name):
        get_data_loader().load_data(tmp_path / name)


def test_unknown_kinds_and_options_list_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"flights: or sample: or ends in \.csv"):
        get_data_loader().load_data(tmp_path / "rows.xls")
    with pytest.raises(ConfigurationError, match="no option speed; known: rows"):
        get_data_loader().load_data("sample:?speed=3")
    with pytest.raises(ConfigurationError, match="cannot use rows='many'"):
        get_data_loader().load_data("sample:?rows=many")
    with pytest.raises(ConfigurationError, match="no option seed"):
        get_data_loader().load_data(tmp_path / "rows.csv", seed=1)


def test_a_server_that_is_away_is_not_missing_data() -> None:
    with pytest.raises(ServiceUnavailable, match="cannot reach"):
        get_data_loader().load_data("http://127.0.0.1:9/rows.csv")


def test_preprocessing_tidies_types_and_counts_duplicates() -> None:
    raw = pd.DataFrame(
        {
            " when ": ["2024-01-01", "2024-01-02T03:04:05Z", "2024-01-01"],
            "mixed": [1, "a", 1],
            "flag": np.array([True, None, True], dtype=object),
            "almost": ["2024-01-01", "soon", "2024-01-01"],
            "n": pd.array([1, 2, 1], dtype="Int64"),
            "c": pd.Categorical(["x", "y", "x"]),
        }
    )
    tidy = get_data_loader().preprocess_data(raw)
    assert {c: str(t) for c, t in tidy.dtypes.items()} == {
        "when": "datetime64[us, UTC]", "mixed": "str", "flag": "boolean", "almost": "str", "n": "int64", "c": "str",
    }  # fmt: skip
    assert tidy.attrs["duplicates_dropped"] == 1
    assert tidy["when"].iloc[1] == pd.Timestamp("2024-01-02T03:04:05Z")


def test_only_the_demo_sources_have_a_contract_by_hand() -> None:
    flights, sample = get_contract("flights:?until=2013-02-01"), get_contract("sample:")
    assert flights is not None and flights.target == "late"
    assert sample is not None and sample.target == "target"
    assert get_contract("rows.csv") is None


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    assert source_fingerprint(str(file)) is None
    file.write_text("a\n1\n")
    first = source_fingerprint(str(file))
    file.write_text("a\n2\n")
    assert first is not None and source_fingerprint(str(file)) != first
    assert source_fingerprint("sample:") == source_fingerprint("sample:") != source_fingerprint("flights:")


def test_an_unusable_target_says_what_was_found() -> None:
    frame = pd.DataFrame({"one": [1, 1, 1], "none": [None, None, None], "text": ["a", "b", None]})
    with pytest.raises(UnusableTarget, match=r"'y' in rows\.csv, found one, none, text"):
        check_target(frame, "y", source="rows.csv")
    with pytest.raises(UnusableTarget, match=r"found only '1' \(3 rows, 0 missing\)"):
        check_target(frame, "one")
    with pytest.raises(UnusableTarget, match="3 missing and none present"):
        check_target(frame, "none")
    check_target(frame, "text")


CATALOGUE = """
rows:
  address: ${ROWS_FOLDER}/rows.csv
  description: Three rows.
  options: {delimiter: ";"}
shop:
  address: postgresql://reader:${SHOP_PASSWORD}@127.0.0.1:1/shop?table=orders
"""


def test_a_name_in_the_catalogue_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "catalogue.yaml").write_text(CATALOGUE)
    (tmp_path / "rows.csv").write_text("a;b\n1;2\n")
    monkeypatch.setenv("FORGE_CATALOGUE_FILE", str(tmp_path / "catalogue.yaml"))
    monkeypatch.setenv("ROWS_FOLDER", str(tmp_path))
    get_settings.cache_clear()
    try:
        assert get_data_loader().load_data("rows").to_dict("list") == {"a": [1], "b": [2]}
        before = source_fingerprint("rows")
        (tmp_path / "rows.csv").write_text("a;b\n3;4\n")
        assert before is not None and source_fingerprint("rows") != before
        with pytest.raises(ConfigurationError, match="the environment variable SHOP_PASSWORD, which is not set"):
            resolve("shop")
        monkeypatch.setenv("SHOP_PASSWORD", "p@ss/word")
        source = resolve("shop")
        with pytest.raises(ServiceUnavailable, match=r"reader:\*\*\*@127\.0\.0\.1:1/shop") as caught:
            list(source.batches())
        for secret in ("p@ss/word", "p%40ss%2Fword"):
            assert secret not in str(caught.value) + source.address
        with pytest.raises(ConfigurationError, match=r"bare name 'orders'.*has rows, shop"):
            get_data_loader().load_data("orders")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "r.csv").write_text("a\n1\n")
        assert len(get_data_loader().load_data("folder")) == 1
    finally:
        get_settings.cache_clear()


def test_a_catalogue_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    file = tmp_path / "catalogue.yaml"
    assert load_catalogue(file) == {}
    for text, words in [
        ("rows: {address: r.csv, adress: r.csv}", "rows.adress: Extra inputs"),
        ("rows: {}", "rows.address: Field required"),
        ("a/b: {address: r.csv}", "names without space, dot, colon or slash in .*found a/b"),
        ("rows: [", "found: while parsing"),
    ]:
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=words):
            load_catalogue(file)


def test_the_catalogue_of_the_checkout_names_the_demo_sources() -> None:
    entries = load_catalogue(Path("deployments/catalogue.yaml"))
    assert {name: entry.address for name, entry in entries.items()} == {"flights": "flights:", "sample": "sample:"}


def test_lines_that_are_no_rows_are_counted_and_too_many_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "r.csv").write_text("a,b\n1,2\n3\n5,6\n")
    frame = get_data_loader().load_data(tmp_path / "r.csv")
    assert frame.attrs["n_rejected"] == 1 and frame.attrs["rejects"][0]["reason"] == "expected 2 cells, found 1"
    assert "lines_that_are_no_rows=1" in caplog.text
    frame.to_parquet(tmp_path / "kept.parquet")  # attributes go into the file
    (tmp_path / "r.csv").write_text("a,b\n1,2\n3\n5\n")
    with pytest.raises(UnreadableData, match="2 of 3 lines are none"):
        get_data_loader().load_data(tmp_path / "r.csv")


def test_csv_cells_get_the_type_that_all_of_them_read_as(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(
        "n,x,flag,code,mixed,day\n1,1.5,true,007,1,2024-01-01\n2,,false,008,=1+1,2024-01-02\n"
    )
    frame = get_data_loader().load_data(tmp_path / "r.csv")
    assert {c: str(t) for c, t in frame.dtypes.items()} == {
        "n": "int64", "x": "float64", "flag": "bool", "code": "str", "mixed": "str", "day": "str",
    }  # fmt: skip


def test_batches_of_different_types_become_one_column(tmp_path: Path) -> None:
    pd.DataFrame({"n": [1, 2], "late": [1, 2]}).to_parquet(tmp_path / "1.parquet")
    pd.DataFrame({"n": [3.5, None]}).to_parquet(tmp_path / "2.parquet")
    frame = get_data_loader().load_data(tmp_path)
    assert [str(t) for t in frame.dtypes] == ["float64", "Int64"]
    tidy = get_data_loader().preprocess_data(frame)
    assert [str(t) for t in tidy.dtypes] == ["float64", "Int64"]


def test_the_room_offers_its_doors() -> None:
    assert from_the_room is get_data_loader
