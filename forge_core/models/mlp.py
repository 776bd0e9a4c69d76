"""A multi-layer perceptron in torch behind scikit-learn's interface.

Torch is needed to fit only: what was learnt is a list of float32 arrays, from which predictions come through numpy
and the ONNX graph is built, so that a stored model loads without torch and without running pickled code.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from forge_core.errors import ConfigurationError, EmptyData, ModelError, UnusableTarget

Layers = list[NDArray[np.float32]]


def build_network(widths: Sequence[int], dropout: float = 0.0) -> Any:
    """Return an untrained torch network: linear layers of the widths, ReLU (and dropout) between them."""
    from torch import nn

    layers: list[Any] = []
    for place in range(len(widths) - 1):
        if place:
            layers.append(nn.ReLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(widths[place], widths[place + 1]))
    return nn.Sequential(*layers)


def layers_of(network: Any) -> Layers:
    """Return a network's weights and biases in turn: (n_inputs, n_outputs), (n_outputs,), …"""
    arrays = [parameter.detach().float().cpu().numpy() for parameter in network.parameters()]
    return [np.ascontiguousarray(a.T) if a.ndim == 2 else a.copy() for a in arrays]


def loss_of(outputs: Any, targets: Any, n_classes: int) -> Any:
    """Return the loss of each row as a torch tensor, shape (n_rows,): cross entropy, or without classes the
    squared error."""
    from torch.nn import functional

    if n_classes:
        return functional.cross_entropy(outputs.float(), targets.long(), reduction="none")
    return (outputs.float()[:, 0] - targets).square()


class _Network(BaseEstimator):
    """What classifier and regressor share; see `TorchClassifier` for the parameters."""

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (64, 32),
        learning_rate: float = 1e-3,
        batch_size: int = 256,
        epochs: int = 20,
        weight_decay: float = 1e-4,
        dropout: float = 0.0,
        validation_share: float = 0.1,
        patience: int = 5,
        random_state: int | None = None,
        device: str = "auto",
    ) -> None:
        self.hidden_sizes = hidden_sizes
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.weight_decay = weight_decay
        self.dropout = dropout
        self.validation_share = validation_share
        self.patience = patience
        self.random_state = random_state
        self.device = device

    def state(self) -> dict[str, Any]:
        """Return what was learnt: plain JSON values, and numpy arrays under `layers_` and `classes_`."""
        check_is_fitted(self, "layers_")
        return {"parameters": self.get_params(), "fitted": {k: v for k, v in vars(self).items() if k.endswith("_")}}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Any:
        """Return the estimator that `state()` described."""
        estimator = cls(**state["parameters"])
        for name, value in state["fitted"].items():
            setattr(estimator, name, value)
        return estimator

    def _outputs(self, X: ArrayLike) -> NDArray[np.float32]:
        check_is_fitted(self, "layers_")
        values = np.asarray(X, np.float32)
        if values.ndim != 2 or values.shape[1] != self.n_features_in_:
            raise ConfigurationError(f"expected a matrix of {self.n_features_in_} columns, found shape {values.shape}")
        for place in range(0, len(self.layers_), 2):
            values = (np.maximum(values, 0) if place else values) @ self.layers_[place] + self.layers_[place + 1]
        return values

    def _fit(self, X: NDArray[np.float32], y: NDArray[Any], n_classes: int) -> None:
        import torch

        if not 0 <= self.validation_share < 1 or self.batch_size < 1 or self.epochs < 1 or not 0 <= self.dropout < 1:
            raise ConfigurationError(
                "expected validation_share and dropout in [0, 1), batch_size and epochs of 1 and more, found "
                f"{self.validation_share}, {self.dropout}, {self.batch_size} and {self.epochs}"
            )
        wanted = "cuda" if self.device == "auto" and torch.cuda.is_available() else self.device
        device = torch.device("cpu" if wanted == "auto" else wanted)
        seed = int(np.random.default_rng(self.random_state).integers(2**31))
        # The caller's own random numbers of torch stay as they were.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            order = torch.randperm(len(X))
            n_held = int(len(X) * self.validation_share) if self.patience else 0
            inputs, targets = torch.from_numpy(X), torch.from_numpy(y)
            held, rest = order[:n_held], order[n_held:]
            self._run(
                (inputs[rest].to(device), targets[rest].to(device)),
                (inputs[held].to(device), targets[held].to(device)),
                n_classes,
                device,
            )

    def _run(self, train: tuple[Any, Any], held: tuple[Any, Any], n_classes: int, device: Any) -> None:
        """Fit on tensors; with held-out rows, stop where their loss stays above its best for `patience` epochs."""
        import torch

        inputs, targets = train
        network = build_network([inputs.shape[1], *self.hidden_sizes, n_classes or 1], self.dropout).to(device)
        optimiser = torch.optim.AdamW(network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        mixed = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
        self.loss_curve_: list[float] = []
        self.validation_curve_: list[float] = []
        best, best_layers = float("inf"), layers_of(network)
        for _ in range(self.epochs):
            network.train()
            total = torch.zeros((), device=device)
            for rows in torch.randperm(len(inputs)).to(device).split(self.batch_size):
                with mixed:
                    outputs = network(inputs[rows])
                losses = loss_of(outputs, targets[rows], n_classes)
                optimiser.zero_grad(set_to_none=True)
                losses.mean().backward()
                optimiser.step()
                total += losses.detach().sum()
            self.loss_curve_.append(float(total) / len(inputs))
            if not np.isfinite(self.loss_curve_[-1]):
                raise ModelError(
                    f"expected a finite loss, found {self.loss_curve_[-1]} in epoch {len(self.loss_curve_)}; "
                    "standardise the features, or lower learning_rate"
                )
            if not len(held[0]):
                continue
            network.eval()
            with torch.no_grad():
                self.validation_curve_.append(float(loss_of(network(held[0]), held[1], n_classes).mean()))
            if self.validation_curve_[-1] < best:
                best, best_layers = self.validation_curve_[-1], layers_of(network)
            elif len(self.validation_curve_) - 1 - int(np.argmin(self.validation_curve_)) >= self.patience:
                break
        self.layers_ = best_layers if self.validation_curve_ else layers_of(network)
        self.n_features_in_ = inputs.shape[1]


class TorchClassifier(ClassifierMixin, _Network):
    """A classifier for two or more classes; wants standardised float features.

    Parameters
    ----------
    hidden_sizes : sequence of int
        Units of each hidden layer; none gives logistic regression.
    learning_rate, weight_decay : float
        Of AdamW.
    batch_size, epochs : int
        Rows a step; passes over the rows at most.
    dropout : float
        Share of hidden units left out in each step, in [0, 1).
    validation_share : float
        Share of the rows held out for early stopping.
    patience : int
        Epochs without a better held-out loss until training stops and the best epoch is kept; 0 trains on all rows
        for all epochs.
    random_state : int, optional
        The same rows and seed on the same machine give the same predictions.
    device : str
        `cpu`, `cuda`, or `auto` for the second where there is one; on `cuda` in mixed precision (bfloat16).

    Attributes
    ----------
    classes_ : array, shape (n_classes,)
    layers_ : list of float32 arrays
        Weights (n_inputs, n_outputs) and biases (n_outputs,) in turn.
    loss_curve_, validation_curve_ : list of float
        Mean loss on training and held-out rows after each epoch.

    Examples
    --------
    >>> X = np.random.default_rng(0).standard_normal((500, 2)).astype("float32")
    >>> model = TorchClassifier((8,), epochs=30, learning_rate=0.01, random_state=0).fit(X, X[:, 0] > 0)
    >>> bool(model.score(X, X[:, 0] > 0) > 0.9)
    True
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> "TorchClassifier":
        """Fit on rows, shape (n_rows, n_features), and their classes.

        Raises
        ------
        EmptyData, UnusableTarget, ConfigurationError, ModelError
            No rows; one class only; a parameter out of range; a loss that is not finite.
        """
        inputs = _checked(X)
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        if len(self.classes_) < 2:
            raise UnusableTarget(f"expected two classes or more, found {self.classes_.tolist()}; add rows of others")
        self._fit(inputs, codes.astype(np.int64), len(self.classes_))
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the classes' probabilities, shape (n_rows, n_classes)."""
        outputs = self._outputs(X)
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable class, shape (n_rows,)."""
        return self.classes_[self._outputs(X).argmax(axis=1)]


class TorchRegressor(RegressorMixin, _Network):
    """A regressor with the parameters of `TorchClassifier`; standardises the target itself.

    Attributes
    ----------
    target_mean_, target_scale_ : float
        What outputs are multiplied with and moved by.
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> "TorchRegressor":
        """Fit on rows, shape (n_rows, n_features), and their numbers; raises as `TorchClassifier.fit` does."""
        inputs = _checked(X)
        numbers = np.asarray(y, np.float64)
        if not np.isfinite(numbers).all():
            raise UnusableTarget("expected a finite number in every row of the target; drop the rows without one")
        self.target_mean_, self.target_scale_ = float(numbers.mean()), float(numbers.std()) or 1.0
        self._fit(inputs, ((numbers - self.target_mean_) / self.target_scale_).astype(np.float32), 0)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the predicted numbers, shape (n_rows,)."""
        return self._outputs(X)[:, 0] * np.float32(self.target_scale_) + np.float32(self.target_mean_)


def _checked(X: ArrayLike) -> NDArray[np.float32]:
    values = np.ascontiguousarray(X, np.float32)
    if not len(values):
        raise EmptyData("expected rows to learn from, found none; add training rows")
    return values
