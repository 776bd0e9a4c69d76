"""FastAPI and the scikit-learn pipeline: a typed row, a frame of one row, a plain `def` that runs in a thread."""

import os
from datetime import datetime

import joblib
import pandas as pd
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
pipeline = joblib.load(os.environ["BENCH_PIPELINE"])


class Row(BaseModel):
    """The columns of `serving_work`."""

    age: float | None
    income: float | None
    balance: float | None
    distance: float | None
    rating: float | None
    visits: int
    channel: str
    region: str
    product: str
    shop: str
    member: bool
    seen_at: datetime


@app.post("/predict")
def predict(row: Row) -> dict[str, float]:
    """Return the probability of class 1."""
    return {"probability": float(pipeline.predict_proba(pd.DataFrame([row.model_dump()]))[0, 1])}
