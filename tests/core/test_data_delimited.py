"""CSV and TSV: ragged lines, encodings, delimiters, quotes and lines without end stop nothing or are told."""

from pathlib import Path

import pandas as pd
import pytest

from forge_core.data.quarantine import no_faults
from forge_core.data.sources import open_source
from forge_core.errors import ConfigurationError, UnreadableData

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


def test_a_long_line_after_many_others_is_read_again_from_where_it_came(tmp_path: Path) -> None:
    lines = [f"{number},short" for number in range(300_000)]
    lines[200_001:200_001] = ["too,many,cells"]
    lines[250_000] = f"249999,{'x' * 5_000_000}"
    lines[280_000:280_000] = ["few"]
    (tmp_path / "rows.csv").write_text("id,text\n" + "\n".join(lines) + "\n")
    source = open_source(tmp_path / "rows.csv")
    rows = pd.concat(source.batches({"id": "integer"}), ignore_index=True)
    assert rows["id"].tolist() == list(range(300_000))
    assert rows["text"].str.len().nlargest(2).tolist() == [5_000_000, 5]
    assert source.rejects["row_number"].tolist() == [200_001, 280_000]


@pytest.mark.slow
def test_a_cell_of_ten_megabytes_passes_and_a_longer_line_is_told(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("a,b\n1," + "x" * 10_000_000 + "\n=1+1,1e400\n")
    frame = pd.concat(open_source(path).batches())
    assert frame["b"].str.len().tolist() == [10_000_000, 5] and frame["a"].tolist() == ["1", "=1+1"]
    path.write_text("a,b\n1,2\n1," + "x" * 70_000_000 + "\n3,4\n")
    with pytest.raises(UnreadableData, match="a line is longer than 16 MiB"):
        list(open_source(path).batches())
