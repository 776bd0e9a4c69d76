"""The networks of `mlp` as ONNX graphs: a chain of Gemm and Relu, and what turns outputs into labels."""

from typing import Any

import numpy as np

from forge_core.models.mlp import TorchClassifier, TorchRegressor


def register_onnx_converters() -> None:
    """Teach skl2onnx both estimators; doing so again changes nothing."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes,
        calculate_linear_regressor_output_shapes,
    )

    update_registered_converter(
        TorchClassifier,
        "ForgeTorchClassifier",
        calculate_linear_classifier_output_shapes,
        _convert_classifier,
        options={"zipmap": [True, False, "columns"], "nocl": [True, False], "output_class_labels": [False, True]},
    )
    update_registered_converter(
        TorchRegressor, "ForgeTorchRegressor", calculate_linear_regressor_output_shapes, _convert_regressor
    )


def _convert_classifier(scope: Any, operator: Any, container: Any) -> None:
    from onnx import TensorProto

    classes = operator.raw_operator.classes_
    outputs = _add_layers(scope, operator, container)
    probabilities = operator.outputs[1].full_name
    container.add_node("Softmax", [outputs], [probabilities], name=scope.get_unique_operator_name("softmax"), axis=1)
    names = [scope.get_unique_variable_name(name) for name in ("classes", "best")]
    if np.issubdtype(classes.dtype, np.number) or classes.dtype == bool:
        container.add_initializer(names[0], TensorProto.INT64, classes.shape, classes.astype(np.int64).tolist())
    else:
        container.add_initializer(
            names[0], TensorProto.STRING, classes.shape, [str(c).encode() for c in classes.tolist()]
        )
    container.add_node(
        "ArgMax", [outputs], [names[1]], name=scope.get_unique_operator_name("argmax"), axis=1, keepdims=0
    )
    container.add_node(
        "Gather", [names[0], names[1]], [operator.outputs[0].full_name], name=scope.get_unique_operator_name("label")
    )


def _convert_regressor(scope: Any, operator: Any, container: Any) -> None:
    from onnx import TensorProto

    model = operator.raw_operator
    value = _add_layers(scope, operator, container)
    for op, number in (("Mul", model.target_scale_), ("Add", model.target_mean_)):
        constant, result = scope.get_unique_variable_name("number"), scope.get_unique_variable_name("scaled")
        container.add_initializer(constant, TensorProto.FLOAT, [1], [number])
        result = operator.outputs[0].full_name if op == "Add" else result
        container.add_node(op, [value, constant], [result], name=scope.get_unique_operator_name(op))
        value = result


def _add_layers(scope: Any, operator: Any, container: Any) -> str:
    """Add the linear layers and return the name of the last one's output."""
    from onnx import TensorProto

    layers = operator.raw_operator.layers_
    value = operator.inputs[0].full_name
    for place in range(0, len(layers), 2):
        if place:
            positive = scope.get_unique_variable_name("positive")
            container.add_node("Relu", [value], [positive], name=scope.get_unique_operator_name("relu"))
            value = positive
        names = [scope.get_unique_variable_name(name) for name in ("weights", "bias", "linear")]
        for name, array in zip(names[:2], layers[place : place + 2], strict=True):
            container.add_initializer(name, TensorProto.FLOAT, array.shape, array.ravel().tolist())
        container.add_node("Gemm", [value, *names[:2]], [names[2]], name=scope.get_unique_operator_name("gemm"))
        value = names[2]
    return value
