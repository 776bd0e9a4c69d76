"""A CSV file of good rows with known faults in it: twenty kinds, so many rows of each."""

from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa

from forge_core.data.contracts import Contract
from forge_core.policy import DataPolicy

# kind of fault -> (column, what stands there, the check that must find it)
CELL_FAULTS = {
    "text in a number": ("amount", "n.a.?", "is_number"),
    "formula": ("amount", "=B2*1.2", "is_number"),
    "decimal comma": ("amount", '"12,5"', "is_number"),
    "infinite by exponent": ("amount", "1e400", "is_finite"),
    "infinity by name": ("amount", "inf", "is_finite"),
    "missing number": ("amount", "", "not_nullable"),
    "below the bound": ("amount", "-0.01", "greater_than_or_equal_to(0.0)"),
    "above the bound": ("amount", "1000001", "less_than_or_equal_to(1000000.0)"),
    "on an open bound": ("ratio", "1.0", "in_range(0.0, 1.0)"),
    "fraction in an integer": ("count", "3.5", "is_integer"),
    "text in an integer": ("count", "three", "is_integer"),
    "unknown level": ("code", "Z", "isin(['A', 'B', 'C'])"),
    "missing level": ("code", "", "not_nullable"),
    "forbidden level": ("town", "TEST", "notin(['TEST'])"),
    "no boolean": ("flag", "maybe", "is_boolean"),
    "impossible day": ("day", "2024-02-30", "is_datetime"),
    "another date format": ("day", "03/04/2024", "is_datetime"),
}
ROW_FAULTS = {"cell too few": "is_row", "cell too many": "is_row", "repeated key": "field_uniqueness"}
KINDS = [*CELL_FAULTS, *ROW_FAULTS]

POLICY = DataPolicy(source="-", target="late", key_column="id", max_bad_share=0.2)


def planted_contract() -> Contract:
    """Return the contract that the good rows keep and each planted row breaks once."""
    schema = pa.DataFrameSchema(
        {
            "id": pa.Column("str", unique=True),
            "day": pa.Column("datetime64[us, UTC]"),
            "amount": pa.Column("float64", [pa.Check.ge(0.0), pa.Check.le(1_000_000.0)]),
            "ratio": pa.Column("float64", pa.Check.in_range(0.0, 1.0, include_max=False), nullable=True),
            "count": pa.Column("int64"),
            "code": pa.Column("str", pa.Check.isin(["A", "B", "C"])),
            "town": pa.Column("str", pa.Check.notin(["TEST"]), nullable=True),
            "flag": pa.Column("bool"),
            "late": pa.Column("int64", pa.Check.isin([0, 1])),
        }
    )
    return Contract(schema, target="late", key="id")


def good_rows(n_rows: int, seed: int = 0) -> pd.DataFrame:
    """Return rows as text, as they stand in the file."""
    random = np.random.default_rng(seed)
    ratio = pd.Series(0.999 * random.random(n_rows)).round(6).astype("str")
    town = pd.Series(random.choice(["Oslo", "Bergen", "Tromsø, Troms", 'the "old" town'], n_rows))
    return pd.DataFrame(
        {
            "id": pd.Series([f"r{i:08d}" for i in range(n_rows)], dtype="str"),
            "day": pd.Series(pd.date_range("2024-01-01", periods=n_rows, freq="min").strftime("%Y-%m-%dT%H:%M:%S")),
            "amount": pd.Series(random.lognormal(4, 1, n_rows).round(4)).astype("str"),
            "ratio": ratio.mask(pd.Series(random.random(n_rows) < 0.05), ""),
            "count": pd.Series(random.integers(0, 10_000, n_rows)).astype("str"),
            "code": pd.Series(random.choice(["A", "B", "C"], n_rows)),
            "town": ('"' + town.str.replace('"', '""') + '"').mask(pd.Series(random.random(n_rows) < 0.02), ""),
            "flag": pd.Series(random.choice(["true", "false"], n_rows)),
            "late": pd.Series(random.integers(0, 2, n_rows)).astype("str"),
        }
    )


def write_planted(file: Path, n_good: int, n_each: int, seed: int = 0) -> dict[str, set[str]]:
    """Write a CSV file and return, for each kind of fault, the keys of its rows."""
    rows = good_rows(n_good + len(KINDS) * n_each, seed)
    order = np.random.default_rng(seed + 1).permutation(len(rows))
    planted: dict[str, set[str]] = {}
    for number, (kind, (column, cell, _)) in enumerate(CELL_FAULTS.items()):
        chosen = order[number * n_each : (number + 1) * n_each]
        rows.loc[chosen, column] = cell
        planted[kind] = set(rows.loc[chosen, "id"])
    start = len(CELL_FAULTS) * n_each
    few, many, twice = (order[start + n * n_each : start + (n + 1) * n_each] for n in range(3))
    originals = order[start + 3 * n_each : start + 4 * n_each]
    # A repeated key comes after its original, and says something else.
    repeats = rows.loc[originals].assign(amount="7.25", count="77")
    lines = rows.agg(",".join, axis=1)
    lines[few] = lines[few].str.rpartition(",")[0]
    lines[many] = lines[many] + ",surplus"
    planted["cell too few"], planted["cell too many"] = set(rows.loc[few, "id"]), set(rows.loc[many, "id"])
    planted["repeated key"] = set(repeats["id"])
    kept = lines.drop(index=twice)
    with file.open("w") as out:
        out.write(",".join(rows.columns) + "\n")
        out.writelines(f"{line}\n" for line in [*kept, *repeats.agg(",".join, axis=1)])
    return planted


def found_kinds(quarantine: pd.DataFrame, planted: dict[str, set[str]]) -> dict[str, int]:
    """Return how many rows of each planted kind the quarantine names, by the right check."""
    checks = {kind: check for kind, (_, _, check) in CELL_FAULTS.items()} | ROW_FAULTS
    # A line that is no row has no key; it begins with it.
    keys = quarantine["row_key"].where(quarantine["row_key"] != "", quarantine["value"].str.partition(",")[0])
    return {kind: len(set(keys[quarantine["check"] == checks[kind]]) & rows) for kind, rows in planted.items()}
