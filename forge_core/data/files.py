"""Tables in files: a path, a folder, a pattern or any fsspec URL, read by the end of their names."""

import hashlib
import json
import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pandas as pd

from forge_core.data.batches import Rejects, Source, hide_secrets
from forge_core.data.coercion import Kind
from forge_core.data.delimited import delimited_columns, read_delimited
from forge_core.data.json_files import json_columns, json_lines_columns, read_json, read_json_lines
from forge_core.data.opening import File, explain
from forge_core.data.table_files import excel_columns, parquet_columns, read_excel, read_parquet
from forge_core.errors import ConfigurationError, DataNotFound, EmptyData, ForgeError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """How the files of one ending are read, and which options it takes."""

    read: Callable[[File, Rejects], Iterator[pd.DataFrame]]
    columns: Callable[[File], list[str]]
    untyped: bool = False
    options: tuple[str, ...] = ()


_DELIMITED = Format(read_delimited, delimited_columns, untyped=True, options=("encoding", "delimiter"))
_TEXTS = {
    ".csv": _DELIMITED,
    ".tsv": _DELIMITED,
    ".json": Format(read_json, json_columns, options=("encoding",)),
    ".jsonl": Format(read_json_lines, json_lines_columns, options=("encoding",)),
}
SUFFIXES: dict[str, Format] = {
    **{end + packing: form for packing in ("", ".gz", ".zst") for end, form in _TEXTS.items()},
    ".parquet": Format(read_parquet, parquet_columns),
    ".xlsx": Format(read_excel, excel_columns, options=("sheet",)),
}
OPTIONS = ("encoding", "delimiter", "sheet", "format")
# What other programs leave beside the data, or have not finished.
_NO_DATA = ((".", "_", "~$"), ("~", ".tmp", ".part", ".crdownload", ".swp"))


def open_files(address: str, options: Mapping[str, Any]) -> "FileSource":
    """Return the source in a file, or in the files of a folder (`data/`) or pattern (`data/2013-*.csv`).

    Raises
    ------
    ConfigurationError
        For an unknown ending or option, listing the known ones.
    """
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise ConfigurationError(
            f"files and frames have no option {', '.join(unknown)}; "
            f"known: since, until, labels_until, {', '.join(OPTIONS)}"
        )
    return FileSource(address, options)


def suffix_of(address: str) -> str:
    """Return which of `SUFFIXES` an address ends in, or raise ConfigurationError listing them."""
    name = (urlsplit(address).path if "://" in address else address).lower()
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return suffix
    raise ConfigurationError(
        f"expected a source that starts with flights: or sample: or ends in {', '.join(_TEXTS)} (also with .gz or "
        f".zst), .parquet or .xlsx, or a folder, found {hide_secrets(address)!r}; "
        "give format=… where the name does not tell"
    )


class FileSource(Source):
    """One file, or several with the same ending; see `open_files` and `forge_core.data.batches.Source`."""

    def __init__(self, address: str, options: Mapping[str, Any]) -> None:
        self._given = address
        self.address = hide_secrets(address)
        self._web = address.startswith(("http://", "https://"))
        self._pattern = not self._web and any(c in address for c in "*?[") and not Path(address).exists()
        self._options = {name: value for name, value in options.items() if name != "format"}
        self._format = _format(options["format"]) if "format" in options else None
        self._rejects = Rejects(self.address)
        if self._format is None and not self._may_be_folder:
            self._format = suffix_of(address)

    @property
    def _may_be_folder(self) -> bool:
        if self._web:
            return False
        if "://" not in self._given:
            return self._pattern or self._given.endswith("/") or Path(self._given).expanduser().is_dir()
        return self._pattern or "." not in self._given.rsplit("/", 1)[-1]

    @property
    def files(self) -> list[File]:
        """The files, in the order in which their rows come; raises as `batches` does."""
        return self._files

    @property
    def untyped(self) -> bool:
        """Whether every cell is text."""
        return SUFFIXES[self._format or self._files[0].suffix].untyped

    @property
    def rejects(self) -> pd.DataFrame:
        """Lines that were no rows, as far as `batches` came."""
        return self._rejects.table()

    def fingerprint(self) -> str | None:
        """Return a hash that changes when the files do (content of local ones, else what the server tells); None
        where there is no such file, or the server tells nothing."""
        try:
            facts = _web_validators(self._given) if self._web else [_file_facts(file) for file in self._files]
        except (ForgeError, OSError):
            return None
        if not facts:
            return None
        text = json.dumps([facts, self._format, self._options], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def batches(self, kinds: Mapping[str, Kind] | None = None) -> Iterator[pd.DataFrame]:
        """Give the rows of all files, all batches with the same columns, a column that a file lacks being missing.

        Raises
        ------
        DataNotFound, EmptyData, UnreadableData
            There is no such file; none has rows; one is not in the format its name says.
        SchemaViolation
            A column is there twice.
        ServiceUnavailable
            When the server behind the URL does not answer.
        """
        self._rejects = rejects = Rejects(self.address)
        files = self._files
        columns: list[str] | None = None
        if len(files) > 1:
            columns = list(dict.fromkeys(name for file in files for name in self._told(file, _columns_of(file))))
        for file in files:
            file.kinds = kinds or {}
            for frame in self._told(file, SUFFIXES[file.suffix].read(file, rejects)):
                rejects.n_rows += len(frame)
                rejects.check_share()
                yield frame if columns is None else _with_columns(frame, columns, self.untyped)
        if not rejects.n_rows:
            rejects.check_share(least=1)
            raise EmptyData(f"expected rows at {self.address}, found none", context={"address": self.address})

    @cached_property
    def _files(self) -> list[File]:
        try:
            return self._downloaded() if self._web else self._found()
        except ForgeError:
            raise
        except Exception as error:
            # Every protocol has its own errors for a server that does not answer (aiohttp, botocore, …).
            raise explain(error, self.address, self._format or "files") from error

    def _found(self) -> list[File]:
        try:
            fs, path = fsspec.core.url_to_fs(self._given)
        except ImportError as error:
            raise ConfigurationError(f"{self.address} needs a package that is not installed: {error}") from error
        fs.invalidate_cache()
        if self._pattern:
            paths = [p for p in fs.glob(path) if not fs.isdir(p)]
        elif self._given.endswith("/") or self._format is None or fs.isdir(path):
            paths = fs.find(path)
        else:
            fs.info(path)
            return [self._file(fs, path, self._format)]
        if not paths and not fs.exists(path):
            raise DataNotFound(f"no file at {self.address}; correct the address, or put the data there")
        root = path.rstrip("/") if not self._pattern else ""
        named = {p: self._format or _suffix(p) for p in sorted(paths) if not _is_no_data(p.removeprefix(root))}
        if len(kinds := sorted({suffix for suffix in named.values() if suffix})) > 1:
            raise ConfigurationError(
                f"expected files of one kind at {self.address}, found {', '.join(kinds)}; "
                f"choose with a pattern, as in {self.address.rstrip('/')}/*{kinds[0]}"
            )
        files = [self._file(fs, p, suffix, alone=False) for p, suffix in named.items() if suffix]
        if not files:
            raise DataNotFound(
                f"expected files that end in {', '.join(SUFFIXES)} at {self.address}, found none among {len(paths)}",
                context={"address": self.address},
            )
        return files

    def _file(self, fs: Any, path: str, suffix: str, alone: bool = True) -> File:
        if unused := sorted(set(self._options) - set(SUFFIXES[suffix].options)):
            raise ConfigurationError(f"{suffix} files have no option {', '.join(unused)} ({self.address})")
        shown = self.address if alone else hide_secrets(fs.unstrip_protocol(path).removeprefix("file://"))
        return File(fs, path, shown, suffix, self._options, alone)

    def _downloaded(self) -> list[File]:
        """Return the file, fetched once, so that every reading of this source sees the same rows."""
        assert self._format is not None
        folder = Path(tempfile.mkdtemp(prefix="forge-download-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        file = folder / f"rows{self._format}"
        _web(self._given)[0].get_file(self._given, str(file))
        return [self._file(fsspec.filesystem("file"), str(file), self._format)]

    def _told(self, file: File, steps: Iterator[Any]) -> Iterator[Any]:
        if not file.fs.size(file.path):
            return
        try:
            yield from steps
        except ForgeError:
            raise
        except Exception as error:
            raise explain(error, file.address, file.suffix) from error


def _columns_of(file: File) -> Iterator[str]:
    yield from SUFFIXES[file.suffix].columns(file)


def _with_columns(frame: pd.DataFrame, columns: list[str], untyped: bool) -> pd.DataFrame:
    if list(frame.columns) == columns:
        return frame
    absent = pd.Series([None] * len(frame), index=frame.index, dtype="str" if untyped else object)
    return frame.assign(**{name: absent for name in columns if name not in frame})[columns]


def _format(name: Any) -> str:
    suffix = f".{str(name).lower().removeprefix('.')}"
    if suffix not in SUFFIXES:
        raise ConfigurationError(f"expected a format of {', '.join(s[1:] for s in SUFFIXES)}, found {name!r}")
    return suffix


def _suffix(path: str) -> str | None:
    try:
        return suffix_of(path)
    except ConfigurationError:
        return None


def _is_no_data(path: str) -> bool:
    starts, ends = _NO_DATA
    return path.endswith(ends) or any(part.startswith(starts) for part in path.strip("/").split("/"))


def _file_facts(file: File) -> list[str]:
    if not file.is_local:
        facts = {name: value for name, value in file.fs.info(file.path).items() if not callable(value)}
        return [file.address, json.dumps(facts, sort_keys=True, default=str)]
    with Path(file.path).open("rb") as stream:
        return [Path(file.path).name, hashlib.file_digest(stream, "sha256").hexdigest()]


def _web(address: str) -> tuple[Any, str]:
    import aiohttp

    # However long the file is, only silence counts as trouble.
    patience = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)
    return fsspec.core.url_to_fs(address, client_kwargs={"timeout": patience})


def _web_validators(address: str) -> list[str]:
    try:
        info = _web(address)[0].info(address)
    except Exception:
        return []  # reading it will tell what is wrong
    return [str(info[name]) for name in ("ETag", "Last-Modified", "Content-MD5", "Digest") if info.get(name)]
