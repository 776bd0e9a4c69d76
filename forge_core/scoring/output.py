"""What a scoring leaves, and how one that was cut short is found again.

{output}/plan.json            what is scored by which version; written first
{output}/parts/*.parquet      a row for each input row, in the input's order
{output}/faults/*.parquet     one line for each fault of the rows that could not be scored
{output}/manifest.json        counts; written last: where it is, the output is whole
"""

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import Any

from forge_core.errors import Conflict, TooManyBadRows
from forge_core.scoring.part_scorer import PartSummary, read_summary
from forge_core.scoring.plan import Plan
from forge_core.storage import Storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scoring:
    """What a scoring did.

    `n_bad` counts rows without a prediction, `faults` them by column and check. `n_resumed` rows were there from an
    earlier attempt; `seconds` is the time that the processes had, on average, between the start of their first part and
    the end of the last one of all, so without their own start; `peak_bytes` is the most memory that one of them had.
    Both are 0 where nothing was left to do.
    """

    id: str
    output: str
    model: str
    version: str
    source: str
    serves: str
    n_rows: int
    n_bad: int
    n_parts: int
    faults: list[dict[str, Any]]
    n_resumed: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def rows_per_second(self) -> float:
        """Rows that this attempt scored, by its seconds."""
        return (self.n_rows - self.n_resumed) / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def claim(target: Storage, job: dict[str, Any]) -> None:
    """Write the plan of a scoring, or find that it was written before.

    Raises
    ------
    Conflict
        The folder belongs to another scoring.
    """
    if not target.exists("plan.json"):
        target.write_json("plan.json", job)
    elif (found := target.read_json("plan.json"))["id"] != job["id"]:
        differ = [name for name in job if name != "id" and found.get(name) != job[name]]
        raise Conflict(
            f"expected nothing at {target.url}, or the same scoring cut short; found another one, which differs in "
            f"{', '.join(differ)}; choose another output, or remove that folder"
        )


def read_done(target: Storage, plan: Plan) -> dict[int, PartSummary]:
    """Return the numbers of the parts that are there."""
    there = set(target.list("parts", suffix=".parquet")) if target.exists("parts") else set()
    keys = [key for part in plan.parts if (key := f"parts/{part.name}") in there]
    with ThreadPoolExecutor(16, thread_name_prefix="forge-footers") as threads:
        return {summary.number: summary for summary in threads.map(partial(read_summary, target), keys)}


def count_faults(summaries: Sequence[PartSummary]) -> list[dict[str, Any]]:
    """Return the rows with a fault by column and check."""
    counts: Counter[tuple[str, str]] = Counter()
    for summary in summaries:
        counts.update({(column, check): count for column, check, count in summary.faults})
    return [{"column": column, "check": check, "rows": count} for (column, check), count in sorted(counts.items())]


def seconds_at_work(summaries: Sequence[PartSummary]) -> float:
    """Return the mean time from a process's first part to the end of the last part of all."""
    first: dict[str, float] = {}
    for summary in summaries:
        first[summary.process] = min(summary.started, first.get(summary.process, summary.started))
    end = max((summary.ended for summary in summaries), default=0.0)
    return sum(end - start for start in first.values()) / len(first) if first else 0.0


def finish(target: Storage, scoring: Scoring, plan: Plan, now: datetime) -> Scoring:
    """Write the manifest where there is none yet, and return the scoring.

    Raises
    ------
    TooManyBadRows
        When not a single row could be scored.
    """
    if not target.exists("manifest.json"):
        parts = [
            {"part": f"parts/{part.name}", "file": plan.files[part.file].address, "first_row": part.first_row,
             "rows": part.n_rows}
            for part in plan.parts
        ]  # fmt: skip
        target.write_json("manifest.json", {**scoring.to_dict(), "created_at": now.isoformat(), "parts": parts})
    logger.info("scored=%d bad=%d output=%s", scoring.n_rows, scoring.n_bad, scoring.output)
    if scoring.n_bad == scoring.n_rows:
        worst = sorted(scoring.faults, key=lambda f: -f["rows"])[:5]
        told = ", ".join(f"{f['column']} {f['check']}: {f['rows']:,}" for f in worst)
        raise TooManyBadRows(
            f"none of {scoring.n_rows:,} rows is as the version's contract says; worst: {told}; the output at "
            f"{scoring.output} tells every fault; repair the source",
            context={"n_bad": scoring.n_bad, "n_rows": scoring.n_rows},
        )
    return scoring
