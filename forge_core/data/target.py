"""Whether something can be learnt from a target column."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from forge_core.errors import UnusableTarget


@dataclass
class TargetTally:
    """What the target's cells were, over all batches, as far as it takes to see that they differ."""

    target: str
    counts: Counter[Any] = field(default_factory=Counter)
    missing: int = 0

    def add(self, batch: pd.DataFrame) -> None:
        """Look at a batch; one without the column says nothing."""
        if self.target in batch and len(self.counts) < 2:
            self.missing += int(batch[self.target].isna().sum())
            for value, count in batch[self.target].value_counts().head(2).items():
                self.counts[value] += int(count)

    def check_column(self, columns: Iterable[object], source: str) -> None:
        """Pass columns among which the target is, or raise UnusableTarget."""
        if self.target not in columns:
            raise UnusableTarget(
                f"expected the target column {self.target!r} in {source}, found {', '.join(map(str, columns))}",
                context={"target": self.target},
            )

    def check_values(self, source: str) -> None:
        """Pass cells that something can be learnt from.

        Raises
        ------
        UnusableTarget
            There are no values, or one value only.
        """
        if not self.counts:
            raise UnusableTarget(
                f"expected values in the target {self.target!r} of {source}, "
                f"found {self.missing:,} missing and none present",
                context={"target": self.target, "missing": self.missing},
            )
        if len(self.counts) == 1:
            ((value, count),) = self.counts.items()
            raise UnusableTarget(
                f"expected at least two values in the target {self.target!r} of {source}, found only "
                f"{str(value)!r} ({count:,} rows, {self.missing:,} missing); add rows of the other class",
                context={"target": self.target, "counts": {str(value): count}},
            )


def check_target(frame: pd.DataFrame, target: str, *, source: str = "the data") -> None:
    """Pass a target that something can be learnt from.

    Raises
    ------
    UnusableTarget
        The column is missing, has no values, or has one value only.
    """
    tally = TargetTally(target)
    tally.check_column(frame.columns, source)
    tally.add(frame)
    tally.check_values(source)
