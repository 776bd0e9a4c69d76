"""Sources: the same rows from everywhere, in bounded memory, and words for all that can be wrong with them."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forge_core.data.batches import BATCH_ROWS, hide_secrets, typed_column
from forge_core.data.sources import open_source
from forge_core.errors import (
    ConfigurationError,
    DataNotFound,
    EmptyData,
    SchemaViolation,
    UnreadableData,
)
from tests.source_rows import gathered, into_database, made_rows, same, write

FILES = [
    "r.csv", "r.csv.gz", "r.csv.zst", "r.tsv", "r.tsv.gz", "r.parquet", "r.json", "r.jsonl", "r.jsonl.gz",
    "r.jsonl.zst", "r.xlsx",
]  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return made_rows()


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_any_kind_gives_the_same_rows(tmp_path: Path, rows: pd.DataFrame, name: str) -> None:
    same(gathered(write(rows, tmp_path / name)), rows)


def test_a_frame_and_an_fsspec_address_give_the_same_rows(rows: pd.DataFrame) -> None:
    same(gathered(rows), rows)
    with fsspec.open("memory://sources/rows.parquet", "wb") as file:
        rows.to_parquet(file, index=False)
    same(gathered("memory://sources/rows.parquet"), rows)


@pytest.mark.slow
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
