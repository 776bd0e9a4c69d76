"""The desired serving state, and every step by which a version comes to it or leaves it.

One revisioned row of the ledger, changed by compare-and-set together with the event that tells who, what, why and
when: two promotions at once cannot undo each other, and no change lacks its event. `stages` says which steps a version
may take.

A version goes live in two steps. `nominate` makes it the *candidate*: loaded, held by the router, and given no
traffic. Then `promote` makes it champion, or `dismiss` takes it out. A candidate that a killed deployment left
behind is replaced by the next one. Between the two, `splits` may give it a share of the traffic or copies of it; every
change of champion ends that.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from forge_core.deployment.stages import History
from forge_core.errors import Conflict, ModelNotFound
from forge_core.ledger import Also, Event, Ledger

ROUTER = "router"
State = dict[str, Any]
Entry = dict[str, Any]
# What a step makes of a model's entry: the entry and the event, or None where nothing is left to do.
Change = Callable[[Entry, History], tuple[Entry, Event] | None]


def read_state(ledger: Ledger) -> tuple[int, State]:
    """Return (revision, state).

    A state is `{"models": {name: {"champion": "3", "previous": "2", "candidate": "4"}}}`; a model whose first
    version is on trial has a candidate only. An entry may have a `split`, a `shadow`, and a `warm` version too, as a
    `routing_table.Route` has them.
    """
    revision, state = ledger.serving_state(ROUTER)
    return revision, state or {"models": {}}


def read_history(ledger: Ledger, model: str) -> History:
    """Return where every version of a model stands, and why."""
    return History.of(ledger.events(model))


def approve(ledger: Ledger, model: str, version: str, *, actor: str, reason: str, at: datetime | None = None) -> None:
    """Record that a person lets a version go live; a second approval changes nothing.

    Raises
    ------
    ModelError
        When the version was refused, or is live or on trial already.
    """

    def change(entry: Entry, history: History) -> tuple[Entry, Event] | None:
        if history.stage(version) == "approved":
            return None
        history.check("approved", model, version)
        return entry, Event("approved", model, version, actor, reason, at)

    update_entry(ledger, model, change)


def decline(ledger: Ledger, model: str, version: str, *, actor: str, reason: str, at: datetime | None = None) -> None:
    """Record that a person refuses a version, which is final; raises as `approve` does."""

    def change(entry: Entry, history: History) -> tuple[Entry, Event] | None:
        history.check("declined", model, version)
        return entry, Event("declined", model, version, actor, reason, at)

    update_entry(ledger, model, change)


def nominate(ledger: Ledger, model: str, version: str, *, actor: str, reason: str, at: datetime | None = None) -> int:
    """Make a version the candidate, in place of any other, and return the revision of the state.

    The champion cannot be a candidate: nominating it changes nothing.

    Raises
    ------
    ModelError
        When the version was refused; says by whom and why.
    Conflict
        When another candidate has traffic: a rollout of it is under way.
    """

    def change(entry: Entry, history: History) -> tuple[Entry, Event] | None:
        if version in (entry.get("champion"), entry.get("candidate")):
            return None
        _check_free(model, version, entry)
        history.check("nominated", model, version)
        return {**entry, "candidate": version}, Event("nominated", model, version, actor, reason, at)

    return update_entry(ledger, model, change)


def promote(
    ledger: Ledger,
    model: str,
    version: str,
    *,
    actor: str,
    reason: str,
    at: datetime | None = None,
    details: Mapping[str, Any] | None = None,
    keep_warm: bool = False,
    also: Also | None = None,
) -> int:
    """Make the candidate the champion and return the revision of the state.

    Promoting the version that is champion already changes nothing, so a repeated step is harmless.

    Parameters
    ----------
    keep_warm : bool
        The champion before it stays loaded, so that a rollback loads nothing.
    also : callable, optional
        Writes more into the ledger within the same transaction.

    Raises
    ------
    Conflict
        When it is not the candidate: another deployment nominated another version meanwhile.
    """

    def change(entry: Entry, history: History) -> tuple[Entry, Event] | None:
        champion = entry.get("champion")
        if champion == version:
            return None
        if entry.get("candidate") != version:
            raise Conflict(
                f"expected version {version} of {model!r} to be the candidate, found {entry.get('candidate')}: "
                "another deployment came between; deploy again"
            )
        event = Event("promoted", model, version, actor, reason, at, details or {})
        warm = {"warm": champion} if keep_warm and champion else {}
        return {"champion": version, "previous": champion, **warm}, event

    return update_entry(ledger, model, change, also)


def dismiss(
    ledger: Ledger,
    model: str,
    version: str,
    *,
    actor: str,
    reason: str,
    at: datetime | None = None,
    details: Mapping[str, Any] | None = None,
    also: Also | None = None,
) -> None:
    """Take a candidate, with the traffic that it had, out of the desired state and record why; the champion stays.

    `also` writes more into the ledger within the same transaction.
    """

    def change(entry: Entry, history: History) -> tuple[Entry, Event] | None:
        if entry.get("candidate") != version:
            return None
        kept = without_traffic(entry, version)
        kept.pop("candidate")
        return kept, Event("dismissed", model, version, actor, reason, at, details or {})

    update_entry(ledger, model, change, also)


def roll_back(
    ledger: Ledger,
    model: str,
    *,
    actor: str,
    reason: str,
    at: datetime | None = None,
    from_version: str | None = None,
) -> str:
    """Make the champion before this one champion again and return its version; a candidate stays one.

    Parameters
    ----------
    from_version : str, optional
        The champion to leave. Where it is champion no more, nothing changes: so a repeated call goes back once.

    Raises
    ------
    ModelNotFound
        When there is no champion before this one.
    """

    def change(entry: Entry, history: History) -> tuple[Entry, Event] | None:
        if entry.get("champion") and from_version not in (None, entry["champion"]):
            return None
        if not entry.get("previous"):
            raise ModelNotFound(
                f"model {model!r} has no champion before {entry.get('champion')} to roll back to; deploy a version"
            )
        return _without_champion(entry, history), Event("rolled_back", model, entry["previous"], actor, reason, at)

    update_entry(ledger, model, change)
    champion: str = read_state(ledger)[1]["models"][model]["champion"]
    return champion


def withdraw(ledger: Ledger, model: str, version: str, *, actor: str, reason: str, at: datetime | None = None) -> None:
    """Take a champion that never came up out of the desired state; the one before it, if any, is champion again."""

    def change(entry: Entry, history: History) -> tuple[Entry, Event] | None:
        if entry.get("champion") != version:
            return None
        return _without_champion(entry, history), Event("withdrawn", model, version, actor, reason, at)

    update_entry(ledger, model, change)


def without_traffic(entry: Entry, version: str) -> Entry:
    """Return a copy of the entry whose split and shadow do not name a version."""
    kept = dict(entry)
    if "split" in kept and version in kept["split"]["variants"].values():
        del kept["split"]
    if "shadow" in kept and kept["shadow"]["version"] == version:
        del kept["shadow"]
    return kept


def _check_free(model: str, version: str, entry: Entry) -> None:
    """Raise Conflict where the candidate of an entry has traffic."""
    candidate = entry.get("candidate")
    if candidate is not None and without_traffic(entry, candidate) != entry:
        raise Conflict(
            f"version {candidate} of {model!r} is being rolled out, so version {version} cannot be tried: wait for it, "
            f"or abort it (`python -m forge_core.deployment abort {model}`)",
            context={"model": model, "candidate": candidate},
        )


def _without_champion(entry: Entry, history: History) -> Entry:
    """Return the entry in which those before the champion move up; a candidate stays one, without traffic."""
    before = history.line[:-1]
    kept: Entry = {"candidate": entry["candidate"]} if entry.get("candidate") not in (None, *before[-1:]) else {}
    return {"champion": before[-1], "previous": before[-2] if len(before) > 1 else None, **kept} if before else kept


def update_entry(ledger: Ledger, model: str, change: Change, also: Also | None = None, *, attempts: int = 5) -> int:
    """Change a model's entry, with its event, against whoever else changes it; return the revision.

    What `also` writes is committed with the change, and not written where nothing is left to change.

    Raises
    ------
    Conflict
        When others were quicker each time.
    """
    for attempt in range(attempts):
        revision, state = read_state(ledger)
        changed = change(dict(state["models"].get(model, {})), read_history(ledger, model))
        if changed is None:
            return revision
        entry, event = changed
        others = {name: row for name, row in state["models"].items() if name != model}
        models = {**others, model: entry} if entry else others
        try:
            return ledger.put_serving_state(
                ROUTER, {"models": models}, expected_revision=revision, event=event, also=also
            )
        except Conflict:
            if attempt == attempts - 1:
                raise
    raise AssertionError("unreachable")
