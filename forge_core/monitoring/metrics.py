"""Counting and timing: across the service's processes, and of any function in a process of one's own.

A process counts in a `Tally`, hands it over from time to time, and whoever gathers the tallies writes the exposition.
"""

import inspect
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

from forge_core.monitoring.metric_names import BUCKETS, CALL_ERRORS, CALL_SECONDS, Gauge, Labels, Metric


class Tally:
    """Counts and histograms since the last hand-over.

    Examples
    --------
    >>> from forge_core.monitoring.metric_names import PREDICTION_SECONDS, PREDICTIONS
    >>> tally = Tally()
    >>> tally.count(PREDICTIONS, ("flights", "7", "champion"), 3)
    >>> tally.observe(PREDICTION_SECONDS, ("flights", "7", "champion"), 0.004)
    >>> total = Tally()
    >>> total.add(tally.take())
    >>> b'forge_predictions_total{model="flights",variant="champion",version="7"} 3.0' in exposition(total)
    True
    """

    def __init__(self) -> None:
        self.counts: dict[tuple[Metric, Labels], float] = {}
        self.times: dict[tuple[Metric, Labels], list[float]] = {}

    def __bool__(self) -> bool:
        return bool(self.counts or self.times)

    def count(self, metric: Metric, labels: Labels, by: float = 1.0) -> None:
        """Count."""
        key = (metric, labels)
        self.counts[key] = self.counts.get(key, 0.0) + by

    def observe(self, metric: Metric, labels: Labels, seconds: float) -> None:
        """Put a time into its bucket."""
        key = (metric, labels)
        if key not in self.times:
            self.times[key] = [0.0] * (len(BUCKETS) + 2)
        histogram = self.times[key]
        histogram[bisect_left(BUCKETS, seconds)] += 1
        histogram[-1] += seconds

    def take(self) -> "Tally":
        """Return what was counted, and start afresh."""
        taken = Tally()
        taken.counts, taken.times, self.counts, self.times = self.counts, self.times, {}, {}
        return taken

    def add(self, other: "Tally") -> None:
        """Add what another process counted."""
        for key, by in other.counts.items():
            self.counts[key] = self.counts.get(key, 0.0) + by
        for key, histogram in other.times.items():
            mine = self.times.get(key, [0.0] * len(histogram))
            self.times[key] = [a + b for a, b in zip(mine, histogram, strict=True)]


def exposition(tally: Tally, gauges: Sequence[Gauge] = ()) -> bytes:
    """Return the tally, and figures of the moment, in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector(tally, gauges))
    return generate_latest(registry)


class _Collector:
    """What prometheus_client asks for its families."""

    def __init__(self, tally: Tally, gauges: Sequence[Gauge]) -> None:
        self._tally, self._gauges = tally, gauges

    def collect(self) -> Iterator[Any]:
        """Give one family a metric."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for metric in sorted({metric for metric, _ in self._tally.counts}):
            counter = CounterMetricFamily(metric.name, metric.says, labels=metric.labels)
            for (name, labels), value in self._tally.counts.items():
                if name == metric:
                    counter.add_metric(labels, value)
            yield counter
        for metric in sorted({metric for metric, _, _ in self._gauges}):
            gauge = GaugeMetricFamily(metric.name, metric.says, labels=metric.labels)
            for name, labels, value in self._gauges:
                if name == metric:
                    gauge.add_metric(labels, value)
            yield gauge
        ends = [*map(str, BUCKETS), "+Inf"]
        for metric in sorted({metric for metric, _ in self._tally.times}):
            family = HistogramMetricFamily(metric.name, metric.says, labels=metric.labels)
            for (name, labels), histogram in self._tally.times.items():
                if name == metric:
                    below = [sum(histogram[: i + 1]) for i in range(len(ends))]
                    family.add_metric(labels, list(zip(ends, below, strict=True)), sum_value=histogram[-1])
            yield family


P = ParamSpec("P")
R = TypeVar("R")


def track_prediction_latency(function: Callable[P, R] | None = None, *, model: str = "", version: str = "") -> Any:
    """Return the function with each call timed and errors counted; sync or async, with or without parentheses.

    `forge_prediction_latency_seconds` and `forge_prediction_errors_total` lie in prometheus_client's own registry;
    `prometheus_client.start_http_server(port, "127.0.0.1")` lets a Prometheus server read them.

    Parameters
    ----------
    model, version : str
        Labels, where the function belongs to one.

    Examples
    --------
    >>> @track_prediction_latency(model="flights", version="7")
    ... def predict(rows):
    ...     return [0.5 for _ in rows]
    >>> predict([1, 2])
    [0.5, 0.5]
    >>> from prometheus_client import REGISTRY
    >>> labels = {"function": "predict", "model": "flights", "version": "7"}
    >>> REGISTRY.get_sample_value("forge_prediction_latency_seconds_count", labels)
    1.0
    """
    if function is None:
        return lambda wanted: track_prediction_latency(wanted, model=model, version=version)
    labels = (getattr(function, "__name__", type(function).__name__), model, version)
    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def timed_async(*args: P.args, **options: P.kwargs) -> Any:
            with _timed(labels):
                return await function(*args, **options)

        return timed_async

    @wraps(function)
    def timed(*args: P.args, **options: P.kwargs) -> R:
        with _timed(labels):
            return function(*args, **options)

    return timed


@contextmanager
def _timed(labels: Labels) -> Iterator[None]:
    seconds, errors = _of_calls()
    started = time.perf_counter()
    try:
        yield
    except BaseException:
        errors.labels(*labels).inc()
        raise
    finally:
        seconds.labels(*labels).observe(time.perf_counter() - started)


@cache
def _of_calls() -> tuple[Any, Any]:
    from prometheus_client import Counter, Histogram

    seconds = Histogram(CALL_SECONDS.name, CALL_SECONDS.says, CALL_SECONDS.labels, buckets=BUCKETS)
    return seconds, Counter(CALL_ERRORS.name, CALL_ERRORS.says, CALL_ERRORS.labels)
