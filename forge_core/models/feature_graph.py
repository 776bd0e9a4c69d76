"""The feature engineer's fitted state as an ONNX graph, one input a raw column, float32 throughout.

Each column's nodes mirror `FeatureEngineer.transform`; the layout of the state stands in that class.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from forge_core.data.coercion import LARGEST
from forge_core.data.encoding import PARTS, n_outputs
from forge_core.data.feature_engineering import FeatureEngineer

_ML = "ai.onnx.ml"


class _Graph:
    """Nodes and constants under construction; names are made unique by counting."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node of one output and return that output's name."""
        name = f"features_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, domain=domain, **attributes))
        return name

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """Add a constant and return its name."""
        name = f"features_constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name


def feature_graph(engineer: FeatureEngineer, *, output: str, opset: Mapping[str, int], ir_version: int) -> ModelProto:
    """Return a graph from raw columns to features of shape (n_rows, n_outputs).

    A column is a tensor of shape (n_rows, 1), a datetime one of shape (n_rows, 3) as `time_parts` makes it.
    """
    state = engineer.state()
    columns = state["columns"]
    graph = _Graph()
    inputs = []
    for column in columns:
        kind = TensorProto.STRING if column["kind"] == "category" else TensorProto.FLOAT
        width = len(PARTS) if column["kind"] == "datetime" else 1
        inputs.append(helper.make_tensor_value_info(column["name"], kind, [None, width]))
    matrix = _ordered(graph, columns)
    if state["mean"]:
        centred = graph.add("Sub", matrix, graph.constant([state["mean"]]))
        scaled = graph.add("Div", centred, graph.constant([state["scale"]]))
        matrix = graph.add("Clip", scaled, graph.constant(-LARGEST), graph.constant(LARGEST))
    graph.nodes.append(helper.make_node("Identity", [matrix], [output]))
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None, len(state["outputs"])])]
    body = helper.make_graph(graph.nodes, "features", inputs, outputs, graph.constants)
    versions = [helper.make_opsetid(domain, version) for domain, version in opset.items()]
    return helper.make_model(body, opset_imports=versions, ir_version=ir_version)


def _ordered(graph: _Graph, columns: Sequence[dict[str, Any]]) -> str:
    """Add all columns' outputs: numbers in one go, since a node costs more than its arithmetic, then put in order."""
    places: dict[str, list[int]] = {"value": [], "flag": [], "block": []}
    at, blocks = 0, []
    for column in columns:
        width = n_outputs(column)
        if column["kind"] == "number":
            places["value"].append(at)
            places["flag"] += range(at + 1, at + width)
        else:
            places["block"] += range(at, at + width)
            blocks += _block(graph, column)
        at += width
    numbers = [column for column in columns if column["kind"] == "number"]
    matrix = graph.add("Concat", *_numbers(graph, numbers), *blocks, axis=1)
    found = [place for part in places.values() for place in part]
    if found == sorted(found):
        return matrix
    return graph.add("Gather", matrix, graph.constant(np.argsort(found), np.int64), axis=1)


def _block(graph: _Graph, column: dict[str, Any]) -> list[str]:
    if column["kind"] == "datetime":
        return _datetime(graph, column)
    return _one_hot(graph, column) if column["encoding"] == "one_hot" else _ordinal(graph, column)


def _numbers(graph: _Graph, columns: Sequence[dict[str, Any]]) -> list[str]:
    """Add the values of number columns as one block, and the flags of those that have one as another."""
    if not columns:
        return []
    values = graph.add("Concat", *(column["name"] for column in columns), axis=1)
    # x - x is NaN for infinities as it is for NaN.
    missing = graph.add("IsNaN", graph.add("Sub", values, values))
    filled = graph.add("Where", missing, graph.constant([[column["fill"] for column in columns]]), values)
    flagged = [i for i, column in enumerate(columns) if column["missing"]]
    if not flagged:
        return [filled]
    flags = graph.add("Cast", missing, to=TensorProto.FLOAT)
    return [filled, graph.add("Gather", flags, graph.constant(flagged, np.int64), axis=1)]


def _datetime(graph: _Graph, column: dict[str, Any]) -> list[str]:
    missing = graph.add("IsNaN", column["name"])
    filled = graph.add("Where", missing, graph.constant([column["fill"]]), column["name"])
    if not column["missing"]:
        return [filled]
    flags = graph.add("Cast", missing, to=TensorProto.FLOAT)
    return [filled, graph.add("Gather", flags, graph.constant([0], np.int64), axis=1)]


def _one_hot(graph: _Graph, column: dict[str, Any]) -> list[str]:
    levels = column["levels"]
    wide = graph.add("OneHotEncoder", column["name"], domain=_ML, cats_strings=levels, zeros=1)
    return [graph.add("Reshape", wide, graph.constant([-1, len(levels)], np.int64))]


def _ordinal(graph: _Graph, column: dict[str, Any]) -> list[str]:
    levels = column["levels"]

    def lookup(values: list[float], unknown: float) -> str:
        return graph.add(
            "LabelEncoder", column["name"], domain=_ML, keys_strings=levels, values_floats=values, default_float=unknown
        )

    return [lookup([float(i) for i in range(len(levels))], -1.0), lookup(column["shares"], 0.0)]
