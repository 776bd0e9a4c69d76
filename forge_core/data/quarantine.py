"""Rows that were set aside: one line a fault, and the budget for how many are tolerated."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forge_core.errors import TooManyBadRows

QUARANTINE_COLUMNS = ["row_key", "row_number", "column", "check", "value", "reason"]


@dataclass(frozen=True)
class CheckedRows:
    """The rows that hold, and one line for each fault of those that do not.

    `good` keeps the index, order and further columns of the frame that came in. `quarantine` has
    `QUARANTINE_COLUMNS`; a row with two faults has two lines. `n_bad` counts rows.
    """

    good: pd.DataFrame
    quarantine: pd.DataFrame
    n_rows: int
    n_bad: int


def list_faults(rows: pd.DataFrame, name: str, numbers: NDArray[Any], check: str, reason: str) -> pd.DataFrame:
    """Return one line for each row number, without `row_key`: what the cell was, and what was expected."""
    values = [str(v)[:100] for v in rows[name].iloc[numbers]] if len(numbers) else []
    return pd.DataFrame(
        {
            "row_number": np.asarray(numbers, "int64"),
            "column": pd.Series([name] * len(numbers), dtype="str"),
            "check": pd.Series([check] * len(numbers), dtype="str"),
            "value": pd.Series(values, dtype="str"),
            "reason": pd.Series([f"{reason}, found {v}" for v in values], dtype="str"),
        }
    )


def spend_budget(faults: pd.DataFrame, n_bad: int, n_rows: int, max_bad_share: float) -> None:
    """Raise TooManyBadRows, naming the worst checks, where more rows are bad than the budget allows."""
    if n_bad <= max_bad_share * n_rows:
        return
    worst = faults.groupby(["column", "check"]).size().sort_values(ascending=False).head(5)
    told = ", ".join(f"{column} {check}: {count:,}" for (column, check), count in worst.items())
    raise TooManyBadRows(
        f"{n_bad:,} of {n_rows:,} rows ({n_bad / n_rows:.1%}) break the contract, allowed are {max_bad_share:.1%}; "
        f"worst: {told}; repair the source, or raise max_bad_share on purpose",
        context={
            "n_bad": n_bad,
            "n_rows": n_rows,
            "worst": [{"column": c, "check": k, "rows": int(n)} for (c, k), n in worst.items()],
        },
    )
