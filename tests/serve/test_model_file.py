"""One model file behind the API: what it answers, what is refused, and the process that serves it."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from forge_core.errors import ModelError
from forge_core.models.compiled import compile_pipeline
from forge_core.models.model_trainer import ModelTrainer, get_model_trainer
from infra.local.processes import free_ports
from serve_app.model_file import FileBoard, load_model_file
from tests.serve.boards import served

ROWS = pd.DataFrame(
    {
        "n": [1.0, 2.0, np.nan, 4.0] * 25,
        "town": ["Oslo", "Bergen", None, "Oslo"] * 25,
        "at": pd.date_range("2024-01-01", periods=100, freq="7h", tz="UTC"),
    }
)
TARGET = pd.Series(["late", "early"] * 50)


@pytest.fixture(scope="module")
def trainer() -> ModelTrainer:
    trainer = get_model_trainer("random_forest", {"n_estimators": 5})
    trainer.train(ROWS, TARGET)
    return trainer


def records() -> list[dict[str, Any]]:
    texts = ROWS.assign(at=ROWS["at"].map(lambda moment: moment.isoformat()))
    return texts.astype(object).where(texts.notna(), None).to_dict("records")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is a pickle")
@pytest.mark.parametrize("suffix", [".skops", ".joblib", ".onnx"])
def test_a_file_answers_like_its_pipeline(trainer: ModelTrainer, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"m{suffix}"
    if suffix == ".onnx":
        file.write_bytes(compile_pipeline(trainer.pipeline)[0] or b"")
    else:
        trainer.save_model(file)
    with served(FileBoard(load_model_file(file, allow_pickle=True))) as url:
        replies = httpx.post(f"{url}/predict/batch", json={"records": records()}).json()["predictions"]
        info = httpx.get(f"{url}/model/info").json()
        bad = httpx.post(f"{url}/predict", json={"features": {"n": "x", "where": 1}})
        lost = httpx.post(f"{url}/feedback", json={"request_id": "a", "label": 1})
    second = trainer.pipeline.predict_proba(ROWS)[:, 1]
    classes = [0, 1] if suffix == ".onnx" else ["early", "late"]
    assert [r["prediction"] for r in replies] == [classes[int(p >= 0.5)] for p in second]
    assert [r["prediction_probability"] for r in replies] == pytest.approx(np.maximum(second, 1 - second), abs=1e-5)
    assert info["features"] == {"n": "number", "town": "category", "at": "datetime"}
    assert bad.status_code == 422 and "n: expected a number" in bad.text and "where: is no feature" in bad.text
    assert lost.status_code == 503 and "make up" in lost.text


def test_files_that_cannot_be_served_are_named(trainer: ModelTrainer, tmp_path: Path) -> None:
    pickle, other, text = tmp_path / "m.joblib", tmp_path / "other.joblib", tmp_path / "m.onnx"
    with pytest.warns(UserWarning, match="pickle"):
        trainer.save_model(pickle)
    joblib.dump(LogisticRegression(), other)
    text.write_text("no graph")
    for file, told in (
        (tmp_path / "none.skops", "there is no such file; check the MODEL_PATH"),
        (tmp_path / "none.onnx", "there is no such file"),
        (pickle, "runs code while loading"),
        (text, "check the MODEL_PATH"),
    ):
        with pytest.raises(ModelError, match=f"Failed to load model from path: {file}; .*{told}"):
            load_model_file(file)
    with pytest.warns(UserWarning), pytest.raises(ModelError, match="found LogisticRegression"):
        load_model_file(other, allow_pickle=True)


@pytest.mark.ray
@pytest.mark.long
def test_the_process_serves_the_file_and_stops_when_told(trainer: ModelTrainer, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "serve_app"]
    environment = {**os.environ, "FORGE_API_PORT": str(port), "MODEL_PATH": str(tmp_path / "m.skops")}
    # As in the terminal of a running stack, whose Ray and proxy are not for this.
    environment |= {"RAY_ADDRESS": "127.0.0.1:1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
    missing = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert missing.returncode == 1 and missing.stderr.startswith("Error: Failed to load model from path: ")
    trainer.save_model(tmp_path / "m.skops")
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            told = ""
            for line in process.stderr:  # Ray's lines stand among ours
                told += line
                if "answers at" in line:
                    break
            assert "answers at" in told, told
            answer = httpx.post(f"http://127.0.0.1:{port}/predict", json={"features": records()[0]}, trust_env=False)
            assert answer.status_code == 200 and answer.json()["prediction"] in ("early", "late")
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
