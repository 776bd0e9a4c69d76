"""A run of MLflow that always ends, and whose records are never lost."""

import atexit
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from forge_core.errors import ConfigurationError
from forge_core.storage import Storage
from forge_core.tracking.delivery import dataset_fields
from forge_core.tracking.names import LONGEST_TAG, LONGEST_VALUE, key_that_fits, value_that_fits
from forge_core.tracking.outbox import Outbox, resend_later
from forge_core.tracking.performance import Performance, measure_performance
from forge_core.tracking.server import await_server, translated
from forge_core.tracking.surroundings import surroundings


class ExperimentTracker:
    """One MLflow run at a time, also as a context manager; inside another run of this thread, a child of it.

    Every call but `start_run` returns at once. Records lie on disk first and are sent by a thread; while the server
    is away they are kept, and sent in order when it is back, by this or the next tracker.

    Parameters
    ----------
    experiment_name : str
        Created when it does not exist.
    tracking_uri : str, optional
        The MLflow server; None keeps what MLflow is set to (MLFLOW_TRACKING_URI).
    outbox : str or Path, optional
        Folder for what is not sent yet; None takes `outbox` in FORGE_HOME.
    patience : float
        Seconds that `start_run` waits for a server that does not answer, and `end_run` for what is not sent.

    Attributes
    ----------
    run_id : str or None
        Of the run that is open.
    left : int
        Records that the server did not have when the last run ended.

    Examples
    --------
    `with ExperimentTracker("model_comparison") as tracker: tracker.log_metrics({"accuracy": 0.9})`
    """

    def __init__(
        self,
        experiment_name: str,
        *,
        tracking_uri: str | None = None,
        outbox: str | Path | None = None,
        patience: float = 10.0,
    ) -> None:
        import mlflow

        self._mlflow = mlflow
        if tracking_uri is not None:
            mlflow.set_tracking_uri(tracking_uri)
        self.experiment_name, self.patience = experiment_name, patience
        self._folder = None if outbox is None else Path(outbox)
        self._outbox: Outbox | None = None
        self._params: dict[str, str] = {}
        self.run_id: str | None = None
        self.left = 0

    def start_run(self, run_name: str | None = None, *, tags: Mapping[str, str] | None = None) -> str:
        """Start a run, active for `mlflow.log_…` calls too, and return its id.

        Code, packages and machine are its tags (`forge_core.tracking.surroundings`).

        Raises
        ------
        ServiceUnavailable
            When the server does not answer within `patience` seconds.
        """
        if self.run_id is not None:
            raise ConfigurationError(f"expected no open run, found {self.run_id}; call `end_run` first")
        uri = self._mlflow.get_tracking_uri()
        await_server(uri, self.patience)
        with translated(uri):
            self._mlflow.set_experiment(self.experiment_name)
            run = self._mlflow.start_run(run_name=run_name, nested=self._mlflow.active_run() is not None)
        folder = self._folder or _default_folder()
        resend_later(folder, uri)
        try:
            self._outbox = Outbox(folder, run.info.run_id, uri)
        except ConfigurationError:
            _leave(run.info.run_id)
            raise
        self.run_id, self._params = run.info.run_id, {}
        atexit.register(self._at_exit)
        self.log_tags({**surroundings(Path.cwd()), **(tags or {})})
        return run.info.run_id

    def end_run(self, status: str = "FINISHED", *, reason: str | None = None) -> None:
        """End the run with a status (FINISHED, FAILED, KILLED); what the server does not have then is told and kept."""
        if self._outbox is None or self.run_id is None:
            return
        if reason:
            self.log_tags({"forge.reason": reason})
        self._outbox.put(end=[status, _now_ms()])
        self.left = self._outbox.close(self.patience)
        _leave(self.run_id)
        atexit.unregister(self._at_exit)
        self._outbox, self.run_id = None, None

    def __enter__(self) -> "ExperimentTracker":
        if self.run_id is None:
            self.start_run()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *details: Any) -> None:
        if kind is None:
            self.end_run()
        else:
            status = "FAILED" if issubclass(kind, Exception) else "KILLED"
            self.end_run(status, reason=f"{kind.__name__}: {error}")

    def flush(self, seconds: float = 10.0) -> bool:
        """Wait so many seconds at most and tell whether the server has everything."""
        return self._open().flush(seconds)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters. Long values are cut in the run and whole in the artifact `params/{name}.txt`; names that
        MLflow does not take are changed, and stand as they were in the tag `forge.name.{name}`.

        Raises
        ------
        ConfigurationError
            For a parameter that this run has with another value.
        """
        fitting = {self._key(name): str(value) for name, value in params.items()}
        for name, value in fitting.items():
            if self._params.get(name, value) != value:
                raise ConfigurationError(
                    f"parameter {name!r} of run {self.run_id} is {self._params[name]!r} and cannot become {value!r}; "
                    "use another name, or a child run"
                )
        self._params |= fitting
        self._open().put(params={k: value_that_fits(v, LONGEST_VALUE) for k, v in fitting.items()})
        for name, value in fitting.items():
            if len(value) > LONGEST_VALUE:
                self.log_bytes(value.encode(), f"params/{name.replace('/', '_')}.txt")

    def log_seeds(self, **seeds: int) -> None:
        """Log the seeds of whatever is random, as parameters `seed.{name}`."""
        self.log_params({f"seed.{name}": seed for name, seed in seeds.items()})

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of a step, NaN as NaN."""
        moment = _now_ms()
        lines = []
        for name, value in metrics.items():
            try:
                lines.append([self._key(name), float(value), moment, int(step)])
            except (TypeError, ValueError):
                raise ConfigurationError(f"expected a number for the metric {name!r}, found {value!r}") from None
        self._open().put(metrics=lines)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Log tags; a later value replaces an earlier one."""
        self._open().put(tags={key_that_fits(k): value_that_fits(str(v), LONGEST_TAG) for k, v in tags.items()})

    def log_bytes(self, data: bytes, name: str) -> None:
        """Log a file's bytes as an artifact under a name such as `pictures/roc.png`."""
        folder, _, file = name.rpartition("/")
        self._open().put_file(data, file, folder)

    def log_dict(self, value: Mapping[str, Any], name: str) -> None:
        """Log a mapping as a JSON artifact."""
        self.log_bytes(json.dumps(dict(value), indent=1, default=str).encode(), name)

    def log_dataset(
        self, frame: Any, *, name: str, source: str, target: str | None = None, context: str = "training"
    ) -> None:
        """Link rows to the run as its input; `name` is the dataset version's id, `source` where it lies."""
        fields = dataset_fields(frame, name=name, source=source, target=target, n_rows=len(frame))
        self._open().put(dataset=fields, context=context)

    def log_dataset_version(
        self, storage: Storage, dataset: str, *, target: str | None = None, context: str = "training"
    ) -> None:
        """Link a dataset version to the run by its id: its rows are counted by the manifest and not loaded."""
        from forge_core.data.versions import load_manifest, load_sample

        manifest = load_manifest(storage, dataset)
        fields = dataset_fields(
            load_sample(storage, dataset), name=dataset, source=f"{storage.url}/datasets/{dataset}",
            target=target, n_rows=manifest.n_rows,
        )  # fmt: skip
        self._open().put(dataset=fields, context=context)
        self.log_tags({"forge.dataset": dataset, "forge.source": manifest.source})

    def log_model_performance(
        self,
        y_true: ArrayLike,
        y_pred: ArrayLike,
        y_prob: ArrayLike | None = None,
        *,
        classes: Sequence[Any] | None = None,
    ) -> Performance:
        """Log every metric of the task and its pictures, and return them; the parameters are those of
        `forge_core.tracking.performance.measure_performance`."""
        found = measure_performance(y_true, y_pred, y_prob, classes=classes)
        self.log_metrics(found.metrics)
        for name, picture in found.pictures.items():
            self.log_bytes(picture, f"pictures/{name}")
        return found

    def _key(self, name: str) -> str:
        key = key_that_fits(str(name))
        if key != name:
            self.log_tags({f"forge.name.{key}"[:250]: str(name)})
        return key

    def _open(self) -> Outbox:
        if self._outbox is None:
            raise ConfigurationError("expected an open run, found none; call `start_run`, or use the tracker in `with`")
        return self._outbox

    def _at_exit(self) -> None:
        """End a run that nobody ended, before the process is gone."""
        error = getattr(sys, "last_value", None)
        self.end_run("FAILED" if error else "FINISHED", reason=f"{type(error).__name__}: {error}" if error else None)


def _default_folder() -> Path:
    from forge_core.settings import get_settings

    return get_settings().home.resolve() / "outbox"


def _now_ms() -> int:
    return int(time.time() * 1000)


def _leave(run_id: str) -> None:
    """Take a run off this thread's active ones. `mlflow.end_run` would do it too, but asks the server, for minutes
    where it is away; the outbox has the run's end already. Checked against the MLflow that pyproject.toml pins."""
    from mlflow.environment_variables import MLFLOW_RUN_ID
    from mlflow.tracking import fluent

    active = fluent._active_run_stack.get()
    if any(run.info.run_id == run_id for run in active):
        active[:] = [run for run in active if run.info.run_id != run_id]
        MLFLOW_RUN_ID.unset()
        fluent._last_active_run_id.set(run_id)
    if monitor := fluent.run_id_to_system_metrics_monitor.pop(run_id, None):
        monitor.finish()
