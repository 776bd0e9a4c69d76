"""Ingest against bare reading and writing: rows, checks, version; its peak memory; and features against scikit-learn's.

Every measured piece of work is a process of its own, so that its peak memory is its own; pairs are run in turns,
ours, theirs, ours, theirs, …, and the fastest run of each counts.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pyarrow as arrow
import pyarrow.csv
import pyarrow.parquet as pq

from forge_core.data.contracts import Contract
from tests.benchmarks import bench_features
from tests.benchmarks.harness import Report

MILLIONS = (1, 2, 5)
_BATCH = 250_000
_TURNS = 4


def run() -> bool:
    """Measure and report."""
    report = Report("data")
    with tempfile.TemporaryDirectory(prefix="forge-bench-") as folder:
        root = Path(folder)
        (root / "contract.yaml").write_text(bench_contract().to_yaml())
        for millions in MILLIONS:
            _write(root, millions)
        largest = MILLIONS[-1]
        _compare(report, root, "parquet", "pyarrow read and write", "pyarrow_copy", largest, 3.0)
        _compare(report, root, "csv", "pandas read_csv + Pandera lazy", "pandas_pandera", largest, 1.0)
        for ending in ("parquet", "csv"):
            for millions in MILLIONS[:-1]:
                _, peak = _measure("ingest", root / f"{millions}.{ending}")
                report.add(f"{ending}: peak memory of ingest, {millions} million rows, GB", peak, at_most=1.5)
    bench_features.measure(report)
    return report.finish()


def bench_contract() -> Contract:
    """Return a contract of 20 columns, most of them with a check."""
    columns = {
        "id": pa.Column("str", unique=True),
        "at": pa.Column("datetime64[us, UTC]"),
        **{f"x{i}": pa.Column("float64", [pa.Check.ge(-100), pa.Check.le(100)], nullable=i < 3) for i in range(8)},
        **{f"n{i}": pa.Column("int64", pa.Check.ge(0)) for i in range(4)},
        **{f"c{i}": pa.Column("str", pa.Check.isin([f"level {k}" for k in range(8)])) for i in range(3)},
        "town": pa.Column("str"),
        "flag": pa.Column("bool"),
        "target": pa.Column("int64", pa.Check.isin([0, 1])),
    }
    return Contract(pa.DataFrameSchema(columns), target="target", key="id", time="at")


def _write(root: Path, millions: int) -> None:
    """Write the same rows as Parquet and as CSV."""
    random = np.random.default_rng(0)
    towns = np.array([f"town {k:04d}" for k in range(3000)])
    levels = np.array([f"level {k}" for k in range(8)])
    parquet, csv = None, None
    for start in range(0, millions * 1_000_000, _BATCH):
        at = pd.Timestamp("2020-01-01", tz="UTC") + pd.to_timedelta(np.arange(start, start + _BATCH), unit="s")
        numbers = {f"x{i}": random.standard_normal(_BATCH) for i in range(8)}
        for i in range(3):
            numbers[f"x{i}"][random.random(_BATCH) < 0.05] = np.nan
        frame = pd.DataFrame(
            {
                "id": [f"row-{number:09d}" for number in range(start, start + _BATCH)],
                "at": at.astype("datetime64[us, UTC]"),
                **numbers,
                **{f"n{i}": random.integers(0, 1000, _BATCH) for i in range(4)},
                **{f"c{i}": random.choice(levels, _BATCH) for i in range(3)},
                "town": random.choice(towns, _BATCH),
                "flag": random.random(_BATCH) < 0.3,
                "target": random.integers(0, 2, _BATCH),
            }
        )
        table = arrow.Table.from_pandas(frame, preserve_index=False)
        parquet = parquet or pq.ParquetWriter(root / f"{millions}.parquet", table.schema, compression="zstd")
        parquet.write_table(table)
        text = table.set_column(1, "at", arrow.array(frame["at"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")))
        csv = csv or pyarrow.csv.CSVWriter(root / f"{millions}.csv", text.schema)
        csv.write_table(text)
    for writer in (parquet, csv):
        if writer is not None:
            writer.close()


def _compare(report: Report, root: Path, ending: str, peer_name: str, peer: str, millions: int, at_most: float) -> None:
    file = root / f"{millions}.{ending}"
    ours, theirs = [], []
    for _ in range(_TURNS):
        ours.append(_measure("ingest", file))
        theirs.append(_measure(peer, file))
    report.add(f"{ending}: seconds of ingest, {millions} million rows", min(ours)[0])
    report.add(f"{ending}: seconds of {peer_name}", min(theirs)[0])
    report.add(f"{ending}: ingest / {peer_name}", min(ours)[0] / min(theirs)[0], at_most=at_most)
    report.add(f"{ending}: peak memory of ingest, {millions} million rows, GB", max(ours, key=lambda m: m[1])[1],
               at_most=1.5)  # fmt: skip
    report.add(f"{ending}: peak memory of {peer_name}, GB", max(theirs, key=lambda m: m[1])[1])


def _measure(work: str, file: Path) -> tuple[float, float]:
    """Return seconds (without imports) and peak memory in GB of a piece of work, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.data_work", work, str(file)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{work} of {file.name} failed: {done.stderr[-2000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    print(f"{work} {file.name}: {told['seconds']:.1f} s, {told['peak_gb']:.2f} GB", flush=True)
    return told["seconds"], told["peak_gb"]


if __name__ == "__main__":
    run()
