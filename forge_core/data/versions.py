"""Dataset versions: rows kept under an id that is a hash of what they contain.

datasets/{id}/rows.parquet          the good rows
datasets/{id}/sample.parquet        up to 20 000 of them, chosen by hash: the same ones whatever their order
datasets/{id}/quarantine/*.parquet  what the contract set aside, with the reasons, a file for each ingest
datasets/{id}/contract.yaml         what the rows were held against
datasets/{id}/manifest.json         written last: where it is, the version is whole
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from forge_core.data.contracts import Contract
from forge_core.data.hashing import column_kinds, row_hashes, sum_of_hashes
from forge_core.errors import ConfigurationError, DataNotFound
from forge_core.storage import Storage

_ID = re.compile(r"ds-[0-9a-f]{16}")


@dataclass(frozen=True)
class DatasetVersion:
    """What a dataset's manifest says.

    `n_bad` counts the rows that the contract set aside, `n_duplicates` those left out because an earlier row
    equals them.
    """

    id: str
    n_rows: int
    n_bad: int
    columns: list[str]
    source: str
    contract_digest: str | None
    parent: str | None
    code_commit: str | None
    created_at: datetime
    n_duplicates: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as plain JSON values."""
        return {**asdict(self), "created_at": self.created_at.isoformat()}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "DatasetVersion":
        """Return the version that a manifest describes."""
        return cls(**{**value, "created_at": datetime.fromisoformat(value["created_at"])})


def dataset_id(frame: pd.DataFrame, contract: Contract | None = None) -> str:
    """Return the content address of rows: equal for equal rows in any order of rows and columns.

    Parameters
    ----------
    frame : DataFrame, shape (n_rows, n_columns)
        The index does not count.
    contract : Contract, optional
        Counts too where given: the same rows with another target are another thing to learn from.

    Examples
    --------
    >>> rows = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    >>> dataset_id(rows) == dataset_id(rows[["b", "a"]].iloc[::-1])
    True
    """
    kinds = contract.kinds if contract else None
    return address_of(frame.head(0), len(frame), sum_of_hashes(row_hashes(frame, kinds)), contract)


def address_of(empty: pd.DataFrame, n_rows: int, hash_sum: int, contract: Contract | None) -> str:
    """Return the content address from a frame without rows, the number of rows and the sum of their hashes."""
    kinds = column_kinds(empty)
    if contract:
        kinds |= {name: kind for name, kind in contract.kinds.items() if name in kinds}
    facts = {
        "columns": kinds,
        "rows": n_rows,
        "hash": f"{hash_sum:032x}",
        **({"contract": contract.digest} if contract else {}),
    }
    return f"ds-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]}"


def save_dataset(
    storage: Storage,
    frame: pd.DataFrame,
    *,
    source: str,
    contract: Contract | None = None,
    quarantine: pd.DataFrame | None = None,
    parent: str | None = None,
    code_commit: str | None = None,
    now: datetime | None = None,
) -> DatasetVersion:
    """Keep rows and return their version; rows that are kept already give back the stored version.

    Parameters
    ----------
    frame : DataFrame
        Good rows, as `Contract.check` returns them.
    source : str
        Where they came from.
    quarantine : DataFrame, optional
        `CheckedRows.quarantine`.
    parent : str, optional
        Id of the version that this one follows.
    now : datetime, optional
        Time of creation, UTC.

    Raises
    ------
    UnreadableData
        When a column cannot be written as Parquet, such as one of mixed types.
    """
    from forge_core.data.dataset_writer import DatasetWriter

    with DatasetWriter(storage, source, contract) as writer:
        writer.write(frame, row_hashes(frame, contract.kinds if contract else None))
        if quarantine is not None:
            writer.set_aside(quarantine)
        n_bad = 0 if quarantine is None else int(quarantine["row_number"].nunique())
        return writer.keep(n_bad=n_bad, parent=parent, code_commit=code_commit, now=now)


def load_manifest(storage: Storage, id: str) -> DatasetVersion:
    """Return what is known of a dataset version.

    Raises
    ------
    ConfigurationError
        When this is no dataset id.
    DataNotFound
        When there is no such version.
    """
    if not _ID.fullmatch(id):
        raise ConfigurationError(f"expected a dataset id, `ds-` and 16 hexadecimal digits, found {id!r}")
    key = f"datasets/{id}/manifest.json"
    if not storage.exists(key):
        raise DataNotFound(
            f"no dataset version {id!r} at {storage.url}; ingest its source again", context={"dataset": id}
        )
    return DatasetVersion.from_dict(storage.read_json(key))


def list_datasets(storage: Storage, source: str | None = None) -> list[DatasetVersion]:
    """Return all dataset versions, or those of one source, oldest first."""
    manifests = (storage.read_json(key) for key in storage.list("datasets", suffix="/manifest.json"))
    versions = [DatasetVersion.from_dict(manifest) for manifest in manifests]
    return sorted((v for v in versions if source in (None, v.source)), key=lambda v: v.created_at)


def load_dataset(storage: Storage, id: str, columns: list[str] | None = None) -> pd.DataFrame:
    """Return a version's rows, all columns or those named, or raise as `load_manifest` does."""
    load_manifest(storage, id)
    return storage.read_frame(f"datasets/{id}/rows.parquet", columns)


def stream_dataset(
    storage: Storage, id: str, columns: list[str] | None = None, batch_rows: int = 131_072
) -> Iterator[pd.DataFrame]:
    """Give a version's rows in batches, so that memory stays bounded; raises as `load_manifest` does."""
    load_manifest(storage, id)
    with storage.fs.open(storage.path(f"datasets/{id}/rows.parquet"), "rb") as file:
        parquet = pq.ParquetFile(file)
        for batch in parquet.iter_batches(batch_rows, columns=columns):
            yield batch.to_pandas()


def load_sample(storage: Storage, id: str) -> pd.DataFrame:
    """Return up to 20 000 of a version's rows, chosen by their hashes; raises as `load_manifest` does."""
    load_manifest(storage, id)
    return storage.read_frame(f"datasets/{id}/sample.parquet")


def load_contract(storage: Storage, id: str) -> Contract:
    """Return the contract that a version's rows were held against, or raise DataNotFound."""
    if load_manifest(storage, id).contract_digest is None:
        raise DataNotFound(f"dataset version {id!r} was kept without a contract; save it with one")
    return Contract.from_yaml(storage.read_bytes(f"datasets/{id}/contract.yaml").decode())


def load_quarantine(storage: Storage, id: str) -> pd.DataFrame:
    """Return the faults of the rows that a version's contract set aside; raise DataNotFound where none were."""
    load_manifest(storage, id)
    keys = storage.list(f"datasets/{id}/quarantine", suffix=".parquet")
    if not keys:
        raise DataNotFound(f"no row of dataset version {id!r} was set aside", context={"dataset": id})
    return pd.concat([storage.read_frame(key) for key in keys], ignore_index=True)
