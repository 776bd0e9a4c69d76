"""What a drift check found: per feature and kind of fault the effect, its interval, the test, and a level."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pandas as pd

Kind = Literal["distribution", "missing", "unseen", "range", "unit", "schema", "correlation"]
Level = Literal["none", "small but real", "warning", "drift"]

LEVELS: tuple[Level, ...] = ("none", "small but real", "warning", "drift")
# Repaired by a person, never learnt.
FAULTS: frozenset[Kind] = frozenset({"missing", "range", "unit", "schema"})


@dataclass(frozen=True)
class FeatureDrift:
    """One feature, one question.

    Attributes
    ----------
    feature : str
    kind : str
        `distribution` (values that the reference's range or levels hold), `missing`, `unseen` (new levels, or no
        number at all), `range` (beyond the reference's least and largest value), `unit` (ten times as large as any
        reference value), `schema` (the column is gone, or is of another type), `correlation` (of a pair).
    psi, psi_low, psi_high : float
        Debiased Population Stability Index, in [0, ∞), and its 95 % interval; for a correlation the square of its
        change, which is about the index of that change.
    statistic, p_value : float
        Chi-square for `distribution`; the change of a correlation; otherwise the difference of shares, exactly tested.
    level : str
        `none`: may be chance. `small but real`: significant, below the warning threshold. `warning`, `drift`:
        significant and at or above that threshold.
    n_reference, n_current : int
        Rows that the question was asked of.
    """

    feature: str
    kind: Kind
    psi: float
    psi_low: float
    psi_high: float
    statistic: float
    p_value: float
    level: Level
    n_reference: int
    n_current: int


@dataclass(frozen=True)
class DriftReport:
    """All findings of one check.

    Attributes
    ----------
    features : tuple of FeatureDrift
        One entry for each feature and kind.
    score : float
        The largest debiased PSI among significant findings, 0 without any; `feature` is whose it is.
    level : str
        The highest level of any finding.
    notes : tuple of str
        What was noticed of the columns and is no finding: new ones, and what a missing one may be called now.

    `report["age"]` is the gravest finding on a feature (its distribution where nothing was found), and `dict(report)`
    has that of all features.
    """

    features: tuple[FeatureDrift, ...]
    score: float
    feature: str | None
    level: Level
    n_current: int
    warning_threshold: float
    drift_threshold: float
    notes: tuple[str, ...] = ()

    @property
    def drifted(self) -> list[str]:
        """Return the features at level `drift`, the largest PSI first."""
        found = sorted((f for f in self.features if f.level == "drift"), key=lambda f: -f.psi)
        return list(dict.fromkeys(f.feature for f in found))

    @property
    def significant(self) -> list[FeatureDrift]:
        """Return the findings that are not chance, the largest PSI first."""
        return sorted((f for f in self.features if f.level != "none"), key=lambda f: -f.psi)

    @property
    def faults(self) -> list[FeatureDrift]:
        """Return the findings at level `drift` that a person must repair."""
        return [f for f in self.significant if f.kind in FAULTS and f.level == "drift"]

    @property
    def learnable_score(self) -> float:
        """Return the score without missing values and values out of range: those are repaired, not learnt."""
        return max((f.psi for f in self.significant if f.kind not in FAULTS), default=0.0)

    def __getitem__(self, feature: str) -> FeatureDrift:
        found = [f for f in self.features if f.feature == feature]
        if not found:
            raise KeyError(f"{feature!r} was not checked; checked: {', '.join(self.keys())}")
        real = [f for f in found if f.level != "none"]
        return max(real, key=lambda f: (LEVELS.index(f.level), f.psi)) if real else found[0]

    def __contains__(self, feature: object) -> bool:
        return feature in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def keys(self) -> list[str]:
        """Return the checked features."""
        return list(dict.fromkeys(f.feature for f in self.features))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "score": self.score,
            "feature": self.feature,
            "level": self.level,
            "drifted": self.drifted,
            "n_current": self.n_current,
            "warning_threshold": self.warning_threshold,
            "drift_threshold": self.drift_threshold,
            "notes": list(self.notes),
            "features": [asdict(f) for f in self.features],
        }

    def to_frame(self) -> pd.DataFrame:
        """Return one row per finding, the largest PSI first."""
        columns = list(FeatureDrift.__dataclass_fields__)
        frame = pd.DataFrame([asdict(f) for f in self.features], columns=columns)
        return frame.sort_values("psi", ascending=False, kind="stable").reset_index(drop=True)


def summarise(
    features: tuple[FeatureDrift, ...],
    n_current: int,
    warning_threshold: float,
    drift_threshold: float,
    notes: tuple[str, ...] = (),
) -> DriftReport:
    """Return the report on findings: its score is the largest significant PSI, its level the highest."""
    worst = max((f for f in features if f.level != "none"), key=lambda f: f.psi, default=None)
    return DriftReport(
        features=features,
        score=worst.psi if worst else 0.0,
        feature=worst.feature if worst else None,
        level=max((f.level for f in features), key=LEVELS.index, default="none"),
        n_current=n_current,
        warning_threshold=warning_threshold,
        drift_threshold=drift_threshold,
        notes=notes,
    )
