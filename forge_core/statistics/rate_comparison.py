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

Floats = NDArray[np.float64]

# Alternatives: these multiples of the declared effect (as log odds ratio), weighted by a lognormal of spread 0.6
# around it. Effects between half and twice the declared one are found about as soon as by a test made for them.
_MULTIPLES = 2.0 ** np.arange(-3, 2.5, 0.5)
_WEIGHTS = np.exp(-(np.log(_MULTIPLES) ** 2) / (2 * 0.6**2))

_BLOCK = 4096

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
    conversions : array_like of shape (..., n_looks, 2) or (..., n_looks, n_periods, 2)
        Users who converted, until each look. Where shares were changed, apart for each period, by when a user was
        assigned.
    visitors : array_like of the same shape, or None
        Users whose outcome is final, the converted among them; None: decide by conversions alone.
    shares : array_like of shape (2,) or (n_periods, 2)
        Of users, above 0; their ratio counts.
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
        When there are more conversions than visitors, counts are negative, a share is not above 0, shapes do not fit,
        or declared rates are out of (0, 1).

    Examples
    --------
    >>> higher_rate_evidence([[300, 420]], [[3000, 3000]], [0.5, 0.5]).round(2).tolist()
    [9.95]
    >>> higher_rate_evidence([[300, 420]], None, [0.5, 0.5]).round(2).tolist()
    [8.72]
    """
    rho = np.asarray(shares, float)
    converted = _flat(conversions, rho)
    by_converted, by_rest = _log_ratios(rho, baseline, min_effect)
    if visitors is None:
        return _mixed(converted, by_converted)
    rest = _flat(visitors, rho) - converted
    if rest.size and rest.min() < 0:
        raise ValueError("expected at least as many visitors as conversions, found a look with fewer")
    return _mixed(np.concatenate([converted, rest], axis=-1), np.concatenate([by_converted, by_rest]))


def _mixed(counts: Floats, log_ratios: Floats) -> Floats:
    """Return the log of the mean evidence over alternatives, a block of looks at a time that fits the cache."""
    looks = counts.reshape(-1, counts.shape[-1])
    log_e, weights = np.empty(len(looks)), _WEIGHTS / _WEIGHTS.sum()
    for start in range(0, len(looks), _BLOCK):
        block = log_ratios.T @ looks[start : start + _BLOCK].T
        largest = block.max(axis=0)
        block -= largest
        log_e[start : start + _BLOCK] = np.log(weights @ np.exp(block, out=block)) + largest
    return log_e.reshape(counts.shape[:-1])


def _log_ratios(rho: Floats, baseline: float, min_effect: float) -> tuple[Floats, Floats]:
    """Return what a user of each period and variant adds under each alternative, if he converted and if not."""
    other = baseline + min_effect
    if not (0 < baseline < 1 and 0 < other < 1) or min_effect == 0:
        raise ValueError(f"expected declared rates in (0, 1) that differ, found {baseline:g} and {other:g}")
    middle, effect = special.logit(baseline), abs(special.logit(other) - special.logit(baseline)) * _MULTIPLES
    rates = special.expit(np.stack([middle - effect / 2, middle + effect / 2]))
    mean = np.atleast_2d(rho / rho.sum(axis=-1, keepdims=True)) @ rates
    width = 2 * len(mean)
    by_converted = np.log(rates / mean[:, None, :]).reshape(width, -1)
    by_rest = np.log((1 - rates) / (1 - mean[:, None, :])).reshape(width, -1)
    return by_converted, by_rest


def _flat(counts: ArrayLike, rho: Floats) -> Floats:
    """Return counts with periods and variants in one last axis."""
    k = np.asarray(counts, float)
    if rho.ndim not in (1, 2) or rho.shape[-1] != 2 or not (rho > 0).all() or not np.isfinite(rho).all():
        raise ValueError(f"expected shares above 0 of two variants, found {rho.tolist()}")
    if k.ndim < 1 + rho.ndim or k.shape[-rho.ndim :] != rho.shape:
        raise ValueError(f"expected counts by look and the shares' shape {rho.shape}, found shape {k.shape}")
    if k.size and not (np.isfinite(k).all() and k.min() >= 0):
        raise ValueError("expected counts of at least 0, found some that are negative or no number")
    return k.reshape(*k.shape[: -rho.ndim], rho.size)
