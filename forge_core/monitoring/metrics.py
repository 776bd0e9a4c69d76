"""The service's metrics: their names, in one place, and counts that add up across processes.

Names follow Prometheus' conventions (base units, `_total`, no label with values of callers). A process counts in a
`Tally`, hands it over from time to time, and whoever gathers the tallies writes the exposition.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, NamedTuple

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
LOGGED = Metric(
    "forge_logged_rows_total", "Served rows that are in a window and in the prediction log.", ("model", "version")
)
DROPPED = Metric("forge_dropped_rows_total", "Served rows that may be in neither.", ("model", "version", "at"))
LABELS = Metric("forge_feedback_labels_total", "Labels committed.", ("model",))


class Tally:
    """Counts and histograms since the last hand-over.

    Examples
    --------
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


def exposition(tally: Tally) -> bytes:
    """Return the tally in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector(tally))
    return generate_latest(registry)


class _Collector:
    """What prometheus_client asks for its families."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def collect(self) -> Iterator[Any]:
        """Give one family a metric."""
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        for metric in sorted({metric for metric, _ in self._tally.counts}):
            counter = CounterMetricFamily(metric.name, metric.says, labels=metric.labels)
            for (name, labels), value in self._tally.counts.items():
                if name == metric:
                    counter.add_metric(labels, value)
            yield counter
        ends = [*map(str, BUCKETS), "+Inf"]
        for metric in sorted({metric for metric, _ in self._tally.times}):
            family = HistogramMetricFamily(metric.name, metric.says, labels=metric.labels)
            for (name, labels), histogram in self._tally.times.items():
                if name == metric:
                    below = [sum(histogram[: i + 1]) for i in range(len(ends))]
                    family.add_metric(labels, list(zip(ends, below, strict=True)), sum_value=histogram[-1])
            yield family
