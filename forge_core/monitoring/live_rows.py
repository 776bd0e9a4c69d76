"""What a version answered in a stretch of time, and the labels that have come for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pandas as pd

from forge_core.ledger import Ledger
from forge_core.monitoring.performance import join_feedback
from forge_core.monitoring.prediction_log import REQUIRED, PredictionLog
from forge_core.monitoring.windows import ReferenceProfile
from forge_core.statistics.cells import CategoryCells
from forge_core.statistics.expectation import Expectation
from forge_core.statistics.quality import Task
from forge_core.storage import Storage


@dataclass(frozen=True)
class Known:
    """What a version brings along for its checks: reference, expectation, held-out figures, task and classes."""

    version: str
    reference: ReferenceProfile
    expectation: Expectation
    quality: Mapping[str, float]
    task: Task
    classes: tuple[Any, ...] = ()

    @property
    def categories(self) -> list[str]:
        """Return the features that have levels."""
        return [name for name, cells in self.reference.grid.features.items() if isinstance(cells, CategoryCells)]


@dataclass(frozen=True, eq=False)
class LiveRows:
    """Served rows in order of event time, and those with a label.

    With many classes `prediction` and `label` are numbers of classes. Labels of requests that no log part has are
    pending until the watermark, since the log is written later than labels may come, and orphans from then on.
    """

    served: pd.DataFrame
    labelled: pd.DataFrame
    n_pending: int = 0
    n_orphans: int = 0


def read_live_rows(
    storage: Storage,
    ledger: Ledger,
    model: str,
    known: Known,
    *,
    since: datetime,
    until: datetime,
    watermark: timedelta = timedelta(days=1),
) -> LiveRows:
    """Return what a version answered in [since, until), with the labels known at `until`.

    Labels whose request lies as far before `since` again are taken for matched elsewhere, not for orphans.
    """
    log = PredictionLog(storage, model)
    columns = [*REQUIRED, *(name for name in known.categories if name not in REQUIRED)]
    served = log.read(since=since, until=until, version=known.version, columns=columns)
    feedback = [f for f in ledger.feedback(model, since=since) if f.event_time <= until]
    labelled = join_feedback(served, feedback)
    if known.task == "multiclass":
        labelled = labelled.assign(
            prediction=class_numbers(labelled["prediction"], known.classes),
            label=class_numbers(labelled["label"], known.classes),
        )
    logged = log.read(since=since - (until - since), until=until, columns=["request_id"])
    ids = set(logged["request_id"])
    lost = [f for f in feedback if f.request_id not in ids]
    n_pending = sum(f.event_time > until - watermark for f in lost)
    return LiveRows(served, labelled, n_pending, len(lost) - n_pending)


def class_numbers(values: pd.Series, classes: Sequence[Any]) -> pd.Series:
    """Return the numbers of classes; labels of classes that are no numbers are such numbers already."""
    if pd.api.types.is_numeric_dtype(values.dtype) and any(isinstance(c, str) for c in classes):
        return values.astype(float)
    places = {str(name): float(number) for number, name in enumerate(classes)}
    as_text = values.map(
        lambda value: str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    )
    return as_text.map(places).astype(float)
