"""Who met what, joined with what came of it: which outcomes count, and why the others do not."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from forge_core.experiments.assignment import unit_id
from forge_core.experiments.definition import Definition

# Why an outcome does not count, as callers hear it.
NO_EXPOSURE = "no exposure"
OTHER_VARIANT = "other variant"
TWICE = "twice"
TOO_EARLY = "before exposure"
TOO_LATE = "after the window"
TOO_MANY = "more than exposures"
UNKNOWN_METRIC = "metric not declared"
BY_HAND = "override"
COUNTED = ""


@dataclass(frozen=True, eq=False)
class Joined:
    """What a verdict is made of.

    Attributes
    ----------
    exposures : DataFrame
        One row a user in order of time: unit, variant, at; `counts_at` is when the user enters the verdict.
    outcomes : DataFrame
        In the order they came: metric, unit, variant (that of the exposure), value, at, `why` ("" for one that counts),
        `counts_at`.
    waiting : int
        Users whose window is still open.
    """

    exposures: pd.DataFrame
    outcomes: pd.DataFrame
    waiting: int = 0

    @property
    def not_counted(self) -> dict[str, int]:
        """Return how many outcomes do not count, by the reason."""
        why = self.outcomes["why"]
        counts = {str(reason): int(n) for reason, n in why[why != COUNTED].value_counts().items()}
        if repeats := int(self.outcomes["repeats"].sum()):
            counts[TWICE] = counts.get(TWICE, 0) + repeats
        return counts


def join_outcomes(
    definition: Definition, exposures: pd.DataFrame, outcomes: pd.DataFrame, *, now: datetime | None = None
) -> Joined:
    """Return exposures and outcomes with what counts.

    Parameters
    ----------
    exposures : DataFrame
        unit, variant, at (UTC); the first meeting of a unit counts.
    outcomes : DataFrame
        id, metric, unit, key, variant, value, at (UTC), repeats.
    now : datetime, optional
        With `window_hours`: users whose window ends later are left out as yet.
    """
    by_hand = {unit_id(definition.salt, user) for user in definition.overrides}
    met = exposures.sort_values("at", kind="stable").drop_duplicates("unit")
    met = met[met["variant"].isin(list(definition.variants)) & ~met["unit"].isin(by_hand)]
    found = outcomes.sort_values(["at", "id"], kind="stable", ignore_index=True)
    known = found["unit"] != ""
    first = _of_user(met, "variant", found["unit"])
    told = found["variant"]
    why = np.full(len(found), COUNTED, dtype=object)
    for reason, holds in (
        (UNKNOWN_METRIC, ~found["metric"].isin(list(definition.metrics))),
        (BY_HAND, found["unit"].isin(by_hand)),
        (NO_EXPOSURE, known & first.isna()),
        (OTHER_VARIANT, known & (told != "") & (told != first)),
        (TOO_EARLY, known & (found["at"] < _of_user(met, "at", found["unit"]))),
    ):
        why[(why == COUNTED) & holds.to_numpy(bool)] = reason
    found["why"] = why
    counts = found["why"] == COUNTED
    twice = found[counts & known].duplicated(["metric", "unit", "key"])
    found.loc[twice.index[twice], "why"] = TWICE
    found["variant"] = told.where(~known, first)
    met, found, waiting = _in_their_windows(definition, met, found, now)
    return Joined(met.reset_index(drop=True), _never_above_exposures(definition, met, found), waiting)


def _of_user(met: pd.DataFrame, column: str, units: pd.Series) -> pd.Series:
    """Return what a column of the meetings says of each of these units; missing for those that met nothing."""
    return pd.Series(met.set_index("unit")[column].reindex(units).array, index=units.index)


def _in_their_windows(
    definition: Definition, met: pd.DataFrame, found: pd.DataFrame, now: datetime | None
) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """Say when each row counts: as it comes, or all rows of a user at the end of the user's window."""
    if definition.window_hours is None:
        return met.assign(counts_at=met["at"]), found.assign(counts_at=found["at"]), 0
    window = timedelta(hours=definition.window_hours)
    met = met.assign(counts_at=met["at"] + window)
    ends = _of_user(met, "counts_at", found["unit"])
    late = (found["why"] == COUNTED) & ends.notna() & (found["at"] > ends)
    found = found.assign(why=found["why"].mask(late, TOO_LATE), counts_at=ends.fillna(found["at"]))
    if now is None:
        return met, found, 0
    over = met["counts_at"] <= pd.Timestamp(now)
    return met[over], found[(found["counts_at"] <= pd.Timestamp(now)) | (found["why"] != COUNTED)], int((~over).sum())


def _never_above_exposures(definition: Definition, met: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Let anonymous conversions count up to the number of users of their variant that did not convert by name."""
    exposed: Mapping[str, int] = met["variant"].value_counts().to_dict()
    counts = found["why"] == COUNTED
    for name, metric in definition.metrics.items():
        if metric.kind != "conversion":
            continue
        for variant in definition.variants:
            here = counts & (found["metric"] == name) & (found["variant"] == variant)
            by_name = found.loc[here & (found["unit"] != ""), "unit"].nunique()
            nameless = found.index[here & (found["unit"] == "")]
            found.loc[nameless[max(exposed.get(variant, 0) - by_name, 0) :], "why"] = TOO_MANY
    return found.reset_index(drop=True)
