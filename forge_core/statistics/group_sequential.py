"""A few looks at a comparison whose maximum size was declared beforehand.

Who commits to a maximum may look on the way for nearly nothing: bounds that are strict early and close to the usual
one at the end (O'Brien and Fleming 1979) spend alpha as information comes in (Lan and DeMets 1983), so looks need not
be evenly spaced. The price against evidence for any horizon: nothing may be decided after the maximum.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

Floats = NDArray[np.float64]

# Looks closer than this are finer than the integration below.
_CLOSEST = 0.002
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(240)


def obrien_fleming_bounds(
    information_fractions: Sequence[float] | Floats, alpha: float = 0.05, two_sided: bool = True
) -> Floats:
    """Return the z value that each look has to reach.

    Parameters
    ----------
    information_fractions : sequence of float
        Units at each look by the declared maximum, ascending by at least 0.002; the last one may go beyond 1, and
        has all that is left of alpha.
    alpha : float in (0, 1)
        Chance of reaching a bound at any look without a difference.
    two_sided : bool
        Both signs share alpha; else only large positive z count.

    Raises
    ------
    ValueError
        When fractions do not ascend, more than one is beyond 1, or alpha is out of range.

    Examples
    --------
    >>> obrien_fleming_bounds([0.2, 0.4, 0.6, 0.8, 1.0]).round(3).tolist()
    [4.877, 3.357, 2.68, 2.29, 2.031]
    """
    fractions = tuple(float(f) for f in information_fractions)
    steps = np.diff((0.0, *fractions))
    if not 0 < alpha < 1:
        raise ValueError(f"expected alpha in (0, 1), found {alpha}")
    if not fractions or (steps < _CLOSEST - 1e-12).any() or any(f > 1 for f in fractions[:-1]):
        raise ValueError(f"expected fractions that ascend by at least {_CLOSEST} to 1, found {fractions}")
    return np.array(_bounds(fractions, alpha / 2 if two_sided else alpha, two_sided))


def group_sequential_z(
    n_a: ArrayLike, mean_a: ArrayLike, var_a: ArrayLike, n_b: ArrayLike, mean_b: ArrayLike, var_b: ArrayLike
) -> Floats:
    """Return the z value of the difference of two means; 0 where either side has no units or nothing varies.

    For conversion rates give p (1 - p) of both sides together as both variances.

    >>> float(group_sequential_z(1000, 0.10, 0.0979, 1000, 0.12, 0.0979).round(3))
    1.429
    """
    parts = np.broadcast_arrays(*(np.asarray(m, float) for m in (n_a, mean_a, var_a, n_b, mean_b, var_b)))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (parts[4] - parts[1]) / np.sqrt(parts[2] / parts[0] + parts[5] / parts[3])
    return np.where(np.isfinite(z), z, 0.0)


def maximum_inflation(n_looks: int, *, alpha: float = 0.05, power: float = 0.8, two_sided: bool = True) -> float:
    """Return how much larger than a fixed-horizon test the declared maximum has to be for the same power.

    Parameters
    ----------
    n_looks : int
        Evenly spaced, the last one at the maximum.

    Examples
    --------
    >>> round(maximum_inflation(5), 3)
    1.025
    """
    fractions = tuple((np.arange(n_looks) + 1) / n_looks)
    bounds = obrien_fleming_bounds(fractions, alpha, two_sided)
    fixed = stats.norm.isf(alpha / 2 if two_sided else alpha) + stats.norm.ppf(power)

    def missing(drift: float) -> float:
        return power - _crossed(fractions, tuple(bounds), drift)

    return float(optimize.brentq(missing, fixed * 0.9, fixed * 1.5) / fixed) ** 2


def _spent(fraction: float, alpha: float) -> float:
    """Return the one-sided alpha that O'Brien and Fleming's bounds have spent at a fraction of the information."""
    return 2 * float(stats.norm.sf(stats.norm.isf(alpha / 2) / math.sqrt(fraction)))


@lru_cache(maxsize=256)
def _bounds(fractions: tuple[float, ...], alpha: float, two_sided: bool) -> tuple[float, ...]:
    """Return bounds by the recursion of Armitage, McPherson and Rowe (1969) over the sum at each look."""
    bounds: list[float] = []
    paths = _Paths(0.0)
    before = 0.0
    for fraction in fractions:
        spent = _spent(min(fraction, 1.0), alpha)
        paths.step(fraction)
        bound = paths.bound(max(spent - before, 0.0))
        bounds.append(bound / math.sqrt(fraction))
        before = spent
        paths.keep(bound, two_sided)
    return tuple(bounds)


def _crossed(fractions: tuple[float, ...], bounds: tuple[float, ...], drift: float) -> float:
    """Return the chance that z reaches a bound at any look; the mean of z at the end is `drift`."""
    paths, total = _Paths(drift), 0.0
    for fraction, z in zip(fractions, bounds, strict=True):
        bound = z * math.sqrt(fraction)
        paths.step(fraction)
        total += paths.beyond(bound)
        paths.keep(bound, two_sided=False)
    return total


class _Paths:
    """Where the sums are that have reached no bound so far: nodes with their mass, and the step to the next look."""

    def __init__(self, drift: float) -> None:
        self._drift, self._at = drift, 0.0
        self._nodes, self._mass = np.zeros(1), np.ones(1)
        self._moved = self._scale = 0.0

    def step(self, fraction: float) -> None:
        """Go on to the next look."""
        passed = fraction - self._at
        self._moved, self._scale, self._at = self._drift * passed, math.sqrt(passed), fraction

    def beyond(self, bound: float) -> float:
        """Return the mass above a bound at this look."""
        return float(self._mass @ stats.norm.sf((bound - self._nodes - self._moved) / self._scale))

    def bound(self, wanted: float) -> float:
        """Return the bound that this much mass is above; infinite when nearly nothing is wanted."""
        high = 40.0
        if wanted <= self.beyond(high):
            return math.inf
        return float(optimize.brentq(lambda b: self.beyond(b) - wanted, -high, high, xtol=1e-10))

    def keep(self, bound: float, two_sided: bool) -> None:
        """Drop what is above the bound or, where both signs count, below the mirrored one."""
        centre, reach = self._drift * self._at, 9 * math.sqrt(self._at)
        high = min(bound, centre + reach)
        low = max(-bound, centre - reach) if two_sided else centre - reach
        nodes = low + (high - low) * (_NODES + 1) / 2
        density = stats.norm.pdf((nodes[:, None] - self._nodes - self._moved) / self._scale) @ self._mass
        self._nodes, self._mass = nodes, density / self._scale * _WEIGHTS * (high - low) / 2
