"""BentoML: the pipeline as the documentation serves it, with adaptive batching, and an ONNX session by hand."""

import os
from datetime import datetime
from typing import Any

import bentoml
import numpy as np
import pandas as pd


@bentoml.service
class Plain:
    """One call a request."""

    def __init__(self) -> None:
        import joblib

        self.pipeline = joblib.load(os.environ["BENCH_PIPELINE"])

    @bentoml.api
    def predict(self, rows: pd.DataFrame) -> np.ndarray:
        """Return the probability of class 1 of each row."""
        return self.pipeline.predict_proba(rows)[:, 1]


@bentoml.service
class Batched:
    """Adaptive batching of up to 64 rows; of lists, since release 1.4.39 cannot tell the length of a frame."""

    def __init__(self) -> None:
        import joblib

        self.pipeline = joblib.load(os.environ["BENCH_PIPELINE"])

    @bentoml.api(batchable=True, max_batch_size=64)
    def predict(self, rows: list[dict[str, Any]]) -> list[float]:
        """Return the probability of class 1 of each row."""
        return self.pipeline.predict_proba(pd.DataFrame(rows))[:, 1].tolist()


@bentoml.service
class Onnx:
    """The ONNX session, fed by hand on the event loop."""

    def __init__(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["BENCH_ONNX"], options)
        self.inputs = {i.name: (i.type, i.shape[1]) for i in self.session.get_inputs()}
        self.output = self.session.get_outputs()[-1].name

    @bentoml.api
    async def predict(self, features: dict[str, Any]) -> float:
        """Return the probability of class 1."""
        given = {name: _tensor(features[name], *kind) for name, kind in self.inputs.items()}
        return float(self.session.run([self.output], given)[0][0, -1])


def _tensor(value: Any, kind: str, width: int) -> np.ndarray:
    if kind == "tensor(string)":
        return np.array([[value]], dtype=object)
    if width == 3:
        moment = datetime.fromisoformat(value)
        return np.array([[moment.hour, moment.weekday(), moment.month]], np.float32)
    return np.array([[value]], np.float32)
