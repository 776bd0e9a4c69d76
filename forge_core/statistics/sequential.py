"""Evidence that may be looked at as often as one likes: e-detectors with a budget over a horizon.

An e-value has mean at most 1 as long as nothing changed, so large ones are evidence of change. The Shiryaev-Roberts
sum M <- (M + 1) e restarts itself at every moment; after t steps without change its mean is at most t, so the chance
that it reaches horizon/alpha within the horizon is at most alpha (Doob), and means of such sums keep that property
whatever depends on what (Shin, Ramdas, Rinaldo, E-detectors, arXiv 2203.03532).
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

# Powers of the p-to-e calibrators and bets of the loss process; means over them need no tuning.
KAPPAS = (0.1, 0.3, 0.5, 0.7)
BETS = (0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What an e-detector saw.

    Attributes
    ----------
    log_e : ndarray of shape (n_steps,)
        Natural logarithm of the Shiryaev-Roberts sum after each step.
    threshold : float
        Logarithm from which it alarms.
    """

    log_e: Floats
    threshold: float

    @property
    def first_alarm(self) -> int | None:
        """Return the number of the first step that alarmed, counted from 0, or None."""
        reached = np.flatnonzero(self.log_e >= self.threshold)
        return int(reached[0]) if reached.size else None

    @property
    def alarm(self) -> bool:
        """Whether any step alarmed."""
        return self.first_alarm is not None


def conformal_p_values(
    scores: ArrayLike, n_calibration: int, *, strata: Sequence[Hashable] | None = None, random_state: int = 0
) -> Floats:
    """Return the rank of each score among all before it, as a p value (Vovk, Gammerman, Shafer 2005, chapter 8).

    Exactly uniform and independent as long as the scores of one stratum are exchangeable, whatever they are made of.

    Parameters
    ----------
    scores : array_like of shape (n_steps, n_features)
        Strangeness, in order of time; larger is stranger.
    n_calibration : int
        Steps at the start that are only compared with.
    strata : sequence of length n_steps, optional
        A step is compared with earlier ones of its own stratum (its weekday, say).
    random_state : int
        Ties are broken at random, the same way each time.

    Returns
    -------
    ndarray of shape (n_steps - n_calibration, n_features)
    """
    s = np.asarray(scores, float)
    named = ["all"] * len(s) if strata is None else [str(kind) for kind in strata]
    kinds = np.unique(named, return_inverse=True)[1]
    ties = np.random.default_rng(random_state).random(s.shape)
    found = np.empty((max(len(s) - n_calibration, 0), s.shape[1]))
    for step in range(n_calibration, len(s)):
        before = s[:step][kinds[:step] == kinds[step]]
        larger, equal = (before > s[step]).sum(axis=0), (before == s[step]).sum(axis=0) + 1
        found[step - n_calibration] = (larger + ties[step] * equal) / (len(before) + 1)
    return found


def rank_evidence(p_values: ArrayLike, *, horizon: int, alpha: float) -> tuple[Evidence, Floats]:
    """Return the evidence of p values over all features, and each feature's own log sum.

    Parameters
    ----------
    p_values : array_like of shape (n_steps, n_features)
    horizon : int
        Steps within which the chance of any false alarm is at most `alpha`.

    Returns
    -------
    Evidence, ndarray of shape (n_steps, n_features)
    """
    p = np.clip(np.asarray(p_values, float), 1e-12, 1.0)
    kappa = np.array(KAPPAS)[:, None]
    sums = np.zeros((len(KAPPAS), p.shape[1]))
    by_feature = np.empty(p.shape)
    for step, row in enumerate(p):
        # A renewal each horizon keeps an endless stream at alpha per horizon.
        sums = np.zeros_like(sums) if step % horizon == 0 else sums
        sums = (sums + 1) * kappa * row ** (kappa - 1)
        by_feature[step] = sums.mean(axis=0)
    together = by_feature.mean(axis=1) if p.shape[1] else np.ones(len(p))
    return Evidence(np.log(together), math.log(horizon / alpha)), np.log(by_feature)


def loss_evidence(losses: ArrayLike, *, baseline: float, horizon: int, alpha: float) -> Evidence:
    """Return the evidence that losses became larger than a baseline.

    Valid for losses whose mean, given all before, is at most the baseline; delay of labels does not matter as long as
    it does not depend on the outcome. A bet of λ pays 1 + λ(x - baseline) (Waudby-Smith, Ramdas 2024).

    Parameters
    ----------
    losses : array_like of shape (n_rows,), in [0, 1]
        In order of prediction.
    baseline : float
        Largest mean loss that is no alarm, in [0, 1): an upper bound of the held-out loss (`upper_mean`).
    horizon : int
        Rows within which the chance of a false alarm is at most `alpha`.

    Raises
    ------
    ValueError
        When a loss or the baseline is out of range.
    """
    x = np.asarray(losses, float)
    if not 0 <= baseline < 1 or (x.size and not (x.min() >= 0 and x.max() <= 1)):
        raise ValueError(f"expected losses in [0, 1] and a baseline in [0, 1), found {baseline} and losses beyond")
    bets = np.array(BETS)[:, None]
    walk = np.cumsum(np.log1p(bets * (x - baseline)), axis=1)
    before = np.c_[np.zeros(len(BETS)), walk[:, :-1]] if x.size else walk
    sums = walk + np.logaddexp.accumulate(-before, axis=1)
    log_e = np.logaddexp.reduce(sums, axis=0) - math.log(len(BETS))
    return Evidence(log_e, math.log(horizon / alpha))


def upper_mean(losses: ArrayLike, confidence: float = 0.95) -> float:
    """Return an upper bound of the mean of losses in [0, 1], by Student's t; at least that of one more full loss."""
    x = np.asarray(losses, float)
    if not x.size:
        raise ValueError("expected held-out losses, found none")
    least = (x.sum() + 1) / (x.size + 1)
    spread = float(x.std(ddof=1)) / math.sqrt(x.size) if x.size > 1 else 0.0
    return float(min(max(x.mean() + stats.t.ppf(confidence, max(x.size - 1, 1)) * spread, least), 1 - 1e-9))
