"""The pipeline as one ONNX graph: features (from the engineer's state) and estimator (through skl2onnx).

A compiled model answers one row in tens of microseconds where the pipeline needs milliseconds. It serves
only when its parity with the pipeline was measured on held-out rows, missing values and unknown
categories included, and lies within the policy's tolerance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forge_core.data.many_row_checks import as_pandas
from forge_core.models.feature_graph import feature_graph
from forge_core.models.model_trainer import score
from forge_core.models.onnx_inputs import filler, plain_columns

_OPSET = {"": 17, "ai.onnx.ml": 3}
_FEATURES = "features"

# So many rows are answered by one thread.
_FEW = 64

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Parity:
    """How far the compiled model is from the pipeline on the same rows."""

    largest_difference: float
    label_agreement: float
    n_rows: int

    def to_dict(self) -> dict[str, float]:
        """Return plain JSON."""
        return asdict(self)


class CompiledModel:
    """An ONNX graph that scores columns of plain values.

    Parameters
    ----------
    onnx : bytes
        What `compile_pipeline` returned.
    threads : int
        Threads of a call of many rows; for few the threads cost more than they do.
    """

    def __init__(self, onnx: bytes, *, threads: int = 1) -> None:
        self._session = _session(onnx, 1)
        self._wide = _session(onnx, threads) if threads > 1 else self._session
        self._inputs = {i.name: filler(i) for i in self._session.get_inputs()}
        self._output = self._session.get_outputs()[-1].name

    @property
    def input_kinds(self) -> dict[str, str]:
        """Kind of each input column: number, category or datetime."""
        return {name: fill.kind for name, fill in self._inputs.items()}

    @property
    def n_outputs(self) -> int:
        """Numbers a row: one of a regression, else the probability of each class."""
        return int(self._session.get_outputs()[-1].shape[1])

    def score(self, columns: Columns) -> NDArray[np.float64]:
        """Return what `forge_core.models.model_trainer.score` gives for the pipeline.

        Parameters
        ----------
        columns : mapping of str to sequence of length n_rows
            Raw feature values; None and NaN mean missing. Times may also come as an array of datetime64 in UTC, texts
            as an Arrow array.
        """
        return self._run({name: fill.from_values(columns[name]) for name, fill in self._inputs.items()})

    def score_frame(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """Return what `score` gives for the frame's columns, to the last bit, without a look at single cells."""
        return self._run({name: fill.from_column(frame[name]) for name, fill in self._inputs.items()})

    def _run(self, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
        session = self._wide if len(next(iter(inputs.values()))) > _FEW else self._session
        answer = session.run([self._output], inputs)[0]
        return (answer if answer.shape[1] > 2 else answer[:, -1]).astype(float)


def _session(onnx: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


class NativeModel:
    """The pipeline behind the same interface, for versions that do not compile.

    Parameters
    ----------
    pipeline : Pipeline
    columns : list of str
        The features in the contract's order.
    """

    def __init__(self, pipeline: Any, columns: Sequence[str]) -> None:
        self._pipeline, self._columns = pipeline, list(columns)

    def score(self, columns: Columns) -> NDArray[np.float64]:
        """Return what `forge_core.models.model_trainer.score` gives."""
        return score(self._pipeline, pd.DataFrame({c: as_pandas(columns[c]) for c in self._columns}))

    def score_frame(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """Return what `score` gives for the frame's columns."""
        return score(self._pipeline, frame[self._columns])


def compile_pipeline(pipeline: Any) -> tuple[bytes | None, str]:
    """Return (ONNX bytes, "converted"), or (None, the reason why it does not convert)."""
    import onnx
    import onnx.compose
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    engineer, estimator = pipeline.named_steps["features"], pipeline.named_steps["estimator"]
    try:
        _register_converters()
        width = len(engineer.get_feature_names_out())
        options = {id(estimator): {"zipmap": False}} if hasattr(estimator, "predict_proba") else None
        model = convert_sklearn(
            estimator, initial_types=[(_FEATURES, FloatTensorType([None, width]))], options=options, target_opset=_OPSET
        )
        # The trees say version 1 of the ML operators, which version 3 contains; merging wants one number.
        del model.opset_import[:]
        model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in _OPSET.items())
        graph = feature_graph(engineer, output=_FEATURES, opset=_OPSET, ir_version=model.ir_version)
        merged = onnx.compose.merge_models(graph, model, io_map=[(_FEATURES, _FEATURES)])
        onnx.checker.check_model(merged)
        return merged.SerializeToString(), "converted"
    except Exception as error:  # whatever the converter lacks is a reason to serve natively, never a failed training
        return None, f"does not convert: {type(error).__name__}: {str(error)[:300]}"


def measure_parity(pipeline: Any, onnx: bytes, rows: pd.DataFrame) -> Parity:
    """Return the largest difference of scores and the share of equal labels over the rows."""
    ours, native = CompiledModel(onnx).score(plain_columns(rows)), score(pipeline, rows)
    labels = [scores >= 0.5 if scores.ndim == 1 else scores.argmax(axis=1) for scores in (ours, native)]
    return Parity(float(np.abs(ours - native).max()), float(np.mean(labels[0] == labels[1])), len(rows))


def _register_converters() -> None:
    """Teach skl2onnx histogram boosting: its tree attributes arrive as numpy types that onnx no longer takes."""
    from forge_core.models.mlp_onnx import register_onnx_converters

    register_onnx_converters()
    from skl2onnx import update_registered_converter
    from skl2onnx._supported_operators import sklearn_operator_name_map
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes,
        calculate_linear_regressor_output_shapes,
    )
    from skl2onnx.operator_converters.random_forest import (
        convert_sklearn_random_forest_classifier,
        convert_sklearn_random_forest_regressor_converter,
    )
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    def plain_integers(convert: Any) -> Any:
        def converter(scope: Any, operator: Any, container: Any) -> None:
            if getattr(operator.raw_operator, "is_categorical_", None) is not None:
                raise ValueError("histogram boosting with its own categorical features converts wrong")
            convert(scope, operator, _PlainAttributes(container))

        return converter

    if sklearn_operator_name_map.get(HistGradientBoostingClassifier) == "ForgeHistGradientBoostingClassifier":
        return
    update_registered_converter(
        HistGradientBoostingClassifier,
        "ForgeHistGradientBoostingClassifier",
        calculate_linear_classifier_output_shapes,
        plain_integers(convert_sklearn_random_forest_classifier),
        options={
            "zipmap": [True, False, "columns"],
            "raw_scores": [True, False],
            "output_class_labels": [False, True],
            "nocl": [True, False],
        },
    )
    update_registered_converter(
        HistGradientBoostingRegressor,
        "ForgeHistGradientBoostingRegressor",
        calculate_linear_regressor_output_shapes,
        plain_integers(convert_sklearn_random_forest_regressor_converter),
        options={"raw_scores": [True, False]},
    )


class _PlainAttributes:
    """A converter's container that hands lists of plain Python numbers on to ONNX."""

    def __init__(self, container: Any) -> None:
        self._container = container

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def add_node(self, op_type: str, inputs: Any, outputs: Any, **attributes: Any) -> Any:
        """Add a node after casting its attributes."""
        return self._container.add_node(op_type, inputs, outputs, **{k: _plain(v) for k, v in attributes.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bool | np.bool_ | np.integer):
        return int(value)
    return float(value) if isinstance(value, np.floating) else value
