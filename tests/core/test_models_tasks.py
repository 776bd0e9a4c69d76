"""Every task through the same interface: two classes, many classes, quantities; and what a gate may ask of them."""

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from forge_core.errors import ConfigurationError, UnusableTarget
from forge_core.models.behaviour import check_behaviour, check_latency
from forge_core.models.compiled import CompiledModel, compile_pipeline, measure_parity
from forge_core.models.evaluation import evaluate_predictions, judge
from forge_core.models.evaluation_pictures import evaluation_figure
from forge_core.models.model_trainer import MODELS, ModelTrainer, get_model_trainer, score
from forge_core.models.target import class_numbers, classes_of, infer_learning, labels_as_numbers, task_of
from forge_core.policy import BehaviourTest, GatePolicy
from forge_core.statistics.quality import METRICS, all_metrics

N = 1500
RANDOM = np.random.default_rng(0)
X = pd.DataFrame(
    {
        "size": RANDOM.normal(size=N),
        "age": np.where(RANDOM.random(N) < 0.1, np.nan, RANDOM.normal(size=N)),
        "town": pd.Series(RANDOM.choice(["Oslo", "Bergen", "Bodø"], N), dtype="str"),
    }
)
LEVEL = 2 * X["size"] + X["town"].map({"Oslo": -1.0, "Bergen": 0.0, "Bodø": 1.5}).astype(float)
NOISE = RANDOM.normal(size=N)
TARGETS = {
    "two numbers": (LEVEL + NOISE > 0).astype(int),
    "two words": pd.Series(np.where(LEVEL + NOISE > 0, "yes", "no"), dtype="str"),
    "three words": pd.Series(np.select([LEVEL + NOISE < -1, LEVEL + NOISE < 1], ["low", "mid"], "top"), dtype="str"),
    "four numbers": pd.Series(np.clip(np.round(LEVEL + NOISE), -1, 2).astype(int)),
    "quantity": LEVEL + 0.3 * NOISE,
}
SMALL = {"random_forest": {"n_estimators": 20}, "gradient_boosting": {"max_iter": 20}}
OURS = [name for name in MODELS if name in ("linear", "random_forest", "gradient_boosting")]


def trained(model_type: str, target: str, seed: int = 0) -> ModelTrainer:
    """Return a trainer fitted on most rows."""
    chosen = dict(SMALL.get(model_type, {}))
    if model_type != "linear":
        chosen["random_state"] = seed
    trainer = get_model_trainer(model_type, chosen, task=infer_learning(TARGETS[target]))
    return trainer.train(X.head(1200), TARGETS[target].head(1200))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model_type", OURS)
def test_a_model_learns_answers_and_compiles_for_every_task(model_type: str, target: str) -> None:
    trainer = trained(model_type, target)
    rows, y = X.tail(300), TARGETS[target].tail(300)
    metrics = trainer.evaluate(rows, y)
    task = task_of(trainer.pipeline)
    assert set(metrics) == set(METRICS[task])
    assert metrics["r2"] > 0.7 if task == "regression" else metrics["accuracy"] > 0.6
    if task != "regression":
        assert set(trainer.predict(rows)) <= set(TARGETS[target])
        assert trainer.predict_proba(rows).shape == (300, TARGETS[target].nunique())
    onnx, reason = compile_pipeline(trainer.pipeline)
    assert onnx is not None, reason
    parity = measure_parity(trainer.pipeline, onnx, rows)
    assert parity.largest_difference < (1e-4 if task != "regression" else 1e-3)
    assert parity.label_agreement == 1.0 or task == "regression"
    columns = {name: rows[name].astype(object).where(rows[name].notna(), None).tolist() for name in rows}
    assert CompiledModel(onnx).score(columns).shape == score(trainer.pipeline, rows).shape


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["random_forest", "gradient_boosting"])
def test_the_same_seed_gives_the_same_predictions(model_type: str) -> None:
    once, again, other = (trained(model_type, "three words", seed).predict_proba(X.tail(300)) for seed in (3, 3, 4))
    assert (once == again).all()
    assert model_type == "gradient_boosting" or (once != other).any()


def test_what_a_target_asks_for() -> None:
    assert {name: infer_learning(y) for name, y in TARGETS.items()} == {
        "two numbers": "classification", "two words": "classification", "three words": "classification",
        "four numbers": "classification", "quantity": "regression",
    }  # fmt: skip
    assert infer_learning(np.arange(1000)) == "regression"
    assert infer_learning([True, False, True]) == "classification"


@pytest.mark.parametrize(
    ("y", "task", "words"),
    [
        ([1] * N, "classification", "found one"),
        ([2.5] * N, "regression", "found only"),
        ([np.inf, 1.0] * (N // 2), "regression", "finite"),
        (["x", "y"] * (N // 2), "regression", "say task='classification'"),
        ([None, 1.0] * (N // 2), "regression", "750 missing"),
    ],
)
def test_an_unusable_target_says_why(y: list[object], task: str, words: str) -> None:
    with pytest.raises(UnusableTarget, match=words):
        get_model_trainer("linear", task=task).train(X, y)  # type: ignore[arg-type]


def test_a_label_that_the_model_never_saw_is_named() -> None:
    with pytest.raises(UnusableTarget, match="found maybe, which the model never saw"):
        trained("linear", "two words").evaluate(X.tail(2), ["yes", "maybe"])
    assert class_numbers([True, False], [0, 1]).tolist() == [1.0, 0.0]


def test_many_class_metrics_agree_with_scikit_learn() -> None:
    from sklearn.metrics import f1_score, log_loss, roc_auc_score

    pipeline = trained("random_forest", "three words").pipeline
    y, p = labels_as_numbers(TARGETS["three words"].tail(300), pipeline), score(pipeline, X.tail(300))
    found = all_metrics("multiclass", y, p)
    p = p / p.sum(axis=1, keepdims=True)
    assert found["log_loss"] == pytest.approx(log_loss(y, np.clip(p, 1e-15, 1)), rel=1e-6)
    assert found["roc_auc"] == pytest.approx(roc_auc_score(y, p, multi_class="ovr"), rel=1e-3)  # ties of rounding
    assert found["f1"] == pytest.approx(f1_score(y, p.argmax(axis=1), average="macro"))


@pytest.mark.slow
def test_the_gate_compares_many_class_models_on_the_same_rows() -> None:
    good, bad = trained("gradient_boosting", "three words").pipeline, trained("linear", "three words").pipeline
    rows, labels = X.tail(300), TARGETS["three words"].tail(300)
    y, p = labels_as_numbers(labels, good), score(good, rows)
    shares = np.tile(np.bincount(y.astype(int)) / 300, (300, 1))
    policy = GatePolicy(metric="log_loss", max_slice_loss=0.0, floors={"accuracy": 0.5, "log_loss": 5.0})
    found = evaluate_predictions(y, p, task="multiclass", slices=rows[["town"]])
    verdict = judge(found, y, p, shares, policy=policy, incumbent_name="the training mean")
    by_name = {check.name: check for check in verdict.checks}
    assert by_name["better log_loss than the training mean"].passed
    assert by_name["accuracy floor"].passed and by_name["log_loss ceiling"].passed
    assert not by_name["worst slice by log_loss"].passed  # some town is always worse than all of them
    with pytest.raises(ConfigurationError, match="a multiclass does not have"):
        judge(found, y, p, shares, policy=GatePolicy(floors={"recall": 0.5}), incumbent_name="x")
    assert classes_of(bad) == ["low", "mid", "top"]


def test_behaviour_tests_find_what_they_ask() -> None:
    pipeline = trained("linear", "two numbers").pipeline
    tests = [
        BehaviourTest(kind="direction", column="size", add=1.0),
        BehaviourTest(kind="direction", column="size", add=1.0, rises=False),
        BehaviourTest(kind="invariance", column="town", value="Oslo"),
        BehaviourTest(kind="minimum", features={"size": 3.0, "town": "Bodø"}, at_least=0.9),
        BehaviourTest(kind="minimum", features={"size": -3.0, "town": "Oslo"}, at_least=0.9, at_most=1.0),
    ]
    checks = check_behaviour(tests, lambda rows: score(pipeline, rows), X.tail(300))
    assert [check.passed for check in checks] == [True, False, False, True, False]
    assert checks[0].found == "does not fall in 100.0% of rows"
    assert checks[4].needed == "at least 0.9 and at most 1"
    with pytest.raises(ConfigurationError, match="'colour'"):
        check_behaviour([BehaviourTest(kind="invariance", column="colour", value=1)], lambda r: r, X)
    with pytest.raises(ConfigurationError, match="no number"):
        check_behaviour([BehaviourTest(kind="invariance", column="town", add=1)], lambda r: r, X)
    for wrong in ({"kind": "minimum"}, {"kind": "direction", "column": "size"}):
        with pytest.raises(ValidationError, match="needs"):
            BehaviourTest(**wrong)


def test_latency_is_held_against_its_bound() -> None:
    assert check_latency(lambda: None, 50.0).passed
    slow = check_latency(lambda: sum(range(200_000)), 1e-3, repeats=3)
    assert not slow.passed and slow.needed == "at most 0.001 ms"


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_task_has_its_picture(target: str) -> None:
    pipeline = trained("linear", target).pipeline
    y, p = labels_as_numbers(TARGETS[target].tail(300), pipeline), score(pipeline, X.tail(300))
    picture = evaluation_figure(task_of(pipeline), y, p, target, classes_of(pipeline) or [])
    assert picture.startswith(b"\x89PNG")


def test_times_compile_too() -> None:
    at = pd.Series(pd.date_range("2024-01-01", periods=N, freq="7h", tz="Europe/Oslo")).mask(RANDOM.random(N) < 0.1)
    rows = X.assign(at=at)
    y = (rows["at"].dt.tz_convert("UTC").dt.hour.fillna(12) + 2 * NOISE > 12).astype(int)
    pipeline = get_model_trainer("gradient_boosting", {"max_iter": 20}).train(rows.head(1200), y.head(1200)).pipeline
    onnx, reason = compile_pipeline(pipeline)
    assert onnx is not None, reason
    parity = measure_parity(pipeline, onnx, rows.tail(300))
    assert parity.largest_difference < 1e-5 and parity.label_agreement == 1.0
    assert rows.tail(300)["at"].isna().any()
