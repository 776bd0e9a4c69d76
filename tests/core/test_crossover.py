"""Both forms of a model on frames and on plain values, which of them is faster from where on, and who takes it."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline

from forge_core.data.feature_engineering import FeatureEngineer
from forge_core.data.loaders import get_data_loader
from forge_core.data.sample import generate_sample_data, sample_contract
from forge_core.data.versions import save_dataset
from forge_core.models.compiled import CompiledModel, NativeModel, compile_pipeline, measure_parity
from forge_core.models.crossover import FasterModel, crossing, fastest_form, measure_crossover
from forge_core.models.model_trainer import get_model_trainer
from forge_core.models.onnx_inputs import plain_columns
from forge_core.models.target import infer_learning
from forge_core.policy import GatePolicy
from forge_core.storage import Storage
from forge_core.training import candidate
from forge_core.training.candidate import Recipe
from forge_core.training.datasets import SplitRequest

N = 1200
RANDOM = np.random.default_rng(5)
SMALL: dict[str, dict[str, Any]] = {
    "random_forest": {"n_estimators": 15, "random_state": 0},
    "gradient_boosting": {"max_iter": 15, "random_state": 0},
    "mlp": {"epochs": 2, "random_state": 0},
}


def make_rows() -> pd.DataFrame:
    """Return rows of every dtype that a feature may come in, most of them with missing cells."""
    gaps = RANDOM.random(N) < 0.1
    numbers = RANDOM.normal(size=N)
    towns = RANDOM.choice(["Oslo", "Bergen", "Bodø", "7"], N).astype(object)
    codes = RANDOM.integers(0, 60, N)
    times = pd.Series(pd.date_range("2024-01-01", periods=N, freq="7h", tz="Europe/Oslo"))
    return pd.DataFrame(
        {
            "plain": numbers,
            "single": RANDOM.normal(size=N).astype(np.float32),
            "gaps": np.where(gaps, np.nan, numbers),
            "large": RANDOM.integers(2**53, 2**62, N),
            "whole": pd.Series(codes, dtype="Int64").mask(gaps),
            "nullable": pd.Series(RANDOM.normal(size=N), dtype="Float64").mask(gaps),
            "flag": RANDOM.random(N) < 0.4,
            "maybe": pd.Series(RANDOM.random(N) < 0.4, dtype="boolean").mask(gaps),
            "boxed": pd.Series([None if gap else float(v) for gap, v in zip(gaps, codes, strict=True)], dtype=object),
            "town": pd.Series(towns, dtype="str").mask(gaps),
            "words": pd.Series(np.where(gaps, None, towns), dtype=object),
            "nullable_words": pd.Series(towns, dtype="string").mask(gaps),
            "coded": pd.Series([f"c{code}" for code in codes], dtype="str"),
            "category": pd.Series(towns).astype("category").mask(gaps),
            "at": times.mask(gaps),
            "naive": times.dt.tz_localize(None),
        }
    )


ROWS = make_rows()
LEVEL = ROWS["plain"] + ROWS["town"].map({"Oslo": 1.0, "Bergen": -1.0}).astype(float).fillna(0)
TARGETS = {
    "two classes": (LEVEL > 0).astype(int),
    "three classes": pd.Series(np.select([LEVEL < -1, LEVEL < 1], ["low", "mid"], "top"), dtype="str"),
    "quantity": LEVEL,
}


def unseen() -> pd.DataFrame:
    """Return rows with categories that no training row had, numbers beyond float32, and whole columns missing."""
    rows = ROWS.tail(300).reset_index(drop=True)
    for name in ("town", "words", "nullable_words", "coded"):
        rows.loc[rows.index % 7 == 0, name] = "never seen"
    rows["category"] = rows["category"].astype("str").mask(rows.index % 5 == 0, "new").astype("category")
    rows.loc[:4, "plain"] = [np.inf, -np.inf, 1e300, -1e300, np.nan]
    rows["gaps"] = np.nan
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model_type", ["linear", "random_forest", "gradient_boosting", "mlp"])
def test_a_frame_scores_as_its_plain_values_do_to_the_last_bit(model_type: str, target: str) -> None:
    y = TARGETS[target]
    trainer = get_model_trainer(model_type, SMALL.get(model_type, {}), task=infer_learning(y))
    pipeline = trainer.train(ROWS.head(900), y.head(900)).pipeline
    onnx, reason = compile_pipeline(pipeline)
    assert onnx is not None, reason
    compiled, native = CompiledModel(onnx), NativeModel(pipeline, list(ROWS.columns))
    for rows in (unseen(), ROWS.tail(1), ROWS.tail(300)[::-1]):
        plain = plain_columns(rows)
        for model in (compiled, native, FasterModel(compiled, native, 100)):
            assert np.array_equal(model.score_frame(rows), model.score(plain))
        assert np.allclose(compiled.score_frame(rows), native.score_frame(rows), atol=1e-4, rtol=1e-4)
    # Threads add up in another order.
    threaded = CompiledModel(onnx, threads=2)
    assert np.allclose(threaded.score_frame(unseen()), compiled.score_frame(unseen()), rtol=1e-5, atol=1e-6)


class Witness:
    """A form that says who was asked."""

    def __init__(self, name: str, asked: list[tuple[str, int]]) -> None:
        self.name, self.asked = name, asked

    def score(self, columns: Any) -> np.ndarray:
        self.asked.append((self.name, len(columns["a"])))
        return np.zeros(len(columns["a"]))

    score_frame = score


def test_a_batch_goes_the_way_that_is_faster_for_its_length() -> None:
    asked: list[tuple[str, int]] = []
    model = FasterModel(Witness("compiled", asked), Witness("native", asked), 3)  # type: ignore[arg-type]
    for n_rows in (1, 2, 3, 50):
        model.score({"a": [0] * n_rows, "b": [1] * n_rows})
        model.score_frame(pd.DataFrame({"a": [0] * n_rows}))
    assert asked == [("compiled", n) for n in (1, 1, 2, 2)] + [("native", n) for n in (3, 3, 50, 50)]


def times(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"rows": 4**i, "compiled": c, "native": n} for i, (c, n) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (times((1, 5), (2, 6), (8, 9)), None),
        (times((9, 5), (9, 6)), 1),
        (times((1, 5), (2, 4), (8, 6)), 10),  # 2 ahead at 4 rows, 2 behind at 16
        (times((1, 5), (9, 4), (3, 6), (40, 4)), 20),  # a hiccup at 4 rows does not count
        (times((1, 5), (2, 4), (8, 6), (2, 6)), None),
    ],
)
def test_native_takes_over_where_it_stays_faster(measured: list[dict[str, float]], expected: int | None) -> None:
    assert crossing(measured) == expected


@pytest.mark.slow
def test_the_measurement_keeps_to_its_time_and_tells_a_forest_from_one_row() -> None:
    y = TARGETS["two classes"]
    pipeline = get_model_trainer("random_forest", {"n_estimators": 60, "random_state": 0}).train(ROWS, y).pipeline
    onnx, _ = compile_pipeline(pipeline)
    assert onnx is not None
    found = measure_crossover(pipeline, onnx, ROWS.head(200), seconds=0.5)
    for rows in (found.times, found.frame_times):
        assert rows[0]["rows"] == 1 and rows[0]["compiled"] < rows[0]["native"]
        assert sum(row["compiled"] + row["native"] for row in rows) < 1000
    assert found.rows is None or found.rows > 1
    short = measure_crossover(pipeline, onnx, ROWS.head(200), seconds=0.0)
    assert len(short.times) == len(short.frame_times) == 1 and short.rows is None


def make_recipe(folder: Path) -> tuple[Storage, Recipe]:
    storage = Storage(str(folder))
    rows = get_data_loader().preprocess_data(generate_sample_data(2000, random_state=0))
    version = save_dataset(storage, rows, source="sample:", contract=sample_contract())
    split = SplitRequest(str(folder), version.id, "target", "event_time", 0.15, 0.15, 0)
    recipe = Recipe(split, "gradient_boosting", "classification", (("max_iter", 20), ("random_state", 0)))
    candidate.fit(storage, recipe)
    return storage, recipe


@pytest.mark.slow
def test_a_version_carries_its_crossover_and_one_from_before_serves_compiled(tmp_path: Path) -> None:
    storage, recipe = make_recipe(tmp_path)
    candidate.evaluate(storage, recipe, policy=GatePolicy(), champion=None, champion_name="the training mean")
    report = candidate.compile_candidate(storage, recipe, tolerance=1e-4)
    assert report["serves"] == "compiled" and report["crossover_times_ms"]["columns"][0]["rows"] == 1
    folder = candidate.assemble(storage, recipe, tmp_path / "version", lineage={})
    assert folder.compiled == report
    rows = generate_sample_data(300, random_state=3)[folder.contract.feature_columns]

    def form(**crossover: int | None) -> Any:
        changed = replace(folder)  # another object, whose parts are read anew
        changed.__dict__["compiled"] = {
            **{name: value for name, value in report.items() if not name.startswith("crossover")},
            **crossover,
        }
        return fastest_form(changed), fastest_form(changed, frames=True)

    assert [type(model) for model in form()] == [CompiledModel, CompiledModel]
    served, frames = form(crossover_rows=None, crossover_frame_rows=7)
    assert type(served) is CompiledModel and type(frames) is FasterModel
    assert np.array_equal(frames.score_frame(rows), NativeModel(folder.pipeline, list(rows)).score_frame(rows))
    assert np.array_equal(frames.score_frame(rows.head(6)), served.score_frame(rows.head(6)))


def test_parity_itself_catches_boosting_that_converts_silently_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def converted(pipeline: Any) -> tuple[bytes | None, str]:
        """Convert as if nobody had noticed the estimator's own categories."""
        unnoticed = copy.deepcopy(pipeline)
        unnoticed.named_steps["estimator"].is_categorical_ = None
        return compile_pipeline(unnoticed)

    storage, recipe = make_recipe(tmp_path)
    parts = candidate.load_split(storage, recipe.split)
    estimator = HistGradientBoostingClassifier(max_iter=20, categorical_features=[1], random_state=0)
    pipeline = Pipeline([("features", FeatureEngineer(max_one_hot=0)), ("estimator", estimator)])
    pipeline.fit(parts.X_train, parts.y_train)
    assert compile_pipeline(pipeline)[0] is None
    onnx, reason = converted(pipeline)
    assert onnx is not None, reason
    assert measure_parity(pipeline, onnx, candidate.parity_rows(parts)).largest_difference > 0.01
    monkeypatch.setattr(candidate, "compile_pipeline", converted)
    monkeypatch.setattr(candidate, "_pipeline", lambda storage, recipe: pipeline)  # skops would refuse to load it
    report = candidate.compile_candidate(storage, recipe, tolerance=1e-4)
    assert report["serves"] == "native" and "tolerance 0.0001" in report["reason"]
    assert "crossover_rows" not in report


def test_times_among_the_features_are_planted_as_missing_only() -> None:
    parts: Any = type("Parts", (), {"X_test": ROWS[["plain", "town", "at"]]})
    planted = candidate.parity_rows(parts).tail(N)
    assert str(planted["at"].dtype) == str(ROWS["at"].dtype) and planted["at"].isna().sum() > ROWS["at"].isna().sum()
    assert (planted["town"] == "never seen").any()
