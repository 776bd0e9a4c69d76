"""What an ingest brought, as a table, a page of Markdown and a picture."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from forge_core.data.contracts import Contract
from forge_core.data.ingest import Ingestion
from forge_core.pictures import CURRENT, png, short_number, short_text, small_multiples, tidy_axes

_MOST_BOXES = 24
_MOST_LEVELS = 10


def describe_columns(rows: pd.DataFrame, contract: Contract) -> pd.DataFrame:
    """Return one line a column of the contract.

    Returns
    -------
    DataFrame
        `column`, `role`, `kind`, `missing` (share), `distinct`, `low`, `middle`, `high` (5, 50 and 95 % of numbers
        and times; the three most frequent texts) as text.
    """
    roles = {getattr(contract, role): role.replace("_", " ") for role in ("target", "key", "time", "label_time")}
    lines = []
    for name, kind in contract.kinds.items():
        values = rows[name].dropna()
        low, middle, high = _ends(values, kind)
        lines.append(
            {
                "column": name,
                "role": roles.get(name, "feature"),
                "kind": kind,
                "missing": 1 - len(values) / max(len(rows), 1),
                "distinct": values.nunique(),
                "low": low,
                "middle": middle,
                "high": high,
            }
        )
    return pd.DataFrame(lines)


def ingestion_markdown(found: Ingestion, rows: pd.DataFrame, contract: Contract) -> str:
    """Return an ingest as a page: what was kept, what was set aside and why, what changed, and each column.

    Parameters
    ----------
    rows : DataFrame
        A sample of the kept rows (`load_sample`).
    """
    version = found.version
    parts = [
        f"**{version.n_rows:,} rows** of `{version.source}` are dataset `{version.id}`"
        + (f", which follows `{version.parent}`" if version.parent else "")
        + f". Of {found.n_read:,} rows read, {found.n_bad:,} were set aside and {found.n_duplicates:,} were "
        "exact duplicates."
    ]
    if len(found.faults):
        parts += ["### Set aside", found.faults.to_markdown(index=False)]
    if found.left_out:
        parts.append(f"Columns that the contract does not know, left out: {', '.join(found.left_out)}.")
    if found.contract_changes:
        changes = "\n".join(f"- {change}" for change in found.contract_changes)
        parts += ["### The contract changed since the version before", changes]
    table = describe_columns(rows, contract)
    table["missing"] = table["missing"].map("{:.1%}".format)
    parts += [f"### Columns ({len(rows):,} rows looked at)", table.to_markdown(index=False)]
    return "\n\n".join(parts) + "\n"


def data_figure(rows: pd.DataFrame, contract: Contract) -> bytes:
    """Return small multiples as PNG: a histogram a column, the key left out; at most 24 columns."""
    names = [name for name in contract.kinds if name != contract.key]
    figure, boxes = small_multiples(min(len(names), _MOST_BOXES), height=2.4)
    for name, axes in zip(names, boxes, strict=False):
        _draw(axes, rows[name], contract.kinds[name])
        missing = rows[name].isna().mean()
        title = name + (f" · {missing:.1%} missing" if missing else "")
        axes.set_title(title + (" (target)" if name == contract.target else ""), loc="left", fontsize=10)
        tidy_axes(axes)
    if len(names) > _MOST_BOXES:
        figure.supxlabel(f"{len(names) - _MOST_BOXES} more columns are in the table", fontsize=9)
    return png(figure)


def _ends(values: pd.Series, kind: str) -> tuple[str, str, str]:
    if kind in ("category", "boolean"):
        top = [f"{short_text(str(v), 20)} {n / len(values):.0%}" for v, n in values.value_counts().head(3).items()]
        return tuple([*top, "", "", ""][:3])  # type: ignore[return-value]
    if not len(values):
        return "", "", ""
    if kind == "datetime":
        at = [values.min(), values.quantile(0.5), values.max()]
        return tuple(f"{moment:%Y-%m-%d %H:%M}" for moment in at)  # type: ignore[return-value]
    at = np.quantile(values.to_numpy(np.float64), [0.05, 0.5, 0.95])
    return tuple(short_number(float(value)) for value in at)  # type: ignore[return-value]


def _draw(axes: Axes, values: pd.Series, kind: str) -> None:
    present = values.dropna()
    levels = present.value_counts()
    if kind in ("category", "boolean") or (kind == "integer" and len(levels) <= _MOST_LEVELS):
        shown = levels.head(_MOST_LEVELS)
        shown = shown if kind == "category" else shown.sort_index()
        axes.bar(range(len(shown)), shown.to_numpy(), color=CURRENT)
        labels = [short_text(str(level), 12) for level in shown.index]
        axes.set_xticks(range(len(shown)), labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=7)
        if len(levels) > _MOST_LEVELS:
            axes.set_xlabel(f"{_MOST_LEVELS} of {len(levels)} levels", fontsize=8)
    elif kind == "datetime":
        axes.hist(present, bins=30, color=CURRENT)
        axes.tick_params(axis="x", labelsize=7, rotation=30)
    else:
        numbers = present.to_numpy(np.float64)
        low, high = np.quantile(numbers, [0.005, 0.995]) if len(numbers) else (0.0, 1.0)
        axes.hist(np.clip(numbers, low, high), bins=40, color=CURRENT)
    axes.tick_params(axis="y", labelsize=8)
