"""What the newest checks found, as gauges."""

from collections.abc import Iterable, Mapping
from typing import Any

from forge_core.monitoring.metric_names import (
    CHECKED,
    DATA_FAULTS,
    DRIFT_ALARM,
    DRIFT_SCORE,
    FEATURE_PSI,
    LABELLED,
    QUALITY,
    QUALITY_ALARM,
    QUALITY_HIGH,
    QUALITY_LOW,
    QUALITY_REFERENCE,
    RETRAIN,
    Gauge,
)


def check_gauges(checks: Iterable[Mapping[str, Any]]) -> list[Gauge]:
    """Return the figures of the newest checks.

    Parameters
    ----------
    checks : iterable of mapping
        The ledger's events of kind `checked`, one a model, with a checkup's summary as `details`.
    """
    gauges: list[Gauge] = []
    for check in checks:
        told, version = check["details"], (check["model"], str(check["version"]))
        gauges += [
            (CHECKED, version, check["recorded_at"].timestamp()),
            (DRIFT_SCORE, version, told["score"]),
            (DRIFT_ALARM, version, float(told["alarm"]["alarm"])),
            (DATA_FAULTS, version, float(len(told["faults"]))),
            (LABELLED, version, float(told["labels"])),
            (RETRAIN, version, float(told["retrain"])),
            *((FEATURE_PSI, (*version, feature), psi) for feature, psi in told["psi"].items()),
        ]
        for source, found in (("labels", told["quality"]), ("estimate", told["estimate"])):
            if found:
                labels = (*version, found["metric"], source)
                gauges += [
                    (QUALITY, labels, found["value"]),
                    (QUALITY_LOW, labels, found["low"]),
                    (QUALITY_HIGH, labels, found["high"]),
                    (QUALITY_REFERENCE, labels, found["reference"]),
                    (QUALITY_ALARM, labels, float(found["alarm"])),
                ]
    return gauges
