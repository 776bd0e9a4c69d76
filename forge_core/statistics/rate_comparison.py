"""Exact evidence that one variant converts better than another, from who converted and who did not.

Users are assigned by chance. Where two variants convert alike, a user's variant says nothing about his outcome: given
that he converted, or that he did not, he is of the second variant with the chance of its share. An alternative (two
rates) gives other chances, for converted users and for the rest; the product of the ratios over all users is a
martingale of mean 1 as long as the second is no better, and so is a mixture over alternatives fixed beforehand. It
depends on the counts so far and on nothing else, may be looked at after every user, and holds exactly: no normal
approximation, no rate that has to be known or to stay the same. What is declared (baseline, effect) only decides how
soon a true difference is found.

One condition: a user's outcome has to be final when he is counted. He is counted when he converts, or when he can no
longer convert. Where nobody knows that, leave the others out: conversions alone are evidence too, exactly, at the cost
of about 1/(1 - rate) times the users (`visitors` None).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from forge_core.statistics.conversion_evidence import checked_counts

Floats = NDArray[np.float64]

# Alternatives: these multiples of the declared effect (as log odds ratio), weighted by a lognormal of spread 0.6
# around it. Effects between half and twice the declared one are found about as soon as by a test made for them.
_MULTIPLES = 2.0 ** np.arange(-3, 2.5, 0.5)
_WEIGHTS = np.exp(-(np.log(_MULTIPLES) ** 2) / (2 * 0.6**2))

# Without a declaration: one in ten against a fifth more.
BASELINE, MIN_EFFECT = 0.10, 0.02


def higher_rate_evidence(
    conversions: ArrayLike,
    visitors: ArrayLike | None,
    shares: ArrayLike,
    *,
    baseline: float = BASELINE,
    min_effect: float = MIN_EFFECT,
) -> Floats:
    """Return the log evidence, after each look, that the second of two variants converts better than the first.

    Parameters
    ----------
    conversions : array_like of shape (..., n_looks, 2)
        Users who converted, until each look.
    visitors : array_like of shape (..., n_looks, 2) or None
        Users whose outcome is final, the converted among them; None: decide by conversions alone.
    shares : array_like of shape (2,)
        Chances of a user of these two to get each; above 0, 1 together.
    baseline : float in (0, 1)
        Declared conversion rate.
    min_effect : float
        Declared smallest difference worth finding, absolute; its sign does not matter.

    Returns
    -------
    ndarray of shape (..., n_looks)
        Natural logarithms of an e-process under "the second is no better".

    Raises
    ------
    ValueError
        When there are more conversions than visitors, counts are negative, shares do not add up, or declared rates
        are out of (0, 1).

    Examples
    --------
    >>> higher_rate_evidence([[300, 420]], [[3000, 3000]], [0.5, 0.5]).round(2).tolist()
    [9.95]
    >>> higher_rate_evidence([[300, 420]], None, [0.5, 0.5]).round(2).tolist()
    [8.72]
    """
    converted, rho = checked_counts(conversions, shares)
    by_converted, by_rest = _log_ratios(rho, baseline, min_effect, rest=visitors is not None)
    log_e = converted @ by_converted
    if visitors is not None:
        rest = checked_counts(visitors, shares)[0] - converted
        if rest.size and rest.min() < 0:
            raise ValueError("expected at least as many visitors as conversions, found a look with fewer")
        log_e += rest @ by_rest
    largest = log_e.max(axis=-1, keepdims=True)
    log_e -= largest
    np.exp(log_e, out=log_e)
    return np.asarray(np.log(log_e @ (_WEIGHTS / _WEIGHTS.sum())) + largest[..., 0])


def _log_ratios(rho: Floats, baseline: float, min_effect: float, *, rest: bool) -> tuple[Floats, Floats]:
    """Return what a user of each variant adds under each alternative, if he converted and if not: (2, n) each."""
    other = baseline + min_effect
    if not (0 < baseline < 1 and 0 < other < 1) or min_effect == 0:
        raise ValueError(f"expected declared rates in (0, 1) that differ, found {baseline:g} and {other:g}")
    middle, effect = special.logit(baseline), abs(special.logit(other) - special.logit(baseline)) * _MULTIPLES
    rates = special.expit(np.stack([middle - effect / 2, middle + effect / 2]))
    if not rest:
        return np.log(rates / (rho @ rates)), np.zeros_like(rates)
    return np.log(rates / (rho @ rates)), np.log((1 - rates) / (1 - rho @ rates))
