"""What callers send: bodies of bounded size, as JSON that says each thing once."""

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect, Request

from forge_core.data.many_row_checks import Rows
from serve_app.protocol import BodyTooLarge, NotJson, NotTheForm, SlowRequest, WrongContentType, headers_of

Form = TypeVar("Form")

_LONGEST_ID = 128

# In JSON every key ends so; texts may hold it too, so the count is never below that of the keys.
_KEY_END = re.compile(rb'"[ \t\r\n]*:')


class Limits(NamedTuple):
    """What one request may cost."""

    body_bytes: int = 8 * 2**20
    rows: int = 10_000
    read_seconds: float = 15.0


USUAL = Limits()


def told(request: Request, name: bytes) -> str | None:
    """Return a header by its lower-case name, or None."""
    value = headers_of(request.scope).get(name)
    return None if value is None else value.decode("latin-1")


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the body.

    Raises
    ------
    BodyTooLarge, SlowRequest
        Before more than the limits was read.
    """
    length = told(request, b"content-length") or ""
    if length.isdigit() and int(length) > limits.body_bytes:
        raise _too_large(limits)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.read_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limits.body_bytes:
                    raise _too_large(limits)
                chunks.append(chunk)
    except TimeoutError:
        raise SlowRequest(
            f"expected the whole body within {limits.read_seconds:g} s, found {size} bytes by then; send it at once"
        ) from None
    except ClientDisconnect:
        raise NotJson("the caller left before the body was there") from None
    return b"".join(chunks)


async def read_json(request: Request, limits: Limits) -> Any:
    """Return the body as plain values.

    Raises
    ------
    WrongContentType
        When the header names something else than JSON.
    NotJson
        For what is no JSON, holds NaN or Infinity, is no UTF-8, or says one key twice in an object.
    """
    kind = told(request, b"content-type")
    if kind is not None and kind != "application/json":
        _must_be_json(kind.partition(";")[0].strip().lower())
    return parse_json(await read_body(request, limits))


def _must_be_json(kind: str) -> None:
    if kind != "application/json" and not kind.endswith("+json"):
        raise WrongContentType(f"expected Content-Type: application/json, found {kind[:80]!r}")


def parse_json(body: bytes) -> Any:
    """Return the values of a JSON text; see `read_json`."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise NotJson(f"expected JSON (RFC 8259) in UTF-8: {str(error)[:200]}") from None
    # Where there is no space at all, as in what programs write, counting takes a third of a search for the pattern.
    spaced = any(space in body for space in (b" ", b"\t", b"\n", b"\r"))
    ends = len(_KEY_END.findall(body)) if spaced else body.count(b'":')
    # Where the objects outside of lists have them all, nobody needs to look into the lists.
    if ends != _count_keys(data, lists=False) and ends != _count_keys(data, lists=True):
        _refuse_duplicates(body)
    return data


def header(request: Request, name: bytes) -> str | None:
    """Return the text of a header that holds an id, or None; raises NotTheForm where it is too long."""
    value = told(request, name)
    if value is not None and not 0 < len(value) <= _LONGEST_ID:
        raise not_the_form(name.decode().title(), f"expected 1 to {_LONGEST_ID} characters, found {len(value)}")
    return value


def one_row(data: Any) -> tuple[dict[str, Any], str | None]:
    """Return the features, and the user or None, of `{"features": {…}, "user": "…"}`."""
    if type(data) is dict and len(data) == 1 and type(features := data.get("features")) is dict:
        return features, None
    _object_with(data, {"features"}, {"features", "user"})
    if type(features := data["features"]) is not dict:
        raise not_the_form("features", f"expected an object of feature names and values, found {_name(features)}")
    user = data.get("user")
    if user is not None and not _is_id(user):
        raise not_the_form("user", "expected a text of 1 to 128 characters")
    return features, user


class ManyRows(NamedTuple):
    """What a request of many rows holds; ids and users are one a row, or None. The reply may be asked by column."""

    rows: Rows
    n_rows: int
    request_ids: list[str] | None
    users: list[str] | None
    by_column: bool


def many_rows(data: Any, limits: Limits) -> ManyRows:
    """Return what stands in `{"records": [{…}], …}` or `{"columns": {name: […]}, …}`."""
    form = "columns" if isinstance(data, dict) and "columns" in data else "records"
    _object_with(data, {form}, {form, "request_ids", "users", "reply"})
    rows = data[form]
    n_rows = (_length_of_columns if form == "columns" else _length_of_records)(rows)
    if n_rows == 0:
        raise not_the_form(form, "expected at least one row, found none")
    if n_rows > limits.rows:
        raise BodyTooLarge(f"expected at most {limits.rows} rows a request, found {n_rows}; send several requests")
    ids = _one_a_row(data, "request_ids", n_rows)
    if ids is not None and len(set(ids)) != len(ids):
        raise not_the_form("request_ids", "expected each request id once")
    return ManyRows(rows, n_rows, ids, _one_a_row(data, "users", n_rows), _by_column(data.get("reply")))


def _by_column(reply: Any) -> bool:
    if reply not in (None, "records", "columns"):
        raise not_the_form("reply", "expected `records` or `columns`")
    return reply == "columns"


def _one_a_row(data: Mapping[str, Any], field: str, n_rows: int) -> list[str] | None:
    texts: list[str] | None = data.get(field)
    if texts is None:
        return None
    if not isinstance(texts, list) or not all(map(_is_id, texts)):
        raise not_the_form(field, "expected a list of texts of 1 to 128 characters")
    if len(texts) != n_rows:
        what = "request id" if field == "request_ids" else "user"
        raise not_the_form(field, f"expected one {what} a row, found {len(texts)} for {n_rows} rows")
    return texts


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_ID


def parsed(form: "TypeAdapter[Form]", data: Any) -> Form:
    """Return data as a pydantic form, every fault at once."""
    try:
        return form.validate_python(data)
    except ValidationError as error:
        raise faults_of(error) from None


def faults_of(error: ValidationError) -> NotTheForm:
    """Return pydantic's error as ours, every fault at once."""
    faults = [
        {"field": ".".join(map(str, e["loc"])), "reason": e["msg"].removeprefix("Value error, ")}
        for e in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return _of_faults(faults)


def _length_of_records(records: Any) -> int:
    if not isinstance(records, list) or not all(type(r) is dict for r in records):
        raise not_the_form("records", "expected a list of objects of feature names and values")
    return len(records)


def _length_of_columns(columns: Any) -> int:
    if not isinstance(columns, Mapping) or not all(isinstance(values, list) for values in columns.values()):
        raise not_the_form("columns", "expected an object of feature names and lists of values")
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        raise not_the_form("columns", f"expected lists of one length, found {', '.join(map(str, sorted(lengths)))}")
    return lengths.pop() if lengths else 0


def _object_with(data: Any, needed: set[str], known: set[str]) -> None:
    if not isinstance(data, dict):
        raise not_the_form("", f"expected an object with {', '.join(sorted(needed))}, found {_name(data)}")
    faults = [{"field": name, "reason": "is required"} for name in sorted(needed - data.keys())]
    faults += [{"field": str(name)[:80], "reason": "is not known here"} for name in data if name not in known]
    if faults:
        raise _of_faults(faults)


def not_the_form(field: str, reason: str) -> NotTheForm:
    """Return the error of one fault."""
    return _of_faults([{"field": field, "reason": reason}])


def _of_faults(faults: list[dict[str, str]]) -> NotTheForm:
    told = "; ".join(f"{f['field'] or 'body'}: {f['reason']}" for f in faults[:5])
    return NotTheForm(told, context={"faults": faults[:100]})


def _too_large(limits: Limits) -> BodyTooLarge:
    return BodyTooLarge(f"expected a body of at most {limits.body_bytes} bytes; send several requests")


def _count_keys(data: Any, *, lists: bool) -> int:
    if type(data) is dict:
        nested = [v for v in data.values() if type(v) is dict or (lists and type(v) is list)]
        return len(data) + sum(_count_keys(v, lists=lists) for v in nested)
    if lists and type(data) is list and not {dict, list}.isdisjoint(set(map(type, data))):
        return sum(_count_keys(v, lists=lists) for v in data if type(v) is dict or type(v) is list)
    return 0


def _refuse_duplicates(body: bytes) -> None:
    def once(pairs: list[tuple[str, Any]]) -> None:
        names: set[str] = set()
        for name, _ in pairs:
            if name in names:
                raise NotJson(f"expected each key once in an object, found {name[:80]!r} twice")
            names.add(name)

    json.loads(body, object_pairs_hook=once)


def _name(value: Any) -> str:
    names = {"dict": "an object", "list": "a list", "str": "text", "NoneType": "null", "bool": "a boolean"}
    return names.get(type(value).__name__, "a number")
