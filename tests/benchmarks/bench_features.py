"""What features cost: a million rows through our engineer and through a bare scikit-learn ColumnTransformer.

Both do the same work on the same rows in this process, in turns: medians and missing flags for 12 numbers and a
boolean, one column a level for 4 short categories, a code for one of 5 000 levels, three parts of a datetime.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder

from forge_core.data.feature_engineering import FeatureEngineer
from tests.benchmarks.harness import Report

ROWS = 1_000_000
ROUNDS = 5
NUMBERS = [f"number{i}" for i in range(12)]
SHORT = {"short0": 4, "short1": 8, "short2": 12, "short3": 20}
LEVELS = 5_000


def run() -> bool:
    """Measure and report; the target is at most 1.3 times the ColumnTransformer's time."""
    report = Report("features")
    measure(report)
    return report.finish()


def measure(report: Report, *, n_rows: int = ROWS) -> None:
    """Add the times of both, their ratio, and ours for one row."""
    rows = make_rows(n_rows)
    ours = FeatureEngineer(max_levels=LEVELS).fit(rows)
    theirs = column_transformer().fit(rows)
    agree(ours, theirs, rows.head(10_000))
    engineer, transformer = [], []
    for _ in range(ROUNDS):
        engineer.append(_seconds(lambda: ours.transform(rows)))
        transformer.append(_seconds(lambda: theirs.transform(rows)))
    report.add("features: ColumnTransformer, seconds", median(transformer))
    report.add("features: transform, seconds", median(engineer))
    report.add("features: transform / ColumnTransformer", median(engineer) / median(transformer), at_most=1.3)
    serving, one = FeatureEngineer().fit(rows.head(20_000)), rows.head(1)
    single = [_seconds(lambda: serving.transform(one)) for _ in range(200)]
    report.add("features: one row, milliseconds", median(single) * 1e3)


def make_rows(n_rows: int, random_state: int = 0) -> pd.DataFrame:
    """Return rows of 12 numbers (4 with gaps), 4 short categories, a long one, a boolean and a datetime."""
    rng = np.random.default_rng(random_state)
    columns: dict[str, object] = {name: rng.normal(size=n_rows) for name in NUMBERS}
    for name in NUMBERS[::3]:
        columns[name] = np.where(rng.random(n_rows) < 0.05, np.nan, columns[name])
    for name, levels in {**SHORT, "long": LEVELS}.items():
        texts = np.array([f"{name}-{level:04d}" for level in range(levels)], dtype=object)
        columns[name] = pd.Series(texts[rng.integers(0, levels, n_rows)], dtype="str")
    columns["flag"] = rng.random(n_rows) < 0.3
    seconds = pd.to_timedelta(rng.integers(0, 365 * 86_400, n_rows), unit="s")
    columns["when"] = pd.Timestamp("2024-01-01", tz="UTC") + seconds
    return pd.DataFrame(columns)


def column_transformer() -> ColumnTransformer:
    """Return what a person would write with scikit-learn alone, giving a dense float32 matrix."""
    single = FunctionTransformer(lambda block: np.asarray(block, np.float32))
    return ColumnTransformer(
        [
            ("numbers", make_pipeline(single, SimpleImputer(strategy="median", add_indicator=True)), NUMBERS),
            ("short", OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32), list(SHORT)),
            (
                "long",
                OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.float32),
                ["long"],
            ),
            ("flag", single, ["flag"]),
            ("when", FunctionTransformer(_parts), ["when"]),
        ]
    )


def agree(ours: FeatureEngineer, theirs: ColumnTransformer, rows: pd.DataFrame) -> None:
    """Pass where both really did the same work: every output but the long category's codes is the other's too."""
    names = ours.get_feature_names_out().tolist()
    mine = pd.DataFrame(ours.transform(rows), columns=names).drop(columns=["long__code", "long__share"])
    flags = [name for name in names if name.endswith("__missing")]
    short = [name for name in names if name.startswith("short")]
    matrix = theirs.transform(rows)
    assert matrix.dtype == np.float32
    width = len(NUMBERS) + len(flags) + len(short)
    np.testing.assert_array_equal(mine[[*NUMBERS, *flags, *short]], matrix[:, :width])
    np.testing.assert_array_equal(mine[["flag", "when__hour", "when__weekday", "when__month"]], matrix[:, width + 1 :])


def _parts(block: pd.DataFrame) -> np.ndarray:
    times = block.iloc[:, 0].dt
    return np.column_stack([times.hour, times.day_of_week, times.month]).astype(np.float32)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    run()
