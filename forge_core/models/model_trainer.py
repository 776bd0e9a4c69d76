"""Training behind one interface: a name, hyperparameters, rows; features and estimator in one pipeline."""

import inspect
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline

from forge_core.data.feature_engineering import FeatureEngineer
from forge_core.errors import ConfigurationError, ModelNotFound
from forge_core.models.mlp import TorchClassifier, TorchRegressor
from forge_core.models.target import Learning, checked_target, labels_as_numbers, task_of
from forge_core.statistics.quality import all_metrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelKind:
    """An algorithm: what builds its estimators, its defaults, and whether it wants standardised numbers."""

    classifier: Callable[..., Any]
    regressor: Callable[..., Any]
    defaults: Mapping[str, Any]
    scale: bool = False


MODELS: dict[str, ModelKind] = {
    "linear": ModelKind(LogisticRegression, Ridge, {}, scale=True),
    "logistic_regression": ModelKind(LogisticRegression, Ridge, {"max_iter": 500}, scale=True),
    "random_forest": ModelKind(
        RandomForestClassifier, RandomForestRegressor, {"n_estimators": 100, "min_samples_leaf": 5, "n_jobs": -1}
    ),
    "gradient_boosting": ModelKind(
        HistGradientBoostingClassifier, HistGradientBoostingRegressor, {"early_stopping": False}
    ),
    "mlp": ModelKind(TorchClassifier, TorchRegressor, {}, scale=True),
}


def known_models() -> dict[str, ModelKind]:
    """Return every model type: ours, and those that installed packages add by the entry point `forge_core.models`.

    Raises
    ------
    ConfigurationError
        When a package adds a name that is taken, or something that is no `ModelKind`.
    """
    found = dict(MODELS)
    for entry in entry_points(group="forge_core.models"):
        kind = entry.load()
        if entry.name in found or not isinstance(kind, ModelKind):
            raise ConfigurationError(
                f"expected the entry point {entry.name} = {entry.value} to add a ModelKind under a new name, "
                f"found {'a name that is taken' if entry.name in found else type(kind).__name__}; rename or mend it"
            )
        found[entry.name] = kind
    return found


class ModelTrainer:
    """Trains one kind of model and scores it.

    Parameters
    ----------
    model_type : str
        A key of `known_models()`.
    hyperparameters : mapping, optional
        Parameters of the estimator; unknown names are refused with the known ones listed.
    task : {"classification", "regression"}
        A classification has two classes or more, whole numbers or text.
    target : str, optional
        The target's column name, which the feature engineer then refuses as a feature.

    Examples
    --------
    >>> from forge_core.data.sample import generate_sample_data
    >>> rows = generate_sample_data(2000, random_state=0)
    >>> trainer = get_model_trainer("gradient_boosting", {"max_iter": 20, "random_state": 0})
    >>> trainer.train(rows[["feature1", "feature2"]], rows["target"]).evaluate(
    ...     rows[["feature1", "feature2"]], rows["target"])["accuracy"] > 0.7
    True
    """

    def __init__(
        self,
        model_type: str = "gradient_boosting",
        hyperparameters: Mapping[str, Any] | None = None,
        *,
        task: Learning = "classification",
        target: str | None = None,
    ) -> None:
        models = known_models()
        if model_type not in models:
            raise ConfigurationError(f"no model type {model_type!r}; known: {', '.join(sorted(models))}")
        kind = models[model_type]
        build = kind.classifier if task == "classification" else kind.regressor
        known = set(inspect.signature(build).parameters)
        chosen = dict(hyperparameters or {})
        if unknown := set(chosen) - known:
            raise ConfigurationError(
                f"{model_type} has no hyperparameter {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}"
            )
        self.model_type, self.task = model_type, task
        self.hyperparameters = {k: v for k, v in kind.defaults.items() if k in known} | chosen
        self.pipeline = Pipeline(
            [
                ("features", FeatureEngineer(target=target, scale=kind.scale)),
                ("estimator", build(**self.hyperparameters)),
            ]
        )

    def train(self, X_train: Any, y_train: Any, X_val: Any = None, y_val: Any = None) -> "ModelTrainer":
        """Fit features and estimator on the training rows; with a validation part, log its metrics too.

        Raises
        ------
        UnusableTarget
            When the target has missing values, only one class or number, or does not fit the task.
        """
        y = checked_target(y_train, self.task)
        self.pipeline.fit(as_frame(X_train), y)
        if "n_jobs" in self.hyperparameters:
            # Threads add probabilities up in any order, so that answers would differ in their last digit.
            self.pipeline.named_steps["estimator"].set_params(n_jobs=1)
        if X_val is not None and y_val is not None:
            logger.info("validation model_type=%s metrics=%s", self.model_type, self.evaluate(X_val, y_val))
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Return predicted classes or numbers, shape (n_rows,)."""
        return self.pipeline.predict(as_frame(X))

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return class probabilities, shape (n_rows, n_classes), in the order of `classes_`."""
        return self.pipeline.predict_proba(as_frame(X))

    def evaluate(self, X_test: Any, y_test: Any) -> dict[str, float]:
        """Return the task's metrics (`accuracy`, `roc_auc`, `log_loss` …, or `rmse`, `mae`, `r2`)."""
        y = labels_as_numbers(y_test, self.pipeline)
        return all_metrics(task_of(self.pipeline), y, score(self.pipeline, as_frame(X_test)))

    def train_and_evaluate(self, X_train: Any, y_train: Any, X_test: Any, y_test: Any) -> dict[str, float]:
        """Fit on the first two, return the metrics on the last two."""
        return self.train(X_train, y_train).evaluate(X_test, y_test)

    def save_model(self, path: str | Path) -> Path:
        """Write the pipeline: `.skops` loads without running code; `.joblib` is a pickle and comes with a warning."""
        from forge_core.models.version import dump_pipeline

        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".skops":
            file.write_bytes(dump_pipeline(self.pipeline))
        elif file.suffix == ".joblib":
            import joblib

            warnings.warn(
                f"{file} is a pickle: loading it runs whatever code is inside; prefer the suffix .skops",
                UserWarning,
                stacklevel=2,
            )
            joblib.dump(self.pipeline, file)
        else:
            raise ConfigurationError(f"expected a path that ends in .skops or .joblib, found {file}")
        return file


def get_model_trainer(
    model_type: str = "gradient_boosting",
    hyperparameters: Mapping[str, Any] | None = None,
    *,
    task: Learning = "classification",
    target: str | None = None,
) -> ModelTrainer:
    """Return a trainer for a model type; see `ModelTrainer`."""
    return ModelTrainer(model_type, hyperparameters, task=task, target=target)


def load_model(path: str | Path, *, allow_pickle: bool = False) -> Pipeline:
    """Return the pipeline in a `.skops` file, or in a `.joblib` file where that is allowed."""
    from forge_core.errors import UntrustedModel
    from forge_core.models.version import load_pipeline

    file = Path(path)
    if not file.is_file():
        raise ModelNotFound(f"Failed to load model from path: {file}; there is no such file")
    if file.suffix == ".skops":
        return load_pipeline(file.read_bytes(), origin=str(file))
    if file.suffix == ".joblib" and allow_pickle:
        import joblib

        warnings.warn(f"{file} is a pickle; the code inside it runs now", UserWarning, stacklevel=2)
        return joblib.load(file)
    raise UntrustedModel(
        f"expected a .skops file, found {file}; a .joblib file runs code while loading and needs allow_pickle=True"
    )


def score(pipeline: Any, X: pd.DataFrame) -> NDArray[np.float64]:
    """Return what metrics are computed from.

    Returns
    -------
    ndarray of shape (n_rows,) or (n_rows, n_classes)
        The number, or with two classes the probability of the second, or with more that of each.
    """
    if hasattr(pipeline, "predict_proba"):
        shares = np.asarray(pipeline.predict_proba(X), float)
        return shares[:, 1] if shares.shape[1] == 2 else shares
    return np.asarray(pipeline.predict(X), float)


def as_frame(X: Any) -> pd.DataFrame:
    """Return rows as a frame; a bare array gets the column names x0, x1, …"""
    if isinstance(X, pd.DataFrame):
        return X
    values = np.asarray(X)
    return pd.DataFrame(values, columns=[f"x{i}" for i in range(values.shape[1])])
