"""The feature engineer's fitted state as an ONNX graph, one input a raw column, float32 throughout.

Each column's nodes mirror `FeatureEngineer.transform`; the layout of the state stands in that class.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

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
    """Return a graph from raw columns, each of shape (n_rows, 1), to features of shape (n_rows, n_outputs).

    Raises
    ------
    ValueError
        For a kind of column that has no ONNX form (datetimes).
    """
    state = engineer.state()
    graph = _Graph()
    inputs, blocks = [], []
    for column in state["columns"]:
        text = column["kind"] == "category"
        kind = TensorProto.STRING if text else TensorProto.FLOAT
        inputs.append(helper.make_tensor_value_info(column["name"], kind, [None, 1]))
        blocks += _column(graph, column)
    matrix = graph.add("Concat", *blocks, axis=1)
    if state["mean"]:
        centred = graph.add("Sub", matrix, graph.constant([state["mean"]]))
        matrix = graph.add("Div", centred, graph.constant([state["scale"]]))
    graph.nodes.append(helper.make_node("Identity", [matrix], [output]))
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None, len(state["outputs"])])]
    body = helper.make_graph(graph.nodes, "features", inputs, outputs, graph.constants)
    versions = [helper.make_opsetid(domain, version) for domain, version in opset.items()]
    return helper.make_model(body, opset_imports=versions, ir_version=ir_version)


def _column(graph: _Graph, column: Mapping[str, Any]) -> list[str]:
    if column["kind"] == "number":
        return _number(graph, column)
    if column["kind"] == "category" and column["encoding"] == "one_hot":
        return _one_hot(graph, column)
    if column["kind"] == "category":
        return _ordinal(graph, column)
    raise ValueError(f"column {column['name']!r} of kind {column['kind']} has no ONNX form yet")


def _number(graph: _Graph, column: Mapping[str, Any]) -> list[str]:
    missing = graph.add("IsNaN", column["name"])
    filled = graph.add("Where", missing, graph.constant([[column["fill"]]]), column["name"])
    flag = [graph.add("Cast", missing, to=TensorProto.FLOAT)] if column["missing"] else []
    return [filled, *flag]


def _one_hot(graph: _Graph, column: Mapping[str, Any]) -> list[str]:
    levels = column["levels"]
    wide = graph.add("OneHotEncoder", column["name"], domain=_ML, cats_strings=levels, zeros=1)
    return [graph.add("Reshape", wide, graph.constant([-1, len(levels)], np.int64))]


def _ordinal(graph: _Graph, column: Mapping[str, Any]) -> list[str]:
    levels = column["levels"]

    def lookup(values: list[float], unknown: float) -> str:
        return graph.add(
            "LabelEncoder", column["name"], domain=_ML, keys_strings=levels, values_floats=values, default_float=unknown
        )

    return [lookup([float(i) for i in range(len(levels))], -1.0), lookup(column["shares"], 0.0)]
