"""One file of a source: how it is opened, unpacked on the fly, and what its trouble means."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import pyarrow as pa

from forge_core.data.batches import LONGEST_LINE, hide_secrets
from forge_core.data.coercion import Kind
from forge_core.errors import DataNotFound, ForgeError, ServiceUnavailable, UnreadableData

_UNPACKED = {".gz": "gzip", ".zst": "zstd"}


@dataclass
class File:
    """One file, not opened yet.

    Parameters
    ----------
    fs, path
        The fsspec filesystem and the path in it.
    address : str
        As shown to people.
    suffix : str
        How its name ends, packing included: `.csv.gz`.
    options : mapping
        `encoding`, `delimiter`, `sheet`.
    alone : bool
        Whether it is the source's only file; if not, reasons name it.
    columns : list of str, optional
        What JSON lines may have, once that is known.
    kinds : mapping
        What columns should be, for formats that know no types.
    """

    fs: Any
    path: str
    address: str
    suffix: str
    options: Mapping[str, Any]
    alone: bool = True
    columns: list[str] | None = field(default=None, repr=False)
    kinds: Mapping[str, Kind] = field(default_factory=dict, repr=False)

    @property
    def packing(self) -> str:
        """`.gz`, `.zst` or nothing."""
        return next((end for end in _UNPACKED if self.suffix.endswith(end)), "")

    @property
    def ending(self) -> str:
        """The suffix without its packing."""
        return self.suffix.removesuffix(self.packing)

    @property
    def is_local(self) -> bool:
        """Whether the file lies on this machine."""
        return "file" in self.fs.protocol

    @property
    def suffix_of_reason(self) -> str:
        """What is added to a rejected line's reason."""
        return "" if self.alone else f" in {self.path.rsplit('/', 1)[-1]}"

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Give the unpacked bytes as a stream."""
        with self.fs.open(self.path, "rb") as raw:
            if not self.packing:
                yield raw
                return
            with pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), _UNPACKED[self.packing]) as stream:
                yield cast(BinaryIO, stream)

    @contextmanager
    def random_access(self) -> Iterator[BinaryIO]:
        """Give the bytes for reading here and there (Parquet, Excel), without reading ahead where that is far."""
        options = {"cache_type": "none"} if "s3" in self.fs.protocol else {}
        with self.fs.open(self.path, "rb", **options) as raw:
            yield raw


def explain(error: Exception, address: str, suffix: str) -> ForgeError:
    """Return what a reader's or filesystem's error means: nothing there, no right, server away, or not the format."""
    told = hide_secrets(str(error)[:300] or type(error).__name__)
    context = {"address": address}
    status = getattr(error, "status", None)
    if isinstance(error, PermissionError) or type(error).__name__ in _NO_KEYS or status in (401, 403):
        keys = "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL for a server of your own)"
        todo = keys if address.startswith("s3") else "ask for the right to read it"
        return UnreadableData(f"{address} may not be read: {told}; {todo}", context=context)
    # fsspec calls a web server that is away a missing file; only the cause tells them apart.
    missing = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
    if (missing and not isinstance(error.__cause__, OSError)) or status in (404, 410):
        return DataNotFound(f"no file at {address}; correct the address, or put the data there", context=context)
    if missing or _is_of_network(error, address):
        return ServiceUnavailable(
            f"cannot reach {address}: {type(error).__name__}: {told}; is the server up?", context=context
        )
    if "straddling" in told:
        told = f"a line is longer than {LONGEST_LINE // 2**20} MiB, or a quote was opened and never closed"
    return UnreadableData(
        f"expected {suffix} at {address}, which cannot be read as such: {told}; repair or rename it", context=context
    )


_NO_KEYS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")


def _is_of_network(error: Exception, address: str) -> bool:
    library = type(error).__module__.partition(".")[0]
    if library in ("aiohttp", "botocore", "aiobotocore") or isinstance(error, ConnectionError | TimeoutError):
        return True
    # Storage servers' own errors come as OSError with a number; Arrow's about broken files have none.
    return isinstance(error, OSError) and error.errno is not None and "://" in address
