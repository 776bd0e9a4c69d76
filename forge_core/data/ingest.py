"""From a source to a dataset version: load, tidy, check against the contract, keep."""

from datetime import datetime
from pathlib import Path

from forge_core.data.contracts import CheckedRows, Contract, infer_contract
from forge_core.data.loaders import check_target, get_contract, get_data_loader
from forge_core.data.versions import DatasetVersion, save_dataset
from forge_core.errors import DataNotFound
from forge_core.policy import DataPolicy
from forge_core.storage import Storage


def ingest(
    storage: Storage,
    source: str,
    policy: DataPolicy,
    *,
    since: str | None = None,
    until: str | None = None,
    parent: str | None = None,
    code_commit: str | None = None,
    now: datetime | None = None,
) -> tuple[DatasetVersion, CheckedRows]:
    """Return the dataset version of a source's good rows, and what the contract set aside.

    Parameters
    ----------
    source : str
        A source URI (see `forge_core.data.loaders`).
    policy : DataPolicy
        Target, special columns, contract file and the budget for bad rows.
    since, until : str, optional
        ISO times; rows from `since` on whose event time, and whose label, lie before `until`.

    Raises
    ------
    SchemaViolation, TooManyBadRows, UnusableTarget
        When the rows cannot be trained on; nothing is kept then.
    """
    loader = get_data_loader()
    frame = loader.preprocess_data(loader.load_data(source, since=since, until=until, labels_until=until))
    contract = _contract(source, policy) or infer_contract(
        frame,
        target=policy.target,
        key=policy.key_column,
        time=policy.time_column,
        label_time=policy.label_time_column,
    )
    check_target(frame, policy.target, source=source)
    checked = contract.check(frame, policy.max_bad_share)
    check_target(checked.good, policy.target, source=source)
    version = save_dataset(
        storage,
        checked.good,
        source=source,
        contract=contract,
        quarantine=checked.quarantine,
        parent=parent,
        code_commit=code_commit,
        now=now,
    )
    return version, checked


def _contract(source: str, policy: DataPolicy) -> Contract | None:
    if policy.contract is None:
        return get_contract(source)
    file = Path(policy.contract)
    if not file.is_file():
        raise DataNotFound(f"expected the contract {file} that the policy names, found none")
    return Contract.from_yaml(file.read_text())
