"""Tensors of the Open Inference Protocol as lists of plain values: as JSON, and in Triton's binary form."""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from forge_core.data.coercion import Kind
from serve_app.bodies import not_the_form

# Little-endian, as the binary form wants them.
_NUMPY = {
    "BOOL": "?",
    **{f"UINT{8 * n}": f"<u{n}" for n in (1, 2, 4, 8)},
    **{f"INT{8 * n}": f"<i{n}" for n in (1, 2, 4, 8)},
    **{f"FP{8 * n}": f"<f{n}" for n in (2, 4, 8)},
}
DATATYPES = (*_NUMPY, "BYTES")
NUMERIC = tuple(name for name in _NUMPY if name != "BOOL")

# What a feature's tensor may be; the first is what the metadata says.
OF_KIND: dict[Kind, tuple[str, ...]] = {
    "number": ("FP64", *NUMERIC),
    "integer": ("INT64", *NUMERIC),
    "category": ("BYTES",),
    "boolean": ("BOOL",),
    "datetime": ("BYTES",),
}
LONGEST_NAME = 500
_MISSING = type(None)
_JSON = {"BOOL": ({bool, _MISSING}, "true or false"), "BYTES": ({str, _MISSING}, "texts")}
_FLOATS = ({float, int, _MISSING}, "numbers")
_WHOLE = ({int, _MISSING}, "integers")


def datatype_of(values: Sequence[Any]) -> str:
    """Return the datatype that holds all these values: BOOL, INT64 or FP64, else BYTES."""
    kinds = set(map(type, values))
    for name, kind in (("BOOL", bool), ("INT64", int), ("FP64", float)):
        if kinds == {kind}:
            return name
    return "FP64" if kinds == {int, float} else "BYTES"


def parameters_of(owner: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Return the `parameters` of a request, an input or an output; none and null are empty."""
    parameters = owner.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise not_the_form(field, "expected an object")
    return parameters or {}


def checked_tensors(inputs: Any) -> list[dict[str, Any]]:
    """Return a request's inputs; each has a name of its own, a known datatype and a shape of one or two numbers."""
    if not isinstance(inputs, list) or not inputs or not all(isinstance(t, dict) for t in inputs):
        raise not_the_form("inputs", "expected a list of at least one tensor")
    names: set[str] = set()
    for number, tensor in enumerate(inputs):
        name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
        if not isinstance(name, str) or len(name) > LONGEST_NAME or name in names:
            raise not_the_form(f"inputs.{number}.name", f"expected text of at most {LONGEST_NAME} characters, once")
        names.add(name)
        if datatype not in DATATYPES:
            raise not_the_form(f"inputs.{name}.datatype", f"expected one of {', '.join(DATATYPES)}")
        if not isinstance(shape, list) or len(shape) not in (1, 2) or not all(type(n) is int and n > 0 for n in shape):
            raise not_the_form(f"inputs.{name}.shape", "expected one or two positive integers")
    return inputs


def raw_parts(tensors: Sequence[Mapping[str, Any]], raw: bytes) -> list[bytes | None]:
    """Return each tensor's part of the bytes behind the JSON; None for those with data in it."""
    parts: list[bytes | None] = []
    start = 0
    for tensor in tensors:
        field = f"inputs.{tensor['name']}.parameters"
        size = parameters_of(tensor, field).get("binary_data_size")
        if size is None:
            parts.append(None)
            continue
        if type(size) is not int or not 0 <= size <= len(raw) - start:
            raise not_the_form(
                f"{field}.binary_data_size", f"expected at most the {len(raw) - start} bytes that are there"
            )
        parts.append(raw[start : start + size])
        start += size
    if start != len(raw):
        raise not_the_form("inputs", f"expected {start} bytes after the JSON, found {len(raw)}")
    return parts


def tensor_values(tensor: Mapping[str, Any], raw: bytes | None) -> list[Any]:
    """Return a tensor's elements in row-major order; None where JSON has null.

    Parameters
    ----------
    tensor : mapping
        With `name`, `datatype`, `shape` (one or two positive integers), and `data` unless `raw` is given.
    raw : bytes or None
        The elements in the binary form.

    Raises
    ------
    NotTheForm
        When the elements are not of the datatype, or not as many as the shape says.
    """
    field, datatype, shape = f"inputs.{tensor['name']}", tensor["datatype"], tensor["shape"]
    if raw is not None:
        return _from_bytes(field, datatype, math.prod(shape), raw)
    values = _flat(field, shape, tensor.get("data"))
    accepted, words = _JSON.get(datatype) or (_FLOATS if datatype.startswith("FP") else _WHOLE)
    if not set(map(type, values)) <= accepted:
        raise not_the_form(field, f"expected data of {words} or null for {datatype}")
    if accepted is _WHOLE[0]:
        limits = np.iinfo(_NUMPY[datatype])
        present = [v for v in values if v is not None]
        if present and not limits.min <= min(present) <= max(present) <= limits.max:
            raise not_the_form(field, f"expected integers from {limits.min} to {limits.max} for {datatype}")
    return values


def to_bytes(values: Sequence[Any], datatype: str) -> bytes:
    """Return elements in the binary form; texts are UTF-8, each after its length in four bytes."""
    if datatype != "BYTES":
        return np.array(values, _NUMPY[datatype]).tobytes()
    return b"".join(struct.pack("<I", len(text)) + text for text in (v.encode() for v in values))


def _flat(field: str, shape: Sequence[int], data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise not_the_form(field, "expected `data`, a list")
    if len(shape) == 2 and data and isinstance(data[0], list):
        if len(data) != shape[0] or not all(isinstance(row, list) and len(row) == shape[1] for row in data):
            raise not_the_form(field, f"expected data of shape {list(shape)}, or flat in row-major order")
        return [value for row in data for value in row]
    if len(data) != math.prod(shape):
        raise not_the_form(field, f"expected {math.prod(shape)} elements for shape {list(shape)}, found {len(data)}")
    return data


def _from_bytes(field: str, datatype: str, n_values: int, raw: bytes) -> list[Any]:
    if datatype == "BYTES":
        return _texts(field, n_values, raw)
    kind = np.dtype(_NUMPY[datatype])
    if len(raw) != n_values * kind.itemsize:
        raise not_the_form(field, f"expected {n_values * kind.itemsize} bytes of {datatype}, found {len(raw)}")
    if datatype == "BOOL":
        return np.frombuffer(raw, np.uint8).astype(bool).tolist()
    return np.frombuffer(raw, kind).tolist()


def _texts(field: str, n_values: int, raw: bytes) -> list[Any]:
    texts: list[Any] = []
    start = 0
    while start < len(raw) and len(texts) < n_values:
        end = start + 4 + int.from_bytes(raw[start : start + 4], "little")
        try:
            texts.append(raw[start + 4 : end].decode())
        except UnicodeDecodeError:
            raise not_the_form(field, f"expected texts in UTF-8, found element {len(texts)} that is not") from None
        start = end
    if start != len(raw) or len(texts) != n_values:
        raise not_the_form(field, f"expected {n_values} texts, each after its length in four bytes")
    return texts
