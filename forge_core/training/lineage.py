"""Which code and which packages made a version."""

import hashlib
import subprocess
from functools import lru_cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


@lru_cache
def code_hash() -> str:
    """Return a hash of this package's source files; part of every cache key, so new code repeats a step."""
    digest = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        digest.update(file.relative_to(_PACKAGE).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def code_commit() -> str | None:
    """Return the checkout's commit, with `-dirty` where files differ from it.

    An image has no git; there the file COMMIT beside the package says what it was built from. None without either.
    """
    git = ["git", "-C", str(_PACKAGE)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        told = _PACKAGE.parent / "COMMIT"
        return told.read_text(encoding="ascii").strip() if told.is_file() else None
    return commit + ("-dirty" if changed.strip() else "")


def lock_hash() -> str | None:
    """Return the SHA-256 of the checkout's lock file, or None where there is none (an installed wheel)."""
    lock = _PACKAGE.parent / "requirements.lock"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None
