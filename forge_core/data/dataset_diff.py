"""How two dataset versions differ: rows, schema, distributions."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp

from forge_core.data.hashing import row_hashes
from forge_core.data.seen import SeenHashes
from forge_core.data.versions import load_contract, load_manifest, load_sample, stream_dataset
from forge_core.storage import Storage


@dataclass(frozen=True)
class DatasetDiff:
    """What became of one version's rows and columns in another.

    Rows are told apart by all the columns that both versions have. `schema` tells columns and, where both
    versions have contracts, what these ask, in words. `columns` has a line for each common column: `column`,
    `missing_before`, `missing_after` (shares), `distance` between the samples' distributions (Kolmogorov-Smirnov
    for numbers and times, total variation for the others; 0 the same, 1 nothing in common), sorted by it.
    """

    before: str
    after: str
    n_added: int
    n_removed: int
    n_common: int
    schema: list[str]
    columns: pd.DataFrame

    def to_markdown(self) -> str:
        """Return the difference as a page."""
        schema = "\n".join(f"- {change}" for change in self.schema) or "The schema is the same."
        return (
            f"`{self.before}` → `{self.after}`: {self.n_added:,} rows added, {self.n_removed:,} removed, "
            f"{self.n_common:,} the same.\n\n{schema}\n\n{self.columns.to_markdown(index=False, floatfmt='.3f')}\n"
        )


def diff_datasets(storage: Storage, before: str, after: str) -> DatasetDiff:
    """Return how the version `after` differs from `before`; memory stays bounded.

    Raises
    ------
    DataNotFound
        When there is no version of either id.
    """
    old, new = load_manifest(storage, before), load_manifest(storage, after)
    common = [name for name in new.columns if name in old.columns]
    seen = SeenHashes()
    n_old = sum(int(seen.add(row_hashes(batch)).sum()) for batch in stream_dataset(storage, before, common))
    n_new, n_added = 0, 0
    own = SeenHashes()
    for batch in stream_dataset(storage, after, common):
        hashes = row_hashes(batch)
        fresh = own.add(hashes)
        n_new += int(fresh.sum())
        n_added += int(seen.add(hashes[fresh]).sum())
    n_common = n_new - n_added
    schema = [f"{name}: column is gone" for name in old.columns if name not in new.columns]
    schema += [f"{name}: column is new" for name in new.columns if name not in old.columns]
    if old.contract_digest and new.contract_digest and old.contract_digest != new.contract_digest:
        schema = load_contract(storage, after).changes_since(load_contract(storage, before))
    samples = load_sample(storage, before), load_sample(storage, after)
    lines = [_compare(samples[0][name], samples[1][name]) for name in common]
    columns = pd.DataFrame(lines, columns=["column", "missing_before", "missing_after", "distance"])
    columns = columns.sort_values("distance", ascending=False, kind="stable", ignore_index=True)
    return DatasetDiff(before, after, n_added, n_old - n_common, n_common, schema, columns)


def _compare(before: pd.Series, after: pd.Series) -> dict[str, object]:
    old, new = before.dropna(), after.dropna()
    distance = 0.0 if len(old) == len(new) == 0 else 1.0
    if len(old) and len(new):
        if all(pd.api.types.is_numeric_dtype(v) or pd.api.types.is_datetime64_any_dtype(v) for v in (old, new)):
            distance = float(ks_2samp(_numbers(old), _numbers(new)).statistic)
        else:
            shares = [v.astype("str").value_counts(normalize=True) for v in (old, new)]
            distance = 0.5 * float(shares[0].sub(shares[1], fill_value=0.0).abs().sum())
    return {
        "column": before.name,
        "missing_before": float(before.isna().mean()),
        "missing_after": float(after.isna().mean()),
        "distance": distance,
    }


def _numbers(values: pd.Series) -> np.ndarray:
    return values.astype("int64" if pd.api.types.is_datetime64_any_dtype(values) else "float64").to_numpy()
