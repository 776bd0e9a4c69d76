"""What the rows of one call were answered, as records or by column."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serve_app.live_version import LiveVersion


class Replies(Protocol):
    """One reply a row."""

    def records(self) -> list[dict[str, Any]]:
        """Return a mapping a row."""

    def columns(self) -> dict[str, Sequence[Any]]:
        """Return the same, one list a field."""


@dataclass(frozen=True, slots=True)
class RepliesOfOne:
    """What one version answered to all rows of a call."""

    live: LiveVersion
    variant: str
    milliseconds: float
    ids: Sequence[str]
    predictions: list[Any]
    probabilities: list[float | None]

    def records(self) -> list[dict[str, Any]]:
        """Return a mapping a row."""
        live, variant, milliseconds = self.live, self.variant, self.milliseconds
        return [
            {
                "prediction": prediction,
                "prediction_probability": probability,
                "model_version": live.version,
                "processing_time_ms": milliseconds,
                "model": live.model,
                "request_id": request_id,
                "variant": variant,
            }
            for request_id, prediction, probability in zip(self.ids, self.predictions, self.probabilities, strict=True)
        ]

    def columns(self) -> dict[str, Sequence[Any]]:
        """Return the same, one list a field."""
        n = len(self.ids)
        return {
            "prediction": self.predictions,
            "prediction_probability": self.probabilities,
            "model_version": [self.live.version] * n,
            "processing_time_ms": [self.milliseconds] * n,
            "model": [self.live.model] * n,
            "request_id": self.ids,
            "variant": [self.variant] * n,
        }


@dataclass(frozen=True, slots=True)
class RepliesOfSplit:
    """What the variants of a split answered, each row by its own."""

    replies: list[dict[str, Any]]

    def records(self) -> list[dict[str, Any]]:
        """Return a mapping a row."""
        return self.replies

    def columns(self) -> dict[str, Sequence[Any]]:
        """Return the same, one list a field."""
        return {field: [reply[field] for reply in self.replies] for field in self.replies[0]}
