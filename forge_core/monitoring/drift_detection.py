"""Does current data still look like the reference, and is that a reason to retrain.

A finding needs both: significance (p below alpha over the number of tests of the check, so that alpha is the chance of
any false alarm), and size (debiased PSI against the conventional 0.1 and 0.2). The kinds of a feature are apart: its
distribution is compared among the values that the reference's range and levels hold; missing values, unseen levels
and values out of range are counted on their own, since the first asks for learning and the others mostly for repair.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from forge_core.errors import ConfigurationError, NotEnoughSamples
from forge_core.monitoring.column_notes import column_notes
from forge_core.monitoring.drift_report import DriftReport, FeatureDrift, Level, summarise
from forge_core.monitoring.feature_comparison import Comparison, compare_feature, compare_pairs
from forge_core.monitoring.retraining_trigger import AutomaticRetrainingTrigger
from forge_core.monitoring.windows import ReferenceProfile
from forge_core.statistics.cells import NumericCells
from forge_core.statistics.counts import GridCounts
from forge_core.statistics.distributions import ReferenceGrid

__all__ = ["AutomaticRetrainingTrigger", "DriftReport", "FeatureDriftDetector"]

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """The part of an experiment tracker that a check is logged through."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log numbers."""

    def log_dict(self, value: Mapping[str, Any], name: str) -> None:
        """Log a JSON file."""

    def log_bytes(self, data: bytes, name: str) -> None:
        """Log a file."""


class FeatureDriftDetector:
    """Compares data with a reference, feature by feature.

    Parameters
    ----------
    reference_data : DataFrame, shape (n_rows, n_columns), optional
        Rows to compare with; or give `reference_profile`.
    categorical_features, numerical_features : sequence of str, optional
        Features to watch. Neither given: every column, numbers as numerical, times left out.
    warning_threshold, drift_threshold : float
        Debiased PSI from which a significant finding warns, or is drift.
    reference_profile : ReferenceProfile, optional
        The stored reference of a model version.
    alpha : float
        Chance of any false alarm in one check, over all features.
    min_samples : int
        Fewest current rows on which a check is made.

    Raises
    ------
    ConfigurationError
        Without a reference, with two, or with features that it does not have.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> training = pd.DataFrame({"age": rng.normal(40, 10, 5000), "country": rng.choice(["de", "fr"], 5000)})
    >>> detector = FeatureDriftDetector(training, ["country"], ["age"])
    >>> report = detector.compute_drift(training.assign(age=training["age"] + 8))
    >>> report.drifted, round(report.score, 2), detector.should_retrain()
    (['age'], 0.61, True)
    """

    def __init__(
        self,
        reference_data: pd.DataFrame | None = None,
        categorical_features: Sequence[str] | None = None,
        numerical_features: Sequence[str] | None = None,
        warning_threshold: float = 0.1,
        drift_threshold: float = 0.2,
        *,
        reference_profile: ReferenceProfile | None = None,
        alpha: float = 0.05,
        min_samples: int = 200,
    ) -> None:
        if (reference_data is None) == (reference_profile is None):
            found = "neither" if reference_data is None else "both"
            raise ConfigurationError(f"expected reference_data or reference_profile, found {found}; give exactly one")
        if not 0 <= warning_threshold <= drift_threshold or not 0 < alpha < 1:
            raise ConfigurationError(
                f"expected 0 <= warning_threshold <= drift_threshold and 0 < alpha < 1, found {warning_threshold}, "
                f"{drift_threshold} and {alpha}"
            )
        self.warning_threshold, self.drift_threshold = warning_threshold, drift_threshold
        self.alpha, self.min_samples = alpha, min_samples
        self.last_report: DriftReport | None = None
        self.grid: ReferenceGrid
        self.reference: GridCounts
        if reference_profile is not None:
            self.grid, self.reference = reference_profile.grid, reference_profile.counts
            named = [*(categorical_features or []), *(numerical_features or [])]
            _require_known(named, list(self.grid.features))
            self.watched = named or list(self.grid.features)
        elif reference_data is not None:
            categorical, numerical = _chosen(reference_data, categorical_features, numerical_features)
            self.grid = ReferenceGrid.fit(reference_data, categorical, numerical)
            self.reference = self.grid.count(reference_data)
            self.watched = [*categorical, *numerical]

    def compute_drift(self, current: pd.DataFrame | GridCounts) -> DriftReport:
        """Return what differs from the reference; rows and their counts on the reference's grid answer the same.

        Raises
        ------
        NotEnoughSamples
            When there are fewer than `min_samples` rows on either side.
        ValueError
            When counts were made on another grid.
        """
        n_rows = current.n_rows if isinstance(current, GridCounts) else len(current)
        for side, n, advice in (
            ("current", n_rows, "wait for more, or merge windows"),
            ("reference", self.reference.n_rows, "take a longer reference"),
        ):
            if n < self.min_samples:
                raise NotEnoughSamples(
                    f"expected at least {self.min_samples} {side} rows, found {n}; {advice}",
                    context={"n_rows": n_rows, "min_samples": self.min_samples},
                )
        gone: list[str] = []
        notes: tuple[str, ...] = ()
        if isinstance(current, pd.DataFrame):
            gone = [name for name in self.watched if name not in current.columns]
            notes = column_notes(self.grid, self.reference, current, self.watched)
            current = current.assign(**dict.fromkeys(gone))
        counts = self._counts(current)
        compared = self._compare(counts)
        limit = self.alpha / len(compared)
        features = tuple(
            FeatureDrift(
                feature=found.feature,
                kind="schema" if found.feature in gone and found.kind == "missing" else found.kind,
                psi=found.psi,
                psi_low=found.psi_low,
                psi_high=found.psi_high,
                statistic=found.test.statistic,
                p_value=found.test.p_value,
                level=self._level(found.psi, found.test.p_value < limit),
                n_reference=found.n_reference,
                n_current=found.n_current,
            )
            for found in compared
            if found.kind != "correlation" or found.test.p_value < limit
        )
        report = summarise(features, n_rows, self.warning_threshold, self.drift_threshold, notes)
        if report.score >= self.drift_threshold:
            logger.warning("Data drift detected with score %.2f (threshold: %g)", report.score, self.drift_threshold)
        self.last_report = report
        return report

    def should_retrain(self) -> bool:
        """Tell whether the last check's score reached the drift threshold.

        Raises
        ------
        ValueError
            When nothing was checked yet.
        """
        return self._last().score >= self.drift_threshold

    def save_results(self, path: str | Path) -> None:
        """Write the last check as JSON; folders are made as needed."""
        file = Path(path)
        text = json.dumps(self._last().to_dict(), indent=1)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def log_to_mlflow(self, tracker: Tracker) -> None:
        """Log the last check to a tracker's run: score, each feature's PSI, the report as JSON, page and picture.

        Parameters
        ----------
        tracker : ExperimentTracker, or whatever has its `log_metrics`, `log_dict` and `log_bytes`.
        """
        from forge_core.monitoring.reports import drift_figure, drift_markdown

        report = self._last()
        gravest = {f"drift.psi.{name}": report[name].psi for name in report}
        tracker.log_metrics({"drift.score": report.score, "drift.features": float(len(report.drifted)), **gravest})
        tracker.log_dict(report.to_dict(), "drift/report.json")
        tracker.log_bytes(drift_figure(report), "drift/psi.png")
        tracker.log_bytes(drift_markdown(report).encode(), "drift/report.md")

    def _compare(self, counts: GridCounts) -> list[Comparison]:
        found = [
            finding
            for name in self.watched
            for finding in compare_feature(
                name, self.reference[name], counts[name], numeric=isinstance(self.grid.features[name], NumericCells)
            )
        ]
        was, now = self.reference.pairs, counts.pairs
        if was is None or now is None or len(was.n) != len(now.n):
            return found
        return found + compare_pairs(self.grid.scores.pairs, was, now)

    def _last(self) -> DriftReport:
        if self.last_report is None:
            raise ValueError("expected a finished drift check, found none; call compute_drift first")
        return self.last_report

    def _counts(self, current: pd.DataFrame | GridCounts) -> GridCounts:
        if not isinstance(current, GridCounts):
            return self.grid.of(self.watched).count(current)
        if current.grid_digest != self.grid.digest:
            raise ValueError(
                f"expected counts on this reference's grid {self.grid.digest}, found grid {current.grid_digest}; "
                "count the rows on the grid of the version that served them"
            )
        return current

    def _level(self, size: float, significant: bool) -> Level:
        if not significant:
            return "none"
        if size >= self.drift_threshold:
            return "drift"
        return "warning" if size >= self.warning_threshold else "small but real"


def _chosen(
    frame: pd.DataFrame, categorical: Sequence[str] | None, numerical: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    if categorical is None and numerical is None:
        kept = frame.select_dtypes(exclude=["datetime", "datetimetz", "timedelta"])
        numerical = kept.select_dtypes("number").columns.tolist()
        categorical = [name for name in kept.columns if name not in numerical]
    categorical, numerical = list(categorical or []), list(numerical or [])
    _require_known([*categorical, *numerical], list(frame.columns))
    if twice := sorted(set(categorical) & set(numerical)):
        raise ConfigurationError(f"expected a feature to be categorical or numerical, found both: {', '.join(twice)}")
    if not categorical and not numerical:
        raise ConfigurationError("expected at least one feature to watch, found none; name columns of reference_data")
    return categorical, numerical


def _require_known(named: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in named if name not in known]:
        raise ConfigurationError(
            f"unknown features {', '.join(unknown)}; the reference has {', '.join(map(str, known))}",
            context={"features": unknown},
        )
