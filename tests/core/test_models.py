"""Training, evaluation, the gate, compilation and the version folder, on the sample and on flights."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from forge_core.data.feature_engineering import FeatureEngineer
from forge_core.data.flights import flights_contract, load_flights
from forge_core.data.loaders import get_data_loader
from forge_core.data.sample import generate_sample_data, sample_contract
from forge_core.data.versions import save_dataset
from forge_core.errors import (
    ConfigurationError,
    IncompleteVersion,
    ModelNotFound,
    NotEnoughSamples,
    UntrustedModel,
    UnusableTarget,
)
from forge_core.models.compiled import CompiledModel, NativeModel, compile_pipeline, measure_parity
from forge_core.models.evaluation import Evaluation, Verdict, evaluate_predictions, judge
from forge_core.models.model_trainer import MODELS, get_model_trainer, load_model, score
from forge_core.models.version import VersionFolder, dump_pipeline, load_pipeline
from forge_core.policy import GatePolicy
from forge_core.storage import Storage
from forge_core.training import candidate
from forge_core.training.candidate import Recipe
from forge_core.training.datasets import SplitRequest

ROWS = generate_sample_data(3000, random_state=0)
X, Y = ROWS[["feature1", "feature2"]], ROWS["target"]
SMALL = {
    "gradient_boosting": {"max_iter": 20},
    "random_forest": {"n_estimators": 20, "min_samples_leaf": 20, "n_jobs": 1},
}


@pytest.fixture(scope="module")
def flights() -> pd.DataFrame:
    return load_flights(until=datetime(2013, 1, 8, tzinfo=UTC))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(MODELS))
def test_every_model_type_learns_saves_safely_and_loads_to_the_same_answers(model_type: str, tmp_path: Path) -> None:
    trainer = get_model_trainer(model_type, {**SMALL.get(model_type, {}), "random_state": 0}, target="target")
    metrics = trainer.train_and_evaluate(X[:2000], Y[:2000], X[2000:], Y[2000:])
    assert metrics["roc_auc"] > 0.75
    loaded = load_model(trainer.save_model(tmp_path / "model.skops"))
    assert np.allclose(score(loaded, X), score(trainer.pipeline, X), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(MODELS))
def test_compiled_equals_native_with_missing_values_and_unknown_categories(
    model_type: str, flights: pd.DataFrame
) -> None:
    columns = flights_contract().feature_columns
    trainer = get_model_trainer(model_type, {**SMALL.get(model_type, {}), "random_state": 0})
    trainer.train(flights[columns], flights["late"])
    onnx, reason = compile_pipeline(trainer.pipeline)
    assert onnx is not None, reason
    rows = flights[columns].head(500).reset_index(drop=True)
    rows.loc[:50, "dest"], rows.loc[40:90, "carrier"] = "nowhere", None
    rows.loc[80:150, ["temp", "precip", "distance"]] = np.nan
    parity = measure_parity(trainer.pipeline, onnx, rows)
    assert parity.largest_difference < 1e-5 and parity.label_agreement == 1.0
    plain = {c: rows[c].astype(object).where(rows[c].notna(), None).tolist() for c in columns}
    assert np.allclose(CompiledModel(onnx).score(plain), NativeModel(trainer.pipeline, columns).score(plain), atol=1e-5)


def test_boosting_with_its_own_categories_converts_wrong_and_is_therefore_refused() -> None:
    engineer = FeatureEngineer(max_one_hot=0)
    estimator = HistGradientBoostingClassifier(max_iter=20, categorical_features=[1])
    pipeline = Pipeline([("features", engineer), ("estimator", estimator)]).fit(X, Y)
    onnx, reason = compile_pipeline(pipeline)
    assert onnx is None and "converts wrong" in reason


def test_the_same_seed_gives_the_same_model() -> None:
    bytes_of = [
        dump_pipeline(get_model_trainer("gradient_boosting", {"max_iter": 5, "random_state": 3}).train(X, Y).pipeline)
        for _ in range(2)
    ]
    assert np.array_equal(*(score(load_pipeline(b, origin="memory"), X) for b in bytes_of))


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="known: gradient_boosting"):
        get_model_trainer("magic")
    with pytest.raises(ConfigurationError, match=r"no hyperparameter depth; known: .*max_iter"):
        get_model_trainer("gradient_boosting", {"depth": 3})


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ([1] * 3000, "found one"),
        ([0.5, 1.0] * 1500, "say task='regression'"),
        ([f"c{i}" for i in range(3000)], "at most 50 classes"),
        ([None, 1.0] * 1500, "1,500 missing"),
    ],
)
def test_a_target_that_nothing_can_be_learnt_from_is_refused(target: list[object], words: str) -> None:
    with pytest.raises(UnusableTarget, match=words):
        get_model_trainer().train(X, target)


def test_files_that_would_run_code_are_refused(tmp_path: Path) -> None:
    foreign = Pipeline([("features", FunctionTransformer(json.dumps)), ("estimator", HistGradientBoostingClassifier())])
    (tmp_path / "foreign.skops").write_bytes(dump_pipeline(foreign))
    with pytest.raises(UntrustedModel, match=r"json.dumps|not trusted"):
        load_model(tmp_path / "foreign.skops")
    with pytest.warns(UserWarning, match="pickle"):
        get_model_trainer("logistic_regression").train(X, Y).save_model(tmp_path / "model.joblib")
    with pytest.raises(UntrustedModel, match="runs code while loading"):
        load_model(tmp_path / "model.joblib")
    with pytest.raises(ModelNotFound, match=r"Failed to load model from path: .*none.skops"):
        load_model(tmp_path / "none.skops")


@pytest.mark.slow
def test_the_gate_refuses_what_is_not_surely_better_and_says_why() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(2000) < 0.3).astype(float)
    good, bad = np.clip(0.3 + 0.3 * (y - 0.3) + rng.normal(0, 0.1, 2000), 0.01, 0.99), np.full(2000, 0.3)
    times = pd.Series(pd.date_range("2024-01-01", periods=2000, freq="h", tz="UTC"))
    policy = GatePolicy(floors={"roc_auc": 0.7})

    def verdict(new: np.ndarray, old: np.ndarray) -> Verdict:
        evaluation = evaluate_predictions(y, new, times=times)
        return judge(evaluation, y, new, old, policy=policy, incumbent_name="champion v1", times=times)

    assert verdict(good, bad).passed and verdict(good, bad).reason == "all 3 checks passed"
    same = verdict(good, good)
    assert not same.passed and "better log_loss than champion v1" in same.reason
    worse = verdict(bad, good)
    assert not worse.passed and "roc_auc floor" in worse.reason
    assert Verdict.from_dict(json.loads(json.dumps(worse.to_dict()))) == worse
    evaluation = evaluate_predictions(y, good, times=times)
    assert Evaluation.from_dict(json.loads(json.dumps(evaluation.to_dict()))) == evaluation


@pytest.fixture
def recipe(tmp_path: Path) -> tuple[Storage, Recipe]:
    storage = Storage(str(tmp_path))
    rows = get_data_loader().preprocess_data(ROWS)
    version = save_dataset(storage, rows, source="sample:", contract=sample_contract())
    split = SplitRequest(str(tmp_path), version.id, "target", "event_time", 0.15, 0.15, 0)
    return storage, Recipe(split, "gradient_boosting", "classification", (("max_iter", 20), ("random_state", 0)))


@pytest.mark.slow
def test_a_version_carries_every_part_and_a_changed_one_is_an_error(
    recipe: tuple[Storage, Recipe], tmp_path: Path
) -> None:
    storage, made = recipe
    assert candidate.fit(storage, made) == made.candidate_id
    evaluation, verdict = candidate.evaluate(
        storage, made, policy=GatePolicy(), champion=None, champion_name="the training mean"
    )
    assert verdict.passed and evaluation.n_rows > 300
    assert candidate.compile_candidate(storage, made, tolerance=1e-4)["serves"] == "compiled"
    folder = candidate.assemble(storage, made, tmp_path / "version", lineage={"reason": "test"})
    assert folder.lineage["dataset"] == made.split.dataset_id and folder.onnx and folder.features_hash
    assert folder.contract.check_row(folder.input_example)
    # The champion is judged on the candidate's held-out rows; against itself it is no better.
    _, again = candidate.evaluate(storage, made, policy=GatePolicy(), champion=folder, champion_name="champion v1")
    assert not again.passed
    features = folder.path / "features.json"
    features.write_text(features.read_text().replace("category1", "category9"))
    with pytest.raises(IncompleteVersion, match=r"changed \['features.json'\]"):
        VersionFolder.open(folder.path)
    (folder.path / "contract.yaml").unlink()
    with pytest.raises(IncompleteVersion, match=r"missing \['contract.yaml'\]"):
        VersionFolder.open(folder.path)


def test_a_tolerance_that_is_not_met_serves_natively_and_says_so(
    recipe: tuple[Storage, Recipe],
) -> None:
    storage, made = recipe
    candidate.fit(storage, made)
    report = candidate.compile_candidate(storage, made, tolerance=1e-12)
    assert report["serves"] == "native" and "tolerance 1e-12" in report["reason"]


def test_held_out_rows_of_one_class_give_no_verdict(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    rows = ROWS.assign(target=np.where(ROWS.index < 2500, ROWS["target"], 0))
    version = save_dataset(storage, rows, source="sample:", contract=sample_contract())
    split = SplitRequest(str(tmp_path), version.id, "target", "event_time", 0.1, 0.1, 0)
    made = Recipe(split, "gradient_boosting", "classification", (("max_iter", 5),))
    candidate.fit(storage, made)
    with pytest.raises(NotEnoughSamples, match="at least two classes"):
        candidate.evaluate(storage, made, policy=GatePolicy(), champion=None, champion_name="the training mean")
