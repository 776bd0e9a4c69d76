"""Evidence for and against a new version: on the same rows, beside the old one, and against a fixed limit.

All are e-processes from counts, one-sided, as natural logarithms: under the null each has mean at most 1 at any
moment, so the chance that it ever reaches 1/alpha is at most alpha. Counts are cumulative, one entry a look.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]

# A Beta(20, 20) over who wins where two models differ: expects 60 for 40, say, rather than 90 for 10.
_PRIOR = 20.0

# How many times as frequent a harm may be, all equally likely beforehand.
_RISKS = np.array([1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0])


def superiority_evidence(wins: ArrayLike, losses: ArrayLike) -> tuple[Floats, Floats]:
    """Return the log evidence that a model is better, and that it is worse, from rows where only one of two is right.

    Rows on which both are right or both wrong say nothing about which is better and cost nothing. Of the others a
    model that is no better wins at most half. The alternative is a Beta(20, 20) cut to its upper half.

    Parameters
    ----------
    wins, losses : array_like of shape (n_looks,)
        Rows until each look on which the new model is right and the old one wrong, and the other way round.

    Returns
    -------
    better, worse : ndarray of shape (n_looks,)
        Promote from log(1/alpha) of the first on, stop from log(1/alpha) of the second on.

    Raises
    ------
    ValueError
        When a count is negative.

    Examples
    --------
    >>> better, worse = superiority_evidence([6, 60, 110], [4, 40, 70])
    >>> better.round(2).tolist(), worse.round(2).tolist()
    ([0.13, 1.46, 3.51], [-0.33, -1.6, -2.18])
    """
    w, lost = _counts(wins, losses)
    a, b = w + _PRIOR, lost + _PRIOR
    whole = special.betaln(a, b) - special.betaln(_PRIOR, _PRIOR) + (w + lost) * math.log(2)
    with np.errstate(divide="ignore"):
        # The mass of Beta(a, b) above one half is that of Beta(b, a) below it.
        above, below = np.log(2 * special.betainc(b, a, 0.5)), np.log(2 * special.betainc(a, b, 0.5))
    return np.maximum(whole + above, -700.0), np.maximum(whole + below, -700.0)


def rate_evidence(events_new: ArrayLike, n_new: ArrayLike, events_old: ArrayLike, n_old: ArrayLike) -> Floats:
    """Return the log evidence that something bad happens more often with the new version than with the old one.

    From look to look the rows of both are a block of their own. Where the new one is no worse, each event of a block
    falls on it with at most the chance of its share of the block's rows; a bet on a relative risk of r pays
    r^(events of the new one) / (1 + share (r - 1))^(events), of mean at most 1 (drawing without replacement varies
    less than with it: Hoeffding 1963, theorem 4). So shares may change and the rate of both may move from block to
    block; within one, rows are assumed to be alike. A look that has rows of one version only adds nothing, so look at
    intervals that hold rows of both; looks are only appended, never regrouped.

    Parameters
    ----------
    events_new, n_new, events_old, n_old : array_like of shape (n_looks,), or numbers for a single look
        Events and rows until each look, of the new and of the old version.

    Returns
    -------
    ndarray of shape (n_looks,)

    Raises
    ------
    ValueError
        When counts fall from look to look, are negative, or there are more events than rows.

    Examples
    --------
    >>> rate_evidence([2, 8], [200, 400], [0, 1], [3800, 7600]).round(2).tolist()
    [3.49, 17.22]
    """
    k_new, m_new, k_old, m_old = (np.diff(c, prepend=0.0) for c in _counts(events_new, n_new, events_old, n_old))
    if min(part.min(initial=0.0) for part in (k_new, m_new, k_old, m_old)) < 0:
        raise ValueError("expected counts that never fall from look to look, found some that do")
    if (k_new > m_new).any() or (k_old > m_old).any():
        raise ValueError("expected at most as many events as rows, found a look with more")
    rows = m_new + m_old
    share = np.divide(m_new, rows, out=np.zeros_like(rows), where=rows > 0)
    paid = k_new[:, None] * np.log(_RISKS) - (k_new + k_old)[:, None] * np.log1p(share[:, None] * (_RISKS - 1))
    return np.asarray(special.logsumexp(np.cumsum(paid, axis=0), axis=1) - math.log(len(_RISKS)))


def level_evidence(events: ArrayLike, n: ArrayLike, limit: float) -> Floats:
    """Return the log evidence that something bad happens at a rate above a fixed limit.

    A limit of p95 latency is one of these: no more than 5 % of answers may be slower.

    Parameters
    ----------
    events, n : array_like of shape (n_looks,), or numbers for a single look
        Events and rows until each look.
    limit : float in (0, 1)
        Highest rate that is no harm.

    Returns
    -------
    ndarray of shape (n_looks,)

    Raises
    ------
    ValueError
        When the limit is out of (0, 1), counts are negative, or there are more events than rows.

    Examples
    --------
    >>> level_evidence([6, 40], [100, 400], 0.05).round(2).tolist()
    [-0.99, 6.5]
    """
    k, rows = _counts(events, n)
    if not 0 < limit < 1:
        raise ValueError(f"expected a limit in (0, 1), found {limit}")
    if (k > rows).any():
        raise ValueError("expected at most as many events as rows, found a look with more")
    # Multiples of the odds stay below a rate of 1 whatever the limit.
    rates = special.expit(special.logit(limit) + np.log(_RISKS))
    paid = k[:, None] * np.log(rates / limit) + (rows - k)[:, None] * np.log((1 - rates) / (1 - limit))
    return np.asarray(special.logsumexp(paid, axis=1) - math.log(len(_RISKS)))


def _counts(*counts: ArrayLike) -> tuple[Floats, ...]:
    """Return counts as arrays of one shape (n_looks,)."""
    found = tuple(np.atleast_1d(np.asarray(c, float)) for c in counts)
    if len({part.shape for part in found}) > 1:
        raise ValueError(f"expected counts of the same looks, found shapes {[part.shape for part in found]}")
    if any(not np.isfinite(part).all() or part.min(initial=0.0) < 0 for part in found):
        raise ValueError("expected counts of at least 0, found some that are negative or no number")
    return found
