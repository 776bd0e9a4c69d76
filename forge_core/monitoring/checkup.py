"""One look at a live version: its windows, its labels so far, an estimate without labels, and whether to train again.

With labels, loss of quality decides and drift is information; without them an estimated loss together with drift
decides; without both drift decides alone and the reason says so (features drift with every season, models mostly do
not suffer).
"""

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import pandas as pd

from forge_core.errors import NotEnoughSamples
from forge_core.ledger import Ledger
from forge_core.monitoring.drift_alarm import DriftAlarm, live_alarm
from forge_core.monitoring.drift_detection import AutomaticRetrainingTrigger, DriftReport, FeatureDriftDetector
from forge_core.monitoring.live_rows import Known, LiveRows, read_live_rows
from forge_core.monitoring.performance import (
    QualityReport,
    estimated_quality,
    live_quality,
    quality_by_slice,
    quality_over_time,
)
from forge_core.monitoring.windows import WindowStore
from forge_core.policy import ModelPolicy
from forge_core.statistics.counts import GridCounts
from forge_core.storage import Storage

# Rows over which the budget of the watch over single labels is spread.
_HORIZON_ROWS = 1_000_000


@dataclass(frozen=True)
class Checkup:
    """What was seen of a version up to a moment, and the decision.

    Attributes
    ----------
    drift : DriftReport
        The newest windows together against the reference.
    alarm : DriftAlarm
        Whether drift is beyond what the error budget lets pass, over all windows.
    quality, estimate : QualityReport or None
        On the labels that have come; without labels.
    loss_alarm : bool
        Whether the labels, one by one, show a larger loss than allowed.
    current : GridCounts
        The newest windows together.
    over_time : DataFrame
        Quality on labels, a row a window (`quality_over_time`).
    slices : DataFrame
        Quality of each frequent level of each categorical feature (`quality_by_slice`), the worst first.
    n_pending, n_orphans : int
        Labels whose request is not in the log yet, and those that are too old to wait for it.
    """

    model: str
    version: str
    at: datetime
    n_windows: int
    drift: DriftReport
    alarm: DriftAlarm
    quality: QualityReport | None
    estimate: QualityReport | None
    loss_alarm: bool
    retrain: bool
    reason: str
    current: GridCounts
    over_time: pd.DataFrame
    slices: pd.DataFrame
    n_pending: int
    n_orphans: int

    def summary(self) -> dict[str, Any]:
        """Return the findings as plain JSON with one sentence for people."""
        drift = f"drift score {self.drift.score:.2f}" + (f" ({self.drift.feature})" if self.drift.feature else "")
        told = self.quality or self.estimate
        quality = f"; {told.reason}" if told else "; no labels yet"
        decision = "train again" if self.retrain else "do not train again"
        return {
            "sentence": f"version {self.version}, {self.drift.n_current:,} rows in {self.n_windows} windows: "
            f"{drift}{quality}. Decision: {decision} ({self.reason})",
            "retrain": self.retrain,
            "reason": self.reason,
            "score": self.drift.score,
            "drifted": self.drift.drifted,
            "faults": sorted({f.feature for f in self.drift.faults}),
            "psi": {name: self.drift[name].psi for name in self.drift},
            "alarm": asdict(self.alarm),
            "quality": self.quality and self.quality.to_dict(),
            "estimate": self.estimate and self.estimate.to_dict(),
            "labels": self.quality.n_rows if self.quality else 0,
            "labels_pending": self.n_pending,
            "labels_orphaned": self.n_orphans,
        }


def check_live_version(
    storage: Storage,
    ledger: Ledger,
    model: str,
    known: Known,
    *,
    policy: ModelPolicy,
    now: datetime,
    last_retrained: datetime | None,
) -> Checkup:
    """Return the check of a version's windows before `now` (event time).

    Raises
    ------
    NotEnoughSamples
        When too few rows were served in the newest windows.
    """
    watched = policy.monitor
    window = timedelta(hours=watched.window_hours)
    since = now - window * watched.lookback_windows
    store = WindowStore(storage, model)
    live = store.read(known.version, known.reference.grid, since=now - window * 2 * watched.horizon_windows, until=now)
    newest = [counts for start, counts in live.items() if start >= since]
    if not newest:
        raise NotEnoughSamples(
            f"expected served rows of version {known.version} since {since:%Y-%m-%d %H:%M}, found none"
        )
    finished = {start: counts for start, counts in live.items() if start + window <= now}
    alarm = live_alarm(
        known.reference,
        finished,
        lane=watched.lane,
        strata=watched.strata,
        horizon=watched.horizon_windows,
        alpha=watched.alpha,
    )
    rows = read_live_rows(storage, ledger, model, known, since=since, until=now, watermark=watched.watermark)
    quality, loss_alarm = _labelled(rows, known, policy)
    estimate = _estimated(rows, known, policy)
    trigger = AutomaticRetrainingTrigger(
        FeatureDriftDetector(
            reference_profile=known.reference,
            warning_threshold=watched.warning_threshold,
            drift_threshold=watched.drift_threshold,
            alpha=watched.alpha,
        ),
        retraining_frequency=policy.retrain.retraining_frequency,
        min_samples_required=policy.retrain.min_samples_required,
        min_drift_score=policy.retrain.min_drift_score,
        last_retrained=last_retrained,
        quality_alarm=None if quality is None else quality.alarm or loss_alarm,
        estimate_alarm=None if estimate is None else estimate.alarm,
        now=lambda: now,
    )
    current = sum(newest, start=known.reference.grid.empty())
    retrain, drift = trigger.check_drift(current)
    freq = f"{round(watched.window_hours * 60)}min"
    over_time = quality_over_time(rows.labelled, quality.metric, freq) if quality else pd.DataFrame()
    slices = (
        quality_by_slice(rows.labelled, quality.metric, known.task, known.categories) if quality else pd.DataFrame()
    )
    return Checkup(
        model, known.version, now, len(newest), drift, alarm, quality, estimate, loss_alarm, retrain, trigger.reason,
        current, over_time, slices, rows.n_pending, rows.n_orphans,
    )  # fmt: skip


def _labelled(rows: LiveRows, known: Known, policy: ModelPolicy) -> tuple[QualityReport | None, bool]:
    """Return quality on the labels so far, and whether they alarm one by one; nothing where there are too few."""
    joined = rows.labelled
    if len(joined) < policy.gate.min_rows:
        return None, False
    metric = policy.gate.metric if known.task != "multiclass" else "accuracy"
    report = live_quality(
        joined,
        task=known.task,
        metric=metric,
        reference=known.quality[metric],
        max_loss=policy.monitor.max_quality_loss,
    )
    evidence = known.expectation.loss.evidence(
        joined["label"],
        joined["probability" if known.task == "classification" else "prediction"],
        allowed=policy.monitor.max_row_loss,
        horizon=_HORIZON_ROWS,
        alpha=policy.monitor.alpha,
    )
    return report, bool(evidence.log_e[-1] >= evidence.threshold)


def _estimated(rows: LiveRows, known: Known, policy: ModelPolicy) -> QualityReport | None:
    estimator = known.expectation.estimator
    if estimator is None or known.task != "classification" or len(rows.served) < policy.gate.min_rows:
        return None
    metric = policy.gate.metric
    return estimated_quality(
        estimator,
        rows.served["probability"],
        metric=metric,
        reference=known.quality[metric],
        max_loss=policy.monitor.max_quality_loss,
    )
