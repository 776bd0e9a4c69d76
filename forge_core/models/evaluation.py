"""How a candidate did on rows it never saw, and whether that is good enough to go live.

Figures come with intervals (bootstrap over days where rows have a time). The gate compares a candidate
with the champion on the same held-out rows; without a champion the baseline is the training rows' mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from forge_core.errors import ConfigurationError
from forge_core.policy import GatePolicy
from forge_core.statistics.quality import (
    LOWER_IS_BETTER,
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
    y_true : array-like of shape (n_rows,)
        Numbers of the classes, or numbers.
    prediction : array-like of shape (n_rows,) or (n_rows, n_classes)
        As `forge_core.models.model_trainer.score` gives it.
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
        levels = slices[column].astype("str").fillna("(missing)").to_numpy()
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
    behaviour: Sequence[Check] = (),
) -> Verdict:
    """Return whether a candidate may go live, with every check's finding.

    Parameters
    ----------
    candidate, incumbent : array-like of shape (n_rows,) or (n_rows, n_classes)
        Both models' scores on the same held-out rows.
    behaviour : sequence of Check
        What further tests found (`forge_core.models.behaviour`), and the latency.
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
        checks.append(_floor(name, _metric_of(evaluation, name), floor))
    checks += _slice_checks(evaluation, policy)
    checks += behaviour
    return Verdict(all(c.passed for c in checks), tuple(checks))


def _metric_of(evaluation: Evaluation, name: str) -> Interval:
    if name not in evaluation.metrics:
        raise ConfigurationError(
            f"the gate asks for {name!r}, which a {evaluation.task} does not have; known: "
            f"{', '.join(evaluation.metrics)}"
        )
    return evaluation.metrics[name]


def _floor(name: str, value: Interval, bound: float) -> Check:
    """Hold the unfavourable end of an interval against a bound."""
    if name in LOWER_IS_BETTER:
        return Check(f"{name} ceiling", value.high <= bound, str(value), f"its upper end at most {bound:g}")
    return Check(f"{name} floor", value.low >= bound, str(value), f"its lower end at least {bound:g}")


def _slice_checks(evaluation: Evaluation, policy: GatePolicy) -> list[Check]:
    """Return whether the worst slice is not too much worse than all rows together."""
    if policy.max_slice_loss is None or not evaluation.slices:
        return []
    whole = _metric_of(evaluation, policy.metric).value
    sign = 1.0 if policy.metric in LOWER_IS_BETTER else -1.0
    losses = {name: sign * (value - whole) for name, value in evaluation.slices.items() if not np.isnan(value)}
    worst = max(losses, key=lambda name: losses[name])
    found = f"{worst}: {evaluation.slices[worst]:.4f} against {whole:.4f}"
    needed = f"at most {policy.max_slice_loss:g} worse than all rows"
    return [Check(f"worst slice by {policy.metric}", losses[worst] <= policy.max_slice_loss, found, needed)]
