"""JSON and JSON lines: records become rows, nested values compact JSON text."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import orjson
import pandas as pd

from forge_core.data.batches import BATCH_ROWS, LONGEST_LINE, Rejects, check_names, slices, typed_column
from forge_core.data.opening import File
from forge_core.errors import ConfigurationError, UnreadableData

_CHUNK = 2**22
# A record takes many times a row's memory.
_BATCH = BATCH_ROWS // 4


def read_json_lines(file: File, rejects: Rejects) -> Iterator[pd.DataFrame]:
    """Give the rows of a file with one JSON object a line; a line that is none is rejected.

    Records need not have the same keys: where the file is longer than one batch, it is read once more before,
    for all the keys there are.
    """
    records = _records(file, rejects)
    batch = list(itertools.islice(records, _BATCH))
    whole = len(batch) < _BATCH
    columns = list(dict.fromkeys(itertools.chain.from_iterable(batch))) if whole else json_lines_columns(file)
    while batch:
        frame = _frame(batch, columns)
        batch.clear()
        yield frame
        batch = [] if whole else list(itertools.islice(records, _BATCH))


def json_lines_columns(file: File) -> list[str]:
    """Return all keys of all records, in the order they come."""
    if file.columns is None:
        keys: dict[str, None] = {}
        for record in _records(file, Rejects(file.address)):
            if not record.keys() <= keys.keys():
                keys |= dict.fromkeys(record)
        file.columns = list(keys)
    return file.columns


def read_json(file: File, rejects: Rejects) -> Iterator[pd.DataFrame]:
    """Give the rows of a JSON file: a list of records, or an object of columns; it is read whole."""
    value = _load(file)
    if isinstance(value, dict):
        frame = pd.DataFrame({name: _cells(cells, name) for name, cells in value.items()}, dtype=object)
        typed = {name: typed_column(frame[name]) for name in check_names(frame.columns, file.address)}
        yield from slices(pd.DataFrame(typed).reset_index(drop=True))
        return
    records = []
    for position, record in enumerate(value):
        if isinstance(record, dict):
            records.append(record)
        else:
            _reject(rejects, file, position, json.dumps(record), f"expected a JSON object, found {_name(record)}")
    columns = list(dict.fromkeys(itertools.chain.from_iterable(records)))
    for start in range(0, len(records), BATCH_ROWS):
        yield _frame(records[start : start + BATCH_ROWS], columns)


def json_columns(file: File) -> list[str]:
    """Return all keys of a JSON file, in the order they come."""
    if file.columns is None:
        value = _load(file)
        keys = value if isinstance(value, dict) else itertools.chain.from_iterable(
            record for record in value if isinstance(record, dict)
        )  # fmt: skip
        file.columns = list(dict.fromkeys(keys))
    return file.columns


def _load(file: File) -> Any:
    with file.open() as stream:
        data = stream.read()
    if not data.strip():
        return []
    encoding = file.options.get("encoding")
    try:
        value = json.loads(data.decode(str(encoding)) if encoding else data, object_pairs_hook=_once)
    except LookupError:
        raise ConfigurationError(f"expected an encoding that Python knows, found {encoding!r}") from None
    except UnicodeDecodeError as error:
        raise UnreadableData(
            f"expected {error.encoding} at {file.address}, found a byte it does not have at offset {error.start:,}; "
            "give encoding=…",
            context={"address": file.address},
        ) from None
    if not isinstance(value, list | dict):
        raise ValueError("expected a list of records or an object of columns")
    return value


def _records(file: File, rejects: Rejects) -> Iterator[dict[str, Any]]:
    for position, line in enumerate(_lines(file)):
        try:
            record = _parsed(line)
        except (ValueError, RecursionError) as error:
            _reject(rejects, file, position, line.decode(errors="replace"), f"no JSON: {error}")
            continue
        if isinstance(record, dict):
            yield record
        else:
            reason = f"expected an object, found {_name(record)}"
            _reject(rejects, file, position, line.decode(errors="replace"), reason)


def _lines(file: File) -> Iterator[bytes]:
    encoding = file.options.get("encoding", "utf-8")
    if str(encoding).lower() not in ("utf-8", "utf8"):
        raise ConfigurationError(f"JSON lines are utf-8; {file.address} has encoding={encoding!r}: convert it")
    with file.open() as stream:
        left = stream.read(3).removeprefix(b"\xef\xbb\xbf")
        while chunk := stream.read(_CHUNK):
            lines = (left + chunk).split(b"\n")
            left = lines.pop()
            if len(left) > LONGEST_LINE:
                raise UnreadableData(
                    f"expected a JSON object on each line of {file.address}, found a line longer than "
                    f"{LONGEST_LINE // 2**20} MiB; give format='json' if it is one document",
                    context={"address": file.address},
                )
            yield from (line for line in lines if line.strip())
        if left.strip():
            yield left


def _parsed(line: bytes) -> Any:
    try:
        record = orjson.loads(line)
        # More colons than keys: nested, or a key that is there twice, which only the slow parser tells.
        if isinstance(record, dict) and line.count(b'":') + line.count(b'" :') <= len(record):
            return record
    except orjson.JSONDecodeError:
        pass  # NaN, 1e400, or no JSON
    return json.loads(line, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return record


def _frame(records: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    names = check_names(columns, "the records")
    return pd.DataFrame(
        {name: typed_column([r.get(key) for r in records]) for name, key in zip(names, columns, strict=True)},
        index=range(len(records)),
    )


def _cells(cells: Any, name: str) -> Any:
    if not isinstance(cells, list | dict):
        raise ValueError(f"expected a list of records or an object of columns, found {name!r}: {_name(cells)}")
    return pd.Series(cells, dtype=object)


def _reject(rejects: Rejects, file: File, position: int, line: str, reason: str) -> None:
    rejects.add(position, "is_json", line, reason + file.suffix_of_reason)


def _name(value: Any) -> str:
    return {list: "a list", str: "a text", bool: "a boolean", dict: "an object", type(None): "null"}.get(
        type(value), "a number"
    )
