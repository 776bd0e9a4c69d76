"""A scoring to look at: counts as a table, and the predictions as a picture."""

from typing import Any

import numpy as np
import pandas as pd

from forge_core.pictures import CURRENT, png, short_text, small_multiples, tidy_axes
from forge_core.scoring.output import Scoring
from forge_core.storage import Storage

# The picture looks at so many parts, spread evenly.
_PARTS = 16
_CLASSES = 20


def scoring_table(scoring: Scoring) -> list[dict[str, Any]]:
    """Return the counts, and the faults by column and check, as rows of a table."""
    facts: dict[str, Any] = {
        "rows": scoring.n_rows,
        "without prediction": scoring.n_bad,
        "parts": scoring.n_parts,
        "rows from an earlier attempt": scoring.n_resumed,
        "rows a second": round(scoring.rows_per_second),
        "output": scoring.output,
    }
    rows = [{"what": name, "value": value} for name, value in facts.items()]
    return rows + [{"what": f"{f['column']}: {f['check']}", "value": f["rows"]} for f in scoring.faults]


def predictions_figure(scoring: Scoring) -> bytes:
    """Return the distribution of the predictions as PNG: of numbers a histogram; of classes their counts, and the
    probability of the predicted one.
    """
    target = Storage(scoring.output)
    keys = target.list("parts", suffix=".parquet")
    chosen = [keys[i] for i in np.unique(np.linspace(0, len(keys) - 1, _PARTS).astype(int))]
    frames = [_answers(target, key) for key in chosen]
    rows = pd.concat(frames, ignore_index=True).dropna(subset=["prediction"])
    figure, boxes = small_multiples(len(rows.columns), height=3.4)
    share = "" if len(chosen) == len(keys) else f" ({len(rows):,} of them shown)"
    figure.suptitle(f"{scoring.model} v{scoring.version}: {scoring.n_rows - scoring.n_bad:,} predictions{share}")
    if "probability" in rows:
        counts = rows["prediction"].astype(str).value_counts().head(_CLASSES)
        boxes[0].bar([short_text(name) for name in counts.index], counts, color=CURRENT)
        boxes[0].set(xlabel="predicted class", ylabel="rows")
        boxes[1].hist(rows["probability"], bins=40, range=(0, 1), color=CURRENT)
        boxes[1].set(xlabel="probability of the predicted class", ylabel="rows")
    else:
        boxes[0].hist(rows["prediction"].astype(float), bins=60, color=CURRENT)
        boxes[0].set(xlabel="prediction", ylabel="rows")
    for axes in boxes:
        tidy_axes(axes)
    return png(figure)


def _answers(target: Storage, key: str) -> pd.DataFrame:
    with target.fs.open(target.path(key), "rb") as file:
        frame = pd.read_parquet(file)
    return frame[[name for name in ("prediction", "probability") if name in frame]]
