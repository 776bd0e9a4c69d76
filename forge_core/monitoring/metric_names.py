"""The names of all metrics, in one place, as boards, alert rules and code use them.

They follow Prometheus' conventions: base units, `_total`, no label with values of callers.
"""

from typing import NamedTuple

# Upper ends of latency buckets in seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

Labels = tuple[str, ...]


class Metric(NamedTuple):
    """One metric: its name, what it says, and the names of its labels."""

    name: str
    says: str
    labels: Labels


REQUESTS = Metric("forge_http_requests_total", "Requests answered.", ("route", "status"))
REQUEST_SECONDS = Metric("forge_http_request_duration_seconds", "From the first byte to the reply.", ("route",))
PREDICTIONS = Metric("forge_predictions_total", "Rows answered.", ("model", "version", "variant"))
PREDICTION_SECONDS = Metric(
    "forge_prediction_duration_seconds", "Contract, waiting and scoring of a call.", ("model", "version", "variant")
)
REFUSED = Metric("forge_refused_rows_total", "Rows that broke the contract.", ("model", "version"))
SPLIT_FAULTS = Metric(
    "forge_split_faults_total", "Rows of a variant that the champion answered.", ("model", "variant", "fault")
)
SHADOWED = Metric("forge_shadow_rows_total", "Copies that a shadow got.", ("model", "version"))
SHADOW_DROPPED = Metric(
    "forge_shadow_dropped_total", "Copies or answers of a shadow that were dropped.", ("model", "version", "at")
)
LOGGED = Metric(
    "forge_logged_rows_total", "Served rows that are in a window and in the prediction log.", ("model", "version")
)
DROPPED = Metric("forge_dropped_rows_total", "Served rows that may be in neither.", ("model", "version", "at"))
LABELS = Metric("forge_feedback_labels_total", "Labels committed.", ("model",))

# What the newest check of each model's live version found.
_OF_VERSION, _OF_QUALITY = ("model", "version"), ("model", "version", "metric", "source")
CHECKED = Metric("forge_check_timestamp_seconds", "When the newest check was made (wall clock).", _OF_VERSION)
DRIFT_SCORE = Metric("forge_drift_score", "Largest debiased PSI among significant findings.", _OF_VERSION)
DRIFT_ALARM = Metric("forge_drift_alarm", "1 while drift is beyond its error budget.", _OF_VERSION)
FEATURE_PSI = Metric("forge_feature_psi", "Debiased PSI of a feature.", ("model", "version", "feature"))
DATA_FAULTS = Metric("forge_data_faults", "Features whose values need repair.", _OF_VERSION)
QUALITY = Metric("forge_quality", "The gate's metric, on labels or estimated.", _OF_QUALITY)
QUALITY_LOW = Metric("forge_quality_low", "Lower end of its 95 % interval.", _OF_QUALITY)
QUALITY_HIGH = Metric("forge_quality_high", "Upper end of its 95 % interval.", _OF_QUALITY)
QUALITY_REFERENCE = Metric("forge_quality_reference", "The same on held-out rows.", _OF_QUALITY)
QUALITY_ALARM = Metric("forge_quality_alarm", "1 while it is worse than allowed, beyond doubt.", _OF_QUALITY)
LABELLED = Metric("forge_labelled_rows", "Rows with a label in the newest windows.", _OF_VERSION)
RETRAIN = Metric("forge_retrain_wanted", "1 where the newest check asked for a retraining.", _OF_VERSION)

# Of functions that are timed by `track_prediction_latency`, in this process's own registry.
CALL_SECONDS = Metric("forge_prediction_latency_seconds", "Time of one call.", ("function", "model", "version"))
CALL_ERRORS = Metric("forge_prediction_errors_total", "Calls that raised.", ("function", "model", "version"))

Gauge = tuple[Metric, Labels, float]
