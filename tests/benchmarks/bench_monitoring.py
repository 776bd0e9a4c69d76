"""What alarms cost and find: false alarms, rows to an alarm, estimates, useless retrainings, and time, with peers."""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forge_core.data.flights import load_flights
from forge_core.monitoring.drift_alarm import exchangeable_alarm, independent_alarm
from forge_core.monitoring.profiles import profile_frame
from forge_core.monitoring.window_series import WindowSeries
from forge_core.monitoring.windows import WindowStore, window_start
from forge_core.statistics.distributions import ReferenceGrid
from forge_core.statistics.estimation import QualityEstimator
from forge_core.statistics.live_loss import LiveLoss
from forge_core.statistics.quality import all_metrics
from forge_core.storage import Storage
from tests.benchmarks.drift_days import CATEGORIES, N_REFERENCE, NUMBERS, load_days, series_of, shuffled
from tests.benchmarks.drift_streams import SHIFTS, draw_reference, draw_rows, draw_windows, shifted_windows
from tests.benchmarks.harness import Report
from tests.benchmarks.serving_venvs import venv_of

CELLS = [(n, m) for n in (200, 1000, 10_000) for m in (1000, 10_000)]
STREAMS, DAY_STREAMS, TRIALS, SLOW_TRIALS = 47, 200, 60, 20
Floats = NDArray[np.float64]


def run() -> bool:
    """Measure all of it, on two processes, and report."""
    report = Report("monitoring")
    with ProcessPoolExecutor(2) as pool:
        _false_alarms(report, pool)
        _rows_to_alarm(report, pool)
        _retraining(report, pool)
        _estimates(report, pool)
    _cost(report)
    return report.finish()


def _false_alarms(report: Report, pool: ProcessPoolExecutor) -> None:
    alarms = 0
    for n, m in CELLS:
        found = sum(pool.map(_calm_stream, [(seed, n, m) for seed in range(STREAMS)], chunksize=4))
        report.add(f"no drift, n={n}, m={m}: streams of {STREAMS} with an alarm in 200 windows", found)
        alarms += found
    report.add(f"no drift: share of {STREAMS * len(CELLS)} streams", alarms / (STREAMS * len(CELLS)), at_most=0.05)
    found = sum(pool.map(_shuffled_days, range(DAY_STREAMS), chunksize=10))
    report.add(f"flights, days shuffled: share of {DAY_STREAMS} streams", found / DAY_STREAMS, at_most=0.05)


def _calm_stream(asked: tuple[int, int, int]) -> bool:
    rng = np.random.default_rng(asked)
    grid, reference = draw_reference(rng, asked[2])
    return independent_alarm(reference, draw_windows(rng, grid, 200, asked[1])).first is not None


_DAYS: list[pd.DataFrame] = []


def _shuffled_days(seed: int) -> bool:
    if not _DAYS:
        _DAYS.extend(load_days())
    days = shuffled(_DAYS, np.random.default_rng([seed, 5]))
    return exchangeable_alarm(series_of(days), n_reference=N_REFERENCE).first is not None


def _rows_to_alarm(report: Report, pool: ProcessPoolExecutor) -> None:
    for shift, (target, _) in SHIFTS.items():
        rows = np.array(list(pool.map(_shifted_stream, [(seed, shift) for seed in range(TRIALS)], chunksize=4)))
        slow = np.array(list(pool.map(_ranked_stream, [(s, shift) for s in range(SLOW_TRIALS)], chunksize=2)))
        p90 = float(np.quantile(rows, 0.9, method="higher"))
        report.add(f"{shift}: rows to alarm, median of {TRIALS}", float(np.median(rows)))
        report.add(f"{shift}: rows to alarm, p90", p90, at_most=target)
        report.add(f"{shift}: the same by ranked windows, median of {SLOW_TRIALS}", float(np.median(slow)))


def _shifted_stream(asked: tuple[int, str]) -> float:
    rng = np.random.default_rng([asked[0], 7])
    grid, reference = draw_reference(rng, 10_000)
    first = independent_alarm(reference, shifted_windows(rng, grid, asked[1], 20, 200)).first
    return np.inf if first is None else 200.0 * (first + 1)


def _ranked_stream(asked: tuple[int, str]) -> float:
    rng = np.random.default_rng([asked[0], 8])
    grid, _ = draw_reference(rng, 10_000)
    calm = [grid.count(draw_rows(rng, 200)) for _ in range(60)]
    moved = [grid.count(SHIFTS[asked[1]][1](rng, draw_rows(rng, 200))) for _ in range(60)]
    first = exchangeable_alarm(WindowSeries.of(grid, [*calm, *moved]), n_reference=60).first
    return np.inf if first is None else 200.0 * (first + 1)


def _model_on_flights() -> tuple[Floats, Floats, Floats, Floats]:
    """Return labels and probabilities of held-out flights and of later ones, shuffled, by a model of January."""
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    rows = load_flights().sample(frac=1.0, random_state=0)
    named = [c for c in CATEGORIES if c in rows]
    encode = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    model = make_pipeline(
        make_column_transformer((encode, named), remainder="passthrough"),
        HistGradientBoostingClassifier(max_iter=60, random_state=0),
    )
    X, y = rows[[*named, *NUMBERS]], rows["late"].to_numpy(float)
    model.fit(X[:40_000], y[:40_000])
    p = model.predict_proba(X[40_000:])[:, 1]
    return y[40_000:45_000], p[:5000], y[45_000:], p[5000:]


_FLIGHTS: list[tuple[Floats, Floats, Floats, Floats]] = []
_WINDOW, _DELAY, _CHANGE = 1000, 5, 100


def _retraining(report: Report, pool: ProcessPoolExecutor) -> None:
    seeds, n = list(range(20)), 20
    useless = sum(pool.map(_useless_retrains, seeds))
    report.add(f"flights: useless retrainings a 200 stationary windows ({n} streams)", useless / n, at_most=0.05)
    delays = np.array(list(pool.map(_windows_to_retrain, seeds)))
    report.add(f"flights: accuracy falls 8 pp, labels {_DELAY} windows late: windows to a retraining, median of {n}",
               float(np.median(delays)), at_most=_DELAY + 2)  # fmt: skip
    report.add("the same, p90", float(np.quantile(delays, 0.9, method="higher")))


def _stream(seed: int) -> tuple[LiveLoss, Floats, Floats, np.random.Generator]:
    if not _FLIGHTS:
        _FLIGHTS.append(_model_on_flights())
    y0, p0, y, p = _FLIGHTS[0]
    rng = np.random.default_rng([seed, 3])
    chosen = rng.permutation(len(y))[: 200 * _WINDOW]
    return LiveLoss.fit("classification", y0, p0), y[chosen], p[chosen], rng


def _useless_retrains(seed: int) -> int:
    loss, y, p, _ = _stream(seed)
    return int(loss.evidence(y, p, allowed=0.01, horizon=1_000_000).alarm)


def _windows_to_retrain(seed: int) -> float:
    loss, y, p, rng = _stream(seed)
    right = (p >= 0.5) == (y == 1)
    after = np.arange(len(y)) >= _CHANGE * _WINDOW
    # Labels of rows that were right are turned until accuracy is 8 points lower.
    turned = after & right & (rng.random(len(y)) < 0.08 / right.mean())
    first = loss.evidence(np.where(turned, 1 - y, y), p, allowed=0.01, horizon=1_000_000).first_alarm
    return np.inf if first is None else max(0, first // _WINDOW + 1 - _CHANGE) + _DELAY


_REFERENCES, _WINDOWS_EACH = 60, 20


def _share_inside(seed: int) -> float:
    """Return how often the interval held the accuracy of a window; one reference calibrates all of a seed's."""
    if not _FLIGHTS:
        _FLIGHTS.append(_model_on_flights())
    y0, p0, y, p = _FLIGHTS[0]
    labels, stated = np.r_[y0, y], np.r_[p0, p]
    rows = np.random.default_rng([seed, 4]).permutation(len(labels))
    reference, *windows = np.split(rows[: 5000 + 1000 * _WINDOWS_EACH], range(5000, 5000 + 1000 * _WINDOWS_EACH, 1000))
    estimator = QualityEstimator.fit(stated[reference], labels[reference])
    inside = []
    for number, window in enumerate(windows):
        found = estimator.estimate("accuracy", stated[window], random_state=number)
        real = all_metrics("classification", labels[window], stated[window])["accuracy"]
        inside.append(found.low <= real <= found.high)
    return float(np.mean(inside))


def _estimates(report: Report, pool: ProcessPoolExecutor) -> None:
    covered = float(np.mean(list(pool.map(_share_inside, range(_REFERENCES)))))
    told = f"estimate: coverage of the 95 % interval, {_REFERENCES} references x {_WINDOWS_EACH} windows"
    report.add(f"{told} (at least)", covered, at_least=0.93)
    report.add("the same (at most)", covered, at_most=0.97)
    y0, p0, y, p = _model_on_flights()
    # NannyML calibrates only what it finds uncalibrated, so both get probabilities that are.
    p0, p, chunk = p0**1.5, p**1.5, 1000
    parts = [slice(i * chunk, (i + 1) * chunk) for i in range(20)]
    estimator = QualityEstimator.fit(p0, y0)
    with tempfile.TemporaryDirectory() as path:
        folder, metrics = Path(path), ("accuracy", "precision", "recall", "roc_auc")
        for name, ys, ps in (("reference", y0, p0), ("analysis", y[: len(parts) * chunk], p[: len(parts) * chunk])):
            frame = pd.DataFrame({"y_true": ys.astype(int), "y_pred": (ps >= 0.5).astype(int), "probability": ps})
            frame.to_parquet(folder / f"{name}.parquet")
        theirs = _peer("nannyml", "nannyml_cbpe.py", str(folder), ",".join(metrics), str(chunk))
    named = "estimate: largest difference from NannyML's CBPE"
    for metric in metrics:
        ours = [estimator.estimate(metric, p[part]).value for part in parts]
        gap = float(np.abs(np.array(ours) - np.array(theirs[metric])).max())
        if metric != "roc_auc":
            report.add(f"{named}, {metric}", gap, at_most=1e-9)
            continue
        report.add(f"{named}, roc_auc, whose counts it rounds to five digits", gap)
        rounded = [_area_of_rounded_counts(p[part], estimator.calibrated(p[part])) for part in parts]
        gap = float(np.abs(np.array(rounded) - np.array(theirs[metric])).max())
        report.add(f"{named}, roc_auc, ours rounded like it", gap, at_most=1e-9)


def _area_of_rounded_counts(p: Floats, chance: Floats) -> float:
    """Return the area under the expected curve as NannyML computes it (`estimate_roc_auc`): counts of five digits."""
    found = np.cumsum(chance[np.argsort(p)[::-1]])
    true = np.round(np.r_[0, found], 5)
    false = np.round(np.r_[0, np.arange(1, len(p) + 1) - found], 5)
    return float(np.trapezoid(true / true[-1], false / false[-1]))


def _cost(report: Report) -> None:
    rng = np.random.default_rng(1)
    wide = _wide(rng, 1000, 5)
    grid = ReferenceGrid.fit(wide, [c for c in wide if "number" not in c], [c for c in wide if "number" in c])
    reference = grid.count(wide)
    with tempfile.TemporaryDirectory() as path:
        folder, store = Path(path), WindowStore(Storage(f"{path}/windows"), "m")
        start = window_start(pd.Timestamp("2024-01-01", tz="UTC").to_pydatetime(), 1)
        counted = [grid.count(_wide(rng, 200, 5)) for _ in range(50)]
        for number in range(1000):
            store.write_part("1", start + pd.Timedelta(hours=number), "one", counted[number % 50], b"")
        started = time.perf_counter()
        live = store.read("1", grid)
        independent_alarm(reference, WindowSeries.of(grid, list(live.values())))
        ours = time.perf_counter() - started
        wide.to_parquet(folder / "reference.parquet")
        for number in range(3):
            _wide(rng, 1000, 5).to_parquet(folder / f"window{number}.parquet")
        evidently = _peer("evidently", "evidently_report.py", str(folder))
        theirs = 1000 * median(window["seconds"] for window in evidently)
        report.add("1 000 stored windows x 100 features: seconds", ours)
        report.add("Evidently's default report on the raw rows / ours", theirs / ours, at_least=20)
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        draw_rows(rng, 1000).to_parquet(folder / "reference.parquet")
        for number in range(20):
            draw_rows(rng, 1000).to_parquet(folder / f"window{number:02}.parquet")
        told = _peer("evidently", "evidently_report.py", str(folder))
        share = np.mean([window["drifted"] > 0 for window in told])
        report.add("no drift, n=m=1000: Evidently's windows with a drifted column (20 windows)", float(share))
    rows = draw_rows(rng, 1_000_000)
    own = ReferenceGrid.fit(rows.head(10_000), [c for c in rows if rows[c].dtype != float],
                            [c for c in rows if rows[c].dtype == float])  # fmt: skip
    both, plain = [], []
    for _ in range(3):
        both.append(_seconds(lambda: (own.count(rows), profile_frame(rows))))
        plain.append(_seconds(lambda: _plain_whylogs(rows)))
    report.add("profiling 1 000 000 rows x 20: counts and profile, seconds", median(both))
    report.add("profiling: ours / plain whylogs", median(both) / median(plain), at_most=1.5)


def _wide(rng: np.random.Generator, n: int, times: int) -> pd.DataFrame:
    """Return 100 columns: the twenty of the streams, five times."""
    parts = [draw_rows(rng, n) for _ in range(times)]
    named = [
        part.rename(columns={c: f"{'number' if part[c].dtype == float else 'level'}_{c}_{i}" for c in part})
        for i, part in enumerate(parts)
    ]
    return pd.concat(named, axis=1)


def _plain_whylogs(rows: pd.DataFrame) -> bytes:
    from whylogs.core import DatasetProfile

    from forge_core.monitoring.profiles import _schema

    profile = DatasetProfile(schema=_schema())
    profile.track(pandas=rows)
    return profile.view().serialize()


def _peer(product: str, script: str, *arguments: str) -> Any:
    command = [str(venv_of(product) / "bin" / "python"), str(Path(__file__).parent / "peers" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"{script} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
