"""Which columns become features: as named or inferred, never the target or the key."""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from forge_core.data.encoding import InputKind, distinct_texts, input_kind
from forge_core.errors import ConfigurationError, SchemaViolation

_TARGET_NAMES = ("target", "label")
# A text column in which so large a share of this many rows or more is distinct names rows rather than describes them.
_NEARLY_ALL = 0.95
_ENOUGH = 100


def choose_features(
    rows: pd.DataFrame,
    categorical: Sequence[str] | None,
    numerical: Sequence[str] | None,
    target: str | None,
    key: str | Sequence[str] | None,
) -> dict[str, InputKind]:
    """Return the kind of each feature, in the rows' order; warns about what looks like a target or an id.

    Raises
    ------
    ConfigurationError
        A column is named as both kinds; the target or a key is among the features; there are no features.
    SchemaViolation
        A named column is missing, or two features have one name.
    """
    named: dict[str, InputKind] = dict.fromkeys(numerical or [], "number")
    named |= dict.fromkeys(categorical or [], "category")
    if both := set(numerical or []) & set(categorical or []):
        raise ConfigurationError(f"{', '.join(sorted(both))} cannot be categorical and numerical at once")
    if missing := [c for c in named if c not in rows]:
        raise SchemaViolation(
            f"expected the columns {', '.join(missing)}, found {', '.join(map(str, rows.columns))}",
            context={"missing": missing},
        )
    only_named = categorical is not None and numerical is not None
    names = [c for c in rows.columns if c in named or not only_named]
    check_unique(names)
    if target in names:
        raise ConfigurationError(f"the target {target!r} is among the features; leave it out of X")
    keys = [key] if isinstance(key, str) else list(key or [])
    if offered := [c for c in keys if c in names]:
        raise ConfigurationError(f"the key {offered[0]!r} is among the features; it names rows, so leave it out of X")
    if not names:
        raise ConfigurationError("expected at least one feature column, found none")
    chosen = {c: named.get(c) or input_kind(rows[c]) for c in names}
    _warn_of_answers(rows, chosen, target_told=target is not None, key_told=key is not None)
    return chosen


def check_unique(names: Sequence[str]) -> None:
    """Pass names of which none is there twice.

    Raises
    ------
    SchemaViolation
        Naming those that are.
    """
    if twice := sorted({str(c) for c in names if list(names).count(c) > 1}) if len(set(names)) < len(names) else []:
        raise SchemaViolation(
            f"expected one column of each name, found {', '.join(twice)} more than once; rename or drop one",
            context={"faults": [{"field": c, "reason": "is there more than once"} for c in twice]},
        )


def _warn_of_answers(rows: pd.DataFrame, chosen: dict[str, InputKind], *, target_told: bool, key_told: bool) -> None:
    targets = [] if target_told else [c for c in chosen if str(c).lower() in _TARGET_NAMES]
    for name in targets[:1]:
        _warn(f"{name!r} among the features looks like a target; leave it out, or a model sees the answer")
    ids = [c for c in chosen if not key_told and _named_like_an_id(str(c))]
    ids += [c for c, kind in chosen.items() if c not in ids and kind == "category" and _names_rows(rows[c])]
    for name in ids:
        _warn(f"{name!r} among the features looks like an id; leave it out, or a model learns rows by heart")


def _warn(message: str) -> None:
    # Blamed on the line that called `fit_transform`, beyond scikit-learn's wrapper around it.
    warnings.warn(message, UserWarning, stacklevel=7)


def _named_like_an_id(name: str) -> bool:
    return name.lower() == "id" or name.lower().endswith("_id")


def _names_rows(values: pd.Series) -> bool:
    """Return whether nearly every text is another one; looks at all rows only where the first ones make it likely."""
    for part in (values.head(10 * _ENOUGH), values):
        codes, _ = distinct_texts(part)
        codes = codes[codes >= 0]
        if len(codes) < _ENOUGH or len(np.unique(codes)) < _NEARLY_ALL * len(codes):
            return False
    return True
