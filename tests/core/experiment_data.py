"""Users, conversions and definitions of made-up experiments."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from forge_core.experiments.definition import Definition, define

START = pd.Timestamp("2024-03-01", tz="UTC")


def definition(names: tuple[str, ...] = ("old", "new"), **fields: Any) -> Definition:
    """Return a definition over registered versions, with equal shares unless said otherwise."""
    variants = {name: {"model": "flights", "version": str(number)} for number, name in enumerate(names, 1)}
    shares = {name: 1 / len(names) for name in names}
    return define({"id": "checkout", "variants": variants, "traffic_allocation": shares, **fields})


def times(seconds: Any) -> pd.Series:
    """Return moments after the start."""
    return pd.Series(START + pd.to_timedelta(np.asarray(seconds, float), unit="s")).astype("datetime64[us, UTC]")


def exposures(variants: Any, seconds: Any | None = None) -> pd.DataFrame:
    """Return one user a variant named, a second apart."""
    names = np.asarray(variants, dtype=object)
    moments = np.arange(len(names)) if seconds is None else seconds
    units = [f"{number:016x}" for number in range(len(names))]
    return pd.DataFrame(
        {"unit": pd.Series(units, dtype="str"), "variant": pd.Series(names, dtype="str"), "at": times(moments)}
    ).assign(propensity=0.5)


def outcomes(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return outcomes; a row has `unit` and `seconds`, and may have more."""
    usual = {"metric": "conversion", "key": "", "variant": "", "value": 1.0, "repeats": 0}
    frame = pd.DataFrame([{**usual, **row} for row in rows], columns=["unit", "seconds", *usual])
    frame["at"] = times(frame.pop("seconds"))
    return frame.assign(id=range(len(frame)))


def conversions(met: pd.DataFrame, rates: Mapping[str, float], rng: np.random.Generator) -> pd.DataFrame:
    """Return who converts, half a second after the meeting."""
    happens = rng.random(len(met)) < met["variant"].map(rates).to_numpy(float)
    there = met[happens].reset_index(drop=True)
    return pd.DataFrame(
        {
            "id": range(len(there)), "metric": "conversion", "unit": there["unit"], "key": "", "value": 1.0,
            "variant": there["variant"], "at": there["at"] + pd.Timedelta("500ms"), "repeats": 0,
        }
    )  # fmt: skip


def trial(
    rates: Mapping[str, float], n_users: int, seed: int, shares: Mapping[str, float] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return exposures and outcomes of users who come at random."""
    rng = np.random.default_rng(seed)
    chances = [(shares or dict.fromkeys(rates, 1 / len(rates)))[name] for name in rates]
    met = exposures(rng.choice(list(rates), n_users, p=chances))
    return met, conversions(met, rates, rng)
