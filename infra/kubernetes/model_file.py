"""`python -m infra.kubernetes.model_file PATH [--url URL]`: put the model that MODEL_PATH names where it is read.

Fetched from an fsspec URL; without one a small model of the generated sample is trained, so that an API that was just
deployed answers. A file that is there already stays.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import fsspec

from forge_core.data.sample import generate_sample_data
from forge_core.errors import ForgeError, ModelNotFound
from forge_core.models.model_trainer import get_model_trainer

_FEATURES = ["feature1", "feature2"]


def place_model(path: Path, url: str = "") -> str:
    """Put a model file at a path and return what was done.

    Raises
    ------
    ModelNotFound
        Nothing can be read at the URL.
    """
    if path.is_file():
        return f"{path} is there already"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        # Moved into place as a whole, so that a start that was cut leaves no half of a file.
        part = Path(folder) / path.name
        told = _fetch(url, part) if url else _train(part)
        part.replace(path)
    return told


def _fetch(url: str, part: Path) -> str:
    try:
        with fsspec.open(url, "rb") as file:
            part.write_bytes(file.read())
    except (OSError, ValueError, ImportError) as error:
        raise ModelNotFound(f"expected a model file at {url} (MODEL_URL), found: {error}") from error
    return f"fetched {part.stat().st_size:,} bytes from {url}"


def _train(part: Path) -> str:
    rows = generate_sample_data(4000)
    trainer = get_model_trainer("gradient_boosting", {"random_state": 0}, target="target")
    trainer.train(rows[_FEATURES], rows["target"])
    trainer.save_model(part)
    return f"no MODEL_URL: trained a model on {len(rows):,} generated rows"


def main(arguments: Sequence[str] | None = None) -> int:
    """Place the file and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m infra.kubernetes.model_file", description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--url", default="", help="fsspec URL of a .skops or .onnx file; empty: train on the sample")
    chosen = parser.parse_args(arguments)
    try:
        sys.stdout.write(f"{place_model(chosen.path, chosen.url)}\n")
    except ForgeError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
