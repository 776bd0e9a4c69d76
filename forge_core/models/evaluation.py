"""How a candidate did on rows it never saw, and whether that is good enough to go live.

Figures come with intervals (bootstrap over days where rows have a time). The gate compares a candidate
with the champion on the same held-out rows; without a champion the baseline is the training rows' mean.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve

from forge_core.policy import GatePolicy
from forge_core.statistics.quality import (
    METRICS,
    Floats,
    Interval,
    Metric,
    Task,
    bootstrap_interval,
    paired_improvement,
)


@dataclass(frozen=True)
class Evaluation:
    """Metrics with intervals on `n_rows` held-out rows, and each slice's value of the gate's metric."""

    task: Task
    n_rows: int
    metrics: dict[str, Interval]
    slices: dict[str, float]
    since: str | None
    until: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Evaluation":
        """Return the evaluation that `to_dict` wrote."""
        metrics = {name: Interval(**interval) for name, interval in fields["metrics"].items()}
        return cls(**{**fields, "metrics": metrics})


@dataclass(frozen=True)
class Check:
    """One question of the gate: what was needed, what was found."""

    name: str
    passed: bool
    found: str
    needed: str


@dataclass(frozen=True)
class Verdict:
    """The gate's answer with all its reasons."""

    passed: bool
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Verdict":
        """Return the verdict that `to_dict` wrote."""
        return cls(fields["passed"], tuple(Check(**c) for c in fields["checks"]))

    @property
    def reason(self) -> str:
        """One sentence: what failed, or that all passed."""
        failed = [f"{c.name}: found {c.found}, needed {c.needed}" for c in self.checks if not c.passed]
        return "; ".join(failed) or f"all {len(self.checks)} checks passed"


def evaluate_predictions(
    y_true: ArrayLike,
    prediction: ArrayLike,
    *,
    task: Task = "classification",
    times: pd.Series | None = None,
    slices: pd.DataFrame | None = None,
    slice_metric: str = "log_loss",
    confidence: float = 0.95,
) -> Evaluation:
    """Return every metric of the task with its interval.

    Parameters
    ----------
    y_true, prediction : array-like of shape (n_rows,)
        Labels, and the probability of class 1 (or the predicted number).
    times : Series of datetimes of shape (n_rows,), optional
        Event times; rows of one day are then drawn together by the bootstrap.
    slices : DataFrame of shape (n_rows, n_columns), optional
        Columns whose levels (20 at most a column, 100 rows at least) are scored one by one.
    """
    y, p = np.asarray(y_true, float), np.asarray(prediction, float)
    days = days_of(times)
    metrics = {
        name: bootstrap_interval(name, y, p, task=task, groups=days, confidence=confidence) for name in METRICS[task]
    }
    scored = _score_slices(slices, y, p, METRICS[task][slice_metric]) if slices is not None else {}
    span = (str(times.min()), str(times.max())) if times is not None else (None, None)
    return Evaluation(task, len(y), metrics, scored, *span)


def _score_slices(slices: pd.DataFrame, y: Floats, p: Floats, measure: Metric) -> dict[str, float]:
    scored: dict[str, float] = {}
    for column in slices.columns:
        levels = slices[column].astype("str").to_numpy()
        names, counts = np.unique(levels, return_counts=True)
        if len(names) <= 20:
            for name in names[counts >= 100]:
                rows = levels == name
                scored[f"{column}={name}"] = measure(y[rows], p[rows], np.ones(int(rows.sum())))
    return scored


def days_of(times: pd.Series | None) -> Any:
    """Return each row's day, the cluster that the bootstrap draws, or None without times."""
    return None if times is None else times.dt.floor("D").to_numpy()


def judge(
    evaluation: Evaluation,
    y_true: ArrayLike,
    candidate: ArrayLike,
    incumbent: ArrayLike,
    *,
    policy: GatePolicy,
    incumbent_name: str,
    times: pd.Series | None = None,
) -> Verdict:
    """Return whether a candidate may go live, with every check's finding.

    Parameters
    ----------
    candidate, incumbent : array-like of shape (n_rows,)
        Both models' scores on the same held-out rows.
    incumbent_name : str
        What the candidate is compared with: "champion v3", or "the training mean".
    """
    metric = policy.metric
    gain = paired_improvement(
        metric,
        y_true,
        incumbent,
        candidate,
        task=evaluation.task,
        groups=days_of(times),
        confidence=policy.confidence,
    )
    checks = [
        Check(
            "held-out rows",
            evaluation.n_rows >= policy.min_rows,
            f"{evaluation.n_rows}",
            f"at least {policy.min_rows}",
        ),
        Check(
            f"better {metric} than {incumbent_name}",
            gain.low > policy.min_improvement,
            f"improvement {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]",
            f"its lower end above {policy.min_improvement:g}",
        ),
    ]
    for name, floor in policy.floors.items():
        value = evaluation.metrics[name]
        checks.append(Check(f"{name} floor", value.low >= floor, str(value), f"its lower end at least {floor:g}"))
    return Verdict(all(c.passed for c in checks), tuple(checks))


def classifier_figure(y_true: ArrayLike, probability: ArrayLike, title: str) -> bytes:
    """Return a PNG with the ROC curve and the calibration curve side by side."""
    from matplotlib.figure import Figure

    y, p = np.asarray(y_true, int), np.asarray(probability, float)
    false_positive, true_positive, _ = roc_curve(y, p)
    observed, predicted = calibration_curve(y, p, n_bins=10, strategy="quantile")
    area = METRICS["classification"]["roc_auc"](y.astype(float), p, np.ones(len(y)))
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    figure.suptitle(title)
    roc, calibration = figure.subplots(1, 2)
    roc.plot(false_positive, true_positive, color="#0072B2", lw=2)
    roc.plot([0, 1], [0, 1], color="0.6", ls="--", lw=1)
    roc.set(xlabel="false positive rate", ylabel="true positive rate", title=f"ROC, area {area:.3f}", aspect="equal")
    calibration.plot(predicted, observed, "o-", color="#D55E00", lw=2)
    top = max(predicted.max(), observed.max()) * 1.05
    calibration.plot([0, top], [0, top], color="0.6", ls="--", lw=1)
    calibration.set(xlabel="predicted probability", ylabel="observed share", title="Calibration, ten equal groups")
    for axis in (roc, calibration):
        axis.spines[["top", "right"]].set_visible(False)
    return png(figure)


def residual_figure(y_true: ArrayLike, prediction: ArrayLike, title: str) -> bytes:
    """Return a PNG with predicted against observed values and the residuals' distribution."""
    from matplotlib.figure import Figure

    y, p = np.asarray(y_true, float), np.asarray(prediction, float)
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    figure.suptitle(title)
    scatter, residuals = figure.subplots(1, 2)
    scatter.plot(y, p, ".", color="#0072B2", alpha=0.3)
    scatter.axline((y.mean(), y.mean()), slope=1, color="0.6", ls="--", lw=1)
    scatter.set(xlabel="observed", ylabel="predicted")
    residuals.hist(y - p, bins=40, color="#D55E00")
    residuals.set(xlabel="observed minus predicted", ylabel="rows")
    return png(figure)


def png(figure: Any) -> bytes:
    """Return a matplotlib figure as PNG bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
