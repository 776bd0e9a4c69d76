"""What is to be scored: Parquet files, and how their rows are divided into parts."""

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from forge_core.data.batches import check_names
from forge_core.data.files import FileSource
from forge_core.data.opening import File, explain
from forge_core.data.sources import open_source
from forge_core.data.versions import load_manifest
from forge_core.errors import ConfigurationError, DataNotFound, EmptyData, ForgeError, SchemaViolation
from forge_core.storage import Storage

PART_ROWS = 262_144
# A row group is cut into so many parts at most, since each of them decodes what lies before it.
_CUTS = 8
_FOOTERS_AT_ONCE = 16


@dataclass(frozen=True)
class Part:
    """A run of rows of one file: `n_rows` after the first `skip` of some row groups; `first_row` counts over all."""

    number: int
    file: int
    groups: tuple[int, int]
    skip: int
    n_rows: int
    first_row: int

    @property
    def name(self) -> str:
        """The part's file name."""
        return f"part-{self.number:06d}.parquet"


@dataclass(frozen=True)
class Plan:
    """Files in their order, and their parts in the order of the rows."""

    source: str
    files: list[File]
    parts: list[Part]
    columns: list[str]
    fingerprint: str

    @property
    def n_rows(self) -> int:
        """Rows of all files."""
        return sum(part.n_rows for part in self.parts)


def plan_parts(
    storage: Storage, source: str | Path, *, features: Sequence[str] = (), part_rows: int = PART_ROWS
) -> Plan:
    """Return the parts of a data set; only the files' footers are read.

    Parameters
    ----------
    source : str or Path
        Id of a dataset version (`ds-…`), or path, folder, pattern or URL of Parquet files.
    features : sequence of str
        Columns that every file must have.
    part_rows : int
        About so many rows a part; a large row group gives eight parts at most.

    Raises
    ------
    DataNotFound, EmptyData, UnreadableData, ConfigurationError
        Nothing there; no rows; no Parquet inside; another format.
    SchemaViolation
        A file lacks a feature, or has a column twice.
    """
    files = _find(storage, str(source))
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE, thread_name_prefix="forge-footers") as threads:
        footers = list(threads.map(partial(_footer, features=features), files))
    parts: list[Part] = []
    at = 0
    for number, (groups, _, _) in enumerate(footers):
        for first, last, skip, n_rows in cut(groups, part_rows):
            parts.append(Part(len(parts), number, (first, last), skip, n_rows, at))
            at += n_rows
    if not at:
        raise EmptyData(f"expected rows at {source}, found none", context={"address": str(source)})
    facts = [[file.address, groups, changed] for file, (groups, _, changed) in zip(files, footers, strict=True)]
    columns = [name for name in footers[0][1] if all(name in found for _, found, _ in footers)]
    return Plan(str(source), files, parts, columns, hashlib.sha256(json.dumps(facts).encode()).hexdigest())


def cut(groups: Sequence[int], part_rows: int) -> list[tuple[int, int, int, int]]:
    """Return parts as (first row group, the one after the last, rows to skip, rows) for row groups of given lengths.

    Small groups that follow each other share a part, a large one is cut.
    """
    parts: list[tuple[int, int, int, int]] = []
    first, waiting = 0, 0
    for number, n_rows in enumerate(groups):
        if waiting and waiting + n_rows > part_rows:
            parts.append((first, number, 0, waiting))
            first, waiting = number, 0
        if n_rows > part_rows:
            pieces = min(_CUTS, -(-n_rows // part_rows))
            edges = [n_rows * i // pieces for i in range(pieces + 1)]
            parts += [(number, number + 1, a, b - a) for a, b in itertools.pairwise(edges)]
            first, waiting = number + 1, 0
        else:
            first = number if not waiting else first
            waiting += n_rows
    return [*parts, (first, len(groups), 0, waiting)] if waiting else parts


def _find(storage: Storage, source: str) -> list[File]:
    if re.fullmatch(r"ds-[0-9a-f]+", source):
        load_manifest(storage, source)
        return [File(storage.fs, storage.path(f"datasets/{source}/rows.parquet"), source, ".parquet", {})]
    opened = open_source(source)
    if not isinstance(opened, FileSource):
        raise ConfigurationError(f"expected Parquet files or a dataset id, found {opened.address}; ingest it first")
    files = opened.files
    if other := sorted({file.suffix for file in files} - {".parquet"}):
        raise ConfigurationError(
            f"expected Parquet files at {opened.address}, found {', '.join(other)}; ingest them, and score the dataset"
        )
    if not files:
        raise DataNotFound(f"no file at {opened.address}; correct the address, or put the data there")
    return files


def _footer(file: File, features: Sequence[str]) -> tuple[list[int], list[str], str]:
    """Return the rows of each row group, the names of the columns, and what changes when the file does."""
    try:
        info = file.fs.info(file.path)
        if not info.get("size"):
            return [], list(features), "0"
        with file.random_access() as raw, pq.ParquetFile(raw) as table:
            names = check_names(table.schema_arrow.names, file.address)
            groups = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
    except ForgeError:
        raise
    except Exception as error:
        raise explain(error, file.address, ".parquet") from error
    if missing := [name for name in features if name not in names]:
        raise SchemaViolation(
            f"expected the features {', '.join(features)} in {file.address}; missing: {', '.join(missing)}; "
            "add the columns, empty where nothing is known",
            context={"faults": [{"field": name, "reason": "is required and was missing"} for name in missing]},
        )
    changed = info.get("mtime") or info.get("ETag") or info.get("LastModified")
    return groups, names, f"{info['size']} {changed}"
