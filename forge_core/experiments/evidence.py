"""What is known at each look: who is best, by the rule of `decision`, and how far the others are from the control.

Conversions are judged exactly, by themselves where outcomes may still come, together with those who did not convert
where a window says when an outcome is final. Means and ratios are judged by a limit theorem, from a hundred users a
variant on. With a declared maximum a few looks, fixed beforehand, decide. Intervals of differences hold at all looks
together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forge_core.experiments.decision import Decision, decide_conversions, decide_means
from forge_core.experiments.definition import Definition, Metric
from forge_core.experiments.joined import Joined
from forge_core.experiments.looks import Looks, look, moments_of_looks
from forge_core.statistics.confidence_sequences import difference_sequence
from forge_core.statistics.conversion_evidence import lift_interval
from forge_core.statistics.group_sequential import obrien_fleming_bounds
from forge_core.statistics.power import sample_size_per_variant

Floats = NDArray[np.float64]

ENOUGH_CONVERSIONS = 100
_USUAL_UNITS = 5000
# Each exact interval costs a millisecond; those between two of them are drawn as the earlier one.
_MOST_EXACT = 60


@dataclass(frozen=True, eq=False)
class Standing:
    """Who is best, look by look.

    Attributes
    ----------
    looks : Looks
        Of the primary metric.
    names : list of str
        The variants that take part, in the columns' order of what follows.
    log_e, p : ndarray of shape (n_looks, n_names)
        Evidence that a variant is better than every other, and the anytime p value of "it is not"; never rising.
    winner : str or None
    ended : bool
        Whether nothing can change any more.
    method : str
    bound : ndarray of shape (n_looks,) or None
        With a declared maximum: what z had to reach, infinite between the declared looks.
    """

    looks: Looks
    names: list[str]
    log_e: Floats
    p: Floats
    winner: str | None
    ended: bool
    method: str
    bound: Floats | None


@dataclass(frozen=True, eq=False)
class Course:
    """Difference of a variant to the control at each look, with an interval that holds at all of them together."""

    variant: str
    at: pd.DatetimeIndex
    value: Floats
    low: Floats
    high: Floats
    stepwise: bool = False


def looks_of(definition: Definition, joined: Joined) -> Looks:
    """Return the primary metric's looks, the declared ones among them."""
    at = moments_of_looks(joined)
    if definition.max_units is not None:
        n_units = np.ceil(np.arange(1, definition.looks + 1) / definition.looks * definition.max_units - 1e-9)
        at = at.union(moments_of_looks(joined, n_units.astype(int)))
    return look(joined, definition.primary, list(definition.variants), at)


def standing(definition: Definition, looks: Looks, names: Sequence[str]) -> Standing:
    """Return who is best of some variants, at the share of alpha that falls to them.

    Parameters
    ----------
    names : sequence of str
        Two or more; what broke a guard rail is no longer among them.
    """
    columns = [looks.column(name) for name in names]
    alpha = definition.alpha * len(names) / (1 + len(definition.treatments))
    if not len(looks.at):
        nothing = np.zeros((0, len(names)))
        return Standing(looks, list(names), nothing, nothing, None, False, "no users yet", None)
    primary, maximum = definition.primary, definition.max_units
    rule: dict[str, object] = {
        "alpha": alpha,
        "n_looks": definition.looks,
        "lower_is_better": primary.better == "lower",
    }
    if primary.kind == "conversion":
        final = definition.window_hours is not None or maximum is not None
        shares = np.array([definition.shares[name] for name in names])
        told = {} if definition.baseline is None else {"baseline": definition.baseline}
        if definition.baseline is not None and definition.min_effect is not None:
            told["min_effect"] = definition.min_effect * (-1 if primary.better == "lower" else 1)
        total = looks.total[:, columns]
        found = decide_conversions(
            total, np.maximum(looks.exposed[:, columns], total) if final else None, shares / shares.sum(),
            max_visitors=maximum, **rule, **told,  # type: ignore[arg-type]
        )  # fmt: skip
        method = "exact, with those who did not convert" if final else "exact, by conversions alone"
    else:
        mean, variance = np.nan_to_num(looks.mean[:, columns]), np.nan_to_num(looks.variance[:, columns])
        star = float(planned_units(definition))
        found = decide_means(looks.n[:, columns], mean, variance, n_star=star, max_units=maximum, **rule)  # type: ignore[arg-type]
        method = f"{primary.kind}s, by a limit theorem"
    p = np.minimum(found.p * definition.alpha / alpha, 1.0)
    if found.bound is not None and found.z is not None:
        method = f"group sequential, {definition.looks} looks up to {maximum:,} users"
        p = _planned_p(definition, found, len(names))
    winner = int(found.winner[-1])
    named = names[winner] if winner >= 0 else None
    return Standing(looks, list(names), found.log_e, p, named, bool(found.ended[-1]), method, found.bound)


def _planned_p(definition: Definition, found: Decision, n_names: int) -> Floats:
    """Return the alpha at which a variant would have been named by now, at the declared looks."""
    assert found.bound is not None and found.z is not None
    p = np.ones_like(found.z)
    planned = np.flatnonzero(np.isfinite(found.bound))
    for stage, row in enumerate(planned):
        for column in range(p.shape[1]):
            p[row, column] = _p_of(definition.looks, min(stage, definition.looks - 1), float(found.z[row, column]))
    # Half of a two-sided alpha is one variant's; all variants together have alpha.
    p = np.minimum(p / 2 * (1 + len(definition.treatments)), 1.0)
    reached = found.z >= found.bound[:, None]
    # Between the alphas of the table p is interpolated; whether a bound was reached is not.
    p = np.where(reached, np.minimum(p, definition.alpha), np.maximum(p, np.nextafter(definition.alpha, 1.0)))
    return np.minimum.accumulate(p, axis=0)


def _p_of(n_looks: int, stage: int, z: float) -> float:
    """Return the two-sided alpha whose bound at a look is z (Jennison and Turnbull 2000, section 8.4)."""
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


def planned_units(definition: Definition) -> int:
    """Return the users of two variants together at which an interval is to be tightest."""
    if definition.planned_units is not None:
        return 2 * definition.planned_units
    primary = definition.primary
    if primary.kind == "conversion" and definition.baseline and definition.min_effect:
        sign = 1 if primary.better == "higher" else -1
        sides = 2 * len(definition.treatments)
        effect = sign * definition.min_effect
        return 2 * sample_size_per_variant(definition.baseline, effect, alpha=definition.alpha, n_variants=sides)
    return 2 * _USUAL_UNITS


def course(definition: Definition, metric: Metric, looks: Looks, variant: str, bound: Floats | None = None) -> Course:
    """Return how a variant differed from the control.

    Parameters
    ----------
    looks : Looks
        Of this metric.
    bound : ndarray of shape (n_looks,), optional
        That of a declared maximum: then only its looks have an interval.
    """
    pair = [looks.column(definition.control), looks.column(variant)]
    n, mean, variance = looks.n[:, pair], looks.mean[:, pair], looks.variance[:, pair]
    alpha = 2 * definition.alpha / (1 + len(definition.treatments))
    if bound is not None:
        kept = np.isfinite(bound)
        value = (mean[:, 1] - mean[:, 0])[kept]
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.sqrt(variance[:, 0] / n[:, 0] + variance[:, 1] / n[:, 1])[kept]
        width = bound[kept] * np.where(np.isfinite(error) & (error > 0), error, np.inf)
        return Course(variant, looks.at[kept], value, value - width, value + width, stepwise=True)
    mean, variance = np.nan_to_num(mean), np.nan_to_num(variance)
    found = difference_sequence(
        n[:, 0], mean[:, 0], variance[:, 0], n[:, 1], mean[:, 1], variance[:, 1],
        alpha=alpha, n_star=planned_units(definition),
    )  # fmt: skip
    low, high = np.array(found.low, float), np.array(found.high, float)
    if metric.kind == "conversion":
        low, high = _exact_at_first(definition, looks, pair, variant, alpha, low, high)
    value = np.where((n > 0).all(axis=1), found.value, np.nan)
    return Course(variant, looks.at, value, low, high)


def _exact_at_first(
    definition: Definition, looks: Looks, pair: list[int], variant: str, alpha: float, low: Floats, high: Floats
) -> tuple[Floats, Floats]:
    """Return the interval with its beginning, until both have enough conversions, from the exact one of their ratio."""
    total = looks.total[:, pair]
    first = int(np.searchsorted(total.min(axis=1), ENOUGH_CONVERSIONS))
    share = definition.shares[variant] / (definition.shares[variant] + definition.shares[definition.control])
    computed = np.unique(np.linspace(0, first - 1, min(first, _MOST_EXACT)).round().astype(int))
    for row in computed:
        ends = lift_interval(int(total[row, 0]), int(total[row, 1]), share, alpha=alpha)
        # A ratio's interval, told as a difference with the control's rate as it was seen.
        rate = np.nan_to_num(looks.mean[row, pair[0]]) or np.inf
        low[row], high[row] = ((end - 1) * rate if end != 1 else 0.0 for end in ends)
    latest = computed[np.searchsorted(computed, np.arange(first), side="right") - 1]
    low[:first], high[:first] = low[latest], high[latest]
    return np.maximum(low, -1.0), np.minimum(high, 1.0)
