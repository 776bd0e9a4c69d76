"""Rows of every kind with gaps, written in every format, for the tests of sources."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pandera
import pyarrow as pa
import sqlalchemy as sa

from forge_core.data.contracts import Contract
from forge_core.data.sources import open_source

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


def gathered(source: str | Path | pd.DataFrame, **options: object) -> pd.DataFrame:
    """Return a source's rows as the contract types them."""
    opened = open_source(source, **options)
    frame = pd.concat([CONTRACT.check(batch, max_bad_share=0).good for batch in opened.batches()], ignore_index=True)
    assert opened.rejects.empty
    return frame.sort_values("id", ignore_index=True)[list(CONTRACT.kinds)]


def same(found: pd.DataFrame, rows: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, CONTRACT.check(rows, max_bad_share=0).good)
    assert len(found) == N
