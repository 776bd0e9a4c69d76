"""Intervals of means and their differences that hold at all looks together.

A confidence interval covers the truth at one look; looked at again and again it misses it sooner or later. A
confidence sequence is wider, by a factor that grows like the root of a logarithm, and covers it at every look at once.
These are asymptotic: valid in the limit of many units before the first look, for any distribution with a variance
(Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, Time-uniform central limit theory, arXiv 2103.06476).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]

# Fewer units than this on either side are no basis for a limit theorem.
MIN_UNITS = 100


@dataclass(frozen=True, eq=False)
class IntervalSequence:
    """An estimate with its interval after each look.

    Attributes
    ----------
    low, value, high : ndarray of shape (n_looks,)
        Infinite ends where there is too little to go by.
    p : ndarray of shape (n_looks,)
        Anytime p value of "no difference": the smallest until each look.
    """

    low: Floats
    value: Floats
    high: Floats
    p: Floats


def difference_sequence(
    n_a: ArrayLike,
    mean_a: ArrayLike,
    var_a: ArrayLike,
    n_b: ArrayLike,
    mean_b: ArrayLike,
    var_b: ArrayLike,
    *,
    alpha: float = 0.05,
    n_star: float = 10_000,
) -> IntervalSequence:
    """Return the difference of the means of b and a, with an interval that holds at all looks together.

    Parameters
    ----------
    n_a, mean_a, var_a, n_b, mean_b, var_b : array_like of shape (..., n_looks)
        Units until each look, the mean and the variance of their values.
    alpha : float in (0, 1)
        Chance that the interval ever misses the difference.
    n_star : float
        Units, both sides together, at which the interval is tightest; best those of the fixed-horizon test.

    Raises
    ------
    ValueError
        When alpha is out of range, counts or variances are negative, or n_star is not above 0.

    Examples
    --------
    >>> a, b = ([500, 4000], [0.10, 0.10], [0.09, 0.09]), ([500, 4000], [0.12, 0.13], [0.1056, 0.1131])
    >>> found = difference_sequence(*a, *b)
    >>> found.low.round(3).tolist(), found.high.round(3).tolist(), found.p.round(4).tolist()
    ([-0.056, 0.008], [0.096, 0.052], [1.0, 0.0013])
    """
    _check_alpha(alpha)
    n, value, error = _difference(n_a, mean_a, var_a, n_b, mean_b, var_b)
    scaled = n * _tuning(alpha, n_star)
    with np.errstate(divide="ignore", invalid="ignore"):
        width = error * np.sqrt(2 * (scaled + 1) / scaled * (0.5 * np.log1p(scaled) - math.log(alpha)))
    width = np.where(error > 0, width, np.inf)
    log_e = _two_sided(scaled, value, error)
    p = np.exp(-np.maximum.accumulate(np.maximum(log_e, 0.0), axis=-1))
    return IntervalSequence(value - width, value, value + width, p)


def higher_mean_evidence(
    n_a: ArrayLike,
    mean_a: ArrayLike,
    var_a: ArrayLike,
    n_b: ArrayLike,
    mean_b: ArrayLike,
    var_b: ArrayLike,
    *,
    alpha: float = 0.05,
    n_star: float = 10_000,
) -> Floats:
    """Return the log evidence, after each look, that the mean of b is higher than that of a.

    The one-sided half of what `difference_sequence` is made of, and asymptotic like it; parameters as there.

    Returns
    -------
    ndarray of shape (..., n_looks)

    Examples
    --------
    >>> higher_mean_evidence([4000], [0.10], [0.09], [4000], [0.13], [0.1131]).round(2).tolist()
    [7.35]
    """
    _check_alpha(alpha)
    n, value, error = _difference(n_a, mean_a, var_a, n_b, mean_b, var_b)
    scaled = n * _tuning(alpha, n_star)
    z = np.divide(value, error, out=np.zeros_like(value), where=error > 0)
    half = math.log(2) + special.log_ndtr(z * np.sqrt(scaled / (scaled + 1)))
    return np.where(error > 0, _two_sided(scaled, value, error) + half, 0.0)


def ratio_moments(
    mean_y: ArrayLike, mean_x: ArrayLike, var_y: ArrayLike, var_x: ArrayLike, cov: ArrayLike
) -> tuple[Floats, Floats]:
    """Return a ratio of two means over units, and the variance that stands for a unit's (the delta method).

    A metric per something that differs from user to user, such as clicks per page: y and x are a user's sums, the
    user is what was assigned. Give both results to `difference_sequence` as a mean and its variance.

    Parameters
    ----------
    mean_y, mean_x, var_y, var_x, cov : array_like
        Means, variances and covariance of numerator and denominator over units.

    Returns
    -------
    value, variance : ndarray
        NaN and 0 where the denominator is 0.

    Examples
    --------
    >>> value, variance = ratio_moments(0.6, 3.0, 0.5, 4.0, 0.9)
    >>> round(float(value), 4), round(float(variance), 4)
    (0.2, 0.0333)
    """
    y, x = np.asarray(mean_y, float), np.asarray(mean_x, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(x == 0, np.nan, y / x)
        variance = (np.asarray(var_y) - 2 * ratio * np.asarray(cov) + ratio**2 * np.asarray(var_x)) / x**2
    return ratio, np.where(x == 0, 0.0, np.maximum(variance, 0.0))


def combined_periods(
    n_a: ArrayLike, mean_a: ArrayLike, var_a: ArrayLike, n_b: ArrayLike, mean_b: ArrayLike, var_b: ArrayLike
) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats]:
    """Return units, means and variances of two variants over periods between which their shares were changed.

    Units of different periods are not alike, and where shares differ a variant has more of its units from one period
    than from another: means over all units would compare Mondays with Sundays. Differences are taken within periods
    and averaged with weights n_a n_b / (n_a + n_b); what is returned has that difference and its standard error.

    Parameters
    ----------
    n_a, mean_a, var_a, n_b, mean_b, var_b : array_like of shape (..., n_periods)
        As for `difference_sequence`, by period; NaN where a period has no units.

    Returns
    -------
    n_a, mean_a, var_a, n_b, mean_b, var_b : ndarray of shape (...)

    Examples
    --------
    A tenth converts in the first period, a half in the second, of either variant:

    >>> found = combined_periods([900, 500], [0.1, 0.5], [0.09, 0.25], [100, 500], [0.1, 0.5], [0.09, 0.25])
    >>> [round(float(part), 4) for part in found]
    [1400.0, 0.3941, 0.3883, 600.0, 0.3941, 0.2]
    """
    n_a, mean_a, var_a, n_b, mean_b, var_b = (np.asarray(m, float) for m in (n_a, mean_a, var_a, n_b, mean_b, var_b))
    both = (n_a > 0) & (n_b > 0)
    weight = np.divide(n_a * n_b, n_a + n_b, out=np.zeros(both.shape), where=both)
    total = weight.sum(axis=-1)
    weight = np.divide(weight, total[..., None], out=np.zeros(both.shape), where=total[..., None] > 0)
    found: list[Floats] = []
    for n, mean, var in ((n_a, mean_a, var_a), (n_b, mean_b, var_b)):
        units = n.sum(axis=-1)
        value = np.where(both, weight * np.where(both, mean, 0.0), 0.0).sum(axis=-1)
        squared = np.divide(weight**2 * np.where(both, var, 0.0), n, out=np.zeros(both.shape), where=both).sum(axis=-1)
        found += [units, value, squared * units]
    return (found[0], found[1], found[2], found[3], found[4], found[5])


def _difference(*moments: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return units, difference and its standard error; an error of 0 where there is too little to go by."""
    n_a, mean_a, var_a, n_b, mean_b, var_b = np.broadcast_arrays(*(np.asarray(m, float) for m in moments))
    for name, part in (("units", n_a), ("units", n_b), ("variances", var_a), ("variances", var_b)):
        # Variances from sums of squares may come out a rounding error below 0.
        if (part < -1e-9).any():
            raise ValueError(f"expected {name} of at least 0, found {part[part < -1e-9][0]:g}")
    enough = (n_a >= MIN_UNITS) & (n_b >= MIN_UNITS)
    with np.errstate(divide="ignore", invalid="ignore"):
        squared = np.maximum(var_a, 0) / n_a + np.maximum(var_b, 0) / n_b
    value = mean_b - mean_a
    usable = enough & np.isfinite(squared) & np.isfinite(value)
    return n_a + n_b, value, np.sqrt(np.where(usable, squared, 0.0))


def _tuning(alpha: float, n_star: float) -> float:
    """Return the squared scale of the mixture that makes the interval tightest at n_star units."""
    if not n_star > 0:
        raise ValueError(f"expected n_star above 0, found {n_star}")
    twice = -2 * math.log(alpha)
    return (twice + math.log(twice + 1)) / n_star


def _two_sided(scaled: Floats, value: Floats, error: Floats) -> Floats:
    """Return the log of the normal mixture's evidence against a difference of 0."""
    z = np.divide(value, error, out=np.zeros_like(value), where=error > 0)
    log_e = 0.5 * (z**2 * scaled / (scaled + 1) - np.log1p(scaled))
    return np.where(error > 0, log_e, 0.0)


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"expected alpha in (0, 1), found {alpha}")
