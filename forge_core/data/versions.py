"""Dataset versions: rows kept under an id that is a hash of what they contain.

datasets/{id}/rows.parquet        the good rows
datasets/{id}/quarantine.parquet  what the contract set aside, with the reasons
datasets/{id}/contract.yaml       what the rows were held against
datasets/{id}/manifest.json       written last: where it is, the version is whole
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from forge_core.data.contracts import Contract
from forge_core.data.hashing import column_kinds, row_hashes, sum_of_hashes
from forge_core.errors import DataNotFound, UnreadableData
from forge_core.storage import Storage


@dataclass(frozen=True)
class DatasetVersion:
    """What a dataset's manifest says; `n_bad` counts the rows that the contract set aside."""

    id: str
    n_rows: int
    n_bad: int
    columns: list[str]
    source: str
    contract_digest: str | None
    parent: str | None
    code_commit: str | None
    created_at: datetime

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
    facts = {
        "columns": column_kinds(frame),
        "rows": len(frame),
        "hash": f"{sum_of_hashes(row_hashes(frame)):032x}",
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
    key = dataset_id(frame, contract)
    if storage.exists(f"datasets/{key}/manifest.json"):
        return load_manifest(storage, key)
    try:
        storage.write_frame(f"datasets/{key}/rows.parquet", frame)
    except (TypeError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise UnreadableData(
            f"the rows of {source} cannot be kept as Parquet: {error}; preprocess_data makes columns of one type"
        ) from error
    if contract is not None:
        storage.write_bytes(f"datasets/{key}/contract.yaml", contract.to_yaml().encode())
    if quarantine is not None:
        storage.write_frame(f"datasets/{key}/quarantine.parquet", quarantine)
    version = DatasetVersion(
        id=key,
        n_rows=len(frame),
        n_bad=0 if quarantine is None else int(quarantine["row_number"].nunique()),
        columns=[str(c) for c in frame.columns],
        source=source,
        contract_digest=contract.digest if contract else None,
        parent=parent,
        code_commit=code_commit,
        created_at=now or datetime.now(UTC),
    )
    storage.write_json(f"datasets/{key}/manifest.json", version.to_dict())
    return version


def load_manifest(storage: Storage, id: str) -> DatasetVersion:
    """Return what is known of a dataset version, or raise DataNotFound."""
    key = f"datasets/{id}/manifest.json"
    if not storage.exists(key):
        raise DataNotFound(
            f"no dataset version {id!r} at {storage.url}; ingest its source again", context={"dataset": id}
        )
    return DatasetVersion.from_dict(storage.read_json(key))


def load_dataset(storage: Storage, id: str, columns: list[str] | None = None) -> pd.DataFrame:
    """Return a version's rows, all columns or those named, or raise DataNotFound."""
    load_manifest(storage, id)
    return storage.read_frame(f"datasets/{id}/rows.parquet", columns)


def load_contract(storage: Storage, id: str) -> Contract:
    """Return the contract that a version's rows were held against, or raise DataNotFound."""
    if load_manifest(storage, id).contract_digest is None:
        raise DataNotFound(f"dataset version {id!r} was kept without a contract; save it with one")
    return Contract.from_yaml(storage.read_bytes(f"datasets/{id}/contract.yaml").decode())


def load_quarantine(storage: Storage, id: str) -> pd.DataFrame:
    """Return the faults of the rows that a version's contract set aside; raise DataNotFound where none were kept."""
    load_manifest(storage, id)
    return storage.read_frame(f"datasets/{id}/quarantine.parquet")
