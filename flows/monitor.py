"""`prefect deployment run 'monitor/…'`: the newest windows against the reference, quality on labels, a decision."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from prefect import flow, get_run_logger
from prefect.events import emit_event

from flows.artifacts import leave_picture, leave_table, leave_text, slug
from flows.house import House, open_house, utc
from forge_core.deployment.mirror import mirrored_version
from forge_core.deployment.routing import read_state
from forge_core.errors import NotEnoughSamples
from forge_core.monitoring.checkup import Checkup, check_live_version
from forge_core.monitoring.live_rows import Known
from forge_core.monitoring.reports import drift_figure, drift_markdown
from forge_core.monitoring.windows import ReferenceProfile


@flow(name="monitor")
def monitor(model: str = "flights", now: str | None = None) -> dict[str, Any]:
    """Check the live version and, where it is wanted, raise the event that starts a retraining.

    Parameters
    ----------
    now : str, optional
        ISO time of the check (event time); default the present.

    Returns
    -------
    dict
        `sentence`, `retrain`, `reason`, the drift `score` and the quality.
    """
    house = open_house(model)
    moment = utc(now) or datetime.now(UTC)
    checkup = _check(house, moment)
    if checkup is None:
        return {"retrain": False, "sentence": f"nothing to check yet: no version of {model} is live"}
    _leave(house, checkup)
    result = checkup.summary()
    get_run_logger().info(result["sentence"])
    house.ledger.append_event(
        "checked",
        model,
        version=checkup.version,
        actor="monitor flow",
        reason=result["sentence"],
        at=moment,
        details=result,
    )
    _emit(house, checkup, moment)
    return result


def _check(house: House, moment: datetime) -> Checkup | None:
    version = read_state(house.ledger)[1]["models"].get(house.model, {}).get("champion")
    if version is None:
        return None
    with mirrored_version(house.storage, house.model, version) as folder:
        known = Known(
            version,
            ReferenceProfile.from_files(folder.reference_files),
            folder.expectation,
            {name: m.value for name, m in folder.evaluation.metrics.items()},
            folder.task,
            tuple(folder.classes or ()),
        )
    retrained = [e["at"] for e in house.ledger.events(house.model, "retrained")]
    try:
        return check_live_version(
            house.storage,
            house.ledger,
            house.model,
            known,
            policy=house.policy,
            now=moment,
            last_retrained=max(retrained) if retrained else None,
        )
    except NotEnoughSamples as error:
        get_run_logger().warning("%s", error)
        return None


def _leave(house: House, checkup: Checkup) -> None:
    leave_text(slug(house.model, "drift"), drift_markdown(checkup.drift), "Newest windows against the reference")
    leave_picture(slug(house.model, "drift-picture"), drift_figure(checkup.drift), "PSI of every feature")
    if checkup.quality is not None:
        leave_table(slug(house.model, "quality"), [asdict(checkup.quality)], "Quality on the labels that have arrived")


def _emit(house: House, checkup: Checkup, moment: datetime) -> None:
    resource = {"prefect.resource.id": f"forge.model.{house.model}", "prefect.resource.name": house.model}
    if checkup.drift.drifted:
        emit_event(
            "forge.drift.detected",
            resource=resource,
            payload={"score": checkup.drift.score, "features": checkup.drift.drifted},
        )
    if checkup.retrain:
        emit_event(
            "forge.retrain.wanted",
            resource=resource,
            payload={"model": house.model, "until": moment.isoformat(), "reason": checkup.reason},
        )
