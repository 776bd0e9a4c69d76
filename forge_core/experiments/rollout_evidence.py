"""What a rollout's step has shown so far: the logs' rows of the two versions, brought into one form, and the guards.

In shadow both versions answered the same rows; in a step chance alone decided who answered which. Rows that somebody
sent to a variant by name, and rows that only the champion's contract takes, are evidence of nothing and left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from forge_core.experiments.rollout_guards import (
    N_GUARDS,
    Bar,
    Guard,
    disagreement_guard,
    distance_guard,
    errors_guard,
    estimate_guard,
    labels_guard,
    latency_guard,
    paired_labels_guard,
    unknown,
)
from forge_core.experiments.rollout_records import CANARY, CHAMPION, Rollout
from forge_core.ledger import Ledger
from forge_core.monitoring.live_rows import class_numbers
from forge_core.monitoring.prediction_log import PredictionLog
from forge_core.monitoring.shadow_log import ShadowLog
from forge_core.policy import RolloutPolicy
from forge_core.statistics.confidence_sequences import MIN_UNITS
from forge_core.statistics.estimation import QualityEstimator
from forge_core.statistics.quality import Task
from forge_core.storage import Storage

_LOGGED = ("request_id", "event_time", "received_at", "version", "assigned", "split", "propensity", "latency_ms",
           "fault", "prediction", "probability")  # fmt: skip
# Event times may lie a little before the time of receipt.
_SLACK = timedelta(days=1)


@dataclass(frozen=True)
class Sides:
    """What is known of the two versions beforehand: the task, its classes, and how sure each can be."""

    task: Task
    classes: tuple[Any, ...]
    new: QualityEstimator | None
    old: QualityEstimator | None


@dataclass(frozen=True, eq=False)
class StepRows:
    """The rows of a step.

    `new` and `old` have request_id, received_at, probability, prediction (number of the class, or the number),
    latency_ms; in shadow they are the same rows in the same order. `n_new` counts all rows of the version, with the
    `n_errors` that it failed on; `n_contract` only the champion's contract took.
    """

    new: pd.DataFrame
    old: pd.DataFrame
    paired: bool
    n_new: int
    n_errors: int
    n_contract: int
    newest: datetime | None


@dataclass(frozen=True)
class Evidence:
    """The guards of a look, how many rows the version answered, and what the next look must know of this one."""

    guards: tuple[Guard, ...]
    n_rows: int
    n_contract: int
    carried: Mapping[str, Any]
    newest: datetime | None

    def __getitem__(self, name: str) -> Guard:
        return next(guard for guard in self.guards if guard.name == name)


def read_step(storage: Storage, rollout: Rollout, sides: Sides) -> StepRows:
    """Return the rows of a rollout's present step."""
    since = (rollout.event_time or rollout.started_at) - _SLACK
    if rollout.in_shadow:
        frame = ShadowLog(storage, rollout.model).read(rollout.version, since=since, received_since=rollout.step_at)
        frame = frame[frame["champion_version"] == rollout.champion]
        return _paired(frame, sides)
    log = PredictionLog(storage, rollout.model).read(since=since, columns=_LOGGED)
    rows = log[(log["split"] == rollout.id) & (log["received_at"] >= rollout.step_at) & log["propensity"].notna()]
    # A row that was on its way when the step began was assigned by the shares before.
    shares = rows["assigned"].map({CANARY: rollout.share, CHAMPION: 1 - rollout.share}).astype(float)
    return _apart(rows[np.isclose(rows["propensity"].astype(float), shares, atol=1e-9)], sides)


def weigh(
    rows: StepRows,
    rollout: Rollout,
    policy: RolloutPolicy,
    sides: Sides,
    labels: Mapping[str, float],
) -> Evidence:
    """Return the guards of a look.

    Parameters
    ----------
    labels : mapping from request id to label
        Those that have come.
    """
    carried: dict[str, Any] = dict(rollout.evidence)
    n_stages = len(policy.steps) + (policy.shadow_share > 0)
    bar = Bar(policy.alpha / (N_GUARDS * n_stages), dict(carried.get("log_e", {})))
    quality = _labelled(rows, bar, policy, sides, labels, carried)
    # Shown once, in whichever step, it stays so.
    carried["vouched"] = carried.get("vouched", False) or quality.better
    guards = (
        errors_guard(bar, rows.n_errors, rows.n_new, policy.max_error_rate),
        latency_guard(
            bar, rows.new, rows.old, ratio=policy.max_latency_ratio, least_ms=policy.min_latency_ms,
            floor=carried.get("champion_p95"),
        ),
        _answers(rows, bar, policy, sides, vouched=carried["vouched"]),
        _estimated(rows, bar, policy, sides),
        quality,
    )  # fmt: skip
    carried["log_e"] = {guard.name: guard.log_e for guard in guards}
    if len(rows.old) >= MIN_UNITS:
        carried["champion_p95"] = float(rows.old["latency_ms"].quantile(0.95))
    return Evidence(guards, rows.n_new, rows.n_contract, carried, rows.newest)


def next_step_evidence(carried: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the next step keeps of this one's evidence: how fast the champion is, and whether labels vouch."""
    return {name: carried[name] for name in ("champion_p95", "vouched") if name in carried}


def read_labels(ledger: Ledger, rollout: Rollout) -> dict[str, float]:
    """Return the labels since a rollout began by request id; the first of each counts."""
    since = (rollout.event_time or rollout.started_at) - _SLACK
    labels: dict[str, float] = {}
    for feedback in ledger.feedback(rollout.model, since=since):
        labels.setdefault(feedback.request_id, feedback.label)
    return labels


def _answers(rows: StepRows, bar: Bar, policy: RolloutPolicy, sides: Sides, *, vouched: bool) -> Guard:
    new, old = rows.new["prediction"].to_numpy(float), rows.old["prediction"].to_numpy(float)
    if not rows.paired:
        return distance_guard(
            bar,
            rows.new["probability"],
            rows.old["probability"],
            policy.max_prediction_distance,
            vouched=vouched,
        )
    # Two numbers are apart by half of how much the champion's differ among themselves.
    apart = np.abs(new - old) > (0.5 * old.std() if sides.task == "regression" and len(old) else 0.0)
    return disagreement_guard(bar, apart, policy.max_disagreement, vouched=vouched)


def _estimated(rows: StepRows, bar: Bar, policy: RolloutPolicy, sides: Sides) -> Guard:
    if sides.task != "classification" or sides.new is None or sides.old is None:
        return unknown("estimated quality", "estimated quality: only for two classes")
    chances = []
    for estimator, frame in ((sides.new, rows.new), (sides.old, rows.old)):
        stated = frame["probability"].to_numpy(float)
        true = estimator.calibrated(stated)
        chances.append(np.where(stated >= 0.5, 1 - true, true))
    return estimate_guard(bar, chances[0], chances[1], policy.max_quality_loss)


def _labelled(
    rows: StepRows,
    bar: Bar,
    policy: RolloutPolicy,
    sides: Sides,
    labels: Mapping[str, float],
    carried: dict[str, Any],
) -> Guard:
    if rows.paired:
        known = rows.new["request_id"].isin(labels)
        new, old = (_losses(frame[known.to_numpy()], sides, labels) for frame in (rows.new, rows.old))
        return paired_labels_guard(bar, new, old, policy.max_quality_loss, alpha=policy.alpha)
    new, old = (_losses(frame[frame["request_id"].isin(labels)], sides, labels) for frame in (rows.new, rows.old))
    counts: list[list[float]] | None = None
    if sides.task != "regression":
        counts = carried["label_counts"] = _with_counts(carried.get("label_counts", []), new, old)
    return labels_guard(bar, counts, new, old, policy.max_quality_loss, alpha=policy.alpha)


def _with_counts(before: list[list[float]], new: Any, old: Any) -> list[list[float]]:
    """Return the counts by look with this one, where enough has come since the last to be a look of its own."""
    now = [float(new.sum()), float(len(new)), float(old.sum()), float(len(old))]
    last = before[-1] if before else [0.0, 0.0, 0.0, 0.0]
    grown = min(now[1] - last[1], now[3] - last[3])
    fallen = any(n < b for n, b in zip(now, last, strict=True))
    return [*before, now] if grown >= max(20.0, 0.05 * min(last[1], last[3])) and not fallen else before


def _losses(frame: pd.DataFrame, sides: Sides, labels: Mapping[str, float]) -> Any:
    label = frame["request_id"].map(labels).to_numpy(float)
    predicted = frame["prediction"].to_numpy(float)
    return np.abs(predicted - label) if sides.task == "regression" else (predicted != label).astype(float)


def _paired(frame: pd.DataFrame, sides: Sides) -> StepRows:
    n_errors, n_contract = int((frame["fault"] == "error").sum()), int((frame["fault"] == "contract").sum())
    answered = frame[frame["fault"] == ""]
    new, old = (
        _side(answered, sides, answered[f"{whose}prediction"], answered[f"{whose}probability"], f"{whose}latency_ms")
        for whose in ("", "champion_")
    )
    newest = frame["event_time"].max() if len(frame) else None
    return StepRows(new, old, True, len(answered) + n_errors, n_errors, n_contract, newest)


def _apart(rows: pd.DataFrame, sides: Sides) -> StepRows:
    mine, theirs = rows[rows["assigned"] == CANARY], rows[(rows["assigned"] == CHAMPION) & (rows["fault"] == "")]
    n_errors, n_contract = int((mine["fault"] == "error").sum()), int((mine["fault"] == "contract").sum())
    answered = mine[mine["fault"] == ""]
    new, old = (_side(f, sides, f["prediction"], f["probability"], "latency_ms") for f in (answered, theirs))
    newest = rows["event_time"].max() if len(rows) else None
    return StepRows(new, old, False, len(answered) + n_errors, n_errors, n_contract, newest)


def _side(
    frame: pd.DataFrame, sides: Sides, prediction: pd.Series, probability: pd.Series, latency: str
) -> pd.DataFrame:
    if sides.task == "regression":
        numbers = pd.to_numeric(prediction).astype(float)
    elif sides.task == "classification":
        numbers = (probability >= 0.5).astype(float)
    else:
        numbers = class_numbers(prediction, sides.classes)
    return pd.DataFrame(
        {
            "request_id": frame["request_id"].astype("str"),
            "received_at": frame["received_at"],
            "prediction": numbers,
            "probability": probability.astype(float),
            "latency_ms": frame[latency].astype(float),
        }
    ).reset_index(drop=True)
