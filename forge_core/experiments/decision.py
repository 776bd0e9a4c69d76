"""When an experiment has a winner: the one rule, from counts and moments by look.

A winner beats every other variant, each at alpha by the number of variants, one-sided; for two variants that is the
usual two-sided alpha. Then the chance of ever naming a winner that is not the best is at most alpha over all variants
and all looks together: a false one has to beat the best, or, of equals, any fixed other, which is one event a variant.

Evidence of conversions is exact (`rate_comparison`): no normal approximation, whatever the rate. Evidence of means is
asymptotic (`confidence_sequences`) and starts at 100 units a variant. Both hold under a look after every visitor, for
any horizon. Where a maximum is declared, O'Brien and Fleming's bounds at a few looks decide instead, and after the
maximum nothing does; the evidence for any horizon is still there to read, and is a little slower.

Arrays may have leading axes for many experiments at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forge_core.statistics.confidence_sequences import higher_mean_evidence
from forge_core.statistics.group_sequential import group_sequential_z, obrien_fleming_bounds
from forge_core.statistics.paired_evidence import superiority_evidence
from forge_core.statistics.rate_comparison import BASELINE, MIN_EFFECT, higher_rate_evidence

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Of a design with a declared maximum, spread evenly over it.
N_LOOKS = 20


@dataclass(frozen=True, eq=False)
class Decision:
    """What is known after each look.

    Attributes
    ----------
    log_e : ndarray of shape (..., n_looks, n_variants)
        Natural logarithm of the evidence that a variant is better than every other: the least of its comparisons.
    p : ndarray of shape (..., n_looks, n_variants)
        Anytime p value of "this one is not the best"; a winner for any horizon has p <= alpha.
    winner : ndarray of int, shape (..., n_looks)
        Number of the winner from the look on that named it; -1 before.
    ended : ndarray of bool, shape (..., n_looks)
        Whether nothing can change any more: there is a winner, or the declared maximum is reached.
    z : ndarray of shape (..., n_looks, n_variants) or None
        With a declared maximum: the least z value of a variant's comparisons.
    bound : ndarray of shape (..., n_looks) or None
        With a declared maximum: what z has to reach at this look, infinite where it is none of the planned ones.
    """

    log_e: Floats
    p: Floats
    winner: Ints
    ended: NDArray[np.bool_]
    z: Floats | None = None
    bound: Floats | None = None


def decide_conversions(
    conversions: ArrayLike,
    visitors: ArrayLike | None,
    shares: ArrayLike,
    *,
    alpha: float = 0.05,
    baseline: float = BASELINE,
    min_effect: float = MIN_EFFECT,
    max_visitors: int | None = None,
    n_looks: int = N_LOOKS,
    lower_is_better: bool = False,
) -> Decision:
    """Return whether a variant converts better than all others.

    Parameters
    ----------
    conversions : array_like of shape (..., n_looks, n_variants)
        Users who converted, until each look.
    visitors : array_like of shape (..., n_looks, n_variants) or None
        Users whose outcome is final: who converted, or can no longer. None where that is not known: conversions alone
        decide, as exactly, with about 1/(1 - rate) times the users.
    shares : array_like of shape (n_variants,)
        Of users, above 0. Where they were changed: shape (n_periods, n_variants), and counts of shape
        (..., n_looks, n_periods, n_variants), a user in the period in which he was assigned.
    alpha : float in (0, 1)
    baseline, min_effect : float
        Declared rate, and smallest difference worth finding (absolute): how soon, not whether rightly.
    max_visitors : int, optional
        Declared maximum, all variants together.
    n_looks : int
        Looks of a design with a maximum.
    lower_is_better : bool
        Whether a conversion is bad news.

    Raises
    ------
    ValueError
        When counts, shares or declared figures cannot be (see `higher_rate_evidence`), or a maximum is declared and
        visitors are not given.

    Examples
    --------
    >>> found = decide_conversions([[100, 118], [300, 420]], [[1000, 1000], [3000, 3000]], [0.5, 0.5])
    >>> found.winner.tolist(), found.p.round(4).tolist()
    ([-1, 1], [[1.0, 1.0], [1.0, 0.0001]])
    """
    k, rho = np.asarray(conversions, float), np.asarray(shares, float)
    n = None if visitors is None else np.asarray(visitors, float)
    _check(alpha, rho.shape[-1] if rho.ndim else 0)

    def evidence(a: int, b: int) -> Floats:
        first, second = (b, a) if lower_is_better else (a, b)
        pair = [first, second]
        of_pair = None if n is None else n[..., pair]
        return higher_rate_evidence(k[..., pair], of_pair, rho[..., pair], baseline=baseline, min_effect=min_effect)

    found = _open_horizon(evidence, rho.shape[-1], alpha)
    if max_visitors is None:
        return found
    if n is None:
        raise ValueError("expected visitors beside conversions where a maximum is declared, found none")
    if rho.ndim == 2:
        raise ValueError("expected the same shares all along where a maximum is declared, found periods")
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = k / n

    def z_value(a: int, b: int) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            pooled = (k[..., a] + k[..., b]) / (n[..., a] + n[..., b])
        z = group_sequential_z(
            n[..., a], rate[..., a], pooled * (1 - pooled), n[..., b], rate[..., b], pooled * (1 - pooled)
        )
        return -z if lower_is_better else z

    return _with_maximum(found, z_value, n.sum(axis=-1) / max_visitors, n_looks, alpha)


def decide_means(
    n: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    *,
    alpha: float = 0.05,
    n_star: float = 10_000,
    max_units: int | None = None,
    n_looks: int = N_LOOKS,
    lower_is_better: bool = False,
) -> Decision:
    """Return whether a variant has a higher mean than all others.

    Parameters
    ----------
    n, mean, var : array_like of shape (..., n_looks, n_variants)
        Units until each look, the mean and variance of their values; of ratio metrics from `ratio_moments`.
    alpha : float in (0, 1)
    n_star : float
        Units of two variants together that the test is best at: those of the fixed-horizon test.
    max_units : int, optional
        Declared maximum, all variants together.
    n_looks, lower_is_better
        As for `decide_conversions`.

    Raises
    ------
    ValueError
        When moments or alpha cannot be.

    Examples
    --------
    >>> decide_means([[400, 400]], [[10.0, 11.0]], [[9.0, 9.0]], n_star=800).winner.tolist()
    [1]
    """
    units, value, spread = np.broadcast_arrays(*(np.asarray(m, float) for m in (n, mean, var)))
    _check(alpha, units.shape[-1])
    sign = -1.0 if lower_is_better else 1.0
    level = 2 * alpha / units.shape[-1]

    def moments(a: int, b: int) -> list[Floats]:
        return [part for v in (a, b) for part in (units[..., v], sign * value[..., v], spread[..., v])]

    def evidence(a: int, b: int) -> Floats:
        return higher_mean_evidence(*moments(a, b), alpha=level, n_star=n_star)

    found = _open_horizon(evidence, units.shape[-1], alpha)
    if max_units is None:
        return found
    return _with_maximum(
        found, lambda a, b: group_sequential_z(*moments(a, b)), units.sum(axis=-1) / max_units, n_looks, alpha
    )


def decide_paired(wins: ArrayLike, losses: ArrayLike, *, alpha: float = 0.05) -> Ints:
    """Return 1 from the look on at which a model on the same rows is better, -1 if worse first, 0 before.

    Each of the two is wrong with a chance of at most alpha over all looks together.

    Parameters
    ----------
    wins, losses : array_like of shape (n_looks,)
        Rows until each look on which the new model alone is right, and on which the old one alone is.

    Examples
    --------
    >>> decide_paired([6, 60, 110, 160], [4, 40, 70, 150]).tolist()
    [0, 0, 1, 1]
    """
    _check(alpha, 2)
    better, worse = superiority_evidence(wins, losses)
    named = _first([log_e >= -np.log(alpha) for log_e in (better, worse)])
    return np.asarray(np.select([named == 0, named == 1], [1, -1], 0))


def _open_horizon(evidence: Callable[[int, int], Floats], n_variants: int, alpha: float) -> Decision:
    """Return the decision by anytime evidence; `evidence(a, b)` is that b is better than a."""
    least: list[Floats] = []
    p: list[Floats] = []
    for b in range(n_variants):
        against = [evidence(a, b) for a in range(n_variants) if a != b]
        least.append(np.minimum.reduce(against))
        proven = np.minimum.reduce([np.maximum.accumulate(log_e, axis=-1) for log_e in against])
        p.append(np.minimum(n_variants * np.exp(-np.maximum(proven, 0.0)), 1.0))
    winner = _first([each <= alpha for each in p])
    return Decision(np.stack(least, axis=-1), np.stack(p, axis=-1), winner, winner >= 0)


def _with_maximum(
    found: Decision, z_value: Callable[[int, int], Floats], fractions: Floats, n_looks: int, alpha: float
) -> Decision:
    """Return the decision by bounds at planned looks; `fractions` are units by the maximum, shape (..., n_looks)."""
    n_variants = found.p.shape[-1]
    z = [np.minimum.reduce([z_value(a, b) for a in range(n_variants) if a != b]) for b in range(n_variants)]
    bound, ended = np.full(fractions.shape, np.inf), np.zeros(fractions.shape, bool)
    for place in np.ndindex(fractions.shape[:-1]):
        looks, at = _planned_looks(fractions[place], n_looks)
        if looks:
            bound[(*place, looks)] = obrien_fleming_bounds(at, 2 * alpha / n_variants)
            ended[(*place, slice(looks[-1], None))] = at[-1] >= 1
    winner = _first([each >= bound for each in z])
    return Decision(found.log_e, found.p, winner, ended | (winner >= 0), np.stack(z, axis=-1), bound)


def _planned_looks(fractions: Floats, n_looks: int) -> tuple[list[int], list[float]]:
    """Return which looks are the planned ones, and their fractions: the first past each step, none too close.

    The last may be a little early, or late as far as looks go; it spends all of alpha.
    """
    slack = 0.25 / n_looks
    looks: list[int] = []
    at: list[float] = []
    step = 1
    while step <= n_looks and (not at or at[-1] < 1):
        look = int(np.searchsorted(fractions, step / n_looks - 1e-12))
        if look == len(fractions):
            break
        fraction = float(fractions[look])
        looks.append(look)
        at.append(max(fraction, 1.0) if fraction > 1 - slack else fraction)
        step = int(np.floor((fraction + slack) * n_looks)) + 1
    return looks, at


def _first(reached: list[NDArray[np.bool_]]) -> Ints:
    """Return the number of the one that first reached its bound, from that look on; -1 before.

    Should two reach theirs at the same look, which takes evidence in both directions, it is the lower number.
    """
    any_reached = np.logical_or.accumulate(np.logical_or.reduce(reached), axis=-1)
    look = any_reached.argmax(axis=-1)[..., None]
    first = np.argmax([np.take_along_axis(each, look, axis=-1) for each in reached], axis=0)
    return np.where(any_reached, first, -1)


def _check(alpha: float, n_variants: int) -> None:
    if not 0 < alpha < 1 or n_variants < 2:
        raise ValueError(f"expected alpha in (0, 1) and two variants or more, found {alpha} and {n_variants}")
