"""The desired serving state: which version of each model is champion, and which is on trial.

One revisioned row of the ledger (compare-and-set), so two promotions at once cannot undo each other.

A version goes live in two steps. `nominate` makes it the *candidate*: loaded, held by the router, and given no
traffic. Then `promote` makes it champion, or `dismiss` takes it out. A candidate that a killed deployment left
behind is replaced by the next one.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from forge_core.errors import Conflict, ModelNotFound
from forge_core.ledger import Ledger

ROUTER = "router"
State = dict[str, Any]


def read_state(ledger: Ledger) -> tuple[int, State]:
    """Return (revision, state).

    A state is `{"models": {name: {"champion": "3", "previous": "2", "candidate": "4"}}}`; a model whose first
    version is on trial has a candidate only.
    """
    revision, state = ledger.serving_state(ROUTER)
    return revision, state or {"models": {}}


def nominate(ledger: Ledger, model: str, version: str) -> int:
    """Make a version the candidate, in place of any other, and return the new revision.

    The champion cannot be a candidate: nominating it changes nothing.
    """

    def change(state: State) -> bool:
        entry = state["models"].get(model, {})
        if version in (entry.get("champion"), entry.get("candidate")):
            return False
        state["models"][model] = {**entry, "candidate": version}
        return True

    return _update(ledger, change)[0]


def promote(
    ledger: Ledger,
    model: str,
    version: str,
    *,
    actor: str,
    reason: str,
    at: datetime | None = None,
    details: Mapping[str, Any] | None = None,
    from_candidate: bool = False,
) -> int:
    """Make a version the champion in the desired state and return the new revision.

    Promoting the version that is champion already changes nothing, so a repeated step is harmless.

    Parameters
    ----------
    from_candidate : bool
        Promote only the version that is the candidate still.

    Raises
    ------
    Conflict
        When it should be the candidate and is not: another deployment nominated another version meanwhile.
    """

    def change(state: State) -> bool:
        entry = state["models"].get(model, {})
        if entry.get("champion") == version:
            return False
        if from_candidate and entry.get("candidate") != version:
            raise Conflict(
                f"expected version {version} of {model!r} to be the candidate, found {entry.get('candidate')}: "
                "another deployment came between; deploy again"
            )
        state["models"][model] = _entry(version, entry.get("champion"), entry.get("candidate"))
        return True

    revision, changed = _update(ledger, change)
    if changed:
        ledger.append_event("promoted", model, version=version, actor=actor, reason=reason, at=at, details=details)
    return revision


def dismiss(
    ledger: Ledger,
    model: str,
    version: str,
    *,
    actor: str,
    reason: str,
    at: datetime | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Take a candidate out of the desired state and record why; what is champion stays."""

    def change(state: State) -> bool:
        entry = state["models"].get(model, {})
        if entry.get("candidate") != version:
            return False
        del entry["candidate"]
        if not entry:
            del state["models"][model]
        return True

    if _update(ledger, change)[1]:
        ledger.append_event("refused", model, version=version, actor=actor, reason=reason, at=at, details=details)


def roll_back(ledger: Ledger, model: str, *, actor: str, reason: str, at: datetime | None = None) -> str:
    """Make the previous champion champion again and return its version; a candidate stays one."""
    restored: list[str] = []

    def change(state: State) -> bool:
        entry = state["models"].get(model, {})
        if not entry.get("previous"):
            raise ModelNotFound(f"model {model!r} has no previous champion to roll back to")
        restored.append(entry["previous"])
        state["models"][model] = _entry(entry["previous"], entry["champion"], entry.get("candidate"))
        return True

    _update(ledger, change)
    ledger.append_event("rolled_back", model, version=restored[-1], actor=actor, reason=reason, at=at)
    return restored[-1]


def withdraw(ledger: Ledger, model: str, version: str, *, actor: str, reason: str, at: datetime | None = None) -> None:
    """Take a champion that never came up out of the desired state; its predecessor, if any, is champion again."""
    restored: list[str | None] = []

    def change(state: State) -> bool:
        entry = state["models"].get(model, {})
        if entry.get("champion") != version:
            return False
        restored.append(entry.get("previous"))
        if entry.get("previous"):
            state["models"][model] = _entry(entry["previous"], None, entry.get("candidate"))
        elif entry.get("candidate"):
            state["models"][model] = {"candidate": entry["candidate"]}
        else:
            del state["models"][model]
        return True

    if _update(ledger, change)[1]:
        ledger.append_event("rolled_back", model, version=restored[-1], actor=actor, reason=reason, at=at)


def _entry(champion: str, previous: str | None, candidate: str | None) -> dict[str, str | None]:
    entry = {"champion": champion, "previous": previous}
    return {**entry, "candidate": candidate} if candidate and candidate != champion else entry


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
