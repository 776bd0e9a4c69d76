"""How many users an experiment needs, and for how many days, before it is started."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from forge_core.errors import ConfigurationError
from forge_core.statistics.group_sequential import maximum_inflation
from forge_core.statistics.power import sample_size_for_means, sample_size_per_variant

_LOOKS = 20


@dataclass(frozen=True)
class Plan:
    """What an experiment needs.

    Attributes
    ----------
    per_variant : int
        Users each variant needs in a test that is looked at once, at its end; give it as `planned_units`.
    users : int
        Users over all variants until the smallest has them.
    max_units : int
        The maximum to declare for the same power with looks on the way; usually it ends well before.
    days : float or None
        Until `max_units`, where the users a day are known.
    """

    per_variant: int
    users: int
    max_units: int
    days: float | None
    alpha: float
    power: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def __str__(self) -> str:
        days = "" if self.days is None else f", {self.days:.1f} days"
        return (
            f"{self.per_variant:,} users a variant; declare max_units={self.max_units:,}{days}. It finds an effect of "
            f"this size with a chance of {self.power:.0%}, and one that is not there in at most {self.alpha:.0%}."
        )


def plan_experiment(
    min_effect: float,
    baseline: float | None = None,
    *,
    spread: float | None = None,
    shares: Mapping[str, float] | None = None,
    daily_users: float | None = None,
    alpha: float = 0.05,
    power: float = 0.8,
) -> Plan:
    """Return how many users, and days, it takes to find an effect.

    Parameters
    ----------
    min_effect : float
        Smallest difference that matters, in the metric's own unit: 0.02 for 10 % against 12 %.
    baseline : float, optional
        The control's conversion rate, where the metric is a conversion.
    spread : float, optional
        The metric's standard deviation over users, where it is a mean.
    shares : mapping, optional
        The traffic allocation, the control first; default two halves.
    daily_users : float, optional
        New users a day.

    Raises
    ------
    ConfigurationError
        Where neither or both of `baseline` and `spread` are given, or a number is out of range.

    Examples
    --------
    >>> plan = plan_experiment(0.02, baseline=0.10, daily_users=1000)
    >>> plan.per_variant, plan.max_units, round(plan.days, 1)
    (3839, 8034, 8.0)
    """
    widths = list((shares or {"control": 0.5, "treatment": 0.5}).values())
    if (baseline is None) == (spread is None):
        raise ConfigurationError(
            "expected either `baseline` (a conversion) or `spread` (a mean), found neither or both"
        )
    if len(widths) < 2 or not all(width > 0 for width in widths):
        raise ConfigurationError(f"expected two or more shares above 0, found {dict(shares or {})}")
    if daily_users is not None and not daily_users > 0:
        raise ConfigurationError(f"expected daily_users above 0, found {daily_users:g}")
    told: dict[str, Any] = {"alpha": alpha, "power": power, "n_variants": 2 * (len(widths) - 1)}
    try:
        if baseline is not None:
            per_variant = sample_size_per_variant(baseline, min_effect, **told)
        else:
            assert spread is not None
            per_variant = sample_size_for_means(spread, min_effect, **told)
    except ValueError as error:
        raise ConfigurationError(f"nothing can be planned so: {error}") from error
    users = math.ceil(per_variant / min(widths) * sum(widths) - 1e-9)
    inflation = maximum_inflation(_LOOKS, alpha=alpha / (len(widths) - 1), power=power)
    max_units = math.ceil(users * inflation)
    return Plan(per_variant, users, max_units, None if daily_users is None else max_units / daily_users, alpha, power)
