"""How the evidence of one variant against the control went, look by look.

Three ways, chosen by the definition and the counts, never by the result. With a declared maximum: a group-sequential
test at even looks (O'Brien-Fleming bounds). Without one: a confidence sequence of the difference, and for conversions,
until both sides have a hundred of them, the exact e-process of the conversions' variants, which needs no large numbers.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forge_core.experiments.definition import Definition, Metric
from forge_core.experiments.joined import COUNTED, Joined
from forge_core.experiments.looks import Looks, look, moments_of_looks
from forge_core.statistics.confidence_sequences import difference_sequence
from forge_core.statistics.conversion_evidence import concentration_for, conversion_evidence
from forge_core.statistics.group_sequential import obrien_fleming_bounds
from forge_core.statistics.power import sample_size_per_variant

Floats = NDArray[np.float64]
Method = Literal["exact conversions", "confidence sequence", "group sequential"]

ENOUGH_CONVERSIONS = 100
_USUAL_UNITS = 5000


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
    return _for_all_comparisons(made, n_comparisons)


def _exact(definition: Definition, metric: Metric, joined: Joined, variant: str, looks: Looks) -> Floats:
    """Return the conversions' e-process at each look, of this pair alone."""
    names = [definition.control, variant]
    mine = joined.outcomes
    mine = mine[(mine["why"] == COUNTED) & (mine["metric"] == metric.name) & (mine["value"] > 0)]
    mine = mine.sort_values(["counts_at", "id"], kind="stable")
    mine = mine[~((mine["unit"] != "") & mine.duplicated("unit")) & mine["variant"].isin(names)]
    shares = np.array([definition.shares[name] for name in names])
    counts = np.cumsum(np.column_stack([(mine["variant"] == name).to_numpy(float) for name in names]), axis=0)
    told = {} if (c := _concentration(definition, metric)) is None else {"concentration": c}
    log_e = np.r_[0.0, conversion_evidence(counts, shares / shares.sum(), **told)] if len(counts) else np.zeros(1)
    when = pd.DatetimeIndex(mine["counts_at"]).as_unit("us").asi8
    return np.maximum.accumulate(log_e)[np.searchsorted(when, looks.at.as_unit("us").asi8, side="right")]


def _concentration(definition: Definition, metric: Metric) -> float | None:
    if metric == definition.primary and definition.baseline and definition.min_effect:
        return concentration_for(definition.baseline, definition.min_effect)
    return None


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
    (a, b), n = pair, looks.n
    found = difference_sequence(
        n[:, a], looks.mean[:, a], looks.variance[:, a], n[:, b], looks.mean[:, b], looks.variance[:, b],
        alpha=alpha, n_star=planned_units(definition),
    )  # fmt: skip
    p = np.where(np.isnan(found.p), 1.0, found.p)
    method: Method = "confidence sequence"
    if log_e is not None:
        # The one way until both sides have enough, the other from then on: what each says elsewhere is not heard.
        enough = looks.total[:, pair].min(axis=1) >= ENOUGH_CONVERSIONS
        p = np.where(enough, p, np.exp(-np.maximum(log_e, 0.0)))
        method = "confidence sequence" if len(enough) and enough[-1] else "exact conversions"
    p = np.minimum.accumulate(np.minimum(p, 1.0)) if len(p) else p
    return Course(variant, looks.at, found.value, found.low, found.high, p, log_e, method, n[:, pair])


def planned_units(definition: Definition) -> int:
    """Return the users over control and variant at which a confidence sequence is to be sharpest."""
    if definition.planned_units is not None:
        return 2 * definition.planned_units
    primary = definition.primary
    if primary.kind == "conversion" and definition.baseline and definition.min_effect:
        sign = 1 if primary.better == "higher" else -1
        return 2 * math.ceil(
            sample_size_per_variant(definition.baseline, sign * definition.min_effect, alpha=definition.alpha)
        )
    return 2 * _USUAL_UNITS


def _group_sequential(
    definition: Definition, metric: Metric, joined: Joined, variant: str, alpha: float
) -> Course:
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
    wide = obrien_fleming_bounds(fractions, alpha)[: len(z)] * np.where(np.isfinite(se) & (se > 0), se, np.inf)
    p = np.array([_sequential_p(fractions, z[:stage]) for stage in range(1, len(z) + 1)])
    method: Method = "group sequential"
    return Course(variant, looks.at, value, value - wide, value + wide, p, None, method, looks.n[:, [a, b]])


def _sequential_p(fractions: Floats, z: Floats) -> float:
    """Return the smallest alpha at which a bound would have been crossed by now (Jennison and Turnbull 2000, 8.4)."""
    low, high = math.log(1e-12), math.log(0.999)
    for _ in range(24):
        middle = (low + high) / 2
        bounds = obrien_fleming_bounds(fractions, math.exp(middle))[: len(z)]
        low, high = (low, middle) if bool((z >= bounds).any()) else (middle, high)
    return math.exp(high) if high < math.log(0.99) else 1.0


def _for_all_comparisons(made: Course, n_comparisons: int) -> Course:
    p = np.minimum(made.p * n_comparisons, 1.0)
    return Course(
        made.variant, made.at, made.value, made.low, made.high, p, made.log_e, made.method, made.n_units
    )
