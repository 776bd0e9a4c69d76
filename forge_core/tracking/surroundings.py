"""Where a run happened: code, packages and machine, as tags that people can search for."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

_PACKAGES = ("mlops-forge", "scikit-learn", "pandas", "numpy", "torch", "ray", "mlflow")
_LOCK = "requirements.lock"


@lru_cache
def surroundings(folder: Path) -> dict[str, str]:
    """Return tags that say which code, packages and machine a run has; read once a process and folder.

    Parameters
    ----------
    folder : Path
        The folder that the code is run in: its git checkout and its lock file are meant.

    Returns
    -------
    dict of str to str
        `forge.code_commit` and `forge.code_dirty` (absent outside git), `forge.lock_sha256` (absent without a
        `requirements.lock`), `forge.packages_sha256` (all installed names and versions), `forge.python`,
        `forge.packages` (the main ones), `forge.machine`, `forge.cores`, `forge.memory_gb`, `forge.gpus`.
    """
    import psutil

    packages = sorted({f"{d.name}=={d.version}" for d in importlib.metadata.distributions()})
    main = [p for p in packages if p.split("==")[0].lower() in _PACKAGES]
    return {
        **_code(folder),
        "forge.packages_sha256": hashlib.sha256("\n".join(packages).encode()).hexdigest(),
        "forge.packages": " ".join(main),
        "forge.python": platform.python_version(),
        "forge.machine": f"{platform.node()} {platform.system()} {platform.machine()}",
        "forge.cores": str(os.cpu_count()),
        "forge.memory_gb": f"{psutil.virtual_memory().total / 2**30:.1f}",
        "forge.gpus": _gpus(),
    }


def _code(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    root = folder
    if (commit := _git(folder, "rev-parse", "HEAD")) is not None:
        found["forge.code_commit"] = commit
        found["forge.code_dirty"] = str(bool(_git(folder, "status", "--porcelain"))).lower()
        root = Path(_git(folder, "rev-parse", "--show-toplevel") or folder)
    if (root / _LOCK).is_file():
        found["forge.lock_sha256"] = hashlib.sha256((root / _LOCK).read_bytes()).hexdigest()
    return found


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _gpus() -> str:
    """Return the names of the GPUs; torch is asked only where it is loaded, because loading it takes seconds."""
    torch = sys.modules.get("torch")
    if torch is not None:
        names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    else:
        names = [f.read_text().split("Model:")[1].split("\n")[0].strip() for f in _gpu_files()]
    return ", ".join(names) or "none"


def _gpu_files() -> list[Path]:
    return sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
