"""From how many rows on the native pipeline is faster than the compiled one, and the model that takes the faster way.

Compiled answers one row in microseconds, but a forest walks many rows faster natively. Where the ways cross depends on
the model and the machine, so it is measured when a version is registered: once for columns of plain values, as
requests bring them, and once for frames, as batch scoring has them.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from forge_core.models.compiled import Columns, CompiledModel, NativeModel
from forge_core.models.onnx_inputs import plain_columns
from forge_core.models.version import VersionFolder

SIZES = (1, 16, 64, 256, 1024, 4096, 16_384, 65_536)
# A call is timed again, five times at most, until the calls took so long.
_SECONDS_EACH = 0.02
_THREADS = 4
# From here on nobody needs to look at more rows.
_CLEARLY = 1.5

Times = list[dict[str, float]]


@dataclass(frozen=True)
class Crossover:
    """The smallest numbers of rows from which native is faster; None where compiled always was.

    `times` and `frame_times` have the milliseconds of both forms for each number of rows.
    """

    rows: int | None
    frame_rows: int | None
    times: Times
    frame_times: Times

    def to_dict(self) -> dict[str, Any]:
        """Return what compiled.json keeps."""
        return {
            "crossover_rows": self.rows,
            "crossover_frame_rows": self.frame_rows,
            "crossover_times_ms": {"columns": self.times, "frames": self.frame_times},
        }


class FasterModel:
    """Both forms of a version behind the interface of either; each batch goes the way that is faster for its length.

    Parameters
    ----------
    compiled, native
        The two forms, equal within the policy's tolerance.
    crossover : int
        Batches of so many rows, or more, are scored natively.
    """

    def __init__(self, compiled: CompiledModel, native: NativeModel, crossover: int) -> None:
        self._compiled, self._native, self._crossover = compiled, native, crossover

    def score(self, columns: Columns) -> NDArray[np.float64]:
        """Return what `forge_core.models.model_trainer.score` gives."""
        return self._way(len(next(iter(columns.values())))).score(columns)

    def score_frame(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """Return what `score` gives for the frame's columns."""
        return self._way(len(frame)).score_frame(frame)

    def _way(self, n_rows: int) -> CompiledModel | NativeModel:
        return self._native if n_rows >= self._crossover else self._compiled


Model = CompiledModel | NativeModel | FasterModel


def fastest_form(folder: VersionFolder, *, frames: bool = False, threads: int = 1) -> Model:
    """Return a version's form that serves: native, compiled, or by the length of the batch one or the other.

    Versions registered before crossovers were measured are compiled whatever the length.

    Parameters
    ----------
    frames : bool
        The rows will come as frames, which have a crossover of their own.
    threads : int
        Threads of the compiled form.
    """
    if folder.onnx is None:
        return NativeModel(folder.pipeline, folder.contract.feature_columns)
    compiled = CompiledModel(folder.onnx, threads=threads)
    crossover = folder.compiled.get("crossover_frame_rows" if frames else "crossover_rows")
    if crossover is None:
        return compiled
    return FasterModel(compiled, NativeModel(folder.pipeline, folder.contract.feature_columns), crossover)


def serving_threads() -> int:
    """Return how many threads a replica scores many rows with: one a core that it may use, four at most."""
    return min(_THREADS, len(os.sched_getaffinity(0)))


def measure_crossover(pipeline: Any, onnx: bytes, rows: pd.DataFrame, *, seconds: float = 2.0) -> Crossover:
    """Time both forms on more and more rows until native has won clearly or the time is over.

    Columns are scored as a replica does, the compiled form on `serving_threads()`; frames as a scoring process does, on
    one.

    Parameters
    ----------
    rows : DataFrame
        Features of some rows; they are repeated where more are needed.
    seconds : float
        About so long at most; a number of rows that would take longer is left out.
    """
    compiled, native = CompiledModel(onnx), NativeModel(pipeline, list(rows.columns))
    served = CompiledModel(onnx, threads=serving_threads())
    with threadpool_limits(1):
        times = _race(rows, plain_columns, served.score, native.score, 0.4 * seconds)
        frame_times = _race(rows, lambda frame: frame, compiled.score_frame, native.score_frame, 0.6 * seconds)
    return Crossover(crossing(times), crossing(frame_times), times, frame_times)


def crossing(times: Times) -> int | None:
    """Return the number of rows from which native was faster up to the end, between two measured ones by a line."""
    slower = [i for i, row in enumerate(times) if row["compiled"] <= row["native"]]
    if not slower:
        return int(times[0]["rows"])
    if slower[-1] == len(times) - 1:
        return None
    before, after = times[slower[-1]], times[slower[-1] + 1]
    lead, loss = before["native"] - before["compiled"], after["compiled"] - after["native"]
    return math.ceil(before["rows"] + (after["rows"] - before["rows"]) * lead / (lead + loss))


def _race(
    rows: pd.DataFrame,
    form: Callable[[pd.DataFrame], Any],
    compiled: Callable[[Any], Any],
    native: Callable[[Any], Any],
    seconds: float,
) -> Times:
    for call in (compiled, native):  # what is loaded or built at the first call
        call(form(rows.head(1)))
    started = time.perf_counter()
    times: Times = []
    for n_rows in SIZES:
        began = time.perf_counter()
        given = form(rows.iloc[np.arange(n_rows) % len(rows)].reset_index(drop=True))
        times.append(
            {"rows": n_rows, "compiled": _milliseconds(compiled, given), "native": _milliseconds(native, given)}
        )
        now = time.perf_counter()
        if times[-1]["compiled"] > _CLEARLY * times[-1]["native"] or now - started + 4 * (now - began) > seconds:
            break
    return times


def _milliseconds(call: Callable[[Any], Any], given: Any) -> float:
    """Return the shortest of a few calls, since whatever else the machine does only adds."""
    taken: list[float] = []
    while not taken or (len(taken) < 5 and sum(taken) < _SECONDS_EACH):
        started = time.perf_counter()
        call(given)
        taken.append(time.perf_counter() - started)
    return round(1e3 * min(taken), 4)
