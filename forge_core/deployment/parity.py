"""Whether a version answers over HTTP as its own pipeline does, row by row: the last gate before it goes live.

The offline path is the native pipeline, loaded here, on the rows as they are stored. The served path is everything
that a client's request goes through: JSON, contract, micro-batches, variant, reply.
"""

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from forge_core.deployment.offline_path import Offline
from forge_core.deployment.replay_rows import ReplayRows, to_records
from forge_core.deployment.served_path import Answer, ServedPath
from forge_core.models.version import VersionFolder

# Uneven, and several at a time, so that rows of different requests meet in one micro-batch.
_SIZES = (37, 5, 64, 11)
_AT_ONCE = 4
_WORST = 5


@dataclass(frozen=True)
class ParityReport:
    """How the served path compares with the offline path.

    `n_wrong` counts answers that differ, `n_out_of_order` replies that carry another row's id, `label_agreement`
    is the share of equal predictions; `worst` holds up to five rows: features, served, offline, difference.
    """

    version: str
    n_rows: int
    n_planted: int
    n_single: int
    n_wrong: int
    n_out_of_order: int
    n_refused: int
    largest_difference: float
    label_agreement: float
    tolerance: float
    origin: str
    seconds: float
    worst: list[dict[str, Any]]

    @property
    def passed(self) -> bool:
        """Whether every row was answered as the pipeline answers it, and in its place."""
        return self.n_wrong == 0 and self.n_out_of_order == 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {**asdict(self), "passed": self.passed}

    def told(self) -> str:
        """Return the figures in a sentence, and the worst rows where there are any."""
        figures = (
            f"{self.n_wrong} of {self.n_rows + self.n_single} answers differ from the version's own pipeline by more "
            f"than {self.tolerance:g} or in the label; largest difference {self.largest_difference:.2g}, labels equal "
            f"in {self.label_agreement:.1%}, {self.n_refused} refused, {self.n_out_of_order} out of order; "
            f"{self.origin}, {self.n_single} of them asked one by one as well"
        )
        return "; ".join([figures, *(f"row {w['row']}, {_words(w)}" for w in self.worst[:3])])


def check_parity(folder: VersionFolder, rows: ReplayRows, path: ServedPath, *, tolerance: float) -> ParityReport:
    """Return how the served version compares with its own pipeline on these rows.

    Parameters
    ----------
    tolerance : float
        Largest difference of probabilities; of predicted numbers beyond 1, in relation to them.

    Raises
    ------
    ModelError, ServiceUnavailable
        As `ServedPath.ask` does.
    """
    started = time.perf_counter()
    records = to_records(rows.held_out, folder.contract) + to_records(rows.planted, folder.contract)
    offline = Offline.of(folder, rows)
    single = np.unique(np.linspace(0, len(records) - 1, min(8, len(records))).round().astype(int)).tolist()
    ids = [f"replay-{path.version}-{number}" for number in range(len(records))]
    requests = [*_chunks(len(records)), *([number] for number in single)]

    def ask(numbers: Sequence[int]) -> list[Answer]:
        if len(numbers) == 1:
            return [path.ask_one(records[numbers[0]], ids[numbers[0]])]
        return path.ask([records[n] for n in numbers], [ids[n] for n in numbers])

    ask(requests[0])  # alone: waits until the router holds the version
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = list(itertools.chain.from_iterable(pool.map(ask, requests)))
    asked = list(itertools.chain.from_iterable(requests))
    differences = [offline.difference(row, a) for row, a in zip(asked, answers, strict=True)]
    wrong = [p for p, row in enumerate(asked) if not offline.agrees(row, answers[p], tolerance)]
    worst: dict[int, dict[str, Any]] = {}
    for position in sorted(wrong, key=lambda p: _gravity(differences[p])):
        row = asked[position]
        worst.setdefault(row, _fault(row, records[row], answers[position], offline))
    agreed = [a.prediction == offline.labels[row] for row, a in zip(asked, answers, strict=True)]
    return ParityReport(
        version=path.version,
        n_rows=len(records),
        n_planted=len(rows.planted),
        n_single=len(single),
        n_wrong=len(wrong),
        n_out_of_order=sum(a.request_id != ids[row] for a, row in zip(answers, asked, strict=True)),
        n_refused=sum(bool(a.refusal) for a in answers),
        largest_difference=max((d for d in differences if d is not None), default=0.0),
        label_agreement=float(np.mean(agreed)) if offline.probabilities is not None else 1.0,
        tolerance=tolerance,
        origin=rows.origin,
        seconds=round(time.perf_counter() - started, 3),
        worst=list(worst.values())[:_WORST],
    )


def _chunks(n_rows: int) -> list[list[int]]:
    chunks: list[list[int]] = []
    start = 0
    for size in itertools.cycle(_SIZES):
        if start >= n_rows:
            return chunks
        chunks.append(list(range(start, min(start + size, n_rows))))
        start += size
    raise AssertionError("unreachable")


def _gravity(difference: float | None) -> float:
    return -np.inf if difference is None else -difference


def _fault(row: int, features: dict[str, Any], answer: Answer, offline: Offline) -> dict[str, Any]:
    return {
        "row": row,
        "features": features,
        "served": [answer.prediction, answer.probability],
        "offline": [offline.labels[row], offline.probability(row)],
        "difference": offline.difference(row, answer),
        "refusal": answer.refusal,
    }


def _words(fault: dict[str, Any]) -> str:
    features = " ".join(f"{name}={value!r}" for name, value in fault["features"].items())
    served = f"refused, {fault['refusal']}" if fault["refusal"] else f"served {_pair(fault['served'])}"
    return f"{features}: {served}, offline {_pair(fault['offline'])}"


def _pair(values: Sequence[Any]) -> str:
    label, probability = values
    return str(label) if probability is None else f"{label} ({probability:.6g})"
