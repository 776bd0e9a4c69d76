"""Are predictions still right: labels joined to the log, quality with an interval, and the alarm.

Rows come in days, and rows of one day are alike (a storm, a campaign), so the interval draws whole days. The alarm is
slow on purpose: it rings only when even the favourable end of the interval is worse than the reference by more than
what the policy allows to lose.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from forge_core.errors import ConfigurationError, NotEnoughSamples
from forge_core.ledger import Feedback
from forge_core.statistics.estimation import BLINDNESS, QualityEstimator
from forge_core.statistics.quality import LOWER_IS_BETTER, METRICS, Interval, Task, bootstrap_interval

MIN_GROUPS = 5


@dataclass(frozen=True)
class QualityReport:
    """Quality on labelled rows, or estimated on rows without labels.

    `loss` is how much worse than the reference it is, in the metric's unit, positive when worse, whichever way the
    metric points; `alarm` says whether the loss is beyond doubt larger than allowed, and `reason` why or why not.
    """

    metric: str
    value: float
    low: float
    high: float
    reference: float
    n_rows: int
    loss: float
    alarm: bool
    reason: str
    estimated: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def join_feedback(log: pd.DataFrame, feedback: Sequence[Feedback]) -> pd.DataFrame:
    """Return the log's rows that have a label, with `label` (float) and `labelled_at` (UTC); the first label counts."""
    labels = pd.DataFrame(
        {
            "request_id": pd.Series([f.request_id for f in feedback], dtype="str"),
            "label": pd.Series([f.label for f in feedback], dtype=np.float64),
            "labelled_at": pd.to_datetime(pd.Series([f.event_time for f in feedback], dtype=object), utc=True),
        }
    ).drop_duplicates("request_id")
    return log.astype({"request_id": "str"}).merge(labels, on="request_id", how="inner")


def live_quality(
    joined: pd.DataFrame,
    *,
    task: Task,
    metric: str,
    reference: float,
    max_loss: float,
    groups: str = "D",
) -> QualityReport:
    """Return the quality of labelled rows against the held-out figure.

    Parameters
    ----------
    joined : DataFrame
        As `join_feedback` gives it: event_time, label, and `probability` (that of class 1) or, for a regression,
        `prediction`.
    task, metric : str
        A key of `forge_core.statistics.quality.METRICS`, and of its table; with many classes `accuracy`.
    reference : float
        The metric on held-out rows.
    max_loss : float
        Loss that is allowed, in the metric's unit.
    groups : str
        Pandas frequency of the clusters that are drawn whole; with fewer than 5 of them rows are drawn instead, since
        a handful of days says nothing about the next.

    Raises
    ------
    NotEnoughSamples
        When no row has a label.
    """
    if not len(joined):
        raise NotEnoughSamples("expected labelled rows, found none; send feedback with the replies' request ids")
    cluster = _floor(joined["event_time"], groups)
    by = cluster.to_numpy() if cluster.nunique() >= MIN_GROUPS else None
    found = _interval(joined, task, metric, by)
    return _judged(metric, found, reference, max_loss, len(joined), "labels")


def estimated_quality(
    estimator: QualityEstimator, probability: ArrayLike, *, metric: str, reference: float, max_loss: float
) -> QualityReport:
    """Return quality estimated without labels, against the held-out figure; as `live_quality` otherwise.

    Parameters
    ----------
    probability : array_like of shape (n_rows,)
        Of class 1, as it was answered.
    """
    found = estimator.estimate(metric, probability)
    return _judged(metric, found, reference, max_loss, len(np.asarray(probability)), "rows without labels")


def _judged(metric: str, found: Interval, reference: float, max_loss: float, n: int, what: str) -> QualityReport:
    sign = 1.0 if metric in LOWER_IS_BETTER else -1.0
    favourable = found.low if metric in LOWER_IS_BETTER else found.high
    loss, least_loss = sign * (found.value - reference), sign * (favourable - reference)
    alarm, estimated = bool(least_loss > max_loss), what != "labels"
    if np.isnan(found.value):
        reason = f"{metric} cannot be computed on these {n:,} {what} (one class only)"
    else:
        told = f"better by {-loss:.4f}"
        if loss > 0:
            doubt = f"by {least_loss:.4f} beyond doubt" if alarm else "which may be chance"
            told = f"worse by {loss:.4f}, {doubt}; allowed {max_loss:g}"
        reason = f"{metric} {found} on {n:,} {what}, reference {reference:.4f}: {told}"
    if estimated:
        reason = f"{reason} ({BLINDNESS})"
    return QualityReport(metric, found.value, found.low, found.high, reference, n, loss, alarm, reason, estimated)


def quality_over_time(joined: pd.DataFrame, metric: str, freq: str = "D") -> pd.DataFrame:
    """Return one row per stretch of event time: window (its start), value, low, high, n.

    Intervals are for the rows within each stretch, drawn one by one.
    """
    task: Task = "regression" if metric in METRICS["regression"] else "classification"
    rows = []
    for start, part in joined.groupby(_floor(joined["event_time"], freq), sort=True):
        found = _interval(part, task, metric, None)
        rows.append({"window": start, "value": found.value, "low": found.low, "high": found.high, "n": len(part)})
    return pd.DataFrame(rows, columns=["window", "value", "low", "high", "n"])


def quality_by_slice(
    joined: pd.DataFrame, metric: str, task: Task, columns: Sequence[str], *, min_rows: int = 50, most: int = 10
) -> pd.DataFrame:
    """Return the quality of each frequent level of each column, the worst first: column, level, value, low, high, n.

    Levels with fewer than `min_rows` labels, and all but a column's `most` most frequent ones, are left out.
    """
    rows = []
    for column in (name for name in columns if name in joined.columns):
        counts = joined[column].value_counts()
        for level in counts[counts >= min_rows].index[:most]:
            part = joined[joined[column] == level]
            found = _interval(part, task, metric, None)
            told = {"value": found.value, "low": found.low, "high": found.high, "n": len(part)}
            rows.append({"column": column, "level": str(level), **told})
    frame = pd.DataFrame(rows, columns=["column", "level", "value", "low", "high", "n"]).dropna(subset="value")
    return frame.sort_values("value", ascending=metric not in LOWER_IS_BETTER, ignore_index=True)


def _interval(joined: pd.DataFrame, task: Task, metric: str, groups: Any) -> Interval:
    if metric not in METRICS[task]:
        raise ConfigurationError(f"no metric {metric!r} for {task}; known: {', '.join(METRICS[task])}")
    y = joined["label"].to_numpy(float)
    answer = joined["probability" if task == "classification" else "prediction"].to_numpy(float)
    if task == "multiclass":  # of the answers only the class is logged: all of its probability, for the metric's sake
        answer = np.eye(int(max(answer.max(), y.max())) + 1)[answer.astype(int)]
    if np.isnan(METRICS[task][metric](y, answer, np.ones(len(y)))):
        return Interval(float("nan"), float("nan"), float("nan"))
    return bootstrap_interval(metric, y, answer, task=task, groups=groups, n_resamples=200)


def _floor(moments: pd.Series, freq: str) -> pd.Series:
    """Return the start of each moment's stretch of time, UTC; `7D` counts from 1970, `W` and `M` by the calendar."""
    utc = moments.dt.tz_convert("UTC")
    try:
        return utc.dt.floor(freq)
    except ValueError:  # weeks and months have no fixed length in pandas
        return utc.dt.tz_localize(None).dt.to_period(freq).dt.start_time.dt.tz_localize("UTC")
