"""How many units a comparison needs, and for how long it has to run."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats


def sample_size_per_variant(
    baseline: float, min_effect: float, *, alpha: float = 0.05, power: float = 0.8, n_variants: int = 2
) -> int:
    """Return how many units each variant needs in a fixed-horizon test of two conversion rates.

    Parameters
    ----------
    baseline : float in (0, 1)
        Conversion rate of the control.
    min_effect : float
        Smallest difference of rates worth finding, absolute: 0.02 for 10 % against 12 %. Negative for a fall.
    alpha : float in (0, 1)
        Chance of naming a winner that is none, over all variants together; two-sided for two variants.
    power : float in (0, 1)
        Chance of finding an effect of that size.
    n_variants : int
        Variants, the control among them; the others are compared at alpha * 2 / n_variants.

    Raises
    ------
    ValueError
        When a rate falls out of (0, 1), or a chance does.

    Examples
    --------
    >>> sample_size_per_variant(0.10, 0.02)
    3839
    """
    other = baseline + min_effect
    if not (0 < baseline < 1 and 0 < other < 1) or min_effect == 0:
        raise ValueError(f"expected rates in (0, 1) that differ, found {baseline:g} and {other:g}")
    variance = baseline * (1 - baseline) + other * (1 - other)
    return _units(variance, min_effect, alpha, power, n_variants)


def sample_size_for_means(
    spread: float, min_effect: float, *, alpha: float = 0.05, power: float = 0.8, n_variants: int = 2
) -> int:
    """Return how many units each variant needs in a fixed-horizon test of two means.

    Parameters
    ----------
    spread : float
        Standard deviation of the metric over units.
    min_effect : float
        Smallest difference worth finding, in the metric's unit.
    alpha, power, n_variants
        As in `sample_size_per_variant`.

    Raises
    ------
    ValueError
        When the spread is not above 0, the effect is 0 or a chance is out of range.

    Examples
    --------
    >>> sample_size_for_means(1.0, 0.1)
    1570
    """
    if not 0 < spread < math.inf or min_effect == 0 or not math.isfinite(min_effect):
        raise ValueError(f"expected a spread above 0 and an effect other than 0, found {spread} and {min_effect}")
    return _units(2 * spread**2, min_effect, alpha, power, n_variants)


def duration_days(n_per_variant: int, daily_units: float, shares: Sequence[float]) -> float:
    """Return the days until every variant has its units; the smallest share decides.

    Parameters
    ----------
    n_per_variant : int
    daily_units : float
        New units a day that enter the experiment, all variants together.
    shares : sequence of float
        Of the variants, above 0.

    Raises
    ------
    ValueError
        When nobody comes, or a share is 0.

    Examples
    --------
    >>> duration_days(3839, 2000, [0.8, 0.2])
    9.5975
    """
    if daily_units <= 0 or not len(shares) or min(shares) <= 0:
        raise ValueError(f"expected units a day and shares above 0, found {daily_units} and {list(shares)}")
    return n_per_variant / (daily_units * float(np.min(shares)))


def _units(variance: float, effect: float, alpha: float, power: float, n_variants: int) -> int:
    if not (0 < alpha < 1 and 0 < power < 1) or n_variants < 2:
        raise ValueError(f"expected alpha and power in (0, 1) and 2 variants, found {alpha}, {power}, {n_variants}")
    quantiles = stats.norm.isf(alpha / n_variants) + stats.norm.ppf(power)
    return max(math.ceil(quantiles**2 * variance / effect**2), 2)
