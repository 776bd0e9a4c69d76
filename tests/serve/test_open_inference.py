"""The Open Inference Protocol V2: tensors to rows and replies to tensors; then an off-the-shelf client over HTTP."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
import pytest

from forge_core.errors import ForgeError, SchemaViolation
from serve_app.bodies import Limits
from serve_app.live_version import LiveVersion, answers
from serve_app.open_inference import (
    InferRequest,
    infer_body,
    infer_reply,
    model_metadata,
    parse_infer,
    server_metadata,
)
from serve_app.protocol import BodyTooLarge, NotJson, NotTheForm

pytestmark = pytest.mark.slow

Versions = Mapping[str, LiveVersion]
EXAMPLE: dict[str, list[Any]] = {
    "distance": [10.5, 4000],
    "stops": [0, 5],
    "warm": [None, 3.5],
    "town": ["Oslo", None],
    "colour": ["red", "blue"],
    "free": ["x", ""],
    "when": ["2024-01-01T10:00:00Z", None],
    "flag": [True, None],
}
DATATYPES = {
    "distance": "FP64", "stops": "INT64", "warm": "FP32", "town": "BYTES",
    "colour": "BYTES", "free": "BYTES", "when": "BYTES", "flag": "BOOL",
}  # fmt: skip


def tensor(name: str, data: Any, datatype: str = "FP64", shape: Any = None) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}


def tensors(**changed: Any) -> list[dict[str, Any]]:
    return [tensor(name, changed.get(name, data), DATATYPES[name]) for name, data in EXAMPLE.items()]


def parsed(live: LiveVersion, inputs: Any, **more: Any) -> InferRequest:
    return parse_infer(orjson.dumps({"inputs": inputs, **more}), live)


def scored(live: LiveVersion, request: InferRequest) -> dict[str, list[Any]]:
    rows = live.contract.check_rows(request.rows)
    scores = asyncio.run(live.lane.ask(rows))  # type: ignore[arg-type]
    predictions, probabilities = answers(live, scores)
    return {
        "prediction": predictions,
        "prediction_probability": probabilities,
        "model_version": [live.version] * len(rows),
        "request_id": request.request_ids or [f"made-{i}" for i in range(len(rows))],
    }


def test_the_metadata_name_each_feature_with_its_type_and_the_outputs(versions: Versions) -> None:
    said = model_metadata(versions["mixed"], ["2", "3"])
    assert {i["name"]: i["datatype"] for i in said["inputs"]} == {**DATATYPES, "warm": "FP64"}
    assert (said["name"], said["versions"], said["platform"]) == ("mixed", ["2", "3"], "onnxruntime_onnx")
    outputs = {name: {o["name"]: o["datatype"] for o in model_metadata(v)["outputs"]} for name, v in versions.items()}
    assert outputs == {
        "sample": {"prediction": "INT64", "probability": "FP64", "request_id": "BYTES"},
        "mixed": {"prediction": "BYTES", "probability": "FP64", "request_id": "BYTES"},
        "numbers": {"prediction": "FP64", "request_id": "BYTES"},
    }
    assert server_metadata()["extensions"] == ["binary_tensor_data"]


def test_columns_become_rows_with_missing_values_where_json_has_null(versions: Versions) -> None:
    live = versions["mixed"]
    request = parsed(live, tensors(), id="a")
    assert request.n_rows == 2 and request.request_ids == ["a:0", "a:1"]
    assert request.rows == request.columns == EXAMPLE
    reply = infer_reply(live, request, scored(live, request))
    assert reply["id"] == "a" and (reply["model_name"], reply["model_version"]) == ("mixed", "3")
    prediction, probability, request_id = reply["outputs"]
    assert prediction["datatype"] == "BYTES" and set(prediction["data"]) <= {"a", "b", "c"}
    assert probability["shape"] == [2] and all(1 / 3 <= p <= 1 for p in probability["data"])
    assert request_id["data"] == ["a:0", "a:1"]


@pytest.mark.parametrize("shape", [[2], [2, 1]])
@pytest.mark.parametrize("nested", [False, True])
def test_data_may_be_flat_or_nested(versions: Versions, shape: list[int], nested: bool) -> None:
    inputs = tensors()
    inputs[0] |= {"shape": shape, "data": [[10.5], [4000]] if nested else [10.5, 4000]}
    if nested and shape == [2]:
        with pytest.raises(NotTheForm, match=r"inputs.distance: expected data of numbers"):
            parsed(versions["mixed"], inputs)
        return
    assert parsed(versions["mixed"], inputs).columns["distance"] == [10.5, 4000]


@pytest.mark.parametrize("data", [[1, 2, None, 4, 5, 6], [[1, 2], [None, 4], [5, 6]]])
def test_one_tensor_holds_all_features_where_all_are_numbers(versions: Versions, data: Any) -> None:
    live = versions["numbers"]
    request = parsed(live, [tensor("inputs", data, "FP32", [3, 2])])
    assert request.rows == {"width": [1, None, 5], "count": [2, 4, 6]}
    reply = infer_reply(live, request, scored(live, request))
    assert [o["name"] for o in reply["outputs"]] == ["prediction", "request_id"]
    alone = parsed(live, [tensor("width", [5]), tensor("count", [6], "INT64")])
    assert reply["outputs"][0]["data"][2] == pytest.approx(scored(live, alone)["prediction"][0])
    with pytest.raises(NotTheForm, match=r"inputs.inputs: is no feature"):
        parsed(versions["mixed"], [tensor("inputs", [1.0] * 8, "FP64", [1, 8])])


def test_only_the_wanted_outputs_are_answered_in_their_order(versions: Versions) -> None:
    live = versions["sample"]
    inputs = [tensor("feature1", [0.5]), tensor("feature2", ["category1"], "BYTES")]
    request = parsed(live, inputs, outputs=[{"name": "request_id"}, {"name": "prediction"}], id="x")
    reply = infer_reply(live, request, scored(live, request))
    assert [(o["name"], o["datatype"]) for o in reply["outputs"]] == [("request_id", "BYTES"), ("prediction", "INT64")]
    assert reply["outputs"][0]["data"] == ["x"] and "id" not in infer_reply(
        live, parsed(live, inputs), scored(live, request)
    )
    for wanted in (
        [{"name": "logits" * 1000, "parameters": 1}],
        [{"name": "logits"}],
        [{"name": "prediction"}] * 2,
        {"name": "prediction"},
        [3],
    ):
        with pytest.raises(NotTheForm, match=r"outputs"):
            parsed(live, inputs, outputs=wanted)
    with pytest.raises(NotTheForm, match=r"outputs.probability: expected each of prediction, request_id"):
        parsed(versions["numbers"], [tensor("x", [5, 6], "FP64", [1, 2])], outputs=[{"name": "probability"}])


FAULTY: dict[str, tuple[Any, str]] = {
    "no list": ({"a": 1}, "inputs: expected a list"),
    "empty": ([], "at least one tensor"),
    "no object": ([1], "list of at least one tensor"),
    "no name": ([{"datatype": "FP64", "shape": [1], "data": [1]}], "inputs.0.name"),
    "twice": ([*tensors(), tensors()[0]], "inputs.8.name: expected text of at most 500 characters, once"),
    "a long name": ([tensor("n" * 10_000, [1.0])], "inputs.0.name: expected text"),
    "lower case": ([tensor("distance", [1.0], "fp64")], "inputs.distance.datatype: expected one of BOOL"),
    "no datatype": ([{"name": "distance", "shape": [1], "data": [1]}], "inputs.distance.datatype"),
    "list as datatype": ([tensor("distance", [1.0], ["FP64"])], "inputs.distance.datatype"),  # type: ignore[arg-type]
    "three dimensions": ([tensor("distance", [1.0], shape=[1, 1, 1])], "inputs.distance.shape"),
    "no rows": ([tensor("distance", [], shape=[0])], "one or two positive integers"),
    "negative": ([tensor("distance", [1.0], shape=[-1])], "one or two positive integers"),
    "true rows": ([tensor("distance", [1.0], shape=[True])], "one or two positive integers"),
    "wide": ([tensor("distance", [1.0, 2.0], shape=[1, 2])], r"expected \[n\] or \[n, 1\]"),
    "too few": ([tensor("distance", [1.0], shape=[2])], r"expected 2 elements for shape \[2\], found 1"),
    "ragged": ([tensor("distance", [[1.0], []], shape=[2, 1])], r"expected data of shape \[2, 1\]"),
    "uneven": ([tensor("distance", [1.0]), tensor("warm", [1.0, 2.0])], "one number of rows, found 1, 2"),
    "unknown": ([tensor("weight", [1.0])], "inputs.weight: is no feature"),
    "text number": ([tensor("distance", ["1"], "BYTES")], "inputs.distance.datatype: expected FP64"),
    "text in FP64": ([tensor("distance", ["1"])], "expected data of numbers or null for FP64"),
    "fraction in INT64": ([tensor("stops", [1.5], "INT64")], "expected data of integers"),
    "300 in UINT8": ([tensor("stops", [300], "UINT8")], "expected integers from 0 to 255"),
    "1 in BOOL": ([tensor("flag", [1], "BOOL")], "expected data of true or false"),
    "no data": ([{"name": "distance", "datatype": "FP64", "shape": [1]}], "expected `data`"),
    "parameters": ([tensor("distance", [1.0]) | {"parameters": [1]}], "inputs.distance.parameters: expected an object"),
    "no bytes": ([tensor("distance", [1.0]) | {"parameters": {"binary_data_size": 8}}], "at most the 0 bytes"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_what_is_no_request_is_refused_with_the_faulty_field(versions: Versions, name: str) -> None:
    inputs, told = FAULTY[name]
    with pytest.raises(NotTheForm, match=told) as caught:
        parsed(versions["mixed"], inputs)
    assert caught.value.context["faults"][0]["reason"]


def test_what_breaks_the_contract_is_told_by_the_contract(versions: Versions) -> None:
    live = versions["mixed"]
    request = parsed(live, tensors(distance=[10, -1], stops=[None, 2]))
    with pytest.raises(SchemaViolation) as caught:
        live.contract.check_rows(request.rows)
    assert [(f["row"], f["field"]) for f in caught.value.context["faults"]] == [(0, "stops"), (1, "distance")]


def test_bodies_that_are_no_json_or_too_long_are_refused(versions: Versions) -> None:
    live = versions["numbers"]
    for body in (b"", b"[1", b'{"inputs": NaN}', b'{"id": "a", "id": "b"}', b"\xff"):
        with pytest.raises(NotJson):
            parse_infer(body, live)
    for body in (b"[]", b"null", b'{"id": 3, "inputs": []}', b'{"parameters": [], "inputs": []}'):
        with pytest.raises(NotTheForm):
            parse_infer(body, live)
    with pytest.raises(BodyTooLarge, match="expected at most 2 rows a request, found 3"):
        parse_infer(orjson.dumps({"inputs": [tensor("x", [0.0] * 6, "FP64", [3, 2])]}), live, limits=Limits(rows=2))
    with pytest.raises(NotTheForm, match="Inference-Header-Content-Length: expected at most 2, found 3"):
        parse_infer(b"{}", live, header_length=3)


def binary(name: str, values: np.ndarray, datatype: str) -> tuple[dict[str, Any], bytes]:
    raw = values.tobytes()
    said = {"name": name, "datatype": datatype, "shape": [len(values)], "parameters": {"binary_data_size": len(raw)}}
    return said, raw


def test_binary_tensors_follow_the_json_in_their_order_and_nan_is_missing(versions: Versions) -> None:
    live = versions["numbers"]
    width, count = np.array([0.5, np.nan], "<f4"), np.array([3, 4], "<u2")
    (first, raw), (second, more) = binary("width", width, "FP32"), binary("count", count, "UINT16")
    header = json.dumps({"inputs": [first, second], "parameters": {"binary_data_output": True}}).encode()
    request = parse_infer(header + raw + more, live, header_length=len(header))
    assert request.columns["count"] == [3, 4]
    assert request.columns["width"][0] == 0.5 and np.isnan(request.columns["width"][1])
    replies = scored(live, request)
    body, length = infer_body(live, request, replies)
    assert length is not None
    said = json.loads(body[:length])["outputs"]
    assert said[0] == {"name": "prediction", "datatype": "FP64", "shape": [2], "parameters": {"binary_data_size": 16}}
    assert np.frombuffer(body[length : length + 16], "<f8").tolist() == replies["prediction"]
    assert body[length + 16 :] == b"\x06\0\0\0made-0\x06\0\0\0made-1"
    for wrong, told in ((header + raw, "at most the 0 bytes"), (header + raw + more + b"x", "12 bytes after the JSON")):
        with pytest.raises(NotTheForm, match=told):
            parse_infer(wrong, live, header_length=len(header))


@pytest.mark.parametrize(
    ("raw", "told"),
    [(b"\x01\0\0\0", "1 texts, each after"), (b"\x01\0\0\0\xff", "UTF-8"), (b"\0\0", "1 texts"), (b"", "1 texts")],
)
def test_binary_texts_that_are_cut_or_no_utf8_are_refused(versions: Versions, raw: bytes, told: str) -> None:
    said = tensor("colour", [0], "BYTES") | {"parameters": {"binary_data_size": len(raw)}}
    header = json.dumps({"inputs": [said]}).encode()
    with pytest.raises(ForgeError, match=told):
        parse_infer(header + raw, versions["mixed"], header_length=len(header))
