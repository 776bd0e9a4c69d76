"""Whether to train again: cooldown and rows first, then quality, then drift."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pandas as pd

from forge_core.errors import NotEnoughSamples
from forge_core.monitoring.drift_report import DriftReport, summarise
from forge_core.statistics.counts import GridCounts

if TYPE_CHECKING:
    from forge_core.monitoring.drift_detection import FeatureDriftDetector

logger = logging.getLogger(__name__)


class AutomaticRetrainingTrigger:
    """Decides whether to retrain; a flow acts on it.

    Cooldown and rows come first. Then lost quality retrains whatever the drift. Drift retrains together with an
    estimated loss; where there are neither labels nor an estimate it retrains alone, marked "drift only". Missing
    values, values out of range, other units and lost columns never do: they need repair.

    Parameters
    ----------
    drift_detector : FeatureDriftDetector
    retraining_frequency : float
        Shortest time between two retrainings, hours.
    min_samples_required : int
        Fewest current rows.
    min_drift_score : float
        Debiased PSI from which drift retrains.
    last_retrained : datetime, optional
        When the live version was trained (UTC); set to `now()` each time the answer is yes.
    quality_alarm : bool
        Whether labels show that predictions got worse (`live_quality(...).alarm`); None without labels.
    estimate_alarm : bool, optional
        Whether quality is estimated to have got worse; None without an estimate.
    now : callable
        The clock; event time when months are replayed.
    """

    def __init__(
        self,
        drift_detector: "FeatureDriftDetector",
        retraining_frequency: float = 24,
        min_samples_required: int = 1000,
        min_drift_score: float = 0.2,
        *,
        last_retrained: datetime | None = None,
        quality_alarm: bool | None = None,
        estimate_alarm: bool | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.drift_detector, self.retraining_frequency = drift_detector, retraining_frequency
        self.min_samples_required, self.min_drift_score = min_samples_required, min_drift_score
        self.last_retrained, self.now = last_retrained, now
        self.quality_alarm, self.estimate_alarm = quality_alarm, estimate_alarm
        self.reason = "nothing checked yet"

    def check_drift(self, current: pd.DataFrame | GridCounts) -> tuple[bool, DriftReport]:
        """Return whether to retrain, and the drift report; `reason` says which rule decided.

        With fewer rows than the detector needs, the report is empty and the answer is no.
        """
        try:
            report = self.drift_detector.compute_drift(current)
        except NotEnoughSamples as error:
            limits = self.drift_detector.warning_threshold, self.drift_detector.drift_threshold
            report = summarise((), error.context["n_rows"], *limits)
        decision, self.reason = self._decide(report)
        if decision:
            self.last_retrained = self.now()
        logger.info("retrain=%s reason=%s score=%.4f rows=%d", decision, self.reason, report.score, report.n_current)
        return decision, report

    def _decide(self, report: DriftReport) -> tuple[bool, str]:
        pause = timedelta(hours=self.retraining_frequency)
        if self.last_retrained is not None and self.now() - self.last_retrained < pause:
            return False, f"cooldown: retrained at {self.last_retrained:%Y-%m-%d %H:%M} UTC, next after {pause}"
        needed = max(self.min_samples_required, self.drift_detector.min_samples)
        if report.n_current < needed:
            return False, f"too few rows: {report.n_current} of {needed}"
        if self.quality_alarm:
            return True, f"quality loss: labels show worse predictions (drift score {report.score:.2f})"
        if report.learnable_score >= self.min_drift_score:
            drift = f"score {report.learnable_score:.2f} >= {self.min_drift_score:g}"
            if self.quality_alarm is not None:
                return False, f"drift ({drift}), but quality holds on the labels"
            if self.estimate_alarm is not None:
                told = "and quality is estimated to suffer" if self.estimate_alarm else "but estimated quality holds"
                return self.estimate_alarm, f"drift ({drift}), {told}"
            return True, f"drift only: {drift}, no labels asked"
        if report.score >= self.min_drift_score:
            return False, f"data fault: {report.feature} has missing or out-of-range values; repair it, do not learn it"
        return False, f"no reason: score {report.score:.2f} < {self.min_drift_score:g} and no quality loss"
