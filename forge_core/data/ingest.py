"""From a source to a dataset version: read, check against the contract, keep; batch by batch, in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa

from forge_core.data.checking import Checker
from forge_core.data.contracts import Contract, infer_contract
from forge_core.data.dataset_writer import DatasetWriter
from forge_core.data.loaders import resolve
from forge_core.data.quarantine import BadRowBudget
from forge_core.data.sources import Source
from forge_core.data.target import TargetTally
from forge_core.data.versions import DatasetVersion, list_datasets, load_contract
from forge_core.errors import DataError, DataNotFound, SchemaViolation, TooManyBadRows
from forge_core.policy import DataPolicy
from forge_core.storage import Storage


@dataclass(frozen=True)
class Ingestion:
    """What an ingest did.

    `faults` has one line for each `column` and `check` that set rows aside, with the number of `rows`;
    `left_out` names the source's columns that the contract does not know; `contract_changes` tells in words
    what the contract asks that the parent version's did not.
    """

    version: DatasetVersion
    n_read: int
    n_bad: int
    n_duplicates: int
    faults: pd.DataFrame
    left_out: list[str]
    contract_changes: list[str]


def ingest(
    storage: Storage,
    source: str | Path | pd.DataFrame | Source,
    policy: DataPolicy,
    *,
    since: str | None = None,
    until: str | None = None,
    code_commit: str | None = None,
    now: datetime | None = None,
    progress: Callable[[int], None] = lambda n_rows: None,
) -> Ingestion:
    """Keep a source's good rows as a dataset version and tell what became of the others.

    Columns of the contract are kept, exact duplicates and repeated keys once. The version before it from the
    same source becomes its parent.

    Parameters
    ----------
    source : str, Path, DataFrame or Source
        An address (see `forge_core.data.sources`), a name of the catalogue, rows, or an opened source.
    policy : DataPolicy
        Target, special columns, contract file and the budget for bad rows.
    since, until : str, optional
        ISO times; rows from `since` on whose event time, and whose label, lie before `until`.
    progress : callable, optional
        Called after each batch with the number of rows read so far.

    Raises
    ------
    SchemaViolation, TooManyBadRows, UnusableTarget
        When the rows cannot be trained on. No version is kept then; the refused rows are listed below
        `refused/` in the storage, at the address in the message.
    """
    opened = _open(source, since, until)
    contract = _contract(opened, policy)
    target = TargetTally(policy.target)
    target.check_column(contract.kinds, opened.address)
    parent = next(reversed(list_datasets(storage, opened.address)), None)
    checker = Checker(contract, drop_duplicates=True)
    left_out: dict[str, None] = {}
    with DatasetWriter(storage, opened.address, contract) as writer:
        try:
            for frame in _ahead(opened.batches(contract.kinds)):
                batch = checker.check(frame[[c for c in frame.columns if str(c) in contract.kinds]])
                left_out |= dict.fromkeys(str(c) for c in frame.columns if str(c) not in contract.kinds)
                writer.set_aside(batch.faults)
                target.add(batch.good)
                if len(batch.good) and batch.hashes is not None:
                    writer.write(batch.good, batch.hashes)
                progress(checker.n_rows)
                pa.default_memory_pool().release_unused()
            writer.set_aside(checker.reject(opened.rejects))
            checker.finish(BadRowBudget(policy.max_bad_share, policy.max_bad_share_per_check))
        except (SchemaViolation, TooManyBadRows) as error:
            raise _with_address(error, storage, writer.refuse(now)) from error
        target.check_values(opened.address)
        version = writer.keep(
            n_bad=checker.n_bad,
            n_duplicates=checker.n_duplicates,
            parent=parent.id if parent else None,
            code_commit=code_commit,
            now=now,
        )
    faults = [{"column": c, "check": k, "rows": n} for (c, k), n in sorted(checker.counts.items())]
    return Ingestion(
        version,
        n_read=checker.n_rows,
        n_bad=checker.n_bad,
        n_duplicates=checker.n_duplicates,
        faults=pd.DataFrame(faults, columns=["column", "check", "rows"]),
        left_out=list(left_out),
        contract_changes=_changes(storage, contract, parent),
    )


def _open(source: str | Path | pd.DataFrame | Source, since: str | None, until: str | None) -> Source:
    if isinstance(source, str | Path | pd.DataFrame):
        return resolve(source, since=since, until=until, labels_until=until)
    return source


def _ahead(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Give batches, reading the next ones in a thread while the caller works on this one.

    Two of them: some batches take longer to read than to check, and some the other way round.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="forge-read") as thread:
        pending = deque(thread.submit(next, batches, None) for _ in range(2))
        while (batch := pending.popleft().result()) is not None:
            pending.append(thread.submit(next, batches, None))
            yield batch


def _contract(source: Source, policy: DataPolicy) -> Contract:
    if policy.contract is not None:
        file = Path(policy.contract)
        if not file.is_file():
            raise DataNotFound(f"expected the contract {file} that the policy names, found none")
        return Contract.from_yaml(file.read_text())
    return source.contract() or infer_contract(
        source.batches(),
        untyped=source.untyped,
        target=policy.target,
        key=policy.key_column,
        time=policy.time_column,
        label_time=policy.label_time_column,
    )


def _changes(storage: Storage, contract: Contract, parent: DatasetVersion | None) -> list[str]:
    if parent is None or parent.contract_digest in (None, contract.digest):
        return []
    return contract.changes_since(load_contract(storage, parent.id))


def _with_address(error: DataError, storage: Storage, key: str | None) -> DataError:
    if key is None:
        return error
    return type(error)(f"{error}; every refused row is listed in {storage.url}/{key}", context=error.context)
