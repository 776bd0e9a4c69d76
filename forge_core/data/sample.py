"""A generated table to try everything on: two features, a target that can be learnt, dials for drift and label delay.

python -m forge_core.data.sample --rows 5000 --drift 1.0 --out shifted.parquet
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa

from forge_core.data.contracts import Contract
from forge_core.errors import ConfigurationError

CATEGORIES = ["category1", "category2", "category3", "category4"]
_SHARES = np.array([0.4, 0.3, 0.2, 0.1])
_EFFECTS = np.array([-1.0, -0.2, 0.6, 1.4])
_START = datetime(2024, 1, 1, tzinfo=UTC)


def generate_sample_data(
    n_rows: int = 10_000,
    *,
    random_state: int = 0,
    drift: float = 0.0,
    label_delay_hours: float = 0.0,
    start: datetime = _START,
    rows_per_hour: float = 60,
) -> pd.DataFrame:
    """Return rows in which `target` depends on both features (a good model has an AUC of about 0.8).

    Parameters
    ----------
    n_rows : int
        Rows, evenly spaced in time.
    random_state : int
        The same seed and arguments give the same rows.
    drift : float
        Shift of `feature1`'s mean in standard deviations; category mass moves from category1 towards
        category4 with it. What the features mean for the target stays the same.
    label_delay_hours : float
        Hours between a row's event and the moment its label is known.
    start : datetime
        Event time of the first row, UTC.
    rows_per_hour : float
        Density of the rows in time.

    Returns
    -------
    DataFrame, shape (n_rows, 6)
        `sample_id`, `event_time`, `known_at` (UTC), `feature1` (float), `feature2` (category1 … category4),
        `target` (0 or 1).

    Examples
    --------
    >>> generate_sample_data(3)["feature2"].tolist()
    ['category1', 'category3', 'category4']
    """
    if n_rows < 1 or rows_per_hour <= 0 or label_delay_hours < 0:
        raise ConfigurationError(
            "expected n_rows >= 1, rows_per_hour > 0 and label_delay_hours >= 0, "
            f"found {n_rows}, {rows_per_hour} and {label_delay_hours}"
        )
    random = np.random.default_rng(random_state)
    number = random.standard_normal(n_rows) + drift
    shares = _SHARES * np.exp(0.8 * drift * np.linspace(-0.5, 0.5, len(CATEGORIES)))
    codes = np.searchsorted(np.cumsum(shares / shares.sum())[:-1], random.random(n_rows), side="right")
    logit = 1.2 * number + _EFFECTS[codes]
    target = random.random(n_rows) < 1 / (1 + np.exp(-logit))
    seconds = np.round(np.arange(n_rows) * (3600 / rows_per_hour)).astype("int64")
    times = pd.Series(pd.Timestamp(start).tz_convert("UTC") + pd.to_timedelta(seconds, unit="s"))
    times = times.astype("datetime64[us, UTC]")
    return pd.DataFrame(
        {
            "sample_id": pd.Series([f"{start:%Y%m%d}-{random_state}-{i:06d}" for i in range(n_rows)], dtype="str"),
            "event_time": times,
            "known_at": times + pd.Timedelta(seconds=round(label_delay_hours * 3600)),
            "feature1": number,
            "feature2": pd.Series(np.array(CATEGORIES, dtype=object)[codes], dtype="str"),
            "target": target.astype("int64"),
        }
    )


def sample_contract() -> Contract:
    """Return the contract of the generated rows; categories stay open."""
    schema = pa.DataFrameSchema(
        {
            "sample_id": pa.Column("str", unique=True),
            "event_time": pa.Column("datetime64[us, UTC]"),
            "known_at": pa.Column("datetime64[us, UTC]"),
            "feature1": pa.Column("float64", [pa.Check.ge(-100), pa.Check.le(100)]),
            "feature2": pa.Column("str"),
            "target": pa.Column("int64", pa.Check.isin([0, 1])),
        },
        name="sample",
    )
    return Contract(schema, target="target", key="sample_id", time="event_time", label_time="known_at")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write generated rows to a file and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m forge_core.data.sample", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000, help="number of rows")
    parser.add_argument("--drift", type=float, default=0.0, help="shift of feature1 in standard deviations")
    parser.add_argument("--label-delay", type=float, default=0.0, help="hours until a label is known")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--out", required=True, help="path or URL (s3://…) that ends in .csv or .parquet")
    chosen = parser.parse_args(arguments)
    if not chosen.out.endswith((".csv", ".parquet")):
        parser.error(f"--out ends in .csv or .parquet, found {chosen.out}")
    try:
        rows = generate_sample_data(
            chosen.rows, random_state=chosen.seed, drift=chosen.drift, label_delay_hours=chosen.label_delay
        )
    except ConfigurationError as error:
        parser.error(str(error))
    if "://" not in chosen.out:
        Path(chosen.out).parent.mkdir(parents=True, exist_ok=True)
    if chosen.out.endswith(".csv"):
        rows.to_csv(chosen.out, index=False)
    else:
        rows.to_parquet(chosen.out, index=False)
    sys.stdout.write(f"{len(rows)} rows in {chosen.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
