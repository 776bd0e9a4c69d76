"""Tables in files: a local path or any fsspec URL, read by the end of its name."""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pandas as pd

from forge_core.errors import ConfigurationError, DataNotFound, EmptyData, ServiceUnavailable, UnreadableData


def read_table(address: str) -> pd.DataFrame:
    """Return the table in a CSV, Parquet or JSON file.

    Parameters
    ----------
    address : str
        A path or URL (`s3://…`, `https://…`) whose name ends in one of `SUFFIXES`.

    Raises
    ------
    ConfigurationError
        For any other ending.
    DataNotFound, EmptyData, UnreadableData
        There is no such file; it holds no bytes or rows; it is not in the format its name says.
    ServiceUnavailable
        When the server behind the URL does not answer.
    """
    suffix = suffix_of(address)
    data = _read_bytes(address)
    if not data:
        raise EmptyData(f"expected a table at {address}, found a file of zero bytes", context={"address": address})
    try:
        frame = SUFFIXES[suffix](data)
    except pd.errors.EmptyDataError:
        raise EmptyData(f"expected a table at {address}, found no rows", context={"address": address}) from None
    except (ValueError, TypeError, KeyError, OSError, EOFError, zlib.error, RuntimeError) as error:
        raise UnreadableData(
            f"expected {suffix} at {address}, which cannot be read as such: {str(error)[:200]}; repair or rename it",
            context={"address": address},
        ) from error
    if frame.empty:
        raise EmptyData(f"expected rows at {address}, found none", context={"address": address})
    return frame


def suffix_of(address: str) -> str:
    """Return which of `SUFFIXES` an address ends in, or raise ConfigurationError listing them."""
    name = (urlsplit(address).path if "://" in address else address).lower()
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return suffix
    raise ConfigurationError(
        f"expected a source that starts with flights: or sample: or ends in {', '.join(SUFFIXES)}, found {address!r}"
    )


def file_fingerprint(address: str) -> str | None:
    """Return a hash that changes when the file does (content of local files, else what the server tells); None
    where there is no such file."""
    try:
        fs, path = fsspec.core.url_to_fs(address)
        if "file" in fs.protocol:
            with Path(path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(json.dumps(fs.info(path), sort_keys=True, default=str).encode()).hexdigest()
    except FileNotFoundError:
        return None


def _read_bytes(address: str) -> bytes:
    try:
        with fsspec.open(address, "rb") as file:
            return file.read()
    except PermissionError as error:
        raise UnreadableData(f"{address} may not be read: {error}", context={"address": address}) from error
    except Exception as error:
        # fsspec calls a web server that is away a missing file; only the cause tells them apart.
        if isinstance(error, FileNotFoundError | IsADirectoryError) and not isinstance(error.__cause__, OSError):
            raise DataNotFound(
                f"no file at {address}; correct the address, or put the data there", context={"address": address}
            ) from None
        # Every protocol has its own errors for a server that does not answer (aiohttp, botocore, …).
        raise ServiceUnavailable(
            f"cannot reach {address}: {type(error).__name__}: {str(error)[:200]}; is the server up?",
            context={"address": address},
        ) from error


def _read_csv(data: bytes) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(data), low_memory=False)


def _read_zst(data: bytes) -> pd.DataFrame:
    import pyarrow

    with pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd") as stream:
        return _read_csv(stream.read())


def _read_json(data: bytes) -> pd.DataFrame:
    value: Any = json.loads(data)
    if not isinstance(value, list | dict):
        raise ValueError("expected a list of records or an object of columns")
    return pd.DataFrame(value)


def _read_lines(data: bytes) -> pd.DataFrame:
    return pd.DataFrame([json.loads(line) for line in data.splitlines() if line.strip()])


SUFFIXES: dict[str, Callable[[bytes], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".csv.gz": lambda data: _read_csv(gzip.decompress(data)),
    ".csv.zst": _read_zst,
    ".parquet": lambda data: pd.read_parquet(io.BytesIO(data)),
    ".json": _read_json,
    ".jsonl": _read_lines,
}
