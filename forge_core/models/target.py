"""What a model learns to say: its task, its classes, and labels as the numbers that metrics want."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from forge_core.errors import UnusableTarget
from forge_core.statistics.quality import Floats, Task

Learning = Literal["classification", "regression"]

# A target of more different whole numbers than this is a quantity and no name of a class.
MOST_CLASSES = 50


def infer_learning(y: ArrayLike) -> Learning:
    """Return what a target asks for: text, flags and few whole numbers are classes, everything else is a quantity."""
    values = pd.Series(np.asarray(y)).dropna()
    numbers = pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype)
    if numbers and ((values % 1 != 0).any() or values.nunique() > MOST_CLASSES):
        return "regression"
    return "classification"


def checked_target(y: ArrayLike, learning: Learning, *, need_both: bool = True) -> NDArray[Any]:
    """Return labels as an estimator takes them: numbers, or classes (whole numbers, or text).

    Raises
    ------
    UnusableTarget
        For missing labels, one class or one number only (where `need_both`), numbers that are no classes, too many
        classes, or infinite numbers.
    """
    values = pd.Series(np.asarray(y))
    if missing := int(values.isna().sum()):
        raise UnusableTarget(f"expected a label in every row, found {missing:,} missing; drop those rows")
    if learning == "regression":
        return _quantities(values, need_both)
    if pd.api.types.is_bool_dtype(values.dtype) or values.map(lambda v: isinstance(v, bool | np.bool_)).all():
        values = values.astype(int)
    if pd.api.types.is_numeric_dtype(values.dtype):
        if (values % 1 != 0).any():
            raise UnusableTarget(
                f"expected classes, found the number {values[values % 1 != 0].iloc[0]:g}; say task='regression'"
            )
        values = values.astype(int)
    else:
        values = values.astype(str)
    counts = values.value_counts()
    if need_both and len(counts) < 2:
        raise UnusableTarget(
            f"expected two classes or more, found one: {counts.to_dict()}; nothing can be learnt from it"
        )
    if len(counts) > MOST_CLASSES:
        raise UnusableTarget(
            f"expected at most {MOST_CLASSES} classes, found {len(counts):,}; "
            "say task='regression' for a quantity, or group rare classes"
        )
    return values.to_numpy(object if values.dtype == "str" else int)


def class_numbers(y: ArrayLike, classes: Sequence[Any]) -> Floats:
    """Return each label's position among the classes, shape (n_rows,).

    Raises
    ------
    UnusableTarget
        Names labels that are none of the classes.
    """
    labels = checked_target(y, "classification", need_both=False)
    known = {str(label): number for number, label in enumerate(classes)}
    numbers = [known.get(str(label), -1) for label in labels]
    if -1 in numbers:
        strange = sorted({str(label) for label, number in zip(labels, numbers, strict=True) if number < 0})
        raise UnusableTarget(
            f"expected labels among {', '.join(known)}, found {', '.join(strange[:5])}, which the model never saw"
        )
    return np.array(numbers, float)


def task_of(pipeline: Any) -> Task:
    """Return a fitted pipeline's task."""
    classes = classes_of(pipeline)
    return "regression" if classes is None else "classification" if len(classes) == 2 else "multiclass"


def classes_of(pipeline: Any) -> list[Any] | None:
    """Return a fitted pipeline's classes as plain values, in the order of its probabilities; None for a regression."""
    classes = getattr(pipeline, "classes_", None) if hasattr(pipeline, "predict_proba") else None
    return None if classes is None else [c.item() if hasattr(c, "item") else c for c in classes]


def labels_as_numbers(y: ArrayLike, pipeline: Any) -> Floats:
    """Return labels as metrics want them: positions among the pipeline's classes, or the numbers themselves."""
    classes = classes_of(pipeline)
    return _quantities(pd.Series(np.asarray(y)), False) if classes is None else class_numbers(y, classes)


def _quantities(values: pd.Series, need_both: bool) -> Floats:
    try:
        numbers = values.to_numpy(float)
    except (TypeError, ValueError):
        raise UnusableTarget(f"expected numbers, found {values.iloc[0]!r}; say task='classification'") from None
    if not np.isfinite(numbers).all():
        raise UnusableTarget(f"expected finite numbers, found {int((~np.isfinite(numbers)).sum()):,} that are not")
    if need_both and len(np.unique(numbers)) < 2:
        raise UnusableTarget(f"expected different numbers, found only {numbers[:1]}; nothing can be learnt from it")
    return numbers
