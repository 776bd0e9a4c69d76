"""The process that scores parts: reads one, checks it, scores it, writes it whole, and tells its numbers."""

import json
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from forge_core.data.opening import File, explain
from forge_core.data.quarantine import QUARANTINE_COLUMNS
from forge_core.errors import ForgeError, UnreadableData
from forge_core.models.crossover import Model, fastest_form
from forge_core.models.version import VersionFolder
from forge_core.scoring.checked import FeatureCheck, tell_faults
from forge_core.scoring.plan import Part, Plan
from forge_core.storage import Storage

# So many cells are in memory at a time, and so many rows at most.
_CELLS, _ROWS = 2**22, 65_536
_BUFFER = 2**20
_FOOTER = b"forge"
OWN_COLUMNS = ("row_number", "prediction", "probability", "fault")


@dataclass(frozen=True)
class PartSummary:
    """The numbers of one part; `faults` has (column, check, rows), `process` tells who scored it."""

    number: int
    n_rows: int
    n_bad: int
    faults: list[tuple[str, str, int]]
    started: float = 0.0
    ended: float = 0.0
    peak_bytes: int = 0
    process: str = ""

    def to_json(self) -> str:
        """Return the summary as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "PartSummary":
        """Return the summary in a text."""
        return cls(**json.loads(text))


class PartScorer:
    """A version in memory, which scores one part after another.

    Parameters
    ----------
    version : mapping of str to bytes
        The files of a version's folder.
    plan : Plan
    target : str
        URL of the folder that gets the parts.
    keep : sequence of str
        Columns that the output carries along.
    """

    def __init__(self, version: Mapping[str, bytes], plan: Plan, target: str, keep: tuple[str, ...]) -> None:
        pa.set_cpu_count(1)  # each core has a process of its own
        self._plan, self._target, self._keep = plan, Storage(target), list(keep)
        with tempfile.TemporaryDirectory(prefix="forge-version-") as path:
            for name, data in version.items():
                (Path(path) / name).write_bytes(data)
            folder = VersionFolder.open(path)
            self._check = FeatureCheck(folder.contract)
            self._model: Model = fastest_form(folder, frames=True)
            self._classes = None if folder.classes is None else pa.array(folder.classes)
        self._names = list(dict.fromkeys([*self._check.columns, *self._keep]))
        self._batch_rows = int(np.clip(_CELLS // max(1, len(self._names)), 1024, _ROWS))

    def score(self, number: int) -> PartSummary:
        """Write one part and its faults, and return its numbers."""
        part, started = self._plan.parts[number], time.time()
        counts: Counter[tuple[str, str]] = Counter()
        faults: list[pd.DataFrame] = []
        n_rows = n_bad = 0
        with self._target.draft() as folder:
            writer: pq.ParquetWriter | None = None
            for batch in self._read(part):
                table, found = self._score_batch(batch, part.first_row + n_rows)
                n_rows += len(batch)
                if found is not None:
                    counts.update(zip(found["column"], found["check"], strict=True))
                    n_bad += found["row_number"].nunique()
                    faults.append(found)
                writer = writer or _open_writer(folder / part.name, table)
                writer.write_table(table)
            if writer is None or n_rows != part.n_rows:
                address = self._plan.files[part.file].address
                raise UnreadableData(
                    f"expected {part.n_rows} rows of {address} from row {part.first_row} on, found {n_rows}; "
                    "the file changed while it was read: score it again"
                )
            told = [(column, check, count) for (column, check), count in sorted(counts.items())]
            summary = PartSummary(part.number, n_rows, n_bad, told)
            writer.add_key_value_metadata({_FOOTER: summary.to_json()})
            writer.close()
            if faults:  # first, so that a part which is there has its faults beside it
                self._target.write_frame(f"faults/{part.name}", pd.concat(faults, ignore_index=True))
            self._target.keep_file(f"parts/{part.name}", folder / part.name)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return PartSummary(
            part.number, n_rows, n_bad, told, started, time.time(), peak, f"{os.uname().nodename}-{os.getpid()}"
        )

    def _read(self, part: Part) -> Iterator[pa.RecordBatch]:
        file = self._plan.files[part.file]
        try:
            yield from self._batches(file, part)
        except ForgeError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise explain(error, file.address, ".parquet") from error

    def _batches(self, file: File, part: Part) -> Iterator[pa.RecordBatch]:
        with (
            file.random_access() as raw,
            pq.ParquetFile(
                raw, buffer_size=_BUFFER, pre_buffer=False, read_dictionary=self._check.texts
            ) as table,
        ):  # fmt: skip
            skip, wanted = part.skip, part.n_rows
            groups = range(*part.groups)
            for batch in table.iter_batches(
                self._batch_rows, row_groups=groups, columns=self._names, use_threads=False
            ):
                if skip >= len(batch):
                    skip -= len(batch)
                    continue
                rows = batch.slice(skip, wanted)
                skip, wanted = 0, wanted - len(rows)
                yield rows
                if not wanted:
                    return

    def _score_batch(self, batch: pa.RecordBatch, first_row: int) -> tuple[pa.Table, pd.DataFrame | None]:
        n_rows = len(batch)
        good, places, faults = self._check.check(batch)
        scores = self._model.score_frame(good) if len(good) else np.empty(0)
        columns = {"row_number": pa.array(np.arange(first_row, first_row + n_rows))}
        columns |= {name: batch.column(name) for name in self._keep}
        answers = answer_columns(scores, self._classes)
        if places is not None:
            # Rows that were not scored take what lies beyond the end, which is null.
            at = np.full(n_rows, -1)
            at[places] = np.arange(len(places))
            taken = pa.array(at, mask=at < 0)
            answers = {name: values.take(taken) for name, values in answers.items()}
        columns |= answers
        columns["fault"] = pa.nulls(n_rows, pa.string()) if faults is None else tell_faults(faults, n_rows)
        if faults is not None:
            faults = faults.assign(row_number=faults["row_number"] + first_row)[QUARANTINE_COLUMNS]
            faults["row_key"] = faults["row_number"].astype("str")
        return pa.table(columns), faults if faults is not None and len(faults) else None


def answer_columns(scores: NDArray[np.float64], classes: pa.Array | None) -> dict[str, pa.Array]:
    """Return predictions as the API answers them: of classes the most probable one, its probability, and with more than
    two of them the probability of each.
    """
    if classes is None:
        return {"prediction": pa.array(scores)}
    if scores.ndim == 1 and len(classes) == 2:
        second = scores >= 0.5
        chosen, probability = second.astype(np.intp), np.where(second, scores, 1.0 - scores)
        each = {}
    else:
        scores = scores.reshape(-1, len(classes))
        chosen = scores.argmax(axis=1)
        probability = scores[np.arange(len(scores)), chosen]
        each = {f"probability_{name}": pa.array(scores[:, i]) for i, name in enumerate(classes.to_pylist())}
    return {"prediction": classes.take(pa.array(chosen)), "probability": pa.array(probability), **each}


def read_summary(storage: Storage, key: str) -> PartSummary:
    """Return the numbers in the footer of a part that is there."""
    with storage.fs.open(storage.path(key), "rb") as raw, pq.ParquetFile(raw) as table:
        return PartSummary.from_json(table.metadata.metadata[_FOOTER])


def _open_writer(file: Path, table: pa.Table) -> pq.ParquetWriter:
    numbers = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    encodings = {"row_number": "DELTA_BINARY_PACKED", **dict.fromkeys(numbers, "BYTE_STREAM_SPLIT")}
    dictionary = [name for name in table.column_names if name not in encodings]
    return pq.ParquetWriter(
        file,
        table.schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=dictionary,
        column_encoding=encodings,
    )
