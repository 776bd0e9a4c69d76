"""Sources: the same rows from everywhere, in bounded memory, and words for all that can be wrong with them."""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import openpyxl
import pandas as pd
import pandera.pandas as pandera
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from forge_core.data.batches import BATCH_ROWS, hide_secrets, typed_column
from forge_core.data.contracts import Contract
from forge_core.data.quarantine import no_faults
from forge_core.data.sources import open_source
from forge_core.errors import (
    ConfigurationError,
    DataNotFound,
    EmptyData,
    SchemaViolation,
    ServiceUnavailable,
    UnreadableData,
)
from tests.servers import http_server, postgres_server, s3_server

N = 1000


def made_rows() -> pd.DataFrame:
    """Return rows of every kind with gaps."""
    random = np.random.default_rng(7)
    gaps = random.random((4, N)) < 0.1
    number = random.normal(size=N).round(6)
    number[gaps[0]] = np.nan
    number[::50] = 3.0  # whole, in a column of fractions
    words = pd.Series(random.choice(["plain", "comma, here", 'a "quote"', "two\nlines", "ünï–köde"], N), dtype="str")
    times = pd.Series(pd.date_range("2024-01-01", periods=N, freq="h", tz="UTC")).astype("datetime64[us, UTC]")
    return pd.DataFrame(
        {
            "id": pd.Series(np.arange(N), dtype="int64") + 2**53,
            "count": pd.Series(random.integers(0, 9, N)).astype("Int64").mask(gaps[1]),
            "number": number,
            "word": words.mask(gaps[2]),
            "flag": pd.Series(random.random(N) < 0.5).astype("boolean").mask(gaps[3]),
            "sure": random.random(N) < 0.5,
            "moment": times.mask(gaps[0]),
        }
    )


CONTRACT = Contract(
    pandera.DataFrameSchema(
        {
            "id": pandera.Column("int64"),
            "count": pandera.Column("Int64", nullable=True),
            "number": pandera.Column("float64", nullable=True),
            "word": pandera.Column("str", nullable=True),
            "flag": pandera.Column("boolean", nullable=True),
            "sure": pandera.Column("bool"),
            "moment": pandera.Column("datetime64[us, UTC]", nullable=True),
        }
    )
)


def write(rows: pd.DataFrame, path: Path) -> Path:
    """Write rows in the format the path's name says."""
    name = path.name
    if name.endswith((".csv.zst", ".jsonl.zst")):
        plain = rows.to_csv(index=False) if ".csv" in name else _lines(rows)
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(plain.encode())
    elif ".csv" in name or ".tsv" in name:
        rows.to_csv(path, index=False, sep="\t" if ".tsv" in name else ",", compression="infer")
    elif name.endswith(".parquet"):
        rows.to_parquet(path, index=False)
    elif name.endswith(".json"):
        path.write_text(json.dumps([json.loads(line) for line in _lines(rows).splitlines()]))
    elif name.endswith(".jsonl"):
        path.write_text(_lines(rows))
    elif name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress(_lines(rows).encode()))
    elif name.endswith(".xlsx"):
        # Excel's numbers end at 15 digits, and its times have no zone.
        rows.assign(id=rows["id"].astype("str"), moment=rows["moment"].dt.tz_localize(None)).to_excel(path, index=False)
    return path


def _lines(rows: pd.DataFrame) -> str:
    return rows.to_json(orient="records", lines=True, date_format="iso", double_precision=15)


def into_database(rows: pd.DataFrame, url: str, table: str) -> None:
    engine = sa.create_engine(url)
    rows.to_sql(table, engine, index=False, if_exists="replace")
    engine.dispose()


FILES = [
    "r.csv", "r.csv.gz", "r.csv.zst", "r.tsv", "r.tsv.gz", "r.parquet", "r.json", "r.jsonl", "r.jsonl.gz",
    "r.jsonl.zst", "r.xlsx",
]  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return made_rows()


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


def gathered(source: str | Path | pd.DataFrame, **options: object) -> pd.DataFrame:
    """Return a source's rows as the contract types them."""
    opened = open_source(source, **options)
    frame = pd.concat([CONTRACT.check(batch, max_bad_share=0).good for batch in opened.batches()], ignore_index=True)
    assert opened.rejects.empty
    return frame.sort_values("id", ignore_index=True)[list(CONTRACT.kinds)]


def same(found: pd.DataFrame, rows: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, CONTRACT.check(rows, max_bad_share=0).good)
    assert len(found) == N


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_any_kind_gives_the_same_rows(tmp_path: Path, rows: pd.DataFrame, name: str) -> None:
    same(gathered(write(rows, tmp_path / name)), rows)


def test_a_frame_and_an_fsspec_address_give_the_same_rows(rows: pd.DataFrame) -> None:
    same(gathered(rows), rows)
    with fsspec.open("memory://sources/rows.parquet", "wb") as file:
        rows.to_parquet(file, index=False)
    same(gathered("memory://sources/rows.parquet"), rows)


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_folders_and_patterns_give_the_rows_of_all_their_files(tmp_path: Path, rows: pd.DataFrame, ending: str) -> None:
    for i in range(3):
        write(rows.iloc[i::3], tmp_path / f"2013-{i}.{ending}")
    (tmp_path / "_SUCCESS.csv").write_text("no,data\n")
    (tmp_path / f".hidden.{ending}").write_text("no data")
    (tmp_path / f"half.{ending}.tmp").write_text("no data")
    (tmp_path / "README.md").write_text("no data")
    same(gathered(f"{tmp_path}/"), rows)
    same(gathered(tmp_path), rows)
    same(gathered(f"{tmp_path}/2013-*.{ending}"), rows)


def test_a_database_gives_the_same_rows_by_table_and_by_query(tmp_path: Path, rows: pd.DataFrame) -> None:
    url = f"sqlite:///{tmp_path}/rows.db"
    into_database(rows.assign(moment=rows["moment"].dt.tz_localize(None)), url, "my rows")
    same(gathered(url, table="my rows"), rows)
    same(gathered(f"{url}?table=my+rows"), rows)
    same(gathered(url, query="SELECT * FROM \"my rows\" WHERE word LIKE '%' OR word IS NULL"), rows)


@pytest.mark.postgres
def test_postgresql_gives_the_same_rows(postgres: str, rows: pd.DataFrame) -> None:
    driver = postgres.replace("postgresql:", "postgresql+psycopg:")
    into_database(rows, driver, "rows")
    same(gathered(postgres, table="rows"), rows)
    same(gathered(postgres, table="public.rows"), rows)
    same(gathered(postgres, query="SELECT * FROM rows WHERE word LIKE '%' OR word IS NULL"), rows)


@pytest.mark.postgres
def test_postgresql_types_keep_their_gaps(postgres: str) -> None:
    query = (
        "SELECT * FROM (VALUES (1::bigint, 1.5::numeric, true, date '2024-01-02', '{\"a\": [1, 2]}'::jsonb, 'x'), "
        "(NULL, NULL, NULL, NULL, NULL, NULL)) AS t(i, d, b, day, j, w)"
    )
    (batch,) = open_source(postgres, query=query).batches()
    assert [str(t) for t in batch.dtypes] == ["Int64", "float64", "boolean", "datetime64[s]", "str", "str"]
    assert batch["j"].iloc[0] == '{"a":[1,2]}'


@pytest.mark.postgres
def test_postgresql_says_what_is_wrong_and_never_the_password(postgres: str) -> None:
    secret = postgres.replace("postgres@", "postgres:hunter2@")
    assert "hunter2" not in open_source(secret, table="x").address
    cases: list[tuple[str, dict[str, str], type[Exception], str]] = [
        (
            secret,
            {"table": "nothing"},
            DataNotFound,
            r"the table nothing at postgresql://postgres:\*\*\*@.*name its schema",
        ),
        (secret, {"query": "SELECT nothing"}, UnreadableData, 'column "nothing" does not exist'),
        (secret, {"query": "CREATE TABLE written (a int)"}, UnreadableData, "cannot be read"),
        (secret, {"query": "SELECT 1 AS a, 2 AS a"}, SchemaViolation, "found a more than once"),
        (secret, {"query": "SELECT 1 AS a WHERE false"}, EmptyData, "expected rows at postgresql"),
        (
            secret.replace("/postgres", "/absent").replace("/absent:", "/postgres:"),
            {"table": "t"},
            DataNotFound,
            "absent",
        ),
        ("postgresql://me:hunter2@127.0.0.1:1/db", {"table": "t"}, ServiceUnavailable, "is the server up"),
    ]
    for url, options, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            list(open_source(url, **options).batches())
        assert "hunter2" not in str(caught.value) + repr(caught.value.__dict__)


@pytest.mark.postgres
def test_a_long_table_comes_in_batches_and_may_be_read_again(postgres: str) -> None:
    source = open_source(
        postgres, query=f"SELECT i, i * 0.5 AS half FROM generate_series(1, {2 * BATCH_ROWS + 5}) AS i"
    )
    for _ in range(2):
        assert [len(batch) for batch in source.batches()] == [BATCH_ROWS, BATCH_ROWS, 5]
    first = next(source.batches())
    assert first["half"].dtype == "float64"


@pytest.mark.s3
def test_s3_gives_the_same_rows_and_says_what_is_wrong(
    tmp_path: Path, rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(monkeypatch, "forge-rows"):
        fs = fsspec.filesystem("s3")
        for i, name in enumerate(["a.parquet", "b.parquet"]):
            fs.put_file(str(write(rows.iloc[i::2], tmp_path / name)), f"forge-rows/parts/{name}")
        for name in ("r.csv.gz", "r.xlsx"):
            fs.put_file(str(write(rows, tmp_path / name)), f"forge-rows/{name}")
            same(gathered(f"s3://forge-rows/{name}"), rows)
        for address in ("s3://forge-rows/parts/", "s3://forge-rows/parts", "s3://forge-rows/parts/*.parquet"):
            same(gathered(address), rows)
        before = open_source("s3://forge-rows/r.csv.gz").fingerprint()
        fs.put_file(str(write(rows.iloc[1:], tmp_path / "r.csv.gz")), "forge-rows/r.csv.gz")
        assert before is not None and open_source("s3://forge-rows/r.csv.gz").fingerprint() != before
        for address in ("s3://forge-rows/no.csv", "s3://no-such-bucket/no.csv", "s3://forge-rows/none/"):
            with pytest.raises(DataNotFound, match=address):
                list(open_source(address).batches())
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        fs.clear_instance_cache()
        with pytest.raises(UnreadableData, match=r"s3://forge-rows/r\.csv\.gz may not be read.*AWS_ACCESS_KEY_ID"):
            list(open_source("s3://forge-rows/r.csv.gz").batches())


def test_a_web_server_gives_the_same_rows_and_says_what_is_wrong(tmp_path: Path, rows: pd.DataFrame) -> None:
    for name in ("r.csv.gz", "r.parquet"):
        write(rows, tmp_path / name)
    (tmp_path / "download").write_bytes((tmp_path / "r.parquet").read_bytes())
    with http_server(tmp_path) as url:
        same(gathered(f"{url}/r.csv.gz"), rows)
        same(gathered(f"{url}/r.parquet?when=now"), rows)
        same(gathered(f"{url}/download", format="parquet"), rows)
        assert (
            open_source(f"{url}/r.parquet").fingerprint() == open_source(f"{url}/r.parquet").fingerprint() is not None
        )
        for address, kind, words in [
            ("none.csv", DataNotFound, r"no file at .*none\.csv"),
            ("refused/r.csv", UnreadableData, "may not be read"),
            ("broken/r.csv", ServiceUnavailable, "cannot reach"),
        ]:
            with pytest.raises(kind, match=words):
                list(open_source(f"{url}/{address}").batches())
        with pytest.raises(ConfigurationError, match="give format="):
            open_source(f"{url}/download")
    with pytest.raises(ServiceUnavailable, match="cannot reach"):
        list(open_source(f"{url}/r.csv.gz").batches())


def test_a_download_is_made_once_and_goes_with_its_source(tmp_path: Path, rows: pd.DataFrame) -> None:
    write(rows, tmp_path / "r.csv")
    with http_server(tmp_path) as url:
        source = open_source(f"{url}/r.csv")
        first = pd.concat(source.batches())
    pd.testing.assert_frame_equal(pd.concat(source.batches()), first)  # the server is away by now
    copy = Path(source._files[0].path)  # type: ignore[attr-defined]
    assert copy.is_file()
    del source
    assert not copy.exists()


CSV_FAULTS = 'a,b\n1,2\n3\n"x\ny",4\n5,6,7\n8,9\n'


def test_ragged_lines_stop_nothing_and_are_told(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(CSV_FAULTS)
    source = open_source(tmp_path / "r.csv")
    (batch,) = source.batches()
    assert batch["a"].tolist() == ["1", "x\ny", "8"]
    assert source.rejects.dtypes.to_dict() == no_faults().dtypes.to_dict()
    assert source.rejects.to_dict("list") == {
        "row_number": [1, 3],
        "column": ["", ""],
        "check": ["is_row", "is_row"],
        "value": ["3", "5,6,7"],
        "reason": ["expected 2 cells, found 1", "expected 2 cells, found 3"],
    }
    assert len(list(source.batches())) == 1 and len(source.rejects) == 2


def test_rejected_lines_of_many_files_name_theirs(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV_FAULTS)
    (tmp_path / "b.csv").write_text("a,b\n1,2\n3\n")
    source = open_source(f"{tmp_path}/*.csv")
    list(source.batches())
    assert source.rejects["reason"].tolist()[1:] == [
        "expected 2 cells, found 3 in a.csv",
        "expected 2 cells, found 1 in b.csv",
    ]


def test_broken_json_lines_stop_nothing_and_are_told(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(
        b'\xef\xbb\xbf{"a": 1, "n": {"deep": [1, "\xc3\xbc"]}}\n\n{"a": \n'
        b'[1]\n{"a": 1, "a": 2}\n{"a": 2, "late": 1e400}\n\xff{}\n'
    )
    source = open_source(tmp_path / "r.jsonl")
    (batch,) = source.batches()
    assert (
        batch["a"].tolist() == [1, 2] and batch["n"].iloc[0] == '{"deep":[1,"ü"]}' and batch["late"].iloc[1] == np.inf
    )
    assert source.rejects["row_number"].tolist() == [1, 2, 3, 5]
    assert (source.rejects["check"] == "is_json").all()
    for reason, words in zip(
        source.rejects["reason"], ["Expecting value", "found a list", "twice", "utf-8"], strict=True
    ):
        assert words in reason


def test_json_may_be_records_or_columns(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    for orient in ("records", "columns", "list"):
        text = json.dumps(frame.astype(object).where(frame.notna(), None).to_dict("list"))
        (tmp_path / "r.json").write_text(text if orient == "list" else frame.to_json(orient=orient))
        (batch,) = open_source(tmp_path / "r.json").batches()
        assert batch["a"].tolist() == [1, 2] and batch["b"].isna().tolist() == [False, True]
    (tmp_path / "r.json").write_text('[{"a": 1}, 3]')
    source = open_source(tmp_path / "r.json")
    assert len(next(source.batches())) == 1
    assert source.rejects["reason"].tolist() == ["expected a JSON object, found a number"]


def test_parquet_types_come_out_as_pandas_has_them(tmp_path: Path) -> None:
    from datetime import date
    from decimal import Decimal

    table = pa.table(
        {
            "gaps": pa.array([1, None], pa.int32()),
            "flags": pa.array([True, None]),
            "price": pa.array([Decimal("1.50"), None], pa.decimal128(9, 2)),
            "day": pa.array([date(2024, 1, 2), None]),
            "code": pa.array(["x", None]).dictionary_encode(),
            "deep": pa.array([{"k": [1, 2]}, None]),
            "void": pa.nulls(2),
            "big": pa.array([2**53 + 1, None], pa.int64()),
        }
    )
    pq.write_table(table, tmp_path / "r.parquet")
    (batch,) = open_source(tmp_path / "r.parquet").batches()
    assert {c: str(t) for c, t in batch.dtypes.items()} == {
        "gaps": "Int32", "flags": "boolean", "price": "float64", "day": "datetime64[ms]", "code": "str", "deep": "str",
        "void": "object", "big": "Int64",
    }  # fmt: skip
    assert batch["deep"].iloc[0] == '{"k":[1,2]}' and batch["big"].iloc[0] == 2**53 + 1


def test_excel_reads_the_sheet_that_is_named(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for line in (["a", "b"], [1, "x"], [None, None], [2, "y", "beside"], [3]):
        book.active.append(line)
    book.create_sheet("second").append(["c"])
    book["second"].append([5])
    book.save(tmp_path / "r.xlsx")
    source = open_source(tmp_path / "r.xlsx")
    (batch,) = source.batches()
    assert batch["a"].tolist() == [1, 3] and batch["b"].isna().tolist() == [False, True]
    assert source.rejects[["row_number", "value"]].to_numpy().tolist() == [[1, "2,y,beside"]]
    for sheet in ("second", 1):
        assert next(open_source(tmp_path / "r.xlsx", sheet=sheet).batches())["c"].tolist() == [5]
    with pytest.raises(ConfigurationError, match=r"a sheet of .*\(Sheet, second, .*sheet='third'"):
        list(open_source(tmp_path / "r.xlsx", sheet="third").batches())


def _twice(path: Path) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), path)
    elif path.suffix == ".xlsx":
        book = openpyxl.Workbook()
        book.active.append(["a", "a"])
        book.active.append([1, 2])
        book.save(path)
    elif path.suffix == ".db":
        into_database(pd.DataFrame({"a": [1]}), f"sqlite:///{path}", "t")
    else:
        path.write_text("a\ta\n1\t2\n" if path.suffix == ".tsv" else "a,b,a\n1,2,3\n")


@pytest.mark.parametrize("name", ["r.csv", "r.tsv", "r.parquet", "r.xlsx", "r.db"])
def test_a_column_that_is_there_twice_is_a_schema_violation(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    _twice(path)
    source = open_source(f"sqlite:///{path}", query="SELECT a, a FROM t") if name.endswith("db") else open_source(path)
    with pytest.raises(SchemaViolation, match="found a more than once"):
        list(source.batches())
    with pytest.raises(SchemaViolation, match="found a more than once"):
        list(open_source(pd.DataFrame([[1, 2]], columns=["a", "a"])).batches())


def test_an_encoding_is_named_and_may_be_given(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_bytes("stadt,n\nKöln,1\n".encode("latin-1"))
    with pytest.raises(UnreadableData, match=r"expected utf-8 at .*byte 0xf6 at offset 9,.*give encoding="):
        list(open_source(path).batches())
    assert next(open_source(path, encoding="latin-1").batches())["stadt"].tolist() == ["Köln"]
    path.write_bytes("stadt,n\nKöln,1\n".encode("utf-16"))
    with pytest.raises(UnreadableData, match=r"give encoding=… \(utf-16\?\)"):
        list(open_source(path).batches())
    assert next(open_source(path, encoding="utf-16").batches())["stadt"].tolist() == ["Köln"]
    path.write_bytes("stadt,n\nKöln,1\n".encode("utf-8-sig"))
    assert list(next(open_source(path).batches()).columns) == ["stadt", "n"]
    with pytest.raises(ConfigurationError, match="an encoding that Python knows"):
        list(open_source(path, encoding="klingon").batches())


def test_a_wrong_byte_far_into_the_file_is_found_where_it_is(tmp_path: Path) -> None:
    data = b"a,b\n" + "ü,1\n".encode() * 1_500_000
    at = 4 + 5 * 1_400_000
    (tmp_path / "r.csv").write_bytes(data[:at] + b"\xff" + data[at + 1 :])
    with pytest.raises(UnreadableData, match=f"byte 0xff at offset {at:,}"):
        list(open_source(tmp_path / "r.csv").batches())


def test_another_delimiter_is_guessed_in_the_message_and_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("a;b\n1,5;2\n")
    with pytest.raises(UnreadableData, match=r"one column named 'a;b'; give delimiter=';'"):
        list(open_source(tmp_path / "r.csv").batches())
    assert next(open_source(tmp_path / "r.csv", delimiter=";").batches())["a"].tolist() == ["1,5"]
    with pytest.raises(ConfigurationError, match="one ASCII character as delimiter"):
        list(open_source(tmp_path / "r.csv", delimiter="::").batches())


def test_a_quote_that_is_never_closed_loses_no_rows_in_silence(tmp_path: Path) -> None:
    for line in ('7,"8\n', '"7,8\n'):
        (tmp_path / "r.csv").write_text("a,b\n1,2\n" + line + "3,4\n" * 10)
        with pytest.raises(UnreadableData, match="opened in data line 2 is never closed"):
            list(open_source(tmp_path / "r.csv").batches())
    (tmp_path / "r.csv").write_text('a,b\n1,5" pipe\n2,x\n')
    assert len(next(open_source(tmp_path / "r.csv").batches())) == 2


def test_a_cell_of_ten_megabytes_passes_and_a_longer_line_is_told(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("a,b\n1," + "x" * 10_000_000 + "\n=1+1,1e400\n")
    frame = pd.concat(open_source(path).batches())
    assert frame["b"].str.len().tolist() == [10_000_000, 5] and frame["a"].tolist() == ["1", "=1+1"]
    path.write_text("a,b\n1,2\n1," + "x" * 70_000_000 + "\n3,4\n")
    with pytest.raises(UnreadableData, match="a line is longer than 16 MiB"):
        list(open_source(path).batches())


@pytest.mark.parametrize("name", ["r.csv.gz", "r.csv.zst", "r.jsonl.gz", "r.parquet", "r.xlsx"])
@pytest.mark.parametrize("damage", ["cut off", "something else"])
def test_files_that_are_cut_off_or_something_else_are_unreadable(
    tmp_path: Path, rows: pd.DataFrame, name: str, damage: str
) -> None:
    path = write(rows, tmp_path / name)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "cut off" else b"something else" * 100)
    with pytest.raises(
        UnreadableData, match=rf"{name}, which cannot be read as such: .*(repair or rename it|save it as)"
    ):
        list(open_source(path).batches())


@pytest.mark.parametrize("name", ["r.csv", "r.tsv", "r.csv.gz", "r.json", "r.jsonl", "r.parquet", "r.xlsx"])
def test_sources_without_rows_are_empty_data(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    with pytest.raises(EmptyData, match=name):
        list(open_source(path).batches())
    if not name.startswith("r.json"):
        write(made_rows().iloc[:0], path)
        with pytest.raises(EmptyData, match=name):
            list(open_source(path).batches())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / name).write_bytes(b"")
    with pytest.raises(EmptyData, match="sub"):
        list(open_source(tmp_path / "sub").batches())


def test_files_of_a_folder_may_lack_columns_and_may_not_differ_in_kind(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("a,b\n1,2\n")
    (tmp_path / "2.csv").write_text("c,a\n3,4\n")
    frames = list(open_source(tmp_path).batches())
    assert [list(frame.columns) for frame in frames] == [["a", "b", "c"]] * 2
    assert frames[0]["c"].isna().all() and frames[1]["b"].isna().all() and frames[1]["a"].tolist() == ["4"]
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "3.parquet")
    with pytest.raises(ConfigurationError, match=r"one kind at .*, found \.csv, \.parquet"):
        list(open_source(tmp_path).batches())
    with pytest.raises(DataNotFound, match="no file at"):
        list(open_source(f"{tmp_path}/none-*.csv").batches())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "x.txt").write_text("x")
    with pytest.raises(DataNotFound, match="found none among 1"):
        list(open_source(tmp_path / "notes").batches())


def test_records_with_other_keys_far_down_have_their_columns_in_every_batch(tmp_path: Path) -> None:
    with (tmp_path / "r.jsonl").open("w") as file:
        file.writelines(f'{{"a": {i}}}\n' for i in range(BATCH_ROWS))
        file.write('{"a": 1, "late": true}\n')
    batches = list(open_source(tmp_path / "r.jsonl").batches())
    assert len(batches) > 1 and sum(map(len, batches)) == BATCH_ROWS + 1
    assert all(list(batch.columns) == ["a", "late"] for batch in batches)


def test_unknown_schemes_endings_and_options_list_the_known_ones(tmp_path: Path) -> None:
    for source, options, words in [
        ("carrier://pigeon/rows", {}, r"known scheme \(flights, sample, .*postgresql.*carrier://pigeon"),
        ("rows.xls", {}, r"flights: or sample: or ends in \.csv.*\.xlsx"),
        ("rows.csv", {"speed": 1}, "no option speed; known: since, until, labels_until, encoding, delimiter"),
        ("rows.csv", {"format": "word"}, "a format of csv, .*'word'"),
        ("sqlite:///x.db", {}, "one table=… or one query=….*neither"),
        ("sqlite:///x.db?table=t", {"query": "SELECT 1"}, "found table, query"),
        ("sqlite:///x.db", {"tables": "t"}, "no option tables; known: table, query"),
        ("orders", {}, "bare name 'orders'; names need a catalogue"),
    ]:
        with pytest.raises(ConfigurationError, match=words):
            open_source(source, **options)
    with pytest.raises(ConfigurationError, match="frames have no option delimiter"):
        open_source(pd.DataFrame({"a": [1]}), delimiter=";")
    write(made_rows(), tmp_path / "r.parquet")
    with pytest.raises(ConfigurationError, match=r"\.parquet files have no option delimiter"):
        list(open_source(tmp_path / "r.parquet", delimiter=";").batches())


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"no database at sqlite:.*none\.db"):
        list(open_source(f"sqlite:///{tmp_path}/none.db", table="t").batches())
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "text.db").write_text("this is no database at all, only a sentence" * 100)
    with pytest.raises(UnreadableData, match="not a database"):
        list(open_source(f"sqlite:///{tmp_path}/text.db", table="t").batches())
    into_database(pd.DataFrame({"a": [1]}), f"sqlite:///{tmp_path}/one.db", "there")
    with pytest.raises(DataNotFound, match=r"the table absent at .*, found there;"):
        list(open_source(f"sqlite:///{tmp_path}/one.db", table="absent").batches())
    with pytest.raises(UnreadableData, match="readonly"):
        list(open_source(f"sqlite:///{tmp_path}/one.db", query="DELETE FROM there RETURNING a").batches())
    with pytest.raises(ConfigurationError, match="oracle"):
        list(open_source("oracle+absent://u:pw@h/db", table="t").batches())


PLUGIN = """
import pandas as pd
from forge_core.data.sources import FrameSource

def open_numbers(address, options):
    return FrameSource(pd.DataFrame({"n": range(int(address.split("://")[1]))}))
"""


def test_a_package_adds_a_scheme_and_cannot_take_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: pd.DataFrame
) -> None:
    (tmp_path / "forge_numbers.py").write_text(PLUGIN)
    info = tmp_path / "forge_numbers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: forge-numbers\nVersion: 1.0\n")
    entries = "[forge_core.sources]\nnumbers = forge_numbers:open_numbers\n"
    (info / "entry_points.txt").write_text(entries)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(next(open_source("numbers://7").batches())) == 7
    with pytest.raises(ConfigurationError, match="numbers"):
        open_source("figures://7")
    (info / "entry_points.txt").write_text(entries + "s3 = forge_numbers:open_numbers\n")
    with pytest.raises(ConfigurationError, match=r"s3: belongs to forge_core.*open_files.*forge_numbers:open_numbers"):
        open_source("s3://bucket/rows.csv")


def test_fingerprints_follow_content_and_are_none_where_nobody_can_tell(tmp_path: Path) -> None:
    for name in ("1.csv", "2.csv"):
        (tmp_path / name).write_text("a\n1\n")
    whole, one = open_source(tmp_path).fingerprint(), open_source(tmp_path / "1.csv").fingerprint()
    assert whole is not None and one is not None
    (tmp_path / "2.csv").write_text("a\n2\n")
    assert open_source(tmp_path).fingerprint() != whole and open_source(tmp_path / "1.csv").fingerprint() == one
    assert open_source(tmp_path / "1.csv", delimiter=";").fingerprint() != one
    assert open_source(tmp_path / "none.csv").fingerprint() is None
    assert open_source("sqlite:///x.db?table=t").fingerprint() is None
    assert open_source("http://127.0.0.1:9/rows.csv").fingerprint() is None
    assert open_source("sample:").fingerprint() != open_source("sample:", rows=5).fingerprint()


def test_secrets_are_hidden_wherever_an_address_has_them() -> None:
    shown = hide_secrets("GET https://me:pw@host/r.csv?X-Amz-Signature=abc&page=2&api_token=xyz failed")
    assert shown == "GET https://me:***@host/r.csv?X-Amz-Signature=***&page=2&api_token=*** failed"


@pytest.mark.parametrize(
    ("cells", "dtype"),
    [
        ([1, None], "Int64"), ([1, 2], "int64"), ([True, None], "boolean"), ([1, 2.5, None], "float64"),
        (["a", None], "str"), ([None, None], "object"), ([1, "a"], "object"), ([2**70, 1], "object"),
        ([[1], [2]], "str"), ([{"a": 1}, "b"], "str"), ([True, 1], "object"),
    ],
)  # fmt: skip
def test_python_cells_become_the_narrowest_column(cells: list[object], dtype: str) -> None:
    assert str(typed_column(cells).dtype) == dtype


MEASURE = """
import resource, sys
from forge_core.data.sources import open_source
def peak(path):
    rows = sum(len(batch) for batch in open_source(path).batches())
    return rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
_, before = peak(sys.argv[1])
rows, after = peak(sys.argv[2])
print(rows, after - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet", "jsonl"])
def test_memory_does_not_grow_with_the_source(tmp_path: Path, ending: str) -> None:
    short, long = (1, 4) if ending == "jsonl" else (4, 12)
    paths = [tmp_path / f"{n}.{ending}" for n in (short, long)]
    for path in paths:
        write_long(path, int(path.name.split(".")[0]))
    done = subprocess.run([sys.executable, "-c", MEASURE, *map(str, paths)], capture_output=True, text=True, check=True)
    n_rows, mebibytes = map(int, done.stdout.split())
    assert n_rows == long * BATCH_ROWS
    assert mebibytes < 30 * (long - short) / 2, "a batch is about 30 MiB when it is kept"


def write_long(path: Path, n_batches: int) -> None:
    """Write batches of twelve columns of text, some 30 MiB each."""
    names = [f"c{i}" for i in range(12)]
    if path.suffix == ".parquet":
        batch = pa.table({name: [f"{i:018d}" for i in range(BATCH_ROWS)] for name in names})
        with pq.ParquetWriter(path, batch.schema) as writer:
            for _ in range(n_batches):
                writer.write_table(batch)
        return
    cells = ",".join(["x" * 18] * 12)
    head = "" if path.suffix == ".jsonl" else ",".join(names) + "\n"
    line = json.dumps(dict.fromkeys(names, "x" * 18)) if path.suffix == ".jsonl" else cells
    data = ((line + "\n") * BATCH_ROWS).encode()
    with gzip.open(path, "wb", 1) if path.suffix == ".gz" else path.open("wb") as file:
        file.write(head.encode())
        for _ in range(n_batches):
            file.write(data)
