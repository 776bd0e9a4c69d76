"""What every benchmark shares: figures with targets, one readable table, one JSON line a figure."""

import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def claim_equally() -> None:
    """Give Ray's workers, which by default have nice 15, their peers' claim on the processors; before it starts."""
    os.environ.update({"RAY_worker_niceness": "0"})


@dataclass(frozen=True)
class Figure:
    """One measured figure; `target` in words and numbers, `ok` None where nothing was promised."""

    bench: str
    metric: str
    value: float
    target: str | None = None
    ok: bool | None = None


@dataclass
class Report:
    """The figures of one benchmark."""

    bench: str
    figures: list[Figure] = field(default_factory=list)

    def add(self, metric: str, value: float, *, at_most: float | None = None, at_least: float | None = None) -> None:
        """Keep a figure, with its target where it has one, and tell it at once: a benchmark can take an hour."""
        value = float(value)
        if at_most is not None:
            target, ok = f"<= {at_most:g}", value <= at_most
        elif at_least is not None:
            target, ok = f">= {at_least:g}", value >= at_least
        else:
            target, ok = None, None
        self.figures.append(Figure(self.bench, metric, round(value, 5), target, ok))
        print(f"{metric}: {value:g}" + (f" ({target})" if target else ""), file=sys.stderr, flush=True)

    def finish(self) -> bool:
        """Write the JSON lines, print the table, and tell whether every target was met."""
        RESULTS.mkdir(exist_ok=True)
        lines = [json.dumps(asdict(figure)) for figure in self.figures]
        (RESULTS / f"{self.bench}.jsonl").write_text("\n".join(lines) + "\n")
        table = Table(title=f"bench {self.bench}")
        for column in ("figure", "value", "target", "ok"):
            table.add_column(column, justify="right" if column == "value" else "left")
        for figure in self.figures:
            verdict = {True: "[green]yes", False: "[red]no", None: ""}[figure.ok]
            table.add_row(figure.metric, f"{figure.value:g}", figure.target or "", verdict)
        Console().print(table)
        return all(figure.ok is not False for figure in self.figures)
