"""Files to train from: a dataset version, or CSV or Parquet files anywhere, read by Ray Data in their order."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec

from forge_core.data.versions import load_contract, load_manifest
from forge_core.errors import ConfigurationError, DataNotFound, EmptyData, ForgeError, UnreadableData, UnusableTarget
from forge_core.storage import Storage


@dataclass(frozen=True)
class Source:
    """Files to train from, in order; `features` None means all columns but the target."""

    name: str
    protocol: str
    paths: list[str]
    suffix: str
    target: str
    features: list[str] | None
    fingerprint: str


def find_source(storage: Storage, dataset: str, target: str, features: Sequence[str] | None = None) -> Source:
    """Return what a dataset's address stands for: a version `ds-…`, or a path, URL or pattern of CSV or Parquet files.

    Raises
    ------
    DataNotFound, EmptyData, ConfigurationError, UnusableTarget
        Nothing there; only empty files; neither format, or both; the version's contract has another target.
    """
    chosen = list(features) if features is not None else None
    if re.fullmatch(r"ds-[0-9a-f]+", dataset):
        load_manifest(storage, dataset)
        contract = load_contract(storage, dataset)
        if contract.target != target:
            raise UnusableTarget(f"expected the target {contract.target!r} of {dataset}'s contract, found {target!r}")
        chosen = chosen or contract.feature_columns
        fs, paths, address = storage.fs, [storage.path(f"datasets/{dataset}/rows.parquet")], dataset
    else:
        address = dataset
        fs, path = fsspec.core.url_to_fs(dataset)
        paths = sorted(fs.glob(path)) if any(c in path for c in "*?[") else [path]
        if len(paths) == 1 and fs.isdir(paths[0]):
            paths = sorted(p for p in fs.find(paths[0]) if p.endswith((".csv", ".parquet")))
    if not paths or not all(fs.exists(p) for p in paths):
        raise DataNotFound(f"no file at {dataset}; correct the address, or put the data there")
    suffixes = {PurePosixPath(p).suffix.lower() for p in paths}
    if len(suffixes) > 1 or not suffixes <= {".csv", ".parquet"}:
        raise ConfigurationError(
            f"expected CSV files or Parquet files, found {', '.join(sorted(suffixes))} at {dataset}; convert them"
        )
    facts = [[p, fs.info(p).get("size"), str(_changed(fs.info(p)))] for p in paths]
    if not sum(int(size or 0) for _, size, _ in facts):
        raise EmptyData(f"expected rows at {dataset}, found files of zero bytes", context={"address": dataset})
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return Source(address, protocol, paths, suffixes.pop(), target, chosen, fingerprint)


def estimate_rows(source: Source) -> int:
    """Return about how many rows the files hold: Parquet files say so, of CSV files the first lines tell."""
    fs = fsspec.filesystem(source.protocol)
    with explained(source):
        if source.suffix == ".parquet":
            import pyarrow.parquet as pq

            total = 0
            for path in source.paths:
                with fs.open(path, "rb") as file:
                    total += pq.ParquetFile(file).metadata.num_rows
            return total
        head = fs.cat_file(source.paths[0], start=0, end=2**20)
        return sum(fs.size(p) for p in source.paths) * max(1, head.count(b"\n")) // max(1, len(head))


def read_source(source: Source) -> Any:
    import ray.data
    from pyarrow.fs import FSSpecHandler, PyFileSystem
    from ray.data.context import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    files = PyFileSystem(FSSpecHandler(fsspec.filesystem(source.protocol)))
    read = ray.data.read_csv if source.suffix == ".csv" else ray.data.read_parquet
    with explained(source):
        return read(source.paths, filesystem=files, num_cpus=0.25)


class explained:
    """A context that tells what is wrong with the source where a Ray task or the reader failed."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, ForgeError | GeneratorExit | KeyboardInterrupt):
            return
        text = str(error).strip().splitlines()
        raise UnreadableData(
            f"expected {self._source.suffix} at {self._source.name}, which cannot be read as such: "
            f"{text[-1][:300] if text else type(error).__name__}; repair or convert it",
            context={"address": self._source.name},
        ) from error


def _changed(info: dict[str, Any]) -> Any:
    return info.get("mtime") or info.get("ETag") or info.get("LastModified")
