"""Which rows are replayed before a version goes live: held-out ones, and some with missing and unknown values."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from forge_core.data.contracts import Contract
from forge_core.errors import ConfigurationError, DataError, DataNotFound, SchemaViolation
from forge_core.models.version import VersionFolder
from forge_core.monitoring.windows import ReferenceProfile
from forge_core.policy import DataPolicy
from forge_core.statistics.cells import CategoryCells
from forge_core.storage import Storage
from forge_core.training.datasets import SplitRequest, load_split

logger = logging.getLogger(__name__)

NEVER_SEEN = "never seen in training"


@dataclass(frozen=True)
class ReplayRows:
    """Rows to replay, features only.

    `held_out` are rows as they were kept (or made from the version's own parts, where `origin` says so),
    `planted` the same with a nullable feature missing or an unknown category.
    """

    held_out: pd.DataFrame
    planted: pd.DataFrame
    origin: str


def choose_rows(
    storage: Storage, folder: VersionFolder, *, data: DataPolicy, random_state: int = 0, n_rows: int = 200
) -> ReplayRows:
    """Return rows of the version's held-out part, spread evenly over it, and planted ones.

    Where its dataset cannot be read any more the rows are made from the version's input example and the cells of
    its reference profile, and `origin` says why.

    Parameters
    ----------
    data, random_state : DataPolicy, int
        How the dataset was split, for a version whose candidate's recipe is not in the storage any more.
    n_rows : int
        Rows besides the planted ones, at most.
    """
    try:
        rows, origin = _held_out(storage, folder, data, random_state, n_rows)
    except (DataError, ConfigurationError) as error:
        rows = _from_reference(folder, n_rows)
        origin = f"{len(rows)} rows made from the version's example and reference, because of: {error}"
        logger.warning("held-out rows of the version not found: %s", error)
    planted = plant_faults(rows, folder.contract)
    return ReplayRows(rows, planted, f"{origin}, and {len(planted)} with missing or unknown values")


def plant_faults(rows: pd.DataFrame, contract: Contract) -> pd.DataFrame:
    """Return one row for each nullable feature that lacks it, one that lacks them all, one for each open category.

    Parameters
    ----------
    rows : DataFrame, shape (n_rows, n_features)
        Where the other values come from; at least one row.
    """
    schema = contract.schema.columns
    gaps = [c for c in contract.feature_columns if schema[c].nullable]
    texts = [c for c in contract.feature_columns if contract.kinds[c] == "category" and _is_open(schema[c])]
    missing = [{c} for c in gaps] + ([set(gaps)] if len(gaps) > 1 else []) + [set[str]() for _ in texts]
    unknown = [""] * (len(missing) - len(texts)) + texts
    whole = rows[rows.notna().all(axis=1).to_numpy()]
    base = whole if len(whole) else rows
    planted = base.iloc[np.arange(len(missing)) % len(base)].reset_index(drop=True)
    for column in rows.columns:
        gap = np.array([column in gone for gone in missing], bool)
        strange = np.array([column == name for name in unknown], bool)
        if gap.any():
            planted[column] = planted[column].mask(gap)
        if strange.any():
            planted[column] = planted[column].astype("str").mask(strange, NEVER_SEEN)
    return planted


def to_records(rows: pd.DataFrame, contract: Contract) -> list[dict[str, Any]]:
    """Return rows as a client would send them: plain values, ISO times, null where a value is missing."""
    columns = {c: [_plain(v, contract.kinds[c]) for v in rows[c]] for c in contract.feature_columns}
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _held_out(
    storage: Storage, folder: VersionFolder, data: DataPolicy, random_state: int, n_rows: int
) -> tuple[pd.DataFrame, str]:
    request = _split_request(storage, folder.lineage, data, random_state)
    test = load_split(storage, request).test
    columns = folder.contract.feature_columns
    if lost := [c for c in columns if c not in test]:
        raise SchemaViolation(f"dataset {request.dataset_id} lacks the features {', '.join(lost)}")
    spread = np.unique(np.linspace(0, len(test) - 1, min(n_rows, len(test))).round().astype(int))
    rows = test[columns].iloc[spread].reset_index(drop=True)
    return rows, f"{len(rows)} of {len(test)} held-out rows of {request.dataset_id}"


def _split_request(storage: Storage, lineage: Mapping[str, Any], data: DataPolicy, random_state: int) -> SplitRequest:
    """Return the split of the version's training: as its recipe keeps it, else as the policy has it now."""
    key = f"candidates/{lineage.get('candidate')}/recipe.json"
    if storage.exists(key):
        kept = storage.read_json(key)["split"]
        if set(kept) == {f.name for f in fields(SplitRequest)}:
            return SplitRequest(**kept)
    if not lineage.get("dataset"):
        raise DataNotFound("the version's lineage names no dataset; register it with one")
    return SplitRequest(
        storage_url=storage.url,
        dataset_id=lineage["dataset"],
        target=data.target,
        time_column=data.time_column,
        validation_share=data.validation_share,
        test_share=data.test_share,
        random_state=random_state,
    )


def _from_reference(folder: VersionFolder, n_rows: int) -> pd.DataFrame:
    """Return the input example, and rows whose cells are borders and levels of the reference, combined by chance."""
    contract, rng = folder.contract, np.random.default_rng(0)
    grid = ReferenceProfile.from_files(folder.reference_files).grid.features
    columns: dict[str, list[Any]] = {}
    for name in contract.feature_columns:
        cells = grid[name]
        known = list(cells.levels) if isinstance(cells, CategoryCells) else [cells.minimum, *cells.edges]
        drawn = [known[i] for i in rng.integers(len(known), size=n_rows - 1)] if known else [None] * (n_rows - 1)
        columns[name] = [_value(v, contract.kinds[name]) for v in drawn]
    rows = [contract.check_row(folder.input_example)]
    for cells_of_row in zip(*columns.values(), strict=True):
        try:
            rows.append(contract.check_row(dict(zip(columns, cells_of_row, strict=True))))
        except SchemaViolation:  # a border may round to what the contract forbids
            continue
    return pd.DataFrame(rows)


def _is_open(column: Any) -> bool:
    return all(check.name != "isin" for check in column.checks)


def _plain(value: Any, kind: str) -> Any:
    if value is None or pd.isna(value):
        return None
    if kind == "datetime":
        return value.isoformat()
    return {"number": float, "integer": int, "boolean": bool}.get(kind, str)(value)


def _value(cell: Any, kind: str) -> Any:
    """Return a reference's border or level, which is a number or a text, as a value of a kind."""
    if kind == "boolean" and isinstance(cell, str):
        return {"True": True, "False": False}.get(cell)
    return round(cell) if kind == "integer" and isinstance(cell, float) and cell == cell else cell
