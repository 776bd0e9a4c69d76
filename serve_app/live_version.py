"""One version as the router sees it: what it accepts, what it says of itself, and the way to its variant."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.exceptions import RayActorError

from forge_core.data.contracts import Contract
from forge_core.deployment.mirror import mirrored_version
from forge_core.deployment.routing_table import variant_name
from forge_core.errors import ServiceUnavailable
from forge_core.models.version import VersionFolder
from forge_core.statistics.quality import Task
from forge_core.storage import Storage
from serve_app.columns import Table, packed
from serve_app.lanes import Lane, Send

logger = logging.getLogger(__name__)

# The predicted number; with two classes the probability of the second, with more that of each.
Score = float | list[float]


@dataclass(frozen=True)
class LiveVersion:
    """What the router knows of a version it holds: its contract, what /model/info says, and the lane to its variant."""

    model: str
    version: str
    contract: Contract
    columns: list[str]
    task: Task
    classes: list[Any]
    info: dict[str, Any]
    example: dict[str, Any]
    lane: Lane


def load_live_version(storage: Storage, model: str, version: str) -> LiveVersion:
    """Return a mirrored version with a lane to its Serve application."""
    handle = serve.get_app_handle(variant_name(model, version))

    made: list[Any] = []

    async def send(rows: Sequence[Any] | Table) -> Sequence[Any]:
        if not made:  # in the event loop, which the handle belongs to from here on
            # Plain values: the usual serialization looks at each of them in Python.
            made.append(handle.score.options(request_serialization="pickle", response_serialization="pickle"))
        return await made[0].remote(packed(rows))

    with mirrored_version(storage, model, version) as folder:
        return live_version(folder, model, version, Lane(outliving_replicas(send)))


def live_version(folder: VersionFolder, model: str, version: str, lane: Lane) -> LiveVersion:
    """Return what a version's folder says of it, with a lane to whatever scores its rows."""
    contract, example = folder.contract, folder.input_example
    info = {
        "name": model,
        "version": version,
        "task": folder.task,
        "features": {c: contract.kinds[c] for c in contract.feature_columns},
        "serves": folder.compiled,
        "metrics": {name: m.to_dict() for name, m in folder.evaluation.metrics.items()},
        "features_hash": folder.features_hash,
        "lineage": folder.lineage,
        "example": {"features": example},
    }
    columns, classes = contract.feature_columns, folder.classes or []
    return LiveVersion(model, version, contract, columns, folder.task, classes, info, example, lane)


def outliving_replicas(send: Send, tries: int = 3) -> Send:
    """Return a `send` that asks another replica where one died with the batch: scoring twice changes nothing.

    Raises
    ------
    ServiceUnavailable
        From the returned function, when every try met a replica that died.
    """

    async def send_again(rows: Sequence[Any] | Table) -> Sequence[Any]:
        for number in range(1, tries + 1):
            try:
                return await send(rows)
            except RayActorError as error:
                logger.warning("a replica died with its batch rows=%d try=%d", len(rows), number)
                lost = error
        raise ServiceUnavailable(f"{tries} replicas died with these rows; retry in a few seconds") from lost

    return send_again


def answer(live: LiveVersion, score: Score) -> tuple[Any, float | None]:
    """Return (prediction, probability of the predicted class, or None for regression)."""
    (prediction,), (probability,) = answers(live, [score])
    return prediction, probability


def answers(live: LiveVersion, scores: Sequence[Any]) -> tuple[list[Any], list[float | None]]:
    """Return (predictions, probabilities): what `answer` says to each score."""
    if scores and isinstance(scores[0], list):
        most = [max(range(len(score)), key=score.__getitem__) for score in scores]
        return [live.classes[place] for place in most], list(map(max, scores))
    if live.task == "regression":
        return list(scores), [None] * len(scores)
    no, yes = live.classes
    return [yes if score >= 0.5 else no for score in scores], [s if s >= 0.5 else 1.0 - s for s in scores]


def watched(score: Score) -> float:
    """Return the one number of a score that windows count: with many classes the greatest probability."""
    return max(score) if isinstance(score, list) else score
