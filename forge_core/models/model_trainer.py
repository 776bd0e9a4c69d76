"""Training behind one interface: a name, hyperparameters, rows; features and estimator in one pipeline."""

import inspect
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline

from forge_core.data.feature_engineering import FeatureEngineer
from forge_core.errors import ConfigurationError, ModelNotFound, UnusableTarget
from forge_core.statistics.quality import Task, classification_metrics, regression_metrics

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
}


class ModelTrainer:
    """Trains one kind of model and scores it.

    Parameters
    ----------
    model_type : str
        A key of `MODELS`.
    hyperparameters : mapping, optional
        Parameters of the estimator; unknown names are refused with the known ones listed.
    task : {"classification", "regression"}
        Classification has two classes, 0 and 1.
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
        task: Task = "classification",
        target: str | None = None,
    ) -> None:
        if model_type not in MODELS:
            raise ConfigurationError(f"no model type {model_type!r}; known: {', '.join(sorted(MODELS))}")
        kind = MODELS[model_type]
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
            When the target has missing values or only one class.
        """
        y = _checked_target(y_train, self.task)
        self.pipeline.fit(as_frame(X_train), y)
        if X_val is not None and y_val is not None:
            logger.info("validation model_type=%s metrics=%s", self.model_type, self.evaluate(X_val, y_val))
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Return predicted classes or numbers, shape (n_rows,)."""
        return self.pipeline.predict(as_frame(X))

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return class probabilities, shape (n_rows, 2)."""
        return self.pipeline.predict_proba(as_frame(X))

    def evaluate(self, X_test: Any, y_test: Any) -> dict[str, float]:
        """Return the task's metrics (`accuracy`, `roc_auc`, `log_loss` …, or `rmse`, `mae`, `r2`)."""
        y = _checked_target(y_test, self.task, need_both=False)
        measure = classification_metrics if self.task == "classification" else regression_metrics
        return measure(y, score(self.pipeline, as_frame(X_test)))

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
    task: Task = "classification",
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
    """Return what metrics are computed from, shape (n_rows,): the probability of class 1, or the number."""
    if hasattr(pipeline, "predict_proba"):
        return np.asarray(pipeline.predict_proba(X))[:, 1].astype(float)
    return np.asarray(pipeline.predict(X), float)


def as_frame(X: Any) -> pd.DataFrame:
    """Return rows as a frame; a bare array gets the column names x0, x1, …"""
    if isinstance(X, pd.DataFrame):
        return X
    values = np.asarray(X)
    return pd.DataFrame(values, columns=[f"x{i}" for i in range(values.shape[1])])


def _checked_target(y: ArrayLike, task: Task, *, need_both: bool = True) -> NDArray[Any]:
    values = pd.Series(np.asarray(y))
    if missing := int(values.isna().sum()):
        raise UnusableTarget(f"expected a label in every row, found {missing} missing; drop those rows")
    if task == "regression":
        return values.to_numpy(float)
    counts = values.value_counts().to_dict()
    if not set(counts) <= {0, 1}:
        raise UnusableTarget(
            f"expected the classes 0 and 1, found {list(counts)[:5]}; map the labels, or say task='regression'"
        )
    if need_both and len(counts) < 2:
        raise UnusableTarget(f"expected two classes, found one: {counts}; nothing can be learnt from it")
    return values.to_numpy(int)
