"""Columns to a float32 matrix, fitted on training rows only and stored as plain JSON.

All arithmetic is float32, so that the same steps as an ONNX graph give the same numbers.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from forge_core.data.coercion import LARGEST
from forge_core.data.encoding import (
    InputKind,
    as_floats,
    encode_column,
    learn_column,
    n_outputs,
    output_names,
    scaled_outputs,
)
from forge_core.data.feature_choice import check_unique, choose_features
from forge_core.errors import DataNotFound, EmptyData, SchemaViolation, UnreadableData

# So many rows are encoded at a time: their part of the matrix stays in the processor's cache while columns fill it.
_CHUNK = 16_384
_PARAMETERS = (
    "categorical_features", "numerical_features", "target", "max_one_hot", "max_levels", "scale",
)  # fmt: skip


class FeatureEngineer(TransformerMixin, BaseEstimator):
    """Turns rows into a float32 matrix, shape (n_rows, n_outputs), the same way in training and serving.

    Parameters
    ----------
    categorical_features, numerical_features : list of str, optional
        Columns to use. With both given, no others; with one, the rest is inferred (numbers and booleans are
        numbers, text and categories are categories, datetimes give hour, weekday and month in UTC).
    target : str, optional
        The target's column, which is then refused as a feature.
    key : str or list of str, optional
        Columns that name rows, which are then refused as features. Without it, names like `id` and `order_id`
        are warned about, as is, in any case, text of which nearly every row has another.
    max_one_hot : int
        Categories with at most so many levels become one column a level.
    max_levels : int
        Of longer categories, so many most frequent levels are known.
    scale : bool
        Standardise number, code, share and datetime outputs; for linear models and networks.

    Attributes
    ----------
    columns_ : list of dict
        One dict per input column, in the order of the outputs. Infinite numbers, and those beyond float32's
        range, count as missing, so that every output is finite:

        - `{"name", "kind": "number", "fill": float, "missing": bool}`: the value as float32, missing ones
          replaced by `fill` (the training median); where `missing` (training rows had some), followed by an
          output that is 1.0 for them, else 0.0.
        - `{"name", "kind": "category", "encoding": "one_hot", "levels": [str, …]}`: one output a level, 1.0
          where the text equals it; missing cells are the text ""; unknown text gives zeros.
        - `{"name", "kind": "category", "encoding": "ordinal", "levels": [str, …], "shares": [float, …]}`: two
          outputs, the level's position (most frequent first) and its share of the training rows; -1.0 and 0.0
          for missing or unknown text.
        - `{"name", "kind": "datetime", "fill": [float, float, float], "missing": bool}`: hour, weekday
          (Monday 0) and month, then as a number with `missing`.
    mean_, scale_ : list of float
        One a output: what is subtracted, then divided by (0.0 and 1.0 where nothing is scaled; both lists are
        empty without `scale`). All floats of the state are exact float32 values.

    `state()` is `{"format": 1, "parameters": {…}, "columns": columns_, "mean": mean_, "scale": scale_,
    "outputs": [str, …]}`; `key` is among the parameters where it was given.

    Examples
    --------
    >>> rows = pd.DataFrame({"age": [20.0, None, 40.0], "town": ["Oslo", "Bergen", "Oslo"]})
    >>> engineer = FeatureEngineer().fit(rows)
    >>> engineer.get_feature_names_out().tolist()
    ['age', 'age__missing', 'town=Bergen', 'town=Oslo']
    >>> engineer.transform(rows)[1].tolist()
    [30.0, 1.0, 1.0, 0.0]
    """

    # Engineers that skops wrote before there were keys have no attribute of their own.
    key: str | Sequence[str] | None = None

    def __init__(
        self,
        categorical_features: Sequence[str] | None = None,
        numerical_features: Sequence[str] | None = None,
        target: str | None = None,
        max_one_hot: int = 20,
        max_levels: int = 200,
        scale: bool = False,
        key: str | Sequence[str] | None = None,
    ) -> None:
        self.categorical_features = categorical_features
        self.numerical_features = numerical_features
        self.target = target
        self.max_one_hot = max_one_hot
        self.max_levels = max_levels
        self.scale = scale
        self.key = key

    def fit(self, X: Any, y: Any = None) -> "FeatureEngineer":
        """Learn medians, levels and scales from the training rows; `y` is not looked at.

        Raises
        ------
        EmptyData
            When there are no rows.
        ConfigurationError
            When the target or a key is among the features, or there are none.
        SchemaViolation
            When a named column is missing, or a number column holds text.
        """
        rows = _as_frame(X)
        if not len(rows):
            raise EmptyData("expected rows to learn features from, found none; add training rows")
        chosen = choose_features(rows, self.categorical_features, self.numerical_features, self.target, self.key)
        self.columns_: list[dict[str, Any]] = [
            learn_column(rows[name], kind, self.max_one_hot, self.max_levels) for name, kind in chosen.items()
        ]
        self.n_features_in_ = len(self.columns_)
        self.mean_: list[float] = []
        self.scale_: list[float] = []
        if self.scale:
            matrix = self.transform(rows).astype(np.float64)
            scaled = np.array([flag for column in self.columns_ for flag in scaled_outputs(column)])
            spread = matrix.std(axis=0)
            self.mean_ = as_floats(np.where(scaled, matrix.mean(axis=0), 0.0))
            self.scale_ = as_floats(np.where(scaled & (spread > 1e-12), spread, 1.0))
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Return the features of rows, float32, shape (n_rows, n_outputs), every one of them finite.

        Raises
        ------
        SchemaViolation
            When an input column is missing or there twice, or a number column holds text.
        """
        check_is_fitted(self, "columns_")
        rows = _as_frame(X)
        if missing := [c for c in self.input_columns if c not in rows]:
            raise SchemaViolation(
                f"expected the columns {', '.join(self.input_columns)}; missing: {', '.join(missing)}",
                context={"faults": [{"field": c, "reason": "is required and was missing"} for c in missing]},
            )
        if not rows.columns.is_unique:
            check_unique([c for c in rows.columns if c in self.input_columns])
        inputs = [rows[name] for name in self.input_columns]
        matrix = np.zeros((len(rows), sum(map(n_outputs, self.columns_))), np.float32)
        if len(rows) <= _CHUNK:
            self._encode(inputs, matrix)
            return matrix
        for start in range(0, len(rows), _CHUNK):
            part = slice(start, start + _CHUNK)
            self._encode([values.iloc[part] for values in inputs], matrix[part])
        return matrix

    def fit_transform(
        self,
        X: Any,
        y: Any = None,
        *,
        categorical_features: Sequence[str] | None = None,
        numerical_features: Sequence[str] | None = None,
    ) -> NDArray[np.float32]:
        """Fit on the rows and return their features; columns given here replace those of the constructor."""
        if categorical_features is not None:
            self.categorical_features = list(categorical_features)
        if numerical_features is not None:
            self.numerical_features = list(numerical_features)
        return self.fit(X, y).transform(X)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Return the outputs' names: `age`, `age__missing`, `town=Oslo`, `dest__code`, `when__hour` …"""
        check_is_fitted(self, "columns_")
        return np.array(self._outputs(), dtype=object)

    @property
    def input_columns(self) -> list[str]:
        """The columns that rows must have, in the order of their outputs."""
        return [column["name"] for column in self.columns_]

    @property
    def input_kinds(self) -> dict[str, InputKind]:
        """Kind of each input column: number, category or datetime."""
        return {column["name"]: column["kind"] for column in self.columns_}

    def state(self) -> dict[str, Any]:
        """Return everything that was fitted as JSON values; the class describes the layout."""
        check_is_fitted(self, "columns_")
        parameters = {name: getattr(self, name) for name in _PARAMETERS}
        if self.key is not None:
            parameters["key"] = self.key
        lists = {n: list(v) for n, v in parameters.items() if isinstance(v, Sequence) and not isinstance(v, str)}
        return {
            "format": 1,
            "parameters": {**parameters, **lists},
            "columns": self.columns_,
            "mean": self.mean_,
            "scale": self.scale_,
            "outputs": self._outputs(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "FeatureEngineer":
        """Return the engineer that `state()` described."""
        engineer = cls(**state["parameters"])
        engineer.columns_ = state["columns"]
        engineer.mean_, engineer.scale_ = state["mean"], state["scale"]
        engineer.n_features_in_ = len(engineer.columns_)
        return engineer

    @property
    def state_hash(self) -> str:
        """SHA-256 of the state."""
        return _hash(self.state())

    def save_features(self, path: str | Path) -> Path:
        """Write state and hash as JSON and return the file's path."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"hash": self.state_hash, "state": self.state()}, indent=1, sort_keys=True))
        return file

    def _outputs(self) -> list[str]:
        return [name for column in self.columns_ for name in output_names(column)]

    def _encode(self, inputs: list[pd.Series], matrix: NDArray[np.float32]) -> None:
        """Fill a matrix of zeros, shape (n_rows, n_outputs), with the columns' outputs."""
        at = 0
        for values, column in zip(inputs, self.columns_, strict=True):
            width = n_outputs(column)
            encode_column(values, column, matrix[:, at : at + width])
            at += width
        if self.mean_:
            with np.errstate(over="ignore"):
                matrix -= np.array(self.mean_, np.float32)
                matrix /= np.array(self.scale_, np.float32)
            np.clip(matrix, -LARGEST, LARGEST, out=matrix)


def get_feature_engineer(target: str | None = None, key: str | Sequence[str] | None = None) -> FeatureEngineer:
    """Return an unfitted feature engineer; it refuses `target` and `key` as features."""
    return FeatureEngineer(target=target, key=key)


def load_features(path: str | Path) -> FeatureEngineer:
    """Return the engineer that `save_features` wrote.

    Raises
    ------
    DataNotFound, UnreadableData
        There is no such file; it is no features file, or was changed after it was written.
    """
    file = Path(path)
    if not file.is_file():
        raise DataNotFound(f"no features file at {file}; write one with save_features")
    try:
        content = json.loads(file.read_text())
        state, stored = content["state"], content["hash"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableData(f"expected a features file with `hash` and `state` at {file}, found other text") from error
    if _hash(state) != stored:
        raise UnreadableData(f"the features in {file} were changed after they were written; write them again")
    return FeatureEngineer.from_state(state)


def _as_frame(X: Any) -> pd.DataFrame:
    if isinstance(X, pd.DataFrame):
        return X
    values = np.asarray(X)
    return pd.DataFrame(values, columns=[f"x{i}" for i in range(values.shape[1])])


def _hash(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
