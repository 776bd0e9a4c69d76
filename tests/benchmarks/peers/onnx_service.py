"""The practical limit: Starlette, uvicorn and the ONNX session; nothing is checked, kept or counted."""

import os
from datetime import datetime
from pathlib import Path

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from forge_core.models.compiled import CompiledModel

model = CompiledModel(Path(os.environ["BENCH_ONNX"]).read_bytes())


async def predict(request: Request) -> Response:
    """Return the probability of class 1."""
    features = orjson.loads(await request.body())["features"]
    features["seen_at"] = datetime.fromisoformat(features["seen_at"])
    score = float(model.score({name: [value] for name, value in features.items()})[0])
    return Response(orjson.dumps({"probability": score}), media_type="application/json")


app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
