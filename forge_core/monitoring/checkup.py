"""One look at a live version: its newest windows, its labels so far, and whether to train again.

With labels, loss of quality decides and drift is information; without labels drift decides alone and the
reason says so (STATISTICS of retraining: features drift with every season, models mostly do not suffer).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from forge_core.errors import NotEnoughSamples
from forge_core.ledger import Ledger
from forge_core.monitoring.drift_detection import AutomaticRetrainingTrigger, DriftReport, FeatureDriftDetector
from forge_core.monitoring.performance import QualityReport, join_feedback, live_quality
from forge_core.monitoring.prediction_log import PredictionLog
from forge_core.monitoring.windows import ReferenceProfile, WindowStore
from forge_core.policy import ModelPolicy
from forge_core.statistics.quality import Task
from forge_core.storage import Storage


@dataclass(frozen=True)
class Checkup:
    """What was seen of a version up to a moment, and the decision."""

    model: str
    version: str
    n_windows: int
    drift: DriftReport
    quality: QualityReport | None
    retrain: bool
    reason: str

    def summary(self) -> dict[str, Any]:
        """Return the findings as plain JSON with one sentence for people."""
        drift = f"drift score {self.drift.score:.2f}" + (f" ({self.drift.feature})" if self.drift.feature else "")
        quality = f"; {self.quality.reason}" if self.quality else "; no labels yet"
        decision = "train again" if self.retrain else "do not train again"
        return {
            "sentence": f"version {self.version}, {self.drift.n_current:,} rows in {self.n_windows} windows: "
            f"{drift}{quality}. Decision: {decision} ({self.reason})",
            "retrain": self.retrain,
            "reason": self.reason,
            "score": self.drift.score,
            "drifted": self.drift.drifted,
            "quality": None if self.quality is None else self.quality.value,
            "labels": 0 if self.quality is None else self.quality.n_labelled,
        }


def check_live_version(
    storage: Storage,
    ledger: Ledger,
    model: str,
    version: str,
    *,
    reference: ReferenceProfile,
    reference_quality: dict[str, float],
    task: Task,
    policy: ModelPolicy,
    now: datetime,
    last_retrained: datetime | None,
) -> Checkup:
    """Return the check of a version's newest windows before `now` (event time).

    Raises
    ------
    NotEnoughSamples
        When too few rows were served in those windows.
    """
    watched = policy.monitor
    since = now - timedelta(hours=watched.window_hours * watched.lookback_windows)
    store = WindowStore(storage, model)
    starts = [w.start for w in store.windows(version) if since <= w.start < now]
    if not starts:
        raise NotEnoughSamples(f"expected served rows of version {version} since {since:%Y-%m-%d %H:%M}, found none")
    counts = store.counts(version, reference.grid, starts)
    detector = FeatureDriftDetector(
        reference_profile=reference,
        warning_threshold=watched.warning_threshold,
        drift_threshold=watched.drift_threshold,
        alpha=watched.alpha,
    )
    quality = _quality(storage, ledger, model, version, reference_quality, task, policy, since, now)
    trigger = AutomaticRetrainingTrigger(
        detector,
        retraining_frequency=policy.retrain.retraining_frequency,
        min_samples_required=policy.retrain.min_samples_required,
        min_drift_score=policy.retrain.min_drift_score,
        last_retrained=last_retrained,
        quality_alarm=quality is not None and quality.alarm,
        now=lambda: now,
    )
    retrain, drift = trigger.check_drift(counts)
    reason = trigger.reason
    if retrain and quality is not None and not quality.alarm:
        retrain, reason = False, f"drift, but quality holds on {quality.n_labelled:,} labels"
    return Checkup(model, version, len({*starts}), drift, quality, retrain, reason)


def _quality(
    storage: Storage,
    ledger: Ledger,
    model: str,
    version: str,
    reference: dict[str, float],
    task: Task,
    policy: ModelPolicy,
    since: datetime,
    now: datetime,
) -> QualityReport | None:
    """Return quality on the labels known at `now`, or None where there are too few to say."""
    log = PredictionLog(storage, model).read(since=since, until=now, version=version)
    feedback = [f for f in ledger.feedback(model, since=since) if f.event_time <= now]
    joined = join_feedback(log, feedback)
    metric = policy.gate.metric
    if len(joined) < policy.gate.min_rows:
        return None
    return live_quality(
        joined, task=task, metric=metric, reference=reference[metric], max_loss=policy.monitor.max_quality_loss
    )
