"""Experiment tracking on MLflow: runs that always end, performance with its pictures, a decorator."""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from numpy.typing import ArrayLike

from forge_core.models.evaluation_pictures import evaluation_figure
from forge_core.statistics.quality import classification_metrics, regression_metrics

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


class ExperimentTracker:
    """One MLflow run at a time, also as a context manager.

    Parameters
    ----------
    experiment_name : str
        Created when it does not exist.
    tracking_uri : str, optional
        The MLflow server; None keeps what MLflow is set to (MLFLOW_TRACKING_URI).

    Examples
    --------
    `with ExperimentTracker("model_comparison") as tracker: tracker.log_metrics({"accuracy": 0.9})`
    """

    def __init__(self, experiment_name: str, *, tracking_uri: str | None = None) -> None:
        import mlflow

        self._mlflow = mlflow
        if tracking_uri is not None:
            mlflow.set_tracking_uri(tracking_uri)
        self.experiment_name = experiment_name
        self.run_id: str | None = None

    def start_run(self, run_name: str | None = None, *, tags: Mapping[str, str] | None = None) -> str:
        """Start a run, active for `mlflow.log_…` calls too, and return its id."""
        self._mlflow.set_experiment(self.experiment_name)
        run = self._mlflow.start_run(run_name=run_name, tags=dict(tags or {}))
        self.run_id = run.info.run_id
        return run.info.run_id

    def end_run(self, status: str = "FINISHED") -> None:
        """End the active run with a status (FINISHED, FAILED)."""
        self._mlflow.end_run(status)
        self.run_id = None

    def __enter__(self) -> "ExperimentTracker":
        if self.run_id is None:
            self.start_run()
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        self.end_run("FAILED" if kind else "FINISHED")

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters into the run."""
        self._mlflow.log_params(dict(params))

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log metrics into the run; NaN values are left out."""
        self._mlflow.log_metrics({k: float(v) for k, v in metrics.items() if v == v})

    def log_bytes(self, data: bytes, name: str) -> None:
        """Log a file's bytes as an artifact under a name such as `pictures/roc.png`."""
        import tempfile
        from pathlib import Path

        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as path:
            (Path(path) / file).write_bytes(data)
            self._mlflow.log_artifact(str(Path(path) / file), folder or None)

    def log_dict(self, value: Mapping[str, Any], name: str) -> None:
        """Log a mapping as a JSON artifact."""
        self._mlflow.log_dict(dict(value), name)

    def log_dataset(self, frame: Any, *, name: str, source: str, target: str | None = None) -> None:
        """Link rows to the run as its input; `name` is the dataset version's id, `source` where it lies."""
        data = self._mlflow.data.from_pandas(frame, source=source, name=name, targets=target)
        self._mlflow.log_input(data, context="training")

    def log_model_performance(self, y_true: ArrayLike, y_pred: ArrayLike, y_prob: ArrayLike | None = None) -> None:
        """Log every metric of the task and its picture; `y_prob` of shape (n_rows,) or (n_rows, 2) means classes."""
        import numpy as np

        if y_prob is None:
            self.log_metrics(regression_metrics(y_true, y_pred))
            self.log_bytes(evaluation_figure("regression", y_true, y_pred, "Held-out rows", []), "pictures/residuals.png")
            return
        probability = np.asarray(y_prob, float)
        probability = probability[:, 1] if probability.ndim == 2 else probability
        self.log_metrics(classification_metrics(y_true, probability))
        self.log_bytes(evaluation_figure("classification", y_true, probability, "Held-out rows", [0, 1]), "pictures/evaluation.png")


def track_experiment(experiment_name: str, *, tracking_uri: str | None = None) -> Callable[[F], F]:
    """Return a decorator: each call is a run; simple arguments become parameters, a returned mapping metrics."""

    def decorate(function: F) -> F:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def tracked(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            tracker = ExperimentTracker(experiment_name, tracking_uri=tracking_uri)
            tracker.start_run(run_name=function.__name__)
            with tracker:
                simple = (str, int, float, bool, type(None))
                tracker.log_params({k: v for k, v in given.arguments.items() if isinstance(v, simple)})
                result = function(*args, **kwargs)
                if isinstance(result, Mapping):
                    tracker.log_metrics({k: v for k, v in result.items() if isinstance(v, int | float)})
                return result

        return tracked  # type: ignore[return-value]

    return decorate
