"""The Python blocks of the user guide's chapters, as the guide has them, after one prelude of names."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forge_core.data.sample import generate_sample_data
from forge_core.monitoring.drift_detection import FeatureDriftDetector

DATA_LOADERS = """
from forge_core.data import get_data_loader

# Load and preprocess data
data_loader = get_data_loader()
data = data_loader.load_data("data.csv")
processed_data = data_loader.preprocess_data(data)

# Split data for training
split_data = data_loader.split_data(processed_data, target_column="target")
"""

FEATURE_ENGINEERING = """
from forge_core.data.feature_engineering import get_feature_engineer

# Initialize feature engineer
feature_engineer = get_feature_engineer()

# Identify feature types
categorical_features = data.select_dtypes(include=["object", "category"]).columns.tolist()
numerical_features = data.select_dtypes(include=["int64", "float64"]).columns.tolist()

# Fit and transform the data
X_transformed = feature_engineer.fit_transform(
    data,
    categorical_features=categorical_features,
    numerical_features=numerical_features
)

# Save feature configuration for inference
feature_engineer.save_features("models/feature_metadata.json")
"""

BASIC_TRAINING = """
from forge_core.models.model_trainer import get_model_trainer

# Initialize model trainer
model_trainer = get_model_trainer(
    model_type="random_forest",
    hyperparameters={"n_estimators": 100, "random_state": 42}
)

# Train the model
model_trainer.train(X_train, y_train, X_val, y_val)

# Evaluate the model
metrics = model_trainer.evaluate(X_test, y_test)
print(f"Test accuracy: {metrics['accuracy']:.4f}")

# Save the model
model_trainer.save_model("models/random_forest_model.joblib")
"""

TRACKING = """
from forge_core.tracking.mlflow_extensions import ExperimentTracker, track_experiment

# Manual tracking
tracker = ExperimentTracker(experiment_name="model_comparison")
tracker.start_run(run_name="random_forest_run")

# Log parameters
mlflow.log_params({
    "model_type": "random_forest",
    "n_estimators": 100
})

# Train and evaluate
metrics = model_trainer.train_and_evaluate(X_train, y_train, X_test, y_test)

# Log metrics
tracker.log_model_performance(y_test, y_pred, y_prob)

# End run
tracker.end_run()

# Or use the decorator for automatic tracking
@track_experiment(experiment_name="model_training")
def train_model(X_train, y_train, X_test, y_test, model_type="random_forest"):
    model_trainer = get_model_trainer(model_type=model_type)
    model_trainer.train(X_train, y_train)
    return model_trainer.evaluate(X_test, y_test)
"""

DRIFT = """
from forge_core.monitoring.drift_detection import FeatureDriftDetector

# Initialize drift detector with reference data
drift_detector = FeatureDriftDetector(
    reference_data=training_data,
    categorical_features=["category", "country"],
    numerical_features=["age", "income"],
    warning_threshold=0.1,
    drift_threshold=0.2
)

# Check for drift in production data
drift_results = drift_detector.compute_drift(production_data)

# Check if retraining is needed
if drift_detector.should_retrain():
    print("Data drift detected. Model retraining recommended.")
"""

RETRAINING = """
from forge_core.monitoring.drift_detection import AutomaticRetrainingTrigger

# Initialize retraining trigger
retraining_trigger = AutomaticRetrainingTrigger(
    drift_detector=drift_detector,
    retraining_frequency=24,  # hours
    min_samples_required=1000,
    min_drift_score=0.2
)

# Check if retraining is needed
should_retrain, drift_results = retraining_trigger.check_drift(current_data)
if should_retrain:
    # Trigger retraining pipeline
    subprocess.run(["python", "scripts/retrain_model.py"])
"""

AB_TESTING = """
from forge_core.monitoring.ab_testing import get_ab_test_manager

# Get the global A/B test manager
ab_manager = get_ab_test_manager()

# Create an experiment
ab_manager.create_experiment(
    experiment_id="model_comparison",
    variants={
        "model_v1": model_v1,
        "model_v2": model_v2
    },
    traffic_allocation={"model_v1": 0.5, "model_v2": 0.5},
    description="Comparing model performance",
    auto_start=True
)

# Get a variant for a request
experiment_id, variant_name = ab_manager.get_variant(user_id="user123")
model = ab_manager.get_experiment(experiment_id).variants[variant_name]

# Make prediction with the selected variant
prediction = model.predict(features)

# Record conversion
ab_manager.record_conversion(experiment_id, variant_name)
"""


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the guide takes for granted."""
    monkeypatch.chdir(tmp_path)
    rows = generate_sample_data(1500, random_state=0)
    table = rows[["feature1", "feature2", "target"]]
    table.to_csv("data.csv", index=False)
    X, y = table[["feature1", "feature2"]], table["target"]
    return {
        "data": X, "X_train": X[:1000], "y_train": y[:1000], "X_val": X[1000:1200], "y_val": y[1000:1200],
        "X_test": X[1200:], "y_test": y[1200:],
    }  # fmt: skip


def people(n_rows: int, seed: int, older: float) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "category": rng.choice(["a", "b", "c"], n_rows),
            "country": rng.choice(["no", "se", "dk"], n_rows),
            "age": rng.normal(40 + older, 10, n_rows),
            "income": rng.lognormal(10, 0.5, n_rows),
        }
    )


def test_data_loaders(names: dict[str, Any]) -> None:
    exec(DATA_LOADERS, names)
    parts = names["split_data"]
    assert len(parts.X_train) + len(parts.X_val) + len(parts.X_test) == len(names["processed_data"])
    assert list(parts.X_train.columns) == ["feature1", "feature2"]


@pytest.mark.filterwarnings("ignore:.*select_dtypes.*")
def test_feature_engineering(names: dict[str, Any]) -> None:
    exec(FEATURE_ENGINEERING, names)
    from forge_core.data.feature_engineering import load_features

    loaded = load_features("models/feature_metadata.json")
    assert np.array_equal(loaded.transform(names["data"]), names["X_transformed"])


@pytest.mark.slow
def test_basic_training(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="pickle"):
        exec(BASIC_TRAINING, names)
    assert "Test accuracy: 0." in capsys.readouterr().out
    assert names["metrics"]["accuracy"] > 0.6 and Path("models/random_forest_model.joblib").is_file()


@pytest.mark.slow
def test_experiment_tracking(names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    from forge_core.models.model_trainer import get_model_trainer

    # The variable and not `set_tracking_uri`, which would leave the variable set for every later test.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    trainer = get_model_trainer("random_forest", {"n_estimators": 10, "random_state": 42})
    trainer.train(names["X_train"], names["y_train"])
    names |= {"mlflow": mlflow, "model_trainer": trainer, "get_model_trainer": get_model_trainer}
    names |= {"y_pred": trainer.predict(names["X_test"]), "y_prob": trainer.predict_proba(names["X_test"])}
    exec(TRACKING, names)
    returned = names["train_model"](names["X_train"], names["y_train"], names["X_test"], names["y_test"])
    manual = mlflow.search_runs(experiment_names=["model_comparison"]).iloc[0]
    automatic = mlflow.search_runs(experiment_names=["model_training"]).iloc[0]
    assert manual["params.n_estimators"] == "100" and manual["status"] == "FINISHED"
    assert manual["metrics.accuracy"] == pytest.approx(names["metrics"]["accuracy"])
    assert automatic["params.model_type"] == "random_forest"
    assert automatic["metrics.accuracy"] == pytest.approx(returned["accuracy"])


def test_drift_detection(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    names |= {"training_data": people(5000, 1, older=0), "production_data": people(2000, 2, older=10)}
    exec(DRIFT, names)
    assert "Data drift detected. Model retraining recommended." in capsys.readouterr().out
    assert names["drift_results"].drifted == ["age"]


@pytest.mark.parametrize(("older", "calls"), [(10, 1), (0, 0)])
def test_automated_retraining(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch, older: float, calls: int) -> None:
    run: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command: run.append(command))
    detector = FeatureDriftDetector(people(5000, 1, older=0), ["category", "country"], ["age", "income"])
    names |= {"drift_detector": detector, "current_data": people(2000, 3, older=older), "subprocess": subprocess}
    exec(RETRAINING, names)
    assert len(run) == calls


def test_ab_testing(names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from forge_core.models.model_trainer import get_model_trainer
    from forge_core.settings import get_settings

    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    try:
        for name, trees in (("model_v1", 5), ("model_v2", 10)):
            trainer = get_model_trainer("random_forest", {"n_estimators": trees, "random_state": 42})
            trainer.train(names["X_train"], names["y_train"])
            names[name] = trainer
        names["features"] = names["X_test"][:3]
        exec(AB_TESTING, names)
        exec(AB_TESTING, names)  # a notebook's cell is run again
        verdict = names["ab_manager"].results("model_comparison")
    finally:
        get_settings.cache_clear()
    assert names["model"] is names[names["variant_name"]] and len(names["prediction"]) == 3
    assert verdict.users[names["variant_name"]] == 1 and verdict.state == "not yet"
    # Of two anonymous conversions of a variant that one user has met, one counts.
    assert verdict.not_counted == {"more than exposures": 1}
