"""`prefect deployment run 'rollout/…' -p version=7`: a version's traffic grows while the evidence is good.

A run that was killed is started again, with the same words or without a version, and goes on where the rollout is.
"""

import time
from datetime import datetime
from typing import Any

from prefect import flow, get_run_logger
from prefect.events import emit_event
from sqlalchemy.exc import OperationalError

from flows.artifacts import leave_picture, leave_table, slug
from flows.dead_runs import crash_dead_runs
from flows.house import House, open_house, utc
from flows.tasks import begin_rollout, deploy_version
from forge_core.deployment.routing import read_state
from forge_core.errors import ModelNotFound, ServiceUnavailable
from forge_core.experiments.rollout_picture import rollout_figure
from forge_core.experiments.rollout_records import Rollout, RolloutRecords
from forge_core.experiments.rollout_run import go_on, settle
from forge_core.experiments.rollout_verdict import Look

_EVENTS = {"promoted": "forge.version.promoted", "rolled back": "forge.version.rolled_back"}


@flow(name="rollout")
async def rollout(
    model: str = "flights",
    version: str | None = None,
    reason: str = "asked for",
    approved_by: str | None = None,
    again: bool = False,
    at: str | None = None,
) -> dict[str, Any]:
    """Roll a version out and return how it ended.

    Parameters
    ----------
    version : str, optional
        A number or an alias; none: go on with the rollout that is under way.
    reason : str
        Why, for the record.
    approved_by : str, optional
        Who approves it, where the policy (`gate.approval`) asks for a person.
    again : bool
        Roll a version out whose rollout has ended before; otherwise that end is told and nothing is done.
    at : str, optional
        ISO event time of the start, where history is replayed.

    Returns
    -------
    dict
        `rollout`, `version`, `outcome` and `reason`; a model's first version is deployed directly.
    """
    await crash_dead_runs()
    return _rollout(model, version, reason, approved_by, again, utc(at))


def _rollout(
    model: str, version: str | None, reason: str, approved_by: str | None, again: bool, at: datetime | None
) -> dict[str, Any]:
    house = open_house(model)
    records = RolloutRecords(house.ledger)
    if version is not None:
        if not read_state(house.ledger)[1]["models"].get(model, {}).get("champion"):
            live = deploy_version(model, version, reason, at, approved_by)
            return {"rollout": None, "version": live["version"], "outcome": "promoted", "reason": "the first version"}
        number = house.registry.resolve(model, version).version
        last = records.newest(model)
        if last is not None and last.version == number and last.status == "ended" and not again:
            settle(house.ledger, house.registry, house.serve, model)
            return _result(last)
        begin_rollout(model, number, reason, at, approved_by)
    found = records.under_way(model)
    if found is None:
        raise ModelNotFound(f"no rollout of {model!r} is under way: give the version that is to be rolled out")
    settle(house.ledger, house.registry, house.serve, model)
    ended = _follow(house, found)
    emit_event(
        event=_EVENTS.get(ended.outcome, "forge.version.rolled_back"),
        resource={"prefect.resource.id": f"forge.model.{model}", "prefect.resource.name": model},
        payload=_result(ended),
    )
    return _result(ended)


def _follow(house: House, found: Rollout) -> Rollout:
    """Look again and again until the rollout has ended; what is away for a while is waited for."""
    told = (-1, "")
    while found.status != "ended":
        try:
            found, look = go_on(
                house.storage, house.ledger, house.registry, house.serve, house.model,
                policy=house.policy.rollout, actor="rollout flow", progress=get_run_logger().info,
            )  # fmt: skip
            if look is not None and (found.step, found.status) != told:
                _leave(house, found, look)
                told = (found.step, found.status)
        except ModelNotFound:
            found = RolloutRecords(house.ledger).newest(house.model) or found  # somebody ended it meanwhile
            settle(house.ledger, house.registry, house.serve, house.model)
            continue
        except (ServiceUnavailable, OperationalError) as error:
            get_run_logger().warning("looking again later: %s", error)
        if found.status != "ended":
            time.sleep(house.policy.rollout.look_seconds)
    return found


def _leave(house: House, found: Rollout, look: Look) -> None:
    told = f"{found.id}, version {found.version}: {look.action} at {look.told_step}"
    leave_table(slug(house.model, "rollout-guards"), look.table(), told)
    leave_picture(slug(house.model, "rollout"), rollout_figure(found, house.policy.rollout), told)


def _result(found: Rollout) -> dict[str, Any]:
    return {"rollout": found.id, "version": found.version, "outcome": found.outcome, "reason": found.reason}
