"""One fsspec URL for everything that is appended and never changed: a folder, or `s3://…` through s3fs.

Writes are whole or not at all: a file appears under its name only once all its bytes are there
(a rename on a local disk, a single PUT on S3).
"""

import json
import posixpath
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd

from forge_core.errors import ConfigurationError, DataNotFound

# Drafts of writers that were killed are removed by later writers once they are so old.
_DRAFT_SECONDS = 24 * 3600


class Storage:
    """A root URL and the few operations that the rest of the house needs.

    Parameters
    ----------
    url : str
        A folder or any fsspec URL; S3 credentials come from the usual `AWS_…` variables.

    Examples
    --------
    >>> store = Storage("memory://example")
    >>> store.write_json("a/b.json", {"rows": 3})
    >>> store.read_json("a/b.json")["rows"]
    3
    >>> store.list("a", suffix=".json")
    ['a/b.json']
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.fs, self.root = fsspec.core.url_to_fs(self.url)

    def path(self, key: str) -> str:
        """Return the filesystem path of a key; keys never leave the root."""
        clean = posixpath.normpath(key)
        if ".." in key.split("/") or clean.startswith("/") or "\x00" in key:
            raise ConfigurationError(f"expected a storage key that stays below {self.url}, found {key!r}")
        return f"{self.root}/{clean}"

    def write_bytes(self, key: str, data: bytes) -> None:
        """Write a whole file; readers see all of it or nothing."""
        path = self.path(key)
        self.fs.makedirs(posixpath.dirname(path), exist_ok=True)
        if not self._is_local:
            self.fs.pipe_file(path, data)
            return
        draft = f"{posixpath.dirname(path)}/.{uuid.uuid4().hex}.draft"
        self.fs.pipe_file(draft, data)
        self.fs.mv(draft, path)

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """Give a folder on a local disk to write large files in; it goes with the context, kept files do not."""
        folder = Path(self.root) / ".drafts" if self._is_local else Path(tempfile.gettempdir())
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("forge-*.draft"):
            if time.time() - old.stat().st_mtime > _DRAFT_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
        own = Path(tempfile.mkdtemp(prefix="forge-", suffix=".draft", dir=folder))
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)

    def keep_file(self, key: str, file: Path) -> None:
        """Move a file of a draft under its key, whole."""
        path = self.path(key)
        self.fs.makedirs(posixpath.dirname(path), exist_ok=True)
        if self._is_local:
            file.replace(path)
        else:
            self.fs.put_file(str(file), path)
            file.unlink()

    def read_bytes(self, key: str) -> bytes:
        """Return a file's bytes, or raise DataNotFound naming the address."""
        try:
            return self.fs.cat_file(self.path(key))
        except FileNotFoundError:
            raise DataNotFound(
                f"nothing is stored at {self.url}/{key}; list what is there, or write it first", context={"key": key}
            ) from None

    def write_json(self, key: str, value: Mapping[str, Any]) -> None:
        """Write a mapping as sorted JSON."""
        self.write_bytes(key, json.dumps(value, sort_keys=True, indent=1, default=str).encode())

    def read_json(self, key: str) -> dict[str, Any]:
        """Return the mapping stored as JSON under the key."""
        return json.loads(self.read_bytes(key))

    def write_frame(self, key: str, frame: pd.DataFrame) -> None:
        """Write a frame as one Parquet file (zstd), without its index.

        Floats get no dictionary: what is measured seldom repeats, and looking for it takes a third of the time.
        """
        coded = [str(name) for name, kind in zip(frame.columns, frame.dtypes, strict=True) if kind != np.float64]
        self.write_bytes(key, frame.to_parquet(index=False, compression="zstd", use_dictionary=coded))

    def read_frame(self, key: str, columns: list[str] | None = None) -> pd.DataFrame:
        """Return the frame stored as Parquet under the key."""
        if not self.exists(key):
            raise DataNotFound(f"no table is stored at {self.url}/{key}", context={"key": key})
        with self.fs.open(self.path(key), "rb") as file:
            return pd.read_parquet(file, columns=columns)

    @property
    def _is_local(self) -> bool:
        return "file" in self.fs.protocol

    def exists(self, key: str) -> bool:
        """Tell whether something is stored under the key."""
        return self.fs.exists(self.path(key))

    def list(self, prefix: str, suffix: str = "") -> list[str]:
        """Return the keys below a prefix, sorted; drafts of unfinished writes are left out."""
        self.fs.invalidate_cache()
        found = self.fs.find(self.path(prefix))
        keys = [path[len(self.root) :].lstrip("/") for path in found]
        return sorted(k for k in keys if k.endswith(suffix) and ".draft" not in k)
