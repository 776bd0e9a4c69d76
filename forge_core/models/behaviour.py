"""What a model must do whatever its metrics: invariance, direction, minimum function (Ribeiro et al. 2020, "Beyond
Accuracy: Behavioral Testing of NLP Models with CheckList", section 2), and how fast it must answer."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from forge_core.errors import ConfigurationError
from forge_core.models.evaluation import Check
from forge_core.policy import BehaviourTest
from forge_core.statistics.quality import Floats

Scorer = Callable[[pd.DataFrame], Floats]


def check_behaviour(tests: Sequence[BehaviourTest], score: Scorer, rows: pd.DataFrame) -> list[Check]:
    """Return what each test found on held-out rows.

    Parameters
    ----------
    score : callable
        Rows to scores, shape (n_rows,) or (n_rows, n_classes).
    rows : DataFrame of shape (n_rows, n_features)

    Raises
    ------
    ConfigurationError
        When a test names a feature that the model does not have.
    """
    return [_minimum(test, score, rows) if test.kind == "minimum" else _change(test, score, rows) for test in tests]


def check_latency(ask: Callable[[], Any], max_latency_ms: float, repeats: int = 50) -> Check:
    """Return whether one row is answered fast enough: the median over repeats, after a few that do not count."""
    for _ in range(5):
        ask()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        ask()
        seconds.append(time.perf_counter() - started)
    median = 1000 * statistics.median(seconds)
    return Check("latency of one row", median <= max_latency_ms, f"{median:.3g} ms", f"at most {max_latency_ms:g} ms")


def _change(test: BehaviourTest, score: Scorer, rows: pd.DataFrame) -> Check:
    name = str(test.column)
    _known(name, rows)
    if test.add is not None and not pd.api.types.is_numeric_dtype(rows[name]):
        raise ConfigurationError(f"the gate's behaviour test adds {test.add:g} to {name!r}, which is no number")
    changed = rows.assign(**{name: rows[name] + test.add if test.add is not None else test.value})
    difference = score(changed) - score(rows)
    if test.kind == "invariance":
        # A row of many classes changed where any of them did.
        kept = np.abs(difference).reshape(len(rows), -1).max(axis=1) <= test.tolerance
        what = "does not change"
    elif difference.ndim == 2:
        raise ConfigurationError("a behaviour test of direction needs one score a row; this model has many classes")
    else:
        kept = difference >= -test.tolerance if test.rises else difference <= test.tolerance
        what = "does not fall" if test.rises else "does not rise"
    share = float(np.mean(kept))
    how = f"{name} {test.add:+g}" if test.add is not None else f"{name} = {test.value}"
    return Check(f"{test.kind}: {how}", share >= test.share, f"{what} in {share:.1%} of rows", f"in {test.share:.1%}")


def _minimum(test: BehaviourTest, score: Scorer, rows: pd.DataFrame) -> Check:
    for name in test.features:
        _known(name, rows)
    row = pd.DataFrame([{name: test.features.get(name) for name in rows.columns}])
    row = row.astype({name: rows[name].dtype for name in rows.columns if row[name].notna().all()})
    found = float(np.max(score(row)))
    low, high = test.at_least, test.at_most
    passed = (low is None or found >= low) and (high is None or found <= high)
    bounds = (("at least", low), ("at most", high))
    needed = " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)
    told = ", ".join(f"{name}={value}" for name, value in list(test.features.items())[:3])
    return Check(f"minimum: {told}", passed, f"score {found:.3f}", needed)


def _known(name: str, rows: pd.DataFrame) -> None:
    if name not in rows:
        raise ConfigurationError(
            f"the gate's behaviour test names the feature {name!r}; the model has {', '.join(map(str, rows.columns))}"
        )
