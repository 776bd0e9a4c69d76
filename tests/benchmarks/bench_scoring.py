"""Batch scoring against one process that has the whole data set in memory and calls the model once.

5 million rows of 12 mixed columns: 7 numbers (3 with gaps), 3 categories (8, 20 and 300 levels), a flag and a time. The
one process calls the faster of the compiled and the native form on a frame that is there already; ours reads Parquet,
holds every row against the contract, scores it and writes Parquet, with as many processes as cores.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from forge_core.data.contracts import infer_contract
from forge_core.models.compiled import CompiledModel, NativeModel, compile_pipeline, measure_parity
from forge_core.models.crossover import measure_crossover
from forge_core.models.evaluation import evaluate_predictions, judge
from forge_core.models.model_trainer import get_model_trainer, score
from forge_core.models.version import VersionFolder, write_parts
from forge_core.policy import GatePolicy
from forge_core.scoring.batch import score_dataset
from forge_core.scoring.output import Scoring
from forge_core.statistics.expectation import Expectation
from forge_core.storage import Storage
from tests.benchmarks.harness import Report

ROWS = 5_000_000
CHUNK = 250_000
TRAINING_ROWS = 50_000
LEVELS = {"short": 8, "middle": 20, "long": 300}
MODELS = ("random_forest", "logistic_regression")


def run() -> bool:
    """Measure and report; of one process times the cores at least 0.7, in memory that does not grow with the rows."""
    import ray

    report = Report("scoring")
    cores = os.cpu_count() or 1
    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        measure(report, cores=cores)
    finally:
        ray.shutdown()
    return report.finish()


def measure(report: Report, *, cores: int, n_rows: int = ROWS) -> None:
    """Add rows a second of both, their ratio, and the most memory of a scoring process for all rows and for a fifth."""
    with tempfile.TemporaryDirectory(prefix="forge-bench-") as name:
        folder = Path(name)
        frame = pd.concat([make_rows(min(CHUNK, n_rows), seed) for seed in range(-(-n_rows // CHUNK))])
        frame = frame.reset_index(drop=True)
        table = pa.Table.from_pandas(frame, preserve_index=False)
        pq.write_table(table, folder / "all.parquet", row_group_size=CHUNK)
        pq.write_table(table.slice(0, len(frame) // 5), folder / "fifth.parquet", row_group_size=CHUNK)
        del table
        for model_type in MODELS:
            version = make_version(folder / model_type, model_type)
            alone = len(frame) / _alone(version, frame)
            whole, fifth = (_ours(folder, rows, version) for rows in ("all", "fifth"))
            report.add(f"{model_type}: one process, whole frame, rows/s", alone)
            report.add(f"{model_type}: ours, {cores} processes, start-up apart, rows/s", whole.rows_per_second)
            ratio = whole.rows_per_second / (cores * alone)
            report.add(f"{model_type}: ours / (cores x one process)", ratio, at_least=0.7)
            report.add(f"{model_type}: most memory of a process, {fifth.n_rows:,} rows, MB", fifth.peak_bytes / 2**20)
            report.add(f"{model_type}: most memory of a process, {whole.n_rows:,} rows, MB", whole.peak_bytes / 2**20)
            growth = whole.peak_bytes / fifth.peak_bytes
            report.add(f"{model_type}: memory, all rows / a fifth of them", growth, at_most=1.15)


def make_rows(n_rows: int, seed: int) -> pd.DataFrame:
    """Return rows of 12 mixed columns."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {f"number{i}": rng.normal(size=n_rows) for i in range(7)}
    for name in ("number0", "number3", "number6"):
        columns[name] = np.where(rng.random(n_rows) < 0.05, np.nan, columns[name])
    for name, levels in LEVELS.items():
        texts = np.array([f"{name}-{level:04d}" for level in range(levels)], dtype=object)
        columns[name] = pd.Series(texts[rng.integers(0, levels, n_rows)], dtype="str")
    columns["flag"] = rng.random(n_rows) < 0.3
    seconds = pd.to_timedelta(rng.integers(0, 365 * 86_400, n_rows), unit="s")
    columns["when"] = pd.Timestamp("2024-01-01", tz="UTC") + seconds
    return pd.DataFrame(columns)


def make_version(folder: Path, model_type: str) -> VersionFolder:
    """Return a version trained on rows of the same kind, its parity and crossover measured as at registration."""
    rows = make_rows(TRAINING_ROWS, seed=1_000_003)
    chance = np.random.default_rng(0).normal(size=len(rows))
    y = (rows["number0"].fillna(0) + rows["number1"] + rows["flag"] + chance > 0).astype(int)
    pipeline = get_model_trainer(model_type, {"random_state": 0}).train(rows, y).pipeline
    onnx, reason = compile_pipeline(pipeline)
    assert onnx is not None, reason
    sample, answers = rows.head(2000), y.head(2000).to_numpy(float)
    scores = score(pipeline, sample)
    evaluation = evaluate_predictions(answers, scores, task="classification")
    crossover = measure_crossover(pipeline, onnx, sample).to_dict()
    print(f"{model_type}: frames are native from {crossover['crossover_frame_rows']} rows on", flush=True)
    return write_parts(
        folder,
        pipeline=pipeline,
        contract=infer_contract(rows.assign(target=y), target="target"),
        reference={"reference.json": b"{}", "reference.bin": b""},
        evaluation=evaluation,
        expectation=Expectation.fit("classification", answers, scores),
        verdict=judge(evaluation, answers, scores, scores, policy=GatePolicy(), incumbent_name="itself"),
        compiled={
            "serves": "compiled",
            "reason": "bench",
            "parity": measure_parity(pipeline, onnx, sample).to_dict(),
            **crossover,
        },
        onnx=onnx,
        input_example={},
        lineage={"classes": [0, 1]},
    )


def _alone(version: VersionFolder, frame: pd.DataFrame) -> float:
    """Return the seconds of one process with one thread for the whole frame, in the form that is faster."""
    assert version.onnx is not None
    models = {
        "compiled": CompiledModel(version.onnx),
        "native": NativeModel(version.pipeline, version.contract.feature_columns),
    }
    sample = frame.head(100_000)
    with threadpool_limits(1):
        for model in models.values():
            model.score_frame(sample.head(1000))
        seconds = {name: _seconds(lambda m=model: m.score_frame(sample)) for name, model in models.items()}  # type: ignore[misc]
        best = min(seconds, key=seconds.__getitem__)
        whole = _seconds(lambda: models[best].score_frame(frame))
    told = ", ".join(f"{name} {len(sample) / value:,.0f} rows/s" for name, value in seconds.items())
    print(
        f"one process, {len(sample):,} rows: {told}; whole frame {best}: {len(frame) / whole:,.0f} rows/s", flush=True
    )
    return whole


def _ours(folder: Path, rows: str, version: VersionFolder) -> Scoring:
    output = folder / "output"
    started = time.perf_counter()
    scoring = score_dataset(
        Storage(str(folder / "storage")), folder / f"{rows}.parquet", version, model="bench", version="1",
        output=str(output),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    assert scoring.n_bad == 0 and sum(f.num_rows for f in map(_footer, (output / "parts").iterdir())) == scoring.n_rows
    print(f"ours: {scoring.rows_per_second:,.0f} rows/s, {seconds:.1f} s with start-up", flush=True)
    shutil.rmtree(output)
    return scoring


def _footer(file: Path) -> Any:
    return pq.read_metadata(file)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    run()
