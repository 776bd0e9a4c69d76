"""NannyML's CBPE on two Parquet files with y_true, y_pred and probability: prints estimates a chunk as JSON."""

import json
import os
import sys
from pathlib import Path

os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"

import nannyml as nml
import pandas as pd

folder, metrics, chunk = Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3])
estimator = nml.CBPE(
    y_true="y_true",
    y_pred="y_pred",
    y_pred_proba="probability",
    problem_type="classification_binary",
    metrics=metrics,
    chunk_size=chunk,
)
estimator.fit(pd.read_parquet(folder / "reference.parquet"))
told = estimator.estimate(pd.read_parquet(folder / "analysis.parquet")).filter(period="analysis").to_df()
print(json.dumps({metric: told[(metric, "value")].tolist() for metric in metrics}))
