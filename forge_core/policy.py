"""The numbers that decide, per model: what is learnt, when to alarm, when to retrain, what may go live.

`deployments/policy.yaml` is read into these classes; an unknown key or a value out of range is an
error that names it. Units: shares in [0, 1], times in hours of event time unless the name says otherwise.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from forge_core.errors import ConfigurationError

MetricName = Literal[
    "log_loss", "roc_auc", "accuracy", "brier", "precision", "recall", "f1", "rmse", "mae", "r2"
]  # fmt: skip


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataPolicy(_Section):
    """Where the rows come from, and how many bad ones are tolerated."""

    source: str = Field(description="Source URI: `flights:`, `sample:`, a path or URL of a CSV or Parquet file.")
    target: str = Field(description="Column to predict.")
    time_column: str | None = Field(None, description="Event time; given, the split is time-ordered.")
    key_column: str | None = Field(None, description="Row key, used as request id; never a feature.")
    label_time_column: str | None = Field(None, description="When a row's label became known; never a feature.")
    contract: str | None = Field(None, description="Contract file (YAML); none: inferred from the training rows.")
    max_bad_share: float = Field(0.05, ge=0, le=1, description="Largest share of rows that the contract may refuse.")
    max_bad_share_per_check: dict[str, float] = Field(
        default_factory=dict,
        description="Check (`is_number`) or column and check (`price is_number`) -> largest share.",
    )
    validation_share: float = Field(0.15, gt=0, lt=0.5)
    test_share: float = Field(0.15, gt=0, lt=0.5, description="Newest share (by time) that the gate judges on.")


class TrainingPolicy(_Section):
    """What is searched, and how much."""

    task: Literal["auto", "classification", "regression"] = Field("auto", description="auto: by the target's values.")
    model_type: str = Field("gradient_boosting", description="A key of forge_core.models.model_trainer.MODELS.")
    hyperparameters: dict[str, float | int | str | bool | None] = Field(default_factory=dict)
    trials: int = Field(8, ge=1, le=1000, description="Trials of the search.")
    metric: MetricName = "log_loss"
    random_state: int = 0


class BehaviourTest(_Section):
    """One thing that a model must do (Ribeiro et al. 2020, "Beyond Accuracy", the three kinds)."""

    kind: Literal["invariance", "direction", "minimum"]
    column: str | None = Field(None, description="Feature that is changed; for invariance and direction.")
    value: float | str | bool | None = Field(None, description="What the feature becomes.")
    add: float | None = Field(None, description="What is added to a number instead.")
    rises: bool = Field(True, description="Direction: the score must not fall (true) or not rise (false).")
    features: dict[str, Any] = Field(default_factory=dict, description="Minimum: the row to be scored.")
    at_least: float | None = Field(None, description="Minimum: smallest score (the probability of the second class).")
    at_most: float | None = Field(None, description="Minimum: largest score.")
    tolerance: float = Field(1e-3, ge=0, description="Change of the score that does not count.")
    share: float = Field(0.95, gt=0, le=1, description="Share of held-out rows that must behave so.")

    @model_validator(mode="after")
    def _complete(self) -> "BehaviourTest":
        if self.kind == "minimum":
            if not self.features or (self.at_least is None and self.at_most is None):
                raise ValueError("a minimum test needs `features`, and `at_least` or `at_most`")
        elif self.column is None or (self.value is None) == (self.add is None):
            raise ValueError(f"a test of {self.kind} needs `column`, and either `value` or `add`")
        return self


class GatePolicy(_Section):
    """What a candidate must show before it goes live."""

    metric: MetricName = "log_loss"
    min_improvement: float = Field(
        0.0, description="Champion comparison: the lower bound of the paired improvement must exceed this."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1)
    floors: dict[str, float] = Field(
        default_factory=dict,
        description="Metric -> worst acceptable value, held against the unfavourable end of its interval.",
    )
    max_slice_loss: float | None = Field(
        None, ge=0, description="By how much the metric of the worst slice may be worse than that of all rows."
    )
    max_latency_ms: float | None = Field(None, gt=0, description="Median time of the serving form for one row.")
    behaviour: list[BehaviourTest] = Field(
        default_factory=list, description="What the model must do, whatever its metrics."
    )
    parity_tolerance: float = Field(1e-4, gt=0, description="Largest difference of probabilities, compiled to native.")
    replay_rows: int = Field(200, ge=1, description="Held-out rows replayed over HTTP before a version goes live.")
    approval: bool = Field(False, description="A person must approve a version that passed before it goes live.")
    min_rows: int = Field(200, ge=1, description="Fewest held-out rows on which a verdict is given.")


class MonitorPolicy(_Section):
    """When drift and quality raise an alarm."""

    warning_threshold: float = Field(0.1, ge=0, description="Debiased PSI from which a feature warns.")
    drift_threshold: float = Field(0.2, ge=0, description="Debiased PSI from which a feature drifts.")
    window_hours: float = Field(24.0, gt=0, description="Length of a profiling window.")
    watch: bool = Field(True, description="Profile and log served rows.")
    redacted: list[str] = Field(default_factory=list, description="Features that are counted but never logged.")
    retention_days: float | None = Field(None, gt=0, description="Age at which logged rows are removed; none: never.")
    lookback_windows: int = Field(7, ge=1, description="Newest windows that a check merges.")
    alpha: float = Field(
        0.05, gt=0, lt=1, description="Chance of a false alarm: of one check over all features, of a lane in a horizon."
    )
    lane: Literal["auto", "exchangeable windows", "independent rows"] = Field(
        "auto", description="What the drift alarm takes as alike; auto: rows where the training windows look so."
    )
    horizon_windows: int = Field(200, ge=10, description="Windows over which a lane's error budget is spread.")
    strata: Literal["none", "hour", "weekday", "hour of the week"] = Field(
        "none", description="Windows are compared within these (UTC), for traffic with such a season."
    )
    label_wait_hours: float = Field(
        24.0, ge=0, description="How long a label waits for its prediction before it is called an orphan."
    )
    max_quality_loss: float = Field(
        0.02, ge=0, description="Loss of the gate's metric against held-out rows, beyond doubt, that alarms."
    )
    max_row_loss: float = Field(
        0.01, ge=0, description="Mean loss a row (Brier, or share of misses) above the held-out one that is no alarm."
    )

    @property
    def watermark(self) -> timedelta:
        """How long a label waits for its prediction."""
        return timedelta(hours=self.label_wait_hours)


class RetrainPolicy(_Section):
    """When an alarm becomes a retraining."""

    min_drift_score: float = Field(0.2, ge=0)
    min_samples_required: int = Field(1000, ge=1)
    retraining_frequency: float = Field(24.0, ge=0, description="Cooldown between retrainings, hours of event time.")
    trials: int = Field(4, ge=1, le=1000, description="Trials of a retraining's search; the champion's point is one.")


class AutoscalingPolicy(_Section):
    """Between how many replicas, and when one is added or taken away."""

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(ge=1)
    target_ongoing_requests: float = Field(
        1.0, gt=0, description="Batches at work or waiting per replica; each router has at most two out."
    )
    upscale_delay_s: float = Field(5.0, ge=0, description="Seconds that the load stays high before replicas come.")
    downscale_delay_s: float = Field(60.0, ge=0, description="Seconds that it stays low before they go.")

    @model_validator(mode="after")
    def _ordered(self) -> "AutoscalingPolicy":
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}")
        return self


class ServingPolicy(_Section):
    """How many replicas a model's versions have; what is not said stays as deployments/serve.yaml has it."""

    replicas: int | None = Field(None, ge=1, description="A fixed number of replicas.")
    autoscaling: AutoscalingPolicy | None = None
    num_cpus: float | None = Field(None, ge=0, description="CPUs that Ray sets aside per replica (serve.yaml: 0).")
    max_ongoing_requests: int | None = Field(None, ge=1, description="Batches that a replica takes at a time.")

    @model_validator(mode="after")
    def _one_way(self) -> "ServingPolicy":
        if self.replicas is not None and self.autoscaling is not None:
            raise ValueError("either `replicas` or `autoscaling`, not both")
        most, target = self.max_ongoing_requests, self.autoscaling.target_ongoing_requests if self.autoscaling else 0.0
        if most is not None and most < target:
            raise ValueError(f"max_ongoing_requests {most} below target_ongoing_requests {target:g} never scales up")
        return self


class RolloutPolicy(_Section):
    """How a version comes live whose traffic grows step by step, and what sends it back."""

    enabled: bool = Field(False, description="Training starts a rollout instead of a direct swap.")
    shadow_share: float = Field(0.25, ge=0, le=1, description="Share of the traffic copied to it first; 0: no shadow.")
    shadow_rows: int = Field(500, ge=1, description="Copies that are compared before the first step.")
    steps: tuple[float, ...] = Field(
        (0.01, 0.05, 0.25, 0.5, 1.0), description="Shares of the traffic, ascending; the last is 1."
    )
    min_rows: int = Field(200, ge=1, description="Rows of the version that a step waits for.")
    min_minutes: float = Field(10.0, ge=0, description="Minutes that a step lasts at least (wall clock).")
    max_hours: float = Field(72.0, gt=0, description="Hours (wall clock) after which it goes back.")
    look_seconds: float = Field(30.0, gt=0, description="Time between two looks at the evidence.")
    alpha: float = Field(
        0.05, gt=0, lt=1, description="Chance that a version within all limits is sent back, over guards, steps, looks."
    )
    max_error_rate: float = Field(0.005, gt=0, lt=1, description="Share of its rows on which it may fail.")
    max_latency_ratio: float = Field(1.5, ge=1, description="Its p95 latency over the champion's.")
    min_latency_ms: float = Field(5.0, ge=0, description="By so much it may be slower, whatever the ratio.")
    max_disagreement: float = Field(
        0.3,
        gt=0,
        lt=1,
        description="Share of copied rows answered otherwise than by the champion, while no labels vouch.",
    )
    max_prediction_distance: float = Field(
        0.4, gt=0, lt=1, description="Kolmogorov-Smirnov distance of its answers' distribution from the champion's."
    )
    max_quality_loss: float = Field(
        0.02, ge=0, description="Further wrong answers a row, estimated without labels or found by them, that pass."
    )
    require_better: bool = Field(False, description="Leave the shadow only once labels show that it is better.")
    keep_warm: bool = Field(True, description="The champion before stays loaded after the last step, for a rollback.")

    @model_validator(mode="after")
    def _ascending(self) -> "RolloutPolicy":
        steps = list(self.steps)
        if not steps or steps != sorted(set(steps)) or steps[0] <= 0 or steps[-1] != 1:
            raise ValueError(f"expected ascending steps above 0 that end at 1, found {steps}")
        if self.require_better and self.shadow_share == 0:
            raise ValueError("require_better needs a shadow: give shadow_share")
        return self


class ExperimentPolicy(_Section):
    """By which rule versions of a model are compared on its users, and when a comparison is ended."""

    alpha: float = Field(0.05, gt=0, lt=0.5, description="Chance of a winner where there is none.")
    baseline: float | None = Field(None, gt=0, lt=1, description="Conversion rate that is expected of the champion.")
    min_effect: float | None = Field(None, gt=0, description="Smallest difference of conversion rates that matters.")
    max_units: int | None = Field(None, ge=1, description="Users after which it ends; none: open.")
    max_days: float = Field(28.0, gt=0, description="Days after which it ends, whatever is known by then.")
    share: float = Field(0.5, gt=0, lt=1, description="Share of the users who meet the challenger.")
    end: bool = Field(True, description="The flow ends it once the verdict says to stop; else a person does.")


class ModelPolicy(_Section):
    """All sections for one model."""

    data: DataPolicy
    training: TrainingPolicy = TrainingPolicy()
    gate: GatePolicy = GatePolicy()
    monitor: MonitorPolicy = MonitorPolicy()
    retrain: RetrainPolicy = RetrainPolicy()
    serving: ServingPolicy = ServingPolicy()
    rollout: RolloutPolicy = RolloutPolicy()
    experiment: ExperimentPolicy = ExperimentPolicy()


def load_policies(path: str | Path) -> dict[str, ModelPolicy]:
    """Return every model's policy from a YAML file.

    Raises
    ------
    ConfigurationError
        When the file is missing, is not YAML, or a field is unknown or out of range; names the field.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigurationError(f"expected the policy file {file}, found none; set FORGE_POLICY_FILE")
    try:
        models = (yaml.safe_load(file.read_text()) or {}).get("models", {})
        return {name: ModelPolicy.model_validate(fields) for name, fields in models.items()}
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{file} is not YAML: {error}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors())
        raise ConfigurationError(f"{file} has a policy that cannot be used: {faults}") from error


def load_policy(path: str | Path, model: str) -> ModelPolicy:
    """Return one model's policy; an unknown name lists the known ones."""
    policies = load_policies(path)
    if model not in policies:
        raise ConfigurationError(f"no policy for model {model!r} in {path}; known: {', '.join(sorted(policies))}")
    return policies[model]
