"""Environments of the peers that cannot live in ours: made once, below the user's cache folder."""

import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

# The newest releases that install with Python 3.11; the libraries of the pickled pipeline are ours.
_PINS = {
    "bentoml": ["bentoml==1.4.39", "onnxruntime"],
    "mlserver": ["mlserver==1.7.1", "mlserver-sklearn==1.7.1", "uvloop==0.21.0"],
    # Evidently does not import under pandas 3.1; NannyML does not declare statsmodels.
    "evidently": ["evidently==0.7.23", "pandas==3.0.6"],
    "nannyml": ["nannyml==0.13.1", "statsmodels>=0.14"],
}
_SHARED = ("scikit-learn", "numpy", "pandas", "pyarrow", "joblib")
_OWN = {"evidently": ("pyarrow",), "nannyml": ("pyarrow",)}


def venv_of(product: str) -> Path:
    """Return the folder of a product's environment, which is made first where it is not there (about a minute)."""
    wanted = [*_PINS[product], *_OWN.get(product, _SHARED)]
    pins = [pin if "=" in pin else f"{pin}=={version(pin)}" for pin in wanted]
    digest = hashlib.sha256("\n".join([sys.version, *pins]).encode()).hexdigest()[:10]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlops-forge-bench"
    folder = cache / f"{product}-{digest}"
    if not (folder / "ready").exists():
        print(f"making {product}'s environment in {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        made = subprocess.run([*install, *pins], capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise RuntimeError(f"{product} did not install ({', '.join(pins)}): {made.stderr[-2000:]}")
        (folder / "ready").touch()
    return folder
