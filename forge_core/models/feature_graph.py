"""The feature engineer's fitted state as an ONNX graph, one input a raw column, float32 throughout.

Each column's nodes mirror `FeatureEngineer.transform`; the layout of the state stands in that class.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from forge_core.data.coercion import LARGEST
from forge_core.data.encoding import PARTS, n_outputs
from forge_core.data.feature_engineering import FeatureEngineer

_ML = "ai.onnx.ml"


class _Piece(NamedTuple):
    """A tensor of shape (n_rows, width)."""

    name: str
    width: int


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
    numbers = [column for column in columns if column["kind"] == "number"]
    pieces = _numbers(graph, numbers)
    value, flag, at = 0, len(numbers), _width(pieces)
    # Where each output stands among the pieces, which may hold more than is wanted.
    wanted: list[int] = []
    for column in columns:
        if column["kind"] == "number":
            wanted += [value, flag][: n_outputs(column)]
            value, flag = value + 1, flag + 1
        else:
            wanted += range(at, at + n_outputs(column))
            block = _block(graph, column)
            pieces += block
            at += _width(block)
    matrix = graph.add("Concat", *(piece.name for piece in pieces), axis=1)
    if wanted == list(range(at)):
        return matrix
    # Rows are taken whole, but columns cell by cell: a thousand rows take a quarter of the time on their side.
    turned = graph.add("Transpose", matrix, perm=[1, 0])
    chosen = graph.add("Gather", turned, graph.constant(wanted, np.int64), axis=0)
    return graph.add("Transpose", chosen, perm=[1, 0])


def _width(pieces: Sequence[_Piece]) -> int:
    return sum(piece.width for piece in pieces)


def _block(graph: _Graph, column: dict[str, Any]) -> list[_Piece]:
    if column["kind"] == "datetime":
        return _filled(graph, column["name"], column["name"], column["fill"], flags=column["missing"])
    return _one_hot(graph, column) if column["encoding"] == "one_hot" else _ordinal(graph, column)


def _numbers(graph: _Graph, columns: Sequence[dict[str, Any]]) -> list[_Piece]:
    """Add the values of number columns, and the flags of all of them where one has a flag."""
    if not columns:
        return []
    values = graph.add("Concat", *(column["name"] for column in columns), axis=1)
    # x - x is NaN for infinities as it is for NaN.
    tested, fill = graph.add("Sub", values, values), [column["fill"] for column in columns]
    return _filled(graph, values, tested, fill, flags=any(column["missing"] for column in columns))


def _filled(graph: _Graph, values: str, tested: str, fill: list[float], *, flags: bool) -> list[_Piece]:
    """Add values with `fill` where `tested` is NaN, and where flags are wanted 1.0 for each such cell."""
    missing = graph.add("IsNaN", tested)
    filled = _Piece(graph.add("Where", missing, graph.constant([fill]), values), len(fill))
    return [filled, _Piece(graph.add("Cast", missing, to=TensorProto.FLOAT), len(fill))] if flags else [filled]


def _one_hot(graph: _Graph, column: dict[str, Any]) -> list[_Piece]:
    levels = column["levels"]
    wide = graph.add("OneHotEncoder", column["name"], domain=_ML, cats_strings=levels, zeros=1)
    return [_Piece(graph.add("Reshape", wide, graph.constant([-1, len(levels)], np.int64)), len(levels))]


def _ordinal(graph: _Graph, column: dict[str, Any]) -> list[_Piece]:
    levels = column["levels"]

    def lookup(values: list[float], unknown: float) -> _Piece:
        name = graph.add(
            "LabelEncoder", column["name"], domain=_ML, keys_strings=levels, values_floats=values, default_float=unknown
        )
        return _Piece(name, 1)

    return [lookup([float(i) for i in range(len(levels))], -1.0), lookup(column["shares"], 0.0)]
