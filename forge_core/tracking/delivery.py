"""Sends a journal's records to MLflow, in order, so that sending one twice does no harm.

MLflow keeps a metric under (key, timestamp, step, value) and takes the same one twice as one; timestamps are set when
a metric is logged and not when it is sent. Equal parameters, tags, artifacts, inputs and ends are taken twice too.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from forge_core.tracking.journal import Journal, Record

logger = logging.getLogger(__name__)

# MLflow's limits of one call.
_METRICS, _OTHERS = 900, 90
_REFUSALS = frozenset({400, 404, 409, 422})
_OWN_WORDS = frozenset({"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"})


def send_next(journal: Journal, client: Any) -> int:
    """Send the next records and return how many; 0 where nothing is left.

    A record that the server refuses (a parameter that has another value, a run that was deleted) is set aside in
    `refused.jsonl` with the reason, and the others go on. Any other error is raised, and nothing is marked as sent.
    """
    from mlflow.exceptions import MlflowException

    records, position = journal.read()
    try:
        _send(journal, client, records)
    except MlflowException as error:
        if not _is_refusal(error):
            raise
        for record in records:
            try:
                _send(journal, client, [record])
            except MlflowException as reason:
                if not _is_refusal(reason):
                    raise
                journal.refuse(record, str(reason))
                logger.warning(
                    "MLflow refused a record of run %s, kept in %s: %s",
                    journal.run_id, journal.folder / "refused.jsonl", reason,
                )  # fmt: skip
    journal.advance(position)
    return len(records)


def end_killed(run_id: str, client: Any) -> None:
    """End a run whose process died, where MLflow takes it for running still."""
    from mlflow.exceptions import MlflowException

    try:
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_tag(run_id, "forge.reason", "its process died")
            client.set_terminated(run_id, "KILLED")
    except MlflowException as error:
        if not _is_refusal(error):
            raise


def _is_refusal(error: Any) -> bool:
    """Tell MLflow's own no from the answer of something between us and MLflow."""
    from mlflow.exceptions import RestException

    own = isinstance(error, RestException) or error.error_code in _OWN_WORDS
    return own and error.get_http_status_code() in _REFUSALS


def _send(journal: Journal, client: Any, records: list[Record]) -> None:
    run_id = journal.run_id
    for metrics, params, tags, other in _grouped(records):
        if metrics or params or tags:
            client.log_batch(run_id, *_entities(metrics, params, tags))
        if "artifact" in other:
            place, folder = other["artifact"]
            if (journal.folder / place).is_file():  # else it was sent before the mark was written
                client.log_artifact(run_id, str(journal.folder / place), folder or None)
                journal.drop_file(place)
        elif "dataset" in other:
            client.log_inputs(run_id, [_dataset(other["dataset"], other["context"])])
        elif "end" in other:
            status, moment = other["end"]
            client.set_terminated(run_id, status, moment)


def _grouped(records: list[Record]) -> Iterator[tuple[list[Any], dict[str, str], dict[str, str], Record]]:
    """Yield what goes into one call, and what comes after that call, in the order of the records."""
    metrics: list[Any] = []
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    for record in records:
        if not record.keys() & {"metrics", "params", "tags"}:
            yield metrics, params, tags, record
            metrics, params, tags = [], {}, {}
            continue
        for metric in record.get("metrics", ()):
            if len(metrics) >= _METRICS:
                yield metrics, params, tags, {}
                metrics, params, tags = [], {}, {}
            metrics.append(metric)
        for kind, some in (("params", params), ("tags", tags)):
            for name, value in record.get(kind, {}).items():
                if len(some) >= _OTHERS or some.get(name, value) != value:
                    yield metrics, params, tags, {}
                    metrics = []
                    params.clear()
                    tags.clear()
                some[name] = value
    yield metrics, params, tags, {}


def _entities(metrics: list[Any], params: dict[str, str], tags: dict[str, str]) -> tuple[list[Any], ...]:
    from mlflow.entities import Metric, Param, RunTag

    return (
        [Metric(key, value, moment, step) for key, value, moment, step in metrics],
        [Param(key, value) for key, value in params.items()],
        [RunTag(key, value) for key, value in tags.items()],
    )


def _dataset(fields: dict[str, Any], context: str) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return DatasetInput(Dataset(**fields), [InputTag("mlflow.data.context", context)])


def dataset_fields(frame: Any, *, name: str, source: str, target: str | None, n_rows: int) -> dict[str, Any]:
    """Return what MLflow keeps of rows: name, digest, where they lie, columns, and how many there are.

    The digest is the dataset version's id where the name is one; MLflow's own is a hash of a sample.
    """
    import mlflow.data
    from mlflow.exceptions import MlflowException

    digest = name if name.startswith("ds-") else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # hints on integer columns and on kinds of addresses
        try:
            data = mlflow.data.from_pandas(frame, source=source, name=name, targets=target, digest=digest)
        except MlflowException:  # an address that MLflow cannot open itself
            data = mlflow.data.from_pandas(frame, name=name, targets=target, digest=digest)
        entity = data._to_mlflow_entity()
    profile = {**json.loads(entity.profile or "{}"), "num_rows": n_rows, "source": source}
    return {
        "name": entity.name, "digest": entity.digest, "source_type": entity.source_type, "source": entity.source,
        "schema": entity.schema, "profile": json.dumps(profile),
    }  # fmt: skip
