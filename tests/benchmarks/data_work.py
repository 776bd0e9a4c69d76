"""`python -m tests.benchmarks.data_work WORK FILE`: one piece of work, its seconds and peak memory as JSON."""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path


def ingest(file: Path, target: Path) -> None:
    """Read, check and keep as a dataset version."""
    from forge_core.data.ingest import ingest as work
    from forge_core.policy import DataPolicy
    from forge_core.storage import Storage

    policy = DataPolicy(source="-", target="target", contract=str(file.parent / "contract.yaml"))
    found = work(Storage(str(target)), str(file), policy)
    assert found.n_bad == 0, found.faults
    assert found.version.n_rows == int(file.stem) * 1_000_000


def pyarrow_copy(file: Path, target: Path) -> None:
    """Read and write a Parquet file, nothing else."""
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(file), target / "copy.parquet", compression="zstd")


def pandas_pandera(file: Path, target: Path) -> None:
    """Read a CSV file with pandas and validate the whole frame with Pandera, lazily."""
    import pandas as pd

    from tests.benchmarks.bench_data import bench_contract

    frame = pd.read_csv(file, parse_dates=["at"])
    frame["at"] = frame["at"].astype("datetime64[us, UTC]")
    bench_contract().schema.validate(frame, lazy=True)


def main(work: str, file: str) -> None:
    """Do it once, after everything is imported."""
    import pandera.pandas

    import forge_core.data.ingest  # noqa: F401

    del pandera
    with tempfile.TemporaryDirectory(prefix="forge-bench-", dir=Path(file).parent) as target:
        started = time.perf_counter()
        {"ingest": ingest, "pyarrow_copy": pyarrow_copy, "pandas_pandera": pandas_pandera}[work](
            Path(file), Path(target)
        )
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"seconds": seconds, "peak_gb": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
