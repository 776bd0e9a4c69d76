"""Rows that were set aside: one line a fault, and the budget for how many are tolerated."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forge_core.errors import TooManyBadRows

QUARANTINE_COLUMNS = ["row_key", "row_number", "column", "check", "value", "reason"]
# So much of a refused cell is kept.
_SHOWN = 100


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


@dataclass(frozen=True)
class BadRowBudget:
    """How many rows a source may lose before the flow stops.

    Parameters
    ----------
    max_bad_share : float
        Largest share of all rows, in [0, 1], that may be set aside.
    per_check : mapping
        Largest share that one check may set aside: by check (`is_number`), or by column and check
        (`price is_number`), which wins.
    """

    max_bad_share: float
    per_check: Mapping[str, float] = field(default_factory=dict)

    def spend(self, counts: Mapping[tuple[str, str], int], n_bad: int, n_rows: int) -> None:
        """Raise TooManyBadRows, naming the worst checks, where more rows are bad than the budget allows."""
        over = []
        for (column, check), count in counts.items():
            share = self.per_check.get(f"{column} {check}", self.per_check.get(check))
            if share is not None and count > share * n_rows:
                over.append(f"{column} {check}: {count:,} rows, allowed are {share:.1%}")
        if n_bad <= self.max_bad_share * n_rows and not over:
            return
        worst = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]
        told = ", ".join(f"{column} {check}: {count:,}" for (column, check), count in worst)
        allowed = "; ".join(over) or f"allowed are {self.max_bad_share:.1%}"
        raise TooManyBadRows(
            f"{n_bad:,} of {n_rows:,} rows ({n_bad / n_rows:.1%}) break the contract, {allowed}; "
            f"worst: {told}; repair the source, or raise the budget on purpose",
            context={
                "n_bad": n_bad,
                "n_rows": n_rows,
                "worst": [{"column": c, "check": k, "rows": int(n)} for (c, k), n in worst],
            },
        )


def list_faults(rows: pd.DataFrame, name: str, numbers: NDArray[Any], check: str, reason: str) -> pd.DataFrame:
    """Return one line for each row number, without `row_key`: what the cell was, and what was expected."""
    values = [str(v)[:_SHOWN] for v in rows[name].iloc[numbers]] if len(numbers) else []
    return pd.DataFrame(
        {
            "row_number": np.asarray(numbers, "int64"),
            "column": pd.Series([name] * len(numbers), dtype="str"),
            "check": pd.Series([check] * len(numbers), dtype="str"),
            "value": pd.Series(values, dtype="str"),
            "reason": pd.Series([f"{reason}, found {v}" for v in values], dtype="str"),
        }
    )


def no_faults() -> pd.DataFrame:
    """Return a table of faults without lines."""
    return list_faults(pd.DataFrame(), "", np.array([], np.int64), "", "")
