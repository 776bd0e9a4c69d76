"""Whether users arrive at the variants in the shares that were asked for.

A mismatch of the sample ratio means that something loses, repeats or moves users of one variant, and then no figure of
the experiment can be trusted, however large. Users are counted one by one, so the evidence is an e-process: its mean
is at most 1 at any moment while the shares hold, and the chance that it ever reaches 100 is at most 1 %, however often
one looks (Lindon and Malek, Anytime-valid inference for multinomial count data, NeurIPS 2022).
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forge_core.statistics.conversion_evidence import conversion_evidence

Floats = NDArray[np.float64]

# Natural logarithm of the evidence from which there is an alarm: at most 1 % false ones over all looks together.
MISMATCH = math.log(100)

# Expects halves to be off by about one point in a hundred: 51 for 49 is found as soon as by a test made for it.
CONCENTRATION = 2000.0


def mismatch_evidence(counts: ArrayLike, shares: ArrayLike, *, concentration: float = CONCENTRATION) -> Floats:
    """Return the log evidence, after each look, that users do not arrive in these shares.

    Parameters
    ----------
    counts : array_like of shape (..., n_looks, n_variants)
        Users assigned until each look.
    shares : array_like of shape (n_variants,)
        Above 0, 1 together. Where shares were changed, count each period by itself and add the logarithms.
    concentration : float
        Of the Dirichlet prior over shares around those asked for; smaller finds large mismatches sooner.

    Returns
    -------
    ndarray of shape (..., n_looks)
        Natural logarithms; alarm from `MISMATCH` on, and stay alarmed.

    Raises
    ------
    ValueError
        When counts are negative or shares do not add up.

    Examples
    --------
    >>> mismatch_evidence([[500, 500], [10_000, 10_600]], [0.5, 0.5]).round(1).tolist()
    [-0.2, 6.8]
    """
    return conversion_evidence(counts, shares, concentration=concentration)
