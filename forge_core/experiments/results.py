"""The verdict of an experiment from where its rows are: the ledger, and the prediction log for live traffic."""

from datetime import UTC, datetime

import pandas as pd

from forge_core.experiments.assignment import unit_id
from forge_core.experiments.definition import Definition
from forge_core.experiments.joined import Joined, join_outcomes
from forge_core.experiments.records import ExperimentRecords, Record
from forge_core.experiments.verdict import Judgement, judge
from forge_core.monitoring.prediction_log import PredictionLog
from forge_core.storage import Storage

_COLUMNS = ["request_id", "event_time", "split", "assigned", "propensity", "unit", "fault"]


def judge_experiment(
    records: ExperimentRecords, record: Record, storage: Storage | None, *, now: datetime | None = None
) -> Judgement:
    """Return the verdict on what was seen up to now."""
    moment = now or datetime.now(UTC)
    return judge(record.definition, seen(records, record, storage, moment), now=moment)


def seen(records: ExperimentRecords, record: Record, storage: Storage | None, now: datetime) -> Joined:
    """Return who met what and what came of it."""
    exposures, outcomes = records.exposures(record.id), records.outcomes(record.id)
    if record.definition.live and storage is not None and record.started_at is not None:
        served = served_exposures(storage, record.definition, record.started_at)
        # An outcome may name the request where the exposure names the user.
        units = dict(zip(served["alias"], served["unit"], strict=True))
        outcomes = outcomes.assign(unit=[units.get(unit, unit) for unit in outcomes["unit"]])
        exposures = pd.concat([exposures, served.drop(columns="alias")], ignore_index=True)
    return join_outcomes(record.definition, exposures, outcomes, now=now)


def served_exposures(storage: Storage, definition: Definition, since: datetime) -> pd.DataFrame:
    """Return the meetings that the prediction log has: unit, variant, propensity, at, and the request's own `alias`.

    Rows that the assigned variant's contract refused, and those of users whose variant was set by hand (their
    propensity is 1), stay out.
    """
    log = PredictionLog(storage, definition.live_model or "").read(columns=_COLUMNS)
    mine = log[log["split"] == definition.salt]
    mine = mine[(mine["fault"] != "contract") & (mine["propensity"].astype(float) < 1)]
    return pd.DataFrame(
        {
            "unit": mine["unit"].astype("str"),
            "variant": mine["assigned"].astype("str"),
            "propensity": mine["propensity"].astype(float),
            "at": mine["event_time"],
            "alias": [unit_id(definition.salt, str(request_id)) for request_id in mine["request_id"]],
        }
    )
