"""`prefect deployment run 'experiment/…'`: look at a model's experiments, and end those that are decided."""

from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import flow, get_run_logger
from prefect.events import emit_event

from flows.artifacts import leave_picture, leave_table, leave_text, slug
from flows.house import House, open_house, utc
from forge_core.deployment.routing import read_state
from forge_core.errors import Conflict, ModelNotFound
from forge_core.experiments.ab_testing import ABTestManager
from forge_core.experiments.picture import verdict_figure
from forge_core.experiments.records import Record
from forge_core.experiments.results import judge_experiment
from forge_core.experiments.table import verdict_markdown, verdict_rows
from forge_core.experiments.traffic import LiveTraffic
from forge_core.experiments.verdict import Verdict

ACTOR = "experiment flow"


@flow(name="experiment")
def experiment(
    model: str = "flights", challenger: str | None = None, experiment_id: str | None = None, now: str | None = None
) -> dict[str, Any]:
    """Judge every running experiment on versions of a model, and end those that their policy ends.

    A run that was killed is simply started again: looking changes nothing, and each change is made once.

    Parameters
    ----------
    challenger : str, optional
        A version's number or an alias: first start an experiment of the champion against it on live traffic, by the
        policy's rule (`experiment`).
    experiment_id : str, optional
        Its id; default made of the versions.
    now : str, optional
        ISO time of the look; default the present.

    Returns
    -------
    dict
        The state of each experiment that was looked at, by id.
    """
    house = open_house(model)
    manager = ABTestManager(
        house.ledger, storage=house.storage, traffic=lambda: _traffic(house), actor=ACTOR,
        tracking_uri=house.settings.mlflow_url,
    )  # fmt: skip
    if challenger is not None:
        _start(house, manager, challenger, experiment_id)
    moment = utc(now) or datetime.now(UTC)
    running = [record for record in manager.records.all("running", "paused") if _is_of(record, model)]
    return {record.id: _look(house, manager, record, moment) for record in running}


def _start(house: House, manager: ABTestManager, challenger: str, experiment_id: str | None) -> None:
    champion = read_state(house.ledger)[1]["models"].get(house.model, {}).get("champion")
    if champion is None:
        raise ModelNotFound(f"expected a live version of {house.model!r} to compare with, found none; deploy one")
    version = house.registry.resolve(house.model, challenger).version
    if version == champion:
        raise Conflict(f"version {version} of {house.model!r} is the champion; compare it with another one")
    rule = house.policy.experiment
    started = manager.create_experiment(
        experiment_id or f"{house.model}-v{champion}-v{version}",
        {"champion": f"models:/{house.model}/{champion}", "challenger": f"models:/{house.model}/{version}"},
        {"champion": 1 - rule.share, "challenger": rule.share},
        description=f"champion {champion} against version {version}",
        auto_start=True,
        live=True,
        **rule.model_dump(include={"alpha", "baseline", "min_effect", "max_units"}),
    )
    get_run_logger().info("experiment=%s status=%s", started.id, started.status)


def _look(house: House, manager: ABTestManager, record: Record, moment: datetime) -> dict[str, Any]:
    judgement = judge_experiment(manager.records, record, house.storage, now=moment)
    verdict = judgement.verdict
    get_run_logger().info("experiment=%s state=%s %s", record.id, verdict.state, verdict)
    leave_text(slug(record.id, "verdict"), verdict_markdown(verdict), f"Experiment {record.id}: {verdict.state}")
    leave_table(slug(record.id, "variants"), verdict_rows(verdict), f"Variants of {record.id}")
    leave_picture(slug(record.id, "picture"), verdict_figure(judgement), f"Experiment {record.id} over time")
    why = _end(house, record, verdict, moment)
    if why is not None:
        manager.stop(record.id, winner=verdict.winner, reason=why)
        _tell(house, record, verdict)
    elif record.status == "running" and _lost_its_traffic(house, record):
        why = "its traffic was taken away by a change of what is live; start it again, or stop it"
        get_run_logger().warning("experiment=%s is paused: %s", record.id, why)
        manager.pause(record.id, reason=why)
    status = manager.records.get(record.id).status
    return {"status": status, "state": verdict.state, "winner": verdict.winner, "sentence": str(verdict), "ended": why}


def _end(house: House, record: Record, verdict: Verdict, moment: datetime) -> str | None:
    """Return why an experiment ends now, or None."""
    rule = house.policy.experiment
    if verdict.stop and rule.end:
        return str(verdict)
    if record.started_at is not None and moment - record.started_at >= timedelta(days=rule.max_days):
        return f"the policy's {rule.max_days:g} days are over. {verdict}"
    return None


def _lost_its_traffic(house: House, record: Record) -> bool:
    if not record.definition.live:
        return False
    entry = read_state(house.ledger)[1]["models"].get(house.model, {})
    return entry.get("split", {}).get("id") != record.definition.salt


def _tell(house: House, record: Record, verdict: Verdict) -> None:
    version = record.definition.variants[verdict.winner].version if verdict.winner else None
    emit_event(
        "forge.experiment.ended",
        resource={"prefect.resource.id": f"forge.model.{house.model}", "prefect.resource.name": house.model},
        payload={"experiment": record.id, "state": verdict.state, "winner": verdict.winner, "version": version},
    )


def _is_of(record: Record, model: str) -> bool:
    return any(variant.model == model for variant in record.definition.variants.values())


def _traffic(house: House) -> LiveTraffic:
    return LiveTraffic(house.storage, house.ledger, house.serve, lambda: house.registry, house.settings)
