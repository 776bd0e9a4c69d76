"""Batch scoring on real Ray: one output row for each input row, whatever happens in between."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pandera
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forge_core.data.contracts import Contract
from forge_core.data.versions import save_dataset
from forge_core.errors import (
    ConfigurationError,
    Conflict,
    DataNotFound,
    EmptyData,
    SchemaViolation,
    TooManyBadRows,
    UnreadableData,
)
from forge_core.models.compiled import CompiledModel, compile_pipeline
from forge_core.models.evaluation import evaluate_predictions, judge
from forge_core.models.model_trainer import get_model_trainer, score
from forge_core.models.target import classes_of, infer_learning, labels_as_numbers, task_of
from forge_core.models.version import VersionFolder, write_parts
from forge_core.policy import GatePolicy
from forge_core.scoring.batch import score_dataset
from forge_core.scoring.checked import FeatureCheck
from forge_core.scoring.output import Scoring, seconds_at_work
from forge_core.scoring.part_scorer import PartSummary
from forge_core.scoring.plan import cut, plan_parts
from forge_core.scoring.report import predictions_figure, scoring_table
from forge_core.statistics.expectation import Expectation
from forge_core.storage import Storage
from tests.servers import s3_server

ROOT = Path(__file__).resolve().parents[2]
TOWNS = ["Oslo", "Bergen", "Bodø", ""]
CONTRACT = Contract(
    pandera.DataFrameSchema(
        {
            "id": pandera.Column("str", unique=True),
            "size": pandera.Column("float64", pandera.Check.le(50), nullable=True),
            "rooms": pandera.Column("int64", pandera.Check.ge(0)),
            "town": pandera.Column("str", nullable=True),
            "grade": pandera.Column("str", pandera.Check.isin(["a", "b", "c"])),
            "new": pandera.Column("bool"),
            "at": pandera.Column("datetime64[us, UTC]", nullable=True),
            "target": pandera.Column("int64"),
        }
    ),
    target="target",
    key="id",
)
FEATURES = CONTRACT.feature_columns


def make_rows(n_rows: int, seed: int = 0) -> pd.DataFrame:
    """Return rows that the contract takes, many with missing cells."""
    rng = np.random.default_rng(seed)
    gaps = rng.random(n_rows) < 0.1
    return pd.DataFrame(
        {
            "id": [f"row-{seed}-{i}" for i in range(n_rows)],
            "size": np.where(gaps, np.nan, rng.normal(size=n_rows)),
            "rooms": rng.integers(0, 9, n_rows),
            "town": pd.Series(rng.choice(TOWNS, n_rows), dtype="str").mask(gaps[::-1]),
            "grade": pd.Series(rng.choice(["a", "b", "c"], n_rows), dtype="str"),
            "new": rng.random(n_rows) < 0.5,
            "at": pd.Series(pd.date_range("2024-01-01", periods=n_rows, freq="97min", tz="UTC")).mask(gaps),
            "unused": rng.normal(size=n_rows),
        }
    )


def make_version(folder: Path, target: str = "two") -> VersionFolder:
    """Return a version of a linear model of the rows, with a crossover at 100 rows."""
    rows = make_rows(1500, seed=9)
    level = rows["size"].fillna(0) + rows["rooms"] / 4
    targets = {
        "two": (level > 1).astype(int),
        "three": pd.cut(level, [-99, 0.5, 1.5, 99], labels=["low", "mid", "high"]).astype("str"),
        "quantity": level,
    }
    y = targets[target]
    pipeline = get_model_trainer("linear", task=infer_learning(y)).train(rows[FEATURES], y).pipeline
    onnx, reason = compile_pipeline(pipeline)
    assert onnx is not None, reason
    numbers, scores = labels_as_numbers(y, pipeline), score(pipeline, rows[FEATURES])
    evaluation = evaluate_predictions(numbers, scores, task=task_of(pipeline))
    policy = GatePolicy(metric=next(iter(evaluation.metrics)))
    return write_parts(
        folder,
        pipeline=pipeline,
        contract=CONTRACT,
        reference={"reference.json": b"{}", "reference.bin": b""},
        evaluation=evaluation,
        expectation=Expectation.fit(task_of(pipeline), numbers, scores),
        verdict=judge(evaluation, numbers, scores, scores, policy=policy, incumbent_name="itself"),
        compiled={"serves": "compiled", "reason": "", "parity": {}, "crossover_frame_rows": 100},
        onnx=onnx,
        input_example={},
        lineage={"classes": classes_of(pipeline)},
    )


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> VersionFolder:
    return make_version(tmp_path_factory.mktemp("version") / "v1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of this process with two CPUs, whose processes know the S3 server."""
    import ray

    with pytest.MonkeyPatch.context() as patch, s3_server(patch, "scores"):
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        yield
        ray.shutdown()


def scored(scoring: Scoring) -> pd.DataFrame:
    """Return the output's rows in the order of its parts."""
    target = Storage(scoring.output)
    return pd.concat([target.read_frame(key) for key in target.list("parts", suffix=".parquet")], ignore_index=True)


def assert_one_to_one(output: pd.DataFrame, rows: pd.DataFrame, folder: VersionFolder) -> None:
    """Every row is there once, in its place, with the answer of the version's own pipeline."""
    assert output["row_number"].tolist() == list(range(len(rows)))
    assert output["id"].tolist() == rows["id"].tolist()
    good = output["fault"].isna().to_numpy()
    assert (output["prediction"].notna() == good).all()
    second = score(folder.pipeline, rows.loc[good, FEATURES])
    found = output.loc[good]
    assert np.allclose(np.where(second >= 0.5, second, 1 - second), found["probability"], atol=1e-5)
    assert ((second >= 0.5) == found["prediction"]).all()


@pytest.mark.parametrize("part_rows", [1, 7, 100, 1000])
def test_parts_cover_every_row_once_and_stay_near_their_size(part_rows: int) -> None:
    rng = np.random.default_rng(part_rows)
    for _ in range(50):
        groups = rng.integers(0, rng.choice([3, 50, 3000]), rng.integers(0, 12)).tolist()
        starts = np.cumsum([0, *groups])
        at = 0
        for first, last, skip, n_rows in cut(groups, part_rows):
            assert starts[first] + skip == at and at + n_rows <= starts[last] and n_rows > 0
            assert n_rows <= max(part_rows, -(-max(groups) // 8))
            at += n_rows
        assert at == sum(groups)


def test_the_time_at_work_leaves_out_the_start_of_each_process_and_counts_who_waits_at_the_end() -> None:
    parts = [("a", 10.0, 12.0), ("a", 12.0, 14.0), ("b", 13.0, 16.0), ("a", 14.0, 15.0)]
    summaries = [PartSummary(0, 1, 0, [], started, ended, 0, who) for who, started, ended in parts]
    assert seconds_at_work(summaries) == ((16 - 10) + (16 - 13)) / 2
    assert seconds_at_work([]) == 0.0


def arrow_columns() -> dict[str, list[pa.Array]]:
    """Return for each feature the forms in which a file may hold it, right and wrong ones."""
    return {
        "size": [
            pa.array([1.5, None, float("nan"), -2.0]),
            pa.array([1.5, None, 0.1, 3.0], pa.float32()),
            pa.array([1, None, 3, 2**40]),
            pa.array([1.0, float("inf"), 51.0, 50.0]),
            pa.array(["1.5", "x", None, ""]),
            pa.array([None] * 4),
        ],
        "rooms": [
            pa.array([1, 2, 3, 4]),
            pa.array([1, None, -3, 4]),
            pa.array([1.0, 2.5, 3.0, None]),
            pa.array([1, 2, 3, 4], pa.uint8()),
        ],
        "town": [
            pa.array(["Oslo", None, "", "Paris"]),
            pa.array(["Oslo", None, "", "Paris"]).dictionary_encode(),
            pa.DictionaryArray.from_arrays([0, 1, None, 2], ["Oslo", "Oslo", "Bodø"]),
            pa.array(["Oslo", None, "x" * 100_001, "Bodø"], pa.large_string()),
            pa.array([1, 2, 3, 4]),
        ],
        "grade": [
            pa.array(["a", "b", "c", "a"]),
            pa.array(["a", "b", "d", "a"]).dictionary_encode(),
            pa.array(["a", None, "c", "a"]),
        ],
        "new": [
            pa.array([True, False, True, True]),
            pa.array([True, None, False, True]),
            pa.array(["true", "x", "", "1"]),
        ],
        "at": [
            pa.array([0, None, 10**15, 5], pa.timestamp("us", "Europe/Oslo")),
            pa.array([0, None, 10**18 + 1, 5], pa.timestamp("ns")),
            pa.array(["2024-01-01T10:00", None, "yesterday", "2024-05-01"]),
        ],
    }


@pytest.mark.slow
def test_a_glance_and_a_look_at_every_cell_give_the_model_the_same(version: VersionFolder) -> None:
    check, model = FeatureCheck(CONTRACT), CompiledModel(version.onnx or b"")
    right = {name: forms[0] for name, forms in arrow_columns().items()}
    seen = {"sure": 0, "doubtful": 0}
    for name, forms in arrow_columns().items():
        for array in forms:
            batch = pa.RecordBatch.from_pydict({**right, name: array})
            looked = check.cell_by_cell(batch)
            glance = check.at_a_glance(batch)
            seen["doubtful" if glance is None else "sure"] += 1
            if glance is not None:
                assert not len(looked.faults) and len(looked.good) == 4, name
                for form in (model.score_frame, lambda frame: score(version.pipeline, frame)):
                    assert np.array_equal(form(glance), form(looked.good)), name
            else:
                assert check.check(batch).places is not None
    assert min(seen.values()) >= 8


@pytest.mark.ray
def test_a_folder_is_scored_row_by_row_with_the_faults_told(
    cluster: None, version: VersionFolder, tmp_path: Path
) -> None:
    rows = pd.concat([make_rows(700, 1), make_rows(1, 2), make_rows(1500, 3)], ignore_index=True)
    spoilt = rows.astype({"rooms": "Int64"})
    spoilt.loc[[0, 900], "rooms"] = [-1, None]
    spoilt.loc[[0, 2200], "grade"] = "z"
    spoilt.loc[[5], "size"] = np.inf
    data = tmp_path / "rows"
    data.mkdir()
    for number, (part, groups) in enumerate({(0, 700): 100, (700, 701): 1, (701, 2201): 1500}.items()):
        spoilt.iloc[slice(*part)].to_parquet(data / f"{number}.parquet", row_group_size=groups)
    pq.write_table(pa.Table.from_pandas(spoilt.head(0)), data / "9-none.parquet")
    told: list[tuple[int, int]] = []
    storage = Storage(str(tmp_path / "store"))

    def run(**options: Any) -> Scoring:
        return score_dataset(
            storage, f"{data}/", version, model="houses", version="1", part_rows=300, keep=["unused"],
            progress=lambda done, total: told.append((done, total)), **options,
        )  # fmt: skip

    scoring = run()
    assert (scoring.n_rows, scoring.n_bad, scoring.n_parts) == (2201, 4, 9) and scoring.rows_per_second > 0
    assert told[0] == (0, 2201) and told[-1] == (2201, 2201) and sorted(told) == told
    output = scored(scoring)
    assert_one_to_one(output, rows, version)
    assert output["unused"].tolist() == rows["unused"].tolist()
    assert output.columns.tolist() == ["row_number", "id", "unused", "prediction", "probability", "fault"]
    assert output.loc[0, "fault"] == ("grade: expected one of a, b, c, found z; rooms: expected at least 0, found -1")
    assert output["fault"].dropna().index.tolist() == [0, 5, 900, 2200]
    faults = pd.read_parquet(Path(scoring.output) / "faults")
    assert faults["row_number"].tolist() == [0, 0, 5, 900, 2200]
    assert {(f["column"], f["rows"]) for f in scoring.faults} == {("grade", 2), ("rooms", 1), ("size", 1)}
    manifest = storage.read_json(f"scores/{scoring.id}/manifest.json")
    assert manifest["n_rows"] == sum(part["rows"] for part in manifest["parts"]) == 2201
    assert predictions_figure(scoring).startswith(b"\x89PNG")
    assert {"what": "without prediction", "value": 4} in scoring_table(scoring)
    again = run()
    assert again.n_resumed == 2201 and again.seconds == 0 and again.faults == scoring.faults
    elsewhere = run(output=str(tmp_path / "elsewhere"), workers=1)
    assert scored(elsewhere).equals(output)
    rows.to_parquet(data / "9-none.parquet")
    with pytest.raises(Conflict, match="differs in fingerprint, rows, parts"):
        run(output=str(tmp_path / "elsewhere"))


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.parametrize("target", ["three", "quantity"])
def test_a_dataset_version_is_scored_from_s3_to_s3_for_every_task(cluster: None, tmp_path: Path, target: str) -> None:
    storage = Storage(f"s3://scores/{target}")
    folder = make_version(tmp_path / "v", target)
    rows = make_rows(500, 4).assign(target=1)
    dataset = save_dataset(storage, rows[[*CONTRACT.schema.columns]], source="test", contract=CONTRACT)
    scoring = score_dataset(storage, dataset.id, folder, model="houses", version="2", part_rows=200)
    output = scored(scoring)
    assert output["id"].tolist() == rows["id"].tolist() and scoring.n_parts == 3
    scores = score(folder.pipeline, rows[FEATURES])
    if target == "quantity":
        assert np.allclose(output["prediction"], scores, atol=1e-4) and "probability" not in output
    else:
        each = output[[f"probability_{name}" for name in folder.classes or []]].to_numpy()
        assert np.allclose(each, scores, atol=1e-5)
        assert output["prediction"].tolist() == folder.pipeline.predict(rows[FEATURES]).tolist()
    assert predictions_figure(scoring).startswith(b"\x89PNG")


DRIVER = """
import sys
from forge_core.models.version import VersionFolder
from forge_core.scoring.batch import score_dataset
from forge_core.storage import Storage
rows, version, store = sys.argv[1:]
found = score_dataset(
    Storage(store), rows, VersionFolder.open(version), model="houses", version="1", part_rows=400, output=store + "/out"
)
print(found.n_resumed, found.n_rows)
"""


@pytest.mark.long
@pytest.mark.ray
def test_a_scoring_whose_driver_was_killed_goes_on_with_what_is_missing(version: VersionFolder, tmp_path: Path) -> None:
    rows = make_rows(60_000, 6)
    rows.loc[[7, 30_000, 59_999], "rooms"] = -5
    rows.to_parquet(tmp_path / "rows.parquet", row_group_size=400)
    parts = tmp_path / "out/parts"
    first = _driver(tmp_path, version)
    _wait(lambda: len(list(parts.glob("*.parquet"))) >= 20, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    n_there = len(list(parts.glob("*.parquet")))
    assert n_there < 150 and not (tmp_path / "out/manifest.json").exists()
    second = _driver(tmp_path, version)
    out, errors = second.communicate(timeout=200)
    assert second.returncode == 0, errors
    n_resumed, n_rows = map(int, out.split())
    assert n_there * 400 <= n_resumed < n_rows == 60_000
    output = pd.concat([pd.read_parquet(file) for file in sorted(parts.iterdir())], ignore_index=True)
    assert_one_to_one(output, rows, version)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (manifest["n_rows"], manifest["n_bad"], manifest["n_parts"]) == (60_000, 3, 150)


@pytest.mark.ray
def test_a_data_set_without_one_good_row_is_an_error_that_tells_why(
    cluster: None, version: VersionFolder, tmp_path: Path
) -> None:
    make_rows(300).assign(rooms=-1).to_parquet(tmp_path / "rows.parquet")
    for _ in range(2):
        with pytest.raises(TooManyBadRows, match=r"none of 300 rows .* rooms greater_than_or_equal_to.*: 300"):
            score_dataset(
                Storage(str(tmp_path)), tmp_path / "rows.parquet", version, model="houses", version="1",
                output=str(tmp_path / "out"),
            )  # fmt: skip
    assert pd.read_parquet(tmp_path / "out/parts")["fault"].notna().all()


@pytest.mark.slow
def test_sources_that_cannot_be_scored_are_refused_before_anything_starts(
    version: VersionFolder, tmp_path: Path
) -> None:
    storage, rows = Storage(str(tmp_path / "store")), make_rows(10)
    rows.to_csv(tmp_path / "rows.csv")
    (tmp_path / "text.parquet").write_text("not a table")
    rows.head(0).to_parquet(tmp_path / "empty.parquet")
    rows.drop(columns=["town", "at"]).to_parquet(tmp_path / "less.parquet")
    for source, error, says in (
        ("rows.csv", ConfigurationError, r"expected Parquet files .* found \.csv"),
        ("text.parquet", UnreadableData, "expected .parquet"),
        ("empty.parquet", EmptyData, "found none"),
        ("none.parquet", DataNotFound, "no file"),
        ("less.parquet", SchemaViolation, "missing: town, at"),
    ):
        with pytest.raises(error, match=says):
            plan_parts(storage, tmp_path / source, features=FEATURES)
    with pytest.raises(DataNotFound, match="no dataset version"):
        plan_parts(storage, "ds-0123456789abcdef")
    rows.rename(columns={"unused": "prediction"}).to_parquet(tmp_path / "rows.parquet")
    for keep, says in (("nothing", "found nothing; it has id, size"), ("prediction", "names other than")):
        with pytest.raises(ConfigurationError, match=says):
            score_dataset(storage, tmp_path / "rows.parquet", version, model="m", version="1", keep=[keep])
    assert not (tmp_path / "store/scores").exists()


def _driver(tmp_path: Path, version: VersionFolder) -> "subprocess.Popen[str]":
    surroundings = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "rows.parquet"), str(version.path), str(tmp_path)],
        cwd=ROOT, env={**surroundings, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _wait(claim: Callable[[], Any], process: "subprocess.Popen[str]", seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not claim():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)
