"""The desired serving state: which version of each model is champion, and who challenges it.

One revisioned row of the ledger (compare-and-set), so two promotions at once cannot undo each other.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from forge_core.errors import Conflict, ModelNotFound
from forge_core.ledger import Ledger

ROUTER = "router"
State = dict[str, Any]


def read_state(ledger: Ledger) -> tuple[int, State]:
    """Return (revision, state); a state is `{"models": {name: {"champion": "3", "previous": "2"}}}`."""
    revision, state = ledger.serving_state(ROUTER)
    return revision, state or {"models": {}}


def promote(
    ledger: Ledger,
    model: str,
    version: str,
    *,
    actor: str,
    reason: str,
    at: datetime | None = None,
    details: Mapping[str, Any] | None = None,
) -> int:
    """Make a version the champion in the desired state and return the new revision.

    Promoting the version that is champion already changes nothing, so a repeated step is harmless.
    """

    def change(state: State) -> bool:
        entry = state["models"].get(model, {})
        if entry.get("champion") == version:
            return False
        state["models"][model] = {"champion": version, "previous": entry.get("champion")}
        return True

    revision, changed = _update(ledger, change)
    if changed:
        ledger.append_event("promoted", model, version=version, actor=actor, reason=reason, at=at, details=details)
    return revision


def roll_back(ledger: Ledger, model: str, *, actor: str, reason: str, at: datetime | None = None) -> str:
    """Make the previous champion champion again and return its version."""
    restored: list[str] = []

    def change(state: State) -> bool:
        entry = state["models"].get(model, {})
        if not entry.get("previous"):
            raise ModelNotFound(f"model {model!r} has no previous champion to roll back to")
        restored.append(entry["previous"])
        state["models"][model] = {"champion": entry["previous"], "previous": entry["champion"]}
        return True

    _update(ledger, change)
    ledger.append_event("rolled_back", model, version=restored[-1], actor=actor, reason=reason, at=at)
    return restored[-1]


def withdraw(ledger: Ledger, model: str, version: str, *, actor: str, reason: str, at: datetime | None = None) -> None:
    """Take a version that never came up out of the desired state; its predecessor, if any, stays champion."""

    def change(state: State) -> bool:
        entry = state["models"].get(model, {})
        if entry.get("champion") != version:
            return False
        if entry.get("previous"):
            state["models"][model] = {"champion": entry["previous"], "previous": None}
        else:
            del state["models"][model]
        return True

    _, state = read_state(ledger)
    before = state["models"].get(model, {}).get("previous")
    _, changed = _update(ledger, change)
    if changed:
        ledger.append_event("rolled_back", model, version=before, actor=actor, reason=reason, at=at)


def _update(ledger: Ledger, change: Callable[[State], bool], attempts: int = 5) -> tuple[int, bool]:
    for attempt in range(attempts):
        revision, state = read_state(ledger)
        if not change(state):
            return revision, False
        try:
            return ledger.put_serving_state(ROUTER, state, expected_revision=revision), True
        except Conflict:
            if attempt == attempts - 1:
                raise
    raise AssertionError("unreachable")
