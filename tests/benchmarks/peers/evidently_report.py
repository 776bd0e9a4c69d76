"""Evidently's default drift preset on Parquet files: prints, per window, drifted columns and seconds, as JSON."""

import json
import sys
import time
from pathlib import Path

import pandas as pd
from evidently import Report
from evidently.presets import DataDriftPreset

folder = Path(sys.argv[1])
reference = pd.read_parquet(folder / "reference.parquet")
found = []
for file in sorted(folder.glob("window*.parquet")):
    current = pd.read_parquet(file)
    started = time.perf_counter()
    told = Report([DataDriftPreset()]).run(current, reference).dict()
    seconds = time.perf_counter() - started
    drifted = next(m["value"]["count"] for m in told["metrics"] if "DriftedColumnsCount" in str(m))
    found.append({"drifted": int(drifted), "seconds": seconds})
print(json.dumps(found))
