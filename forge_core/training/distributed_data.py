"""From files or a dataset version to prepared rows: one pass to learn features, one to encode, both in bounded memory.

Both passes run as Ray Data tasks over the files. Which part a row belongs to follows from the row's own hash, as in
`split_frame`; features are fitted on a sample of the training rows that their hashes choose.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forge_core.data.feature_engineering import FeatureEngineer
from forge_core.data.splits import part_numbers, row_places
from forge_core.errors import EmptyData, UnusableTarget
from forge_core.models.target import MOST_CLASSES, Learning
from forge_core.storage import Storage
from forge_core.training.distributed_blocks import EXTRA, Blocks, BlockWriter
from forge_core.training.distributed_source import Source, estimate_rows, explained, read_source

FIT_ROWS = 100_000
_BATCH_ROWS = 16_384


@dataclass(frozen=True)
class Parts:
    """Shares of validation and test rows, by the rows' hashes; test rows are left alone."""

    validation_share: float
    test_share: float
    random_state: int

    def of(self, frame: pd.DataFrame) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
        """Return each row's part (0 training, 1 validation, 2 test) and an independent number in [0, 1)."""
        places = row_places(frame, self.random_state)
        return part_numbers(places[:, 0], self.validation_share, self.test_share), places[:, 1]


@dataclass(frozen=True)
class Survey:
    """What the first pass found: fitted features, the target's classes (or its mean and scale), rows a part."""

    state: dict[str, Any]
    classes: list[Any]
    target_mean: float
    target_scale: float
    rows: list[int]


def survey(source: Source, parts: Parts, task: Learning, n_rows: int | None = None) -> Survey:
    """Return what has to be known before rows can be encoded, from one pass over all rows.

    Parameters
    ----------
    n_rows : int, optional
        About how many rows there are, for the sample's size; by default estimated from the files.

    Raises
    ------
    EmptyData, UnreadableData
        No rows, or none to train on; a file that is not in its format.
    UnusableTarget
        The column is missing or has missing values; one class only, or too many to be classes; text to regress on.
    """
    share = min(1.0, 1.2 * FIT_ROWS / max(1, n_rows or estimate_rows(source)))
    counts: Counter[Any] = Counter()
    rows, missing, total, squares, samples = np.zeros(3, np.int64), 0, 0.0, 0.0, []

    def look(batch: pd.DataFrame) -> pd.DataFrame:
        try:
            return _look(batch, source, parts, share, task)
        except UnusableTarget as error:  # Ray would wrap it, and lose what it was
            return pd.DataFrame([{"error": str(error)}])

    for fact in _pass(source, look):
        if fact.get("error"):
            raise UnusableTarget(fact["error"], context={"target": source.target})
        counts.update(dict(json.loads(fact["counts"])))
        rows += json.loads(fact["rows"])
        missing += fact["missing"]
        total, squares = total + fact["total"], squares + fact["squares"]
        samples.append(pd.read_parquet(io.BytesIO(fact["sample"])))
        if missing:
            continue
        if task == "classification" and len(counts) > MOST_CLASSES:
            raise UnusableTarget(
                f"expected at most {MOST_CLASSES} classes in the target {source.target!r}, found more, such as "
                f"{list(counts)[:3]}; say task='regression' (--task=regression) for numbers"
            )
    if missing:
        raise UnusableTarget(
            f"expected a label in every row of {source.target!r} in {source.name}, found {missing:,} missing; "
            "drop those rows",
            context={"target": source.target, "missing": missing},
        )
    if not rows.sum():
        raise EmptyData(f"expected rows at {source.name}, found none", context={"address": source.name})
    if task == "classification" and any(isinstance(value, float) for value in counts):
        raise UnusableTarget(
            f"expected classes in the target {source.target!r}, found the numbers {list(counts)[:3]}; "
            "say task='regression' (--task=regression)"
        )
    if task == "classification" and len(counts) < 2:
        raise UnusableTarget(
            f"expected two classes or more in the target {source.target!r}, found one: {dict(counts)}; add others"
        )
    if not rows[0]:
        raise EmptyData(f"expected rows to train on among the {rows.sum():,} at {source.name}, found none; add rows")
    sample = pd.concat([s for s in samples if len(s)], ignore_index=True)
    sample = sample.nsmallest(FIT_ROWS, "").drop(columns="")
    columns = source.features or [c for c in sample.columns if c != source.target]
    engineer = FeatureEngineer(target=source.target, scale=True).fit(sample[columns])
    mean = total / rows[0]
    scale = float(np.sqrt(max(squares / rows[0] - mean**2, 0.0))) or 1.0
    classes = sorted(counts) if task == "classification" else []
    return Survey(engineer.state(), classes, mean, scale, rows.tolist())


def prepare(
    storage: Storage, folder: str, source: Source, parts: Parts, found: Survey, *, batch_size: int, random_state: int
) -> Blocks:
    """Encode all rows of the training and validation part into blocks below `folder`, and return their layout."""
    width = len(found.state["outputs"]) + EXTRA

    def encode(batch: pd.DataFrame) -> dict[str, NDArray[Any]]:
        return _encode(batch, source, parts, found)

    writer = BlockWriter(storage, folder, width=width, batch_size=batch_size, random_state=random_state)
    dataset = read_source(source).map_batches(encode, batch_format="pandas", batch_size=_BATCH_ROWS, num_cpus=0.25)
    with explained(source):
        for batch in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
            for number, part in enumerate(("train", "validation")):
                writer.add(part, batch["rows"][batch["part"] == number])
    return writer.finish()


def _look(batch: pd.DataFrame, source: Source, parts: Parts, share: float, task: Learning) -> pd.DataFrame:
    """Return one row of facts on a batch of rows."""
    part, chance = parts.of(batch)
    labels = _labels(batch, source.target)
    usable = labels[part != 2]
    fact: dict[str, Any] = {
        "error": "",
        "missing": int(labels.isna().sum()),
        "total": 0.0,
        "squares": 0.0,
        "counts": "[]",
    }
    if task == "classification":
        # The first few differing values are enough to see that they are no classes.
        counts = usable.value_counts().head(MOST_CLASSES + 1)
        fact["counts"] = json.dumps([[_plain(value), int(n)] for value, n in counts.items()])
    else:
        numbers = _numbers(labels, source)[part == 0]
        fact |= {"total": float(np.nansum(numbers)), "squares": float(np.nansum(numbers**2))}
    chosen = batch[(part == 0) & (chance < share)].assign(**{"": chance[(part == 0) & (chance < share)]})
    fact["rows"] = json.dumps(np.bincount(part, minlength=3).tolist())
    fact["sample"] = chosen.to_parquet(index=False)
    return pd.DataFrame([fact])


def _encode(batch: pd.DataFrame, source: Source, parts: Parts, found: Survey) -> dict[str, NDArray[Any]]:
    """Return rows as blocks hold them, and the part of each; without the test part."""
    part, _ = parts.of(batch)
    batch, part = batch[part != 2], part[part != 2]
    labels = _labels(batch, source.target)
    if found.classes:
        places = {value: place for place, value in enumerate(found.classes)}
        target = np.array([places[_plain(v)] for v in labels], np.float32)
    else:
        target = ((_numbers(labels, source) - found.target_mean) / found.target_scale).astype(np.float32)
    features = FeatureEngineer.from_state(found.state).transform(batch)
    rows = np.column_stack([features, target, np.ones(len(batch), np.float32)]).astype(np.float32)
    return {"rows": rows, "part": part}


def _pass(source: Source, look: Any) -> Iterator[dict[str, Any]]:
    dataset = read_source(source).map_batches(look, batch_format="pandas", batch_size=_BATCH_ROWS, num_cpus=0.25)
    with explained(source):
        for batch in dataset.iter_batches(batch_size=None, batch_format="pandas", prefetch_batches=1):
            yield from batch.to_dict("records")


def _labels(batch: pd.DataFrame, target: str) -> pd.Series:
    if target not in batch:
        raise UnusableTarget(
            f"expected the target column {target!r}, found {', '.join(map(str, batch.columns))}; "
            "name another with target= (--target)",
            context={"target": target},
        )
    return batch[target]


def _numbers(labels: pd.Series, source: Source) -> NDArray[np.float64]:
    if not pd.api.types.is_numeric_dtype(labels.dtype):
        raise UnusableTarget(
            f"expected numbers in the target {source.target!r}, found {labels.dtype}; say task='classification'"
        )
    return labels.to_numpy(np.float64, na_value=np.nan)


def _plain(value: Any) -> Any:
    """Return a label as JSON knows it; whole floats and booleans are integers."""
    if isinstance(value, bool | np.bool_ | int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return int(value) if float(value).is_integer() else float(value)
    return str(value)
