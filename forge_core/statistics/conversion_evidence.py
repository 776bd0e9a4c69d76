"""Exact evidence from conversions alone: on which variants do they fall.

Users are assigned by chance, so where no variant converts better each conversion falls on a variant with the chance of
its share, however rare conversions are, however much rates move from day to day, and however late they come. That
makes the likelihood ratio against any other shares a martingale of mean 1, and a mixture of them an e-process: it may
be looked at after every conversion (Lindon and Malek, NeurIPS 2022). Nothing here is asymptotic.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

Floats = NDArray[np.float64]

# Without a declared effect: that of a fifth more conversions, between two halves.
CONCENTRATION = 240.0


def conversion_evidence(counts: ArrayLike, shares: ArrayLike, *, concentration: float = CONCENTRATION) -> Floats:
    """Return the log evidence, after each look, that conversions do not fall on the variants in their shares.

    Parameters
    ----------
    counts : array_like of shape (..., n_looks, n_variants)
        Conversions until each look. Of one user only the first counts, or they are not independent.
    shares : array_like of shape (n_variants,)
        Chance of a user to get each variant; above 0, 1 together.
    concentration : float
        Of the Dirichlet prior over where conversions fall, with the shares as its mean: the sum of its parameters,
        best from `concentration_for`.

    Returns
    -------
    ndarray of shape (..., n_looks)
        Natural logarithms of an e-process; anytime p is min(1, exp(-largest so far)).

    Raises
    ------
    ValueError
        When counts are negative, shares do not add up or the shapes do not fit.

    Examples
    --------
    >>> conversion_evidence([[10, 12], [300, 420]], [0.5, 0.5]).round(2).tolist()
    [-0.04, 6.83]
    """
    k, rho = checked_counts(counts, shares)
    prior = concentration * rho
    if not concentration > 0:
        raise ValueError(f"expected a concentration above 0, found {concentration}")
    # A variant's term is the integral of its share's likelihood, all of them against the shares themselves.
    terms = special.gammaln(k + prior) - special.gammaln(prior) - k * np.log(rho)
    total = special.gammaln(concentration) - special.gammaln(k.sum(axis=-1) + concentration)
    return np.asarray(terms.sum(axis=-1) + total)


def concentration_for(baseline: float, min_effect: float) -> float:
    """Return the concentration whose prior has the smallest effect worth finding at one standard deviation.

    Between two halves a rise from p to p + d moves a conversion's chance of falling on the better one by
    d / (2 (2 p + d)).

    Raises
    ------
    ValueError
        When a rate is out of (0, 1), or the effect is 0.

    Examples
    --------
    >>> concentration_for(0.10, 0.02)
    120.0
    """
    other = baseline + min_effect
    if not (0 < baseline < 1 and 0 < other < 1) or min_effect == 0:
        raise ValueError(f"expected rates in (0, 1) that differ, found {baseline:g} and {other:g}")
    moved = abs(min_effect) / (2 * (baseline + other))
    return round(max(1 / (4 * moved**2) - 1, 2.0), 6)


def lift_interval(
    n_control: int, n_other: int, share_other: float, *, alpha: float = 0.05, concentration: float = CONCENTRATION
) -> tuple[float, float]:
    """Return an exact interval of the ratio of two conversion rates that holds at every look together.

    All ratios against which the conversions are not evidence of 1/alpha: with a ratio of r, a conversion falls on the
    other variant with chance s r / (s r + 1 - s).

    Parameters
    ----------
    n_control, n_other : int
        Conversions of the control and of the other variant.
    share_other : float in (0, 1)
        Of the other variant among users of the two.
    alpha : float in (0, 1)
        Chance that the interval ever misses a ratio that stays the same.
    concentration : float
        As in `conversion_evidence`.

    Returns
    -------
    low, high : float
        0 and inf while there is nothing to go by.

    Examples
    --------
    >>> [round(end, 3) for end in lift_interval(1000, 1250, 0.5)]
    [1.086, 1.44]
    """
    shares = np.array([1 - share_other, share_other])
    k, rho = checked_counts([[n_control, n_other]], shares)
    if not 0 < alpha < 1:
        raise ValueError(f"expected alpha in (0, 1), found {alpha}")
    total = float(k.sum())
    evidence = float(conversion_evidence(k, rho, concentration=concentration)[0]) + float((k[0] * np.log(rho)).sum())
    if not total:
        return 0.0, np.inf

    def surplus(log_odds: float) -> float:
        """Return how far the evidence against these odds of falling on the other variant is above the bound."""
        log_likelihood = n_other * -np.logaddexp(0, -log_odds) + n_control * -np.logaddexp(0, log_odds)
        return evidence - log_likelihood + np.log(alpha)

    # The likelihood has one peak; where the prior pulls away from it even there the evidence may be too large.
    best = float(np.clip(special.logit(np.clip(n_other / total, 1e-9, 1 - 1e-9)), -20, 20))
    ends = []
    for far in (-60.0, 60.0):
        if surplus(best) >= 0:
            ends.append(best)
        else:
            ends.append(optimize.brentq(surplus, far, best) if surplus(far) > 0 else far * np.inf)
    low, high = sorted(ends)
    scale = share_other / (1 - share_other)
    return float(np.exp(low)) / scale, float(np.exp(high)) / scale


def checked_counts(counts: ArrayLike, shares: ArrayLike) -> tuple[Floats, Floats]:
    """Return counts by look and variant, and shares, as arrays.

    Raises
    ------
    ValueError
        When counts are negative or not finite, shares do not add up, or the shapes do not fit.
    """
    k, rho = np.asarray(counts, float), np.asarray(shares, float)
    if rho.ndim != 1 or rho.size < 2 or not (rho > 0).all() or abs(rho.sum() - 1) > 1e-9:
        raise ValueError(f"expected shares above 0 of two or more variants that are 1 together, found {rho.tolist()}")
    if k.ndim < 2 or k.shape[-1] != rho.size:
        raise ValueError(f"expected counts by look and {rho.size} variants, found shape {k.shape}")
    if k.size and not (np.isfinite(k).all() and k.min() >= 0):
        raise ValueError("expected counts of at least 0, found some that are negative or no number")
    return k, rho / rho.sum()
