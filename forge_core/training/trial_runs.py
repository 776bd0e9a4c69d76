"""Trials as child runs in MLflow, sent by a thread of its own: the search never waits for the tracking server.

What cannot be sent is kept and tried again; what is left at the end is counted, and sent by the next call of the
same search. A run is found again by its tags, so nothing is sent twice.
"""

import logging
import queue
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge_core.tracking.server import ping

logger = logging.getLogger(__name__)

_PAUSE = 1.0  # seconds between two tries


@dataclass(frozen=True)
class Tracking:
    """Where trials are tracked.

    Parameters
    ----------
    experiment : str
        Created when it does not exist.
    uri : str, optional
        The MLflow server; None takes what MLflow is set to.
    parent_run : str, optional
        Id of the run that the trials become children of; None takes this thread's active run, or where there is
        none, a run named `search` that is made for them.
    """

    experiment: str
    uri: str | None = None
    parent_run: str | None = None


class TrialRuns:
    """Sends records of trials to MLflow in the background."""

    def __init__(self, tracking: Tracking, key: str) -> None:
        import mlflow

        self._tracking, self._key = tracking, key
        self._uri = tracking.uri or mlflow.get_tracking_uri()
        active = mlflow.active_run()
        self.parent_run = tracking.parent_run or (active.info.run_id if active else None)
        self._own_parent = self.parent_run is None
        self._client: Any = None
        self._sent: dict[int, str] = {}
        self._open: dict[int, str] = {}
        self._experiment = ""
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._unsent = 0
        self._give_up = threading.Event()
        self._thread = threading.Thread(target=self._work, name="trial-runs", daemon=True)
        self._thread.start()

    def send(self, record: Mapping[str, Any]) -> None:
        """Take a record; returns at once."""
        self._unsent += 1
        self._waiting.put(dict(record))

    def finish(self, best: Mapping[str, Any] | None, picture: bytes | None, patience: float) -> int:
        """Wait so many seconds for what is not sent yet, end the run made for the search; return what is left."""
        self._waiting.put(None)
        self._thread.join(patience)
        if self._thread.is_alive():
            self._give_up.set()
            logger.warning(
                "trials not sent to MLflow at %s: %d; the same search sends them when it is run again",
                self._uri, self._unsent,
            )  # fmt: skip
        elif self._own_parent and self.parent_run:
            try:
                self._close_parent(best, picture)
            except Exception as error:  # the search has its answer, whatever becomes of its record
                logger.warning("run %s of the search could not be closed: %s", self.parent_run, error)
        return self._unsent

    def _work(self) -> None:
        while (record := self._waiting.get()) is not None:
            told = False
            while not self._give_up.is_set():
                try:
                    self._deliver(record)
                    self._unsent -= 1
                    break
                except Exception as error:  # whatever MLflow or the network raise: the record is kept
                    if not told:
                        logger.warning("MLflow at %s does not take trials, trying again: %s", self._uri, error)
                    told = True
                    self._give_up.wait(_PAUSE)

    def _deliver(self, record: Mapping[str, Any]) -> None:
        ping(self._uri)
        if self._client is None:
            self._connect()
        number = record["number"]
        if number in self._sent:
            return
        ended = int(time.time() * 1000)
        if number not in self._open:
            tags = {
                "mlflow.parentRunId": str(self.parent_run), "forge.search": self._key,
                "forge.trial": str(number), "forge.state": record["state"],
            }  # fmt: skip
            started = ended - int(1000 * record["seconds"])
            run = self._client.create_run(self._experiment, started, tags, run_name=f"trial {number}")
            self._open[number] = run.info.run_id
        self._client.log_batch(self._open[number], *_contents(record, ended))
        self._client.set_terminated(self._open[number], "FAILED" if record["state"] == "failed" else "FINISHED", ended)
        self._sent[number] = self._open[number]

    def _connect(self) -> None:
        """Find or make the experiment, the parent run, and the trials that were sent by an earlier call."""
        from mlflow import MlflowClient

        client = MlflowClient(self._uri)
        if self.parent_run is not None:
            self._experiment = client.get_run(self.parent_run).info.experiment_id
        else:
            found = client.get_experiment_by_name(self._tracking.experiment)
            self._experiment = found.experiment_id if found else client.create_experiment(self._tracking.experiment)
            earlier = client.search_runs([self._experiment], f"tags.`forge.search_parent` = '{self._key}'")
            parent = earlier[0] if earlier else client.create_run(
                self._experiment, tags={"forge.search_parent": self._key}, run_name="search"
            )  # fmt: skip
            self.parent_run = parent.info.run_id
        where = f"tags.`forge.search` = '{self._key}' and tags.`mlflow.parentRunId` = '{self.parent_run}'"
        for run in client.search_runs([self._experiment], where, max_results=5000):
            number = int(run.data.tags["forge.trial"])
            if run.info.status == "FINISHED":
                self._sent[number] = run.info.run_id
            elif run.info.status == "RUNNING":
                self._open[number] = run.info.run_id
        self._client = client

    def _close_parent(self, best: Mapping[str, Any] | None, picture: bytes | None) -> None:
        if best is not None:
            from mlflow.entities import Metric, Param

            now = int(time.time() * 1000)
            params = [Param(k, str(v)[:500]) for k, v in best["hyperparameters"].items()]
            self._client.log_batch(self.parent_run, [Metric("objective", best["value"], now, 0)], params)
        if picture is not None:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "search.png"
                file.write_bytes(picture)
                self._client.log_artifact(self.parent_run, str(file), "pictures")
        self._client.set_terminated(self.parent_run, "FINISHED" if best is not None else "FAILED")


def _contents(record: Mapping[str, Any], ended: int) -> tuple[list[Any], list[Any], list[Any]]:
    """Return a record's metrics (one step a stage), parameters and tags, for one call."""
    from mlflow.entities import Metric, Param, RunTag

    metrics = [
        Metric(name, float(value), ended, stage["thirds"])
        for stage in record["stages"]
        for name, value in stage["metrics"].items()
        if value is not None
    ]
    metrics.append(Metric("seconds", record["seconds"], ended, 0))
    params = [Param(k, str(v)[:500]) for k, v in record["hyperparameters"].items()]
    return metrics, params, [RunTag("forge.reason", record["reason"][:500])] if record["reason"] else []
