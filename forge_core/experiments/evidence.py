"""How the evidence of one variant against the control went, look by look.

Three ways, chosen by the definition and the counts, never by the result. With a declared maximum: a group-sequential
test at even looks (O'Brien-Fleming bounds). Without one: a confidence sequence of the difference, and for conversions,
until both sides have a hundred of them, the exact e-process of the conversions' variants, which needs no large numbers.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forge_core.experiments.definition import Definition, Metric
from forge_core.experiments.joined import COUNTED, Joined
from forge_core.experiments.looks import Looks, look, moments_of_looks
from forge_core.statistics.confidence_sequences import difference_sequence
from forge_core.statistics.conversion_evidence import concentration_for, conversion_evidence, lift_interval
from forge_core.statistics.group_sequential import obrien_fleming_bounds
from forge_core.statistics.power import sample_size_per_variant

Floats = NDArray[np.float64]
Method = Literal["exact conversions", "confidence sequence", "group sequential"]

ENOUGH_CONVERSIONS = 100
_USUAL_UNITS = 5000
# Each exact interval costs a millisecond; those between two of them are drawn as the earlier one.
_MOST_EXACT = 60


@dataclass(frozen=True, eq=False)
class Course:
    """The evidence of a variant against the control at each look.

    Attributes
    ----------
    at : DatetimeIndex of length n_looks
    value, low, high : ndarray of shape (n_looks,)
        Difference of the metric to the control, and its interval, which holds at all looks together.
    p : ndarray of shape (n_looks,)
        Anytime p value, never rising, with the number of comparisons taken into account.
    log_e : ndarray of shape (n_looks,) or None
        Natural logarithm of the exact e-process; conversions only.
    method : str
        What the last look rests on.
    n_units : ndarray of shape (n_looks, 2)
        Users of the control and of the variant.
    """

    variant: str
    at: pd.DatetimeIndex
    value: Floats
    low: Floats
    high: Floats
    p: Floats
    log_e: Floats | None
    method: Method
    n_units: Floats


def course(definition: Definition, metric: Metric, joined: Joined, variant: str, looks: Looks) -> Course:
    """Return how a variant's evidence went.

    Parameters
    ----------
    metric : Metric
        The primary one of the definition, or a guard rail.
    looks : Looks
        Of this metric.
    """
    pair = [looks.column(definition.control), looks.column(variant)]
    n_comparisons = len(definition.treatments)
    alpha = definition.alpha / n_comparisons
    log_e = _exact(definition, metric, joined, variant, looks) if metric.kind == "conversion" else None
    if definition.max_units is not None and metric == definition.primary:
        made = _group_sequential(definition, metric, joined, variant, alpha)
    else:
        made = _sequence(definition, metric, looks, pair, variant, alpha, log_e)
    p = np.minimum(made.p * n_comparisons, 1.0)
    if metric.kind != "conversion":
        return replace(made, p=p)
    return replace(made, p=p, low=np.maximum(made.low, -1.0), high=np.minimum(made.high, 1.0))


def _exact(definition: Definition, metric: Metric, joined: Joined, variant: str, looks: Looks) -> Floats:
    """Return the conversions' e-process at each look, of this pair alone."""
    names = [definition.control, variant]
    mine = joined.outcomes
    mine = mine[(mine["why"] == COUNTED) & (mine["metric"] == metric.name) & (mine["value"] > 0)]
    mine = mine.sort_values(["counts_at", "id"], kind="stable")
    mine = mine[~((mine["unit"] != "") & mine.duplicated("unit")) & mine["variant"].isin(names)]
    shares = np.array([definition.shares[name] for name in names])
    counts = np.cumsum(np.column_stack([(mine["variant"] == name).to_numpy(float) for name in names]), axis=0)
    prior = _prior(definition, metric)
    log_e = np.r_[0.0, conversion_evidence(counts, shares / shares.sum(), **prior)] if len(counts) else np.zeros(1)
    when = pd.DatetimeIndex(mine["counts_at"]).as_unit("us").asi8
    return np.maximum.accumulate(log_e)[np.searchsorted(when, looks.at.as_unit("us").asi8, side="right")]


def _prior(definition: Definition, metric: Metric) -> dict[str, float]:
    """Return what the exact process is tuned to, where the definition says what is worth finding."""
    if metric == definition.primary and definition.baseline and definition.min_effect:
        sign = 1 if metric.better == "higher" else -1
        return {"concentration": concentration_for(definition.baseline, sign * definition.min_effect)}
    return {}


def _sequence(
    definition: Definition,
    metric: Metric,
    looks: Looks,
    pair: list[int],
    variant: str,
    alpha: float,
    log_e: Floats | None,
) -> Course:
    """Return the evidence where nobody said when it ends."""
    a, b = pair
    n, mean, variance = looks.n[:, pair], np.nan_to_num(looks.mean[:, pair]), np.nan_to_num(looks.variance[:, pair])
    told: dict[str, float] = {"alpha": alpha, "n_star": planned_units(definition)}
    found = difference_sequence(n[:, 0], mean[:, 0], variance[:, 0], n[:, 1], mean[:, 1], variance[:, 1], **told)
    low, value, high, p = (np.array(part, float) for part in (found.low, found.value, found.high, found.p))
    value = np.where((n > 0).all(axis=1), value, np.nan)
    method: Method = "confidence sequence"
    if log_e is not None:
        # The one way until both sides have enough, the other from then on: what each says elsewhere is not heard.
        first = int(np.searchsorted(looks.total[:, pair].min(axis=1), ENOUGH_CONVERSIONS))
        later = slice(first, None)
        p[:first] = np.exp(-np.maximum(log_e[:first], 0.0))
        p[later] = difference_sequence(
            n[later, 0], mean[later, 0], variance[later, 0], n[later, 1], mean[later, 1], variance[later, 1], **told
        ).p
        share = definition.shares[variant] / (definition.shares[variant] + definition.shares[definition.control])
        computed = np.unique(np.linspace(0, first - 1, min(first, _MOST_EXACT)).round().astype(int))
        for row in computed:
            converted = int(looks.total[row, a]), int(looks.total[row, b])
            ends = lift_interval(*converted, share, alpha=alpha, **_prior(definition, metric))
            # A ratio's interval, told as a difference with the control's rate as it was seen.
            rate = mean[row, 0] or np.inf
            low[row], high[row] = ((end - 1) * rate if end != 1 else 0.0 for end in ends)
        latest = computed[np.searchsorted(computed, np.arange(first), side="right") - 1]
        low[:first], high[:first] = low[latest], high[latest]
        method = "confidence sequence" if first < len(p) else "exact conversions"
    return Course(variant, looks.at, value, low, high, np.minimum.accumulate(p), log_e, method, n)


def planned_units(definition: Definition) -> int:
    """Return the users over control and variant at which a confidence sequence is to be sharpest."""
    if definition.planned_units is not None:
        return 2 * definition.planned_units
    primary = definition.primary
    if primary.kind == "conversion" and definition.baseline and definition.min_effect:
        sign = 1 if primary.better == "higher" else -1
        sides = 2 * len(definition.treatments)
        effect = sign * definition.min_effect
        return 2 * sample_size_per_variant(definition.baseline, effect, alpha=definition.alpha, n_variants=sides)
    return 2 * _USUAL_UNITS


def _group_sequential(definition: Definition, metric: Metric, joined: Joined, variant: str, alpha: float) -> Course:
    """Return the evidence at the looks that were fixed beforehand; between two of them nothing is decided."""
    assert definition.max_units is not None
    fractions = np.arange(1, definition.looks + 1) / definition.looks
    n_units = np.ceil(fractions * definition.max_units - 1e-9).astype(int)
    looks = look(joined, metric, list(definition.variants), moments_of_looks(joined, n_units))
    a, b = looks.column(definition.control), looks.column(variant)
    value = looks.mean[:, b] - looks.mean[:, a]
    se = np.sqrt(looks.variance[:, a] / looks.n[:, a] + looks.variance[:, b] / looks.n[:, b])
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.abs(value) / se
    z = np.where(np.isfinite(z), z, 0.0)
    bounds = obrien_fleming_bounds(fractions, alpha)[: len(z)]
    wide = bounds * np.where(np.isfinite(se) & (se > 0), se, np.inf)
    p = np.array([_p_of(definition.looks, stage, float(z[stage])) for stage in range(len(z))])
    crossed = np.maximum.accumulate(z >= bounds) if len(z) else np.zeros(0, bool)
    # Between the alphas of the table p is interpolated; whether a bound was reached is not.
    p = np.where(crossed, np.minimum(p, alpha), np.maximum(p, np.nextafter(alpha, 1.0)))
    p = np.minimum.accumulate(p) if len(p) else p
    return Course(variant, looks.at, value, value - wide, value + wide, p, None, "group sequential", looks.n[:, [a, b]])


def _p_of(n_looks: int, stage: int, z: float) -> float:
    """Return the alpha whose bound at a look is z (Jennison and Turnbull 2000, section 8.4)."""
    alphas, bounds = _bound_table(n_looks)
    column = bounds[:, stage]
    known = np.isfinite(column)
    return float(np.exp(np.interp(-z, -column[known], np.log(alphas[known]), left=np.log(1e-9), right=0.0)))


@lru_cache(maxsize=16)
def _bound_table(n_looks: int) -> tuple[Floats, Floats]:
    """Return alphas, the smallest first, and the bounds of each at every look."""
    fractions = np.arange(1, n_looks + 1) / n_looks
    alphas = np.geomspace(1e-6, 0.9, 24)
    return alphas, np.array([obrien_fleming_bounds(fractions, float(alpha)) for alpha in alphas])
