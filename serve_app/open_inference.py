"""The Open Inference Protocol V2 (REST) over a live version: what it says of itself, requests, replies.

Each feature is a tensor of shape [n] or [n, 1]; where all are numbers, one of shape [n, n_features] will do.
Null in `data`, and NaN in the binary form, is a missing value; so is a tensor that is left out. Texts in the
binary form cannot be missing. Datetimes are texts in ISO 8601. Members that the protocol does not know are ignored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from forge_core import __version__
from forge_core.data.many_row_checks import Rows, as_records
from serve_app.bodies import USUAL, Limits, not_the_form, parse_json
from serve_app.live_version import LiveVersion
from serve_app.protocol import BodyTooLarge
from serve_app.tensors import (
    NUMERIC,
    OF_KIND,
    checked_tensors,
    datatype_of,
    parameters_of,
    raw_parts,
    tensor_values,
    to_bytes,
)

# Room for ":9999" in a request id of 128 characters.
LONGEST_ID = 120
_PLATFORM = {"compiled": "onnxruntime_onnx", "native": "sklearn_skops"}


@dataclass(frozen=True)
class InferRequest:
    """One request, its rows by column.

    Parameters
    ----------
    columns : dict of str to list
        Features and their values, one a row; the contract has not seen them yet.
    id : str or None
        The caller's; echoed, and the row's request id (with many rows `{id}:{row}`).
    outputs : tuple of str
        What to answer, in this order.
    binary : frozenset of str
        Those of them in the binary form.
    parameters : dict
        The request's own.
    """

    columns: dict[str, list[Any]]
    id: str | None
    outputs: tuple[str, ...]
    binary: frozenset[str]
    parameters: dict[str, Any]

    @property
    def n_rows(self) -> int:
        """How many rows are asked for."""
        return len(next(iter(self.columns.values())))

    @property
    def rows(self) -> Rows:
        """What the contract checks: one row is quicker as a record, many are by column."""
        return as_records(self.columns) if self.n_rows == 1 else self.columns

    @property
    def request_ids(self) -> list[str] | None:
        """One id a row, or None where the caller gave none."""
        if not self.id:
            return None
        return [self.id] if self.n_rows == 1 else [f"{self.id}:{row}" for row in range(self.n_rows)]


def server_metadata() -> dict[str, Any]:
    """Return what `GET /v2` says."""
    return {"name": "mlops-forge", "version": __version__, "extensions": ["binary_tensor_data"]}


def model_metadata(live: LiveVersion, versions: Sequence[str] | None = None) -> dict[str, Any]:
    """Return a version's inputs and outputs.

    Parameters
    ----------
    versions : sequence of str, optional
        Those of the model that can be asked; else only this one.
    """
    kinds = live.contract.kinds
    form = (live.info.get("serves") or {}).get("serves", "native")
    return {
        "name": live.model,
        "versions": list(versions or [live.version]),
        "platform": _PLATFORM.get(form, form),
        "inputs": [{"name": c, "datatype": OF_KIND[kinds[c]][0], "shape": [-1]} for c in live.columns],
        "outputs": [{"name": n, "datatype": datatype, "shape": [-1]} for n, datatype in _outputs(live).items()],
    }


def parse_infer(
    body: bytes, live: LiveVersion, *, header_length: int | None = None, limits: Limits = USUAL
) -> InferRequest:
    """Return a request's rows.

    Parameters
    ----------
    body : bytes
        JSON, and with a `header_length` the tensors' bytes after it.
    header_length : int, optional
        Bytes of the JSON, from the header `Inference-Header-Content-Length`.

    Raises
    ------
    NotJson, NotTheForm, BodyTooLarge
        When the body is no such request, or asks for an output that the model does not have.
    """
    if header_length is not None and header_length > len(body):
        raise not_the_form("Inference-Header-Content-Length", f"expected at most {len(body)}, found {header_length}")
    data = parse_json(body[:header_length])
    if not isinstance(data, dict):
        raise not_the_form("", "expected an object with inputs")
    asked_id = data.get("id")
    if asked_id is not None and not (isinstance(asked_id, str) and len(asked_id) <= LONGEST_ID):
        raise not_the_form("id", f"expected text of at most {LONGEST_ID} characters")
    parameters = parameters_of(data, "parameters")
    tensors = checked_tensors(data.get("inputs"))
    raws = raw_parts(tensors, b"" if header_length is None else body[header_length:])
    columns = _columns(tensors, raws, live, limits)
    outputs, binary = _wanted(data.get("outputs"), live, bool(parameters.get("binary_data_output", False)))
    return InferRequest(columns, asked_id, outputs, binary, parameters)


def infer_reply(live: LiveVersion, request: InferRequest, replies: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return the reply with all outputs as JSON.

    Parameters
    ----------
    replies : mapping of sequences
        Fields with a value a row, as the `columns()` of what `Switchboard.predict` gives.
    """
    columns = {"prediction": "prediction", "probability": "prediction_probability", "request_id": "request_id"}
    datatypes = _outputs(live)
    outputs = []
    for name in request.outputs:
        values = replies[columns[name]]
        if datatypes[name] == "BYTES":
            values = [v if isinstance(v, str) else str(v) for v in values]
        outputs.append({"name": name, "datatype": datatypes[name], "shape": [len(values)], "data": values})
    # Of several versions where a split shares the rows of a request out.
    version = ", ".join(dict.fromkeys(replies["model_version"])) or live.version
    answered: dict[str, Any] = {"model_name": live.model, "model_version": version, "outputs": outputs}
    if "experiment" in replies:
        variants = ", ".join(dict.fromkeys(replies["variant"]))
        answered["parameters"] = {"variant": variants, "experiment": replies["experiment"][0]}
    return answered if request.id is None else {"id": request.id, **answered}


def infer_body(
    live: LiveVersion, request: InferRequest, replies: Mapping[str, Sequence[Any]]
) -> tuple[bytes, int | None]:
    """Return the reply's bytes, and the length of the JSON where outputs in the binary form follow it."""
    reply = infer_reply(live, request, replies)
    raws = []
    for output in reply["outputs"]:
        if output["name"] in request.binary:
            raws.append(to_bytes(output.pop("data"), output["datatype"]))
            output["parameters"] = {"binary_data_size": len(raws[-1])}
    header = orjson.dumps(reply)
    return b"".join([header, *raws]), len(header) if raws else None


def _outputs(live: LiveVersion) -> dict[str, str]:
    if live.task == "regression":
        return {"prediction": "FP64", "request_id": "BYTES"}
    return {"prediction": datatype_of(live.classes), "probability": "FP64", "request_id": "BYTES"}


def _columns(
    tensors: Sequence[Mapping[str, Any]], raws: Sequence[bytes | None], live: LiveVersion, limits: Limits
) -> dict[str, list[Any]]:
    lengths = {tensor["shape"][0] for tensor in tensors}
    if len(lengths) > 1:
        raise not_the_form("inputs", f"expected one number of rows, found {', '.join(map(str, sorted(lengths)[:5]))}")
    if max(lengths) > limits.rows:
        raise BodyTooLarge(
            f"expected at most {limits.rows} rows a request, found {max(lengths)}; send several requests"
        )
    if (matrix := _matrix(tensors, live)) is not None:
        values, width = tensor_values(matrix, raws[0]), len(live.columns)
        return {name: values[i::width] for i, name in enumerate(live.columns)}
    kinds = {c: live.contract.kinds[c] for c in live.columns}
    for tensor in tensors:
        name, datatype, shape = tensor["name"], tensor["datatype"], tensor["shape"]
        if name not in kinds:
            raise not_the_form(f"inputs.{name}", "is no feature of this model")
        if len(shape) == 2 and shape[1] != 1:
            raise not_the_form(f"inputs.{name}.shape", f"expected [n] or [n, 1], found {shape}")
        if datatype not in OF_KIND[kinds[name]]:
            accepted = ", ".join(dict.fromkeys(OF_KIND[kinds[name]]))
            raise not_the_form(f"inputs.{name}.datatype", f"expected {accepted}, found {datatype}")
    return {tensor["name"]: tensor_values(tensor, raw) for tensor, raw in zip(tensors, raws, strict=True)}


def _matrix(tensors: Sequence[Mapping[str, Any]], live: LiveVersion) -> Mapping[str, Any] | None:
    """Return the one tensor that holds all features in the contract's order, if the request has it."""
    first = tensors[0]
    numeric = all(live.contract.kinds[c] in ("number", "integer") for c in live.columns)
    whole = len(first["shape"]) == 2 and first["shape"][1] == len(live.columns) and first["datatype"] in NUMERIC
    return first if len(tensors) == 1 and numeric and whole and first["name"] not in live.columns else None


def _wanted(outputs: Any, live: LiveVersion, binary_data: bool) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the names of the wanted outputs, and those in the binary form."""
    known = tuple(_outputs(live))
    if outputs is None or outputs == []:
        return known, frozenset(known if binary_data else ())
    if not isinstance(outputs, list) or not all(isinstance(o, dict) and type(o.get("name")) is str for o in outputs):
        raise not_the_form("outputs", "expected a list of objects with a name")
    binary: dict[str, bool] = {}
    for output in outputs:
        name = output["name"]
        if name not in known or name in binary:
            raise not_the_form(f"outputs.{name[:80]}", f"expected each of {', '.join(known)} at most once")
        parameters = parameters_of(output, f"outputs.{name}.parameters")
        if more := sorted(parameters.keys() & {"classification", "shared_memory_region"}):
            raise not_the_form(f"outputs.{name}.parameters.{more[0]}", "is not offered here")
        binary[name] = bool(parameters.get("binary_data", binary_data))
    return tuple(binary), frozenset(name for name, yes in binary.items() if yes)
