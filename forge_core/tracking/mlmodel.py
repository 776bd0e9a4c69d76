"""A version's folder as a model that MLflow knows: its `MLmodel` file, signature, example and requirements."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forge_core.models.version import TRUSTED_TYPES

# Named, or MLflow starts a process that loads the model to find out (16 s).
_REQUIREMENTS = ["mlops-forge", "scikit-learn", "skops", "pandas"]


def write_mlmodel(folder: Path, pipeline: Any, example: Mapping[str, Any]) -> None:
    """Make a folder a valid MLflow model (flavours `sklearn` and `python_function`), with signature and example."""
    import mlflow.sklearn
    import pandas as pd
    from mlflow.models import infer_signature

    rows = pd.DataFrame([example])
    numbers = rows.select_dtypes("number").columns
    rows[numbers] = rows[numbers].astype(float)
    with tempfile.TemporaryDirectory() as path:
        made = Path(path) / "model"
        mlflow.sklearn.save_model(
            pipeline,
            str(made),
            serialization_format=mlflow.sklearn.SERIALIZATION_FORMAT_SKOPS,
            skops_trusted_types=sorted(TRUSTED_TYPES),
            signature=infer_signature(rows, pipeline.predict(rows)),
            pip_requirements=_REQUIREMENTS,
        )
        for file in made.iterdir():
            if not (folder / file.name).exists():  # model.skops is one of our parts already
                shutil.copy(file, folder)
