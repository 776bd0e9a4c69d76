"""Experiment tracking on MLflow for people: the tracker, and a decorator that makes each call of a function a run."""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from forge_core.tracking.tracker import ExperimentTracker

__all__ = ["ExperimentTracker", "track_experiment"]

F = TypeVar("F", bound=Callable[..., Any])


def track_experiment(experiment_name: str, *, tracking_uri: str | None = None) -> Callable[[F], F]:
    """Return a decorator: each call is a run; arguments become parameters (of tables and arrays: type and shape), a
    returned mapping's numbers metrics."""

    def decorate(function: F) -> F:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def tracked(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            tracker = ExperimentTracker(experiment_name, tracking_uri=tracking_uri)
            tracker.start_run(run_name=function.__name__)
            with tracker:
                tracker.log_params({k: _told(v) for k, v in given.arguments.items() if k not in ("self", "cls")})
                result = function(*args, **kwargs)
                if isinstance(result, Mapping):
                    tracker.log_metrics({k: v for k, v in result.items() if _is_number(v)})
                return result

        return tracked  # type: ignore[return-value]

    return decorate


def _is_number(value: Any) -> bool:
    import numpy as np

    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _told(value: Any) -> str:
    if isinstance(value, str | int | float | bool | type(None) | list | tuple | dict | set | Path):
        return str(value)
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" {tuple(shape)}" if shape is not None else "")
