"""Writing a dataset version batch by batch; nothing of it can be loaded before all of it is there."""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from forge_core.data.contracts import Contract
from forge_core.data.hashing import Hashes, sum_of_hashes
from forge_core.data.versions import DatasetVersion, address_of, load_manifest
from forge_core.errors import EmptyData, UnreadableData
from forge_core.storage import Storage

SAMPLE_ROWS = 20_000
_LOOKED_AT = 4096


class DatasetWriter:
    """Spools rows and quarantine into a draft, and keeps them under the id that comes out.

    Use it as a context manager; leaving it without `keep` leaves nothing behind.

    Parameters
    ----------
    storage : Storage
    source : str
        Where the rows come from.
    contract : Contract, optional
        What the rows were held against; its columns are kept, in its order.
    """

    def __init__(self, storage: Storage, source: str, contract: Contract | None = None) -> None:
        self.storage, self.source, self.contract = storage, source, contract
        self.n_rows = 0
        self._sum = 0
        self._sample = _Sample()

    def __enter__(self) -> "DatasetWriter":
        self._draft = self.storage.draft()
        folder = self._draft.__enter__()
        self._rows = _Spool(folder / "rows.parquet")
        self._quarantine = _Spool(folder / "quarantine.parquet")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._rows.close()
            self._quarantine.close()
        finally:
            self._draft.__exit__(kind, error, at)

    def write(self, rows: pd.DataFrame, hashes: Hashes) -> None:
        """Add good rows, with their `row_hashes`.

        Raises
        ------
        UnreadableData
            When a column cannot be written as Parquet, such as one of mixed types.
        """
        rows = rows[list(self.contract.kinds)] if self.contract and self._rows.is_empty else rows
        try:
            self._rows.add(rows)
        except (TypeError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            raise UnreadableData(
                f"the rows of {self.source} cannot be kept as Parquet: {error}; "
                "preprocess_data makes columns of one type"
            ) from error
        self._sample.add(rows, hashes)
        self.n_rows += len(rows)
        self._sum = (self._sum + sum_of_hashes(hashes)) % 2**128

    def set_aside(self, faults: pd.DataFrame) -> None:
        """Add lines to the quarantine."""
        if len(faults):
            self._quarantine.add(faults.assign(source=pd.Series(self.source, index=faults.index, dtype="str")))

    def keep(
        self,
        *,
        n_bad: int = 0,
        n_duplicates: int = 0,
        parent: str | None = None,
        code_commit: str | None = None,
        now: datetime | None = None,
    ) -> DatasetVersion:
        """Keep what was written and return its version; rows that are kept already give back the stored one.

        Raises
        ------
        EmptyData
            When no row was written.
        """
        sample = self._sample.rows()
        if not self.n_rows:
            raise EmptyData(f"expected rows of {self.source} that hold, found none; nothing was kept")
        key = address_of(sample.head(0), self.n_rows, self._sum, self.contract)
        self._keep_quarantine(f"datasets/{key}/quarantine")
        if self.storage.exists(f"datasets/{key}/manifest.json"):
            return load_manifest(self.storage, key)
        self.storage.keep_file(f"datasets/{key}/rows.parquet", self._rows.close())
        self.storage.write_frame(f"datasets/{key}/sample.parquet", sample)
        if self.contract is not None:
            self.storage.write_bytes(f"datasets/{key}/contract.yaml", self.contract.to_yaml().encode())
        version = DatasetVersion(
            id=key,
            n_rows=self.n_rows,
            n_bad=n_bad,
            columns=[str(c) for c in sample.columns],
            source=self.source,
            contract_digest=self.contract.digest if self.contract else None,
            parent=parent if parent != key else None,
            code_commit=code_commit,
            created_at=now or datetime.now(UTC),
            n_duplicates=n_duplicates,
        )
        self.storage.write_json(f"datasets/{key}/manifest.json", version.to_dict())
        return version

    def refuse(self, now: datetime | None = None) -> str | None:
        """Keep the quarantine of rows that were refused as a whole; return its key, None where it is empty."""
        return self._keep_quarantine(f"refused/{now or datetime.now(UTC):%Y-%m-%d}")

    def _keep_quarantine(self, folder: str) -> str | None:
        if self._quarantine.is_empty:
            return None
        file = self._quarantine.close()
        with file.open("rb") as opened:
            name = hashlib.file_digest(opened, "sha256").hexdigest()[:16]
        self.storage.keep_file(f"{folder}/{name}.parquet", file)
        return f"{folder}/{name}.parquet"


class _Spool:
    """A Parquet file that grows by row groups; all follow the first one's columns and types.

    A row group is written in a thread while the caller prepares the next one; at most one waits.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._schema: pa.Schema | None = None
        self._writer: pq.ParquetWriter | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forge-spool")
        self._pending: Future[None] | None = None

    @property
    def is_empty(self) -> bool:
        return self._schema is None

    def add(self, frame: pd.DataFrame) -> None:
        table = pa.Table.from_pandas(frame, self._schema, preserve_index=False, nthreads=1)
        if self._writer is None:
            self._schema = table.schema
            self._writer = pq.ParquetWriter(self.file, table.schema, compression="zstd", **_encodings(table))
        self._wait()
        if table.num_rows:
            self._pending = self._thread.submit(self._writer.write_table, table)

    def close(self) -> Path:
        try:
            self._wait()
        finally:
            self._thread.shutdown()
            if self._writer is not None:
                self._writer.close()
                self._writer = None
        return self.file

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def _encodings(table: pa.Table) -> dict[str, Any]:
    """Return a dictionary for columns that repeat, bytes by place for other floats: half the work, less room."""
    head = table.slice(0, _LOOKED_AT)
    repeating = [name for name in head.column_names if pc.count_distinct(head[name]).as_py() < 0.5 * len(head)]
    floats = [f.name for f in table.schema if pa.types.is_floating(f.type) and f.name not in repeating]
    return {"use_dictionary": repeating, "use_byte_stream_split": floats}


class _Sample:
    """The rows with the smallest hashes: a uniform sample that does not depend on any order."""

    def __init__(self) -> None:
        self._parts: list[tuple[pd.DataFrame, Any]] = []
        self._waiting = 0
        self._limit = np.uint64(2**64 - 1)

    def add(self, rows: pd.DataFrame, hashes: Hashes) -> None:
        if len(rows) > SAMPLE_ROWS:
            self._limit = min(self._limit, np.partition(hashes[:, 0], SAMPLE_ROWS)[SAMPLE_ROWS])
        chosen = np.flatnonzero(hashes[:, 0] <= self._limit)
        self._parts.append((rows.take(chosen), hashes[chosen]))
        self._waiting += len(chosen)
        if self._waiting > 4 * SAMPLE_ROWS:
            self._shrink()

    def rows(self) -> pd.DataFrame:
        """Return the sample in the order of its hashes."""
        self._shrink()
        return self._parts[0][0] if self._parts else pd.DataFrame()

    def _shrink(self) -> None:
        if not self._parts:
            return
        rows = pd.concat([part for part, _ in self._parts], ignore_index=True)
        hashes = np.concatenate([part for _, part in self._parts])
        order = np.lexsort((hashes[:, 1], hashes[:, 0]))[:SAMPLE_ROWS]
        self._parts = [(rows.iloc[order].reset_index(drop=True), hashes[order])]
        self._waiting = len(order)
        if len(order) == SAMPLE_ROWS:
            self._limit = hashes[order[-1], 0]
