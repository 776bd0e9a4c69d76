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
from forge_core.monitoring.page import check_page
from forge_core.monitoring.prediction_log import PredictionLog
from forge_core.monitoring.reports import drift_figure, drift_markdown
from forge_core.monitoring.shadow_log import ShadowLog
from forge_core.monitoring.windows import ReferenceProfile
from forge_core.tracking.mlflow_extensions import ExperimentTracker


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
    joined, removed = PredictionLog(house.storage, model).maintain(moment, house.policy.monitor.retention_days)
    removed += ShadowLog(house.storage, model).maintain(moment, house.policy.monitor.retention_days)
    get_run_logger().info("prediction log: %d days joined, %d days removed", joined, removed)
    seen = _check(house, moment)
    if seen is None:
        return {"retrain": False, "sentence": f"nothing to check yet: no version of {model} is live"}
    checkup, known = seen
    _leave(house, checkup, known)
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


def _check(house: House, moment: datetime) -> tuple[Checkup, Known] | None:
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
        checkup = check_live_version(
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
    return checkup, known


def _leave(house: House, checkup: Checkup, known: Known) -> None:
    page = check_page(checkup, known.reference).encode()
    key = f"reports/{house.model}/{checkup.version}/{checkup.at:%Y%m%dT%H%M%SZ}.html"
    house.storage.write_bytes(key, page)
    where = f"The whole report, with pictures: `{house.storage.path(key)}`"
    with ExperimentTracker(f"{house.model}-monitoring", tracking_uri=house.settings.mlflow_url) as tracker:
        tracker.log_tags({"version": checkup.version, "decision": checkup.reason[:500]})
        tracker.log_metrics({"drift.score": checkup.drift.score, "drift.alarm": float(checkup.alarm.alarm)})
        for told in filter(None, (checkup.quality, checkup.estimate)):
            tracker.log_metrics({f"{'estimate' if told.estimated else 'quality'}.{told.metric}": told.value})
        tracker.log_bytes(page, "report.html")
        where += f", and in MLflow's run `{tracker.run_id}` of `{house.model}-monitoring`."
    text = f"{drift_markdown(checkup.drift)}\n{where}\n"
    leave_text(slug(house.model, "drift"), text, "Newest windows against the reference")
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
