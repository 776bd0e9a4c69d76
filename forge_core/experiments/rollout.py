"""The steps of a rollout: shadow, growing shares of the traffic, champion; and back at any moment.

    start ──► shadow ──► 1 % ──► 5 % ──► … ──► 100 % ──► promoted
                 └─────────┴───────┴─────────────┴──────► rolled back, aborted, overtaken

A step changes the rollout's record, the desired serving state and the history of events in one transaction, so it is
done or not done, whoever is killed. `ServeClient.reconcile` brings it to the routers. Persons may hold a rollout (looks
go on, and harm still sends it back), resume, advance and abort it; of two at once one is told what the other did.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from forge_core.deployment.routing import dismiss, promote, read_history, read_state
from forge_core.deployment.splits import put_shadow, put_split
from forge_core.errors import Conflict
from forge_core.experiments.rollout_evidence import next_step_evidence
from forge_core.experiments.rollout_records import Outcome, Rollout, RolloutRecords
from forge_core.experiments.rollout_verdict import Look, ledger_details
from forge_core.ledger import Event, Ledger
from forge_core.policy import RolloutPolicy

_TRIES = 5


def begin(
    ledger: Ledger,
    model: str,
    version: str,
    *,
    policy: RolloutPolicy,
    actor: str,
    reason: str,
    at: datetime | None = None,
    now: datetime | None = None,
) -> Rollout:
    """Give a candidate its first traffic, copies or a share, and return the rollout; one under way is returned.

    Parameters
    ----------
    version : str
        The candidate (`go_live.try_version`).
    at : datetime, optional
        Event time, where history is replayed.

    Raises
    ------
    Conflict
        When another version is being rolled out, an experiment has the traffic, or the version is no candidate.
    ModelNotFound
        When the model has no champion to compare with.
    """
    records, moment = RolloutRecords(ledger), now or datetime.now(UTC)
    found = records.under_way(model)
    if found is not None and found.version == version:
        return found
    if found is not None:
        raise Conflict(f"{found.id} of {model!r} is under way ({found.told_step}); abort it first, or wait for it")
    entry = read_state(ledger)[1]["models"].get(model, {})
    if entry.get("champion") and entry.get("candidate") != version:
        raise Conflict(f"expected version {version} of {model!r} to be the candidate, found {entry.get('candidate')}")
    rollout = Rollout(
        model=model,
        id=records.new_id(model, version),
        version=version,
        champion=entry.get("champion", ""),
        steps=((0.0,) if policy.shadow_share else ()) + policy.steps,
        started_at=moment,
        step_at=moment,
        actor=actor,
        reason=reason,
        event_time=at,
        shadow_share=policy.shadow_share,
        keep_warm=policy.keep_warm,
    )
    event = Event("rollout_started", model, version, actor, reason, at, ledger_details(None, rollout))
    return _with_traffic(ledger, records, rollout, event)


def hold(ledger: Ledger, model: str, *, actor: str, reason: str, step: int | None = None) -> Rollout:
    """Keep a rollout at its step until somebody resumes it; harm still sends it back.

    Parameters
    ----------
    step : int, optional
        Where the caller saw it; at another step by now, it is a Conflict. So for all that persons do.
    """
    return _marked(ledger, model, "held", "rollout_held", actor, reason, step)


def resume(ledger: Ledger, model: str, *, actor: str, reason: str, step: int | None = None) -> Rollout:
    """Let a held rollout go on by its evidence."""
    return _marked(ledger, model, "running", "rollout_resumed", actor, reason, step)


def advance(
    ledger: Ledger,
    model: str,
    *,
    step: int,
    actor: str,
    reason: str,
    now: datetime | None = None,
) -> Rollout:
    """Bring a rollout to its next step whatever the evidence says; from the last one the version becomes champion."""

    def change(rollout: Rollout) -> Rollout:
        return move_on(ledger, rollout, actor=actor, reason=reason, now=now)

    return _again(ledger, model, step, change)


def abort(ledger: Ledger, model: str, *, actor: str, reason: str, step: int | None = None) -> Rollout:
    """Give the traffic back to the champion and dismiss the version."""

    def change(rollout: Rollout) -> Rollout:
        return send_back(ledger, rollout, "aborted", actor=actor, reason=reason)

    return _again(ledger, model, step, change)


def seen(ledger: Ledger, rollout: Rollout, look: Look) -> Rollout:
    """Keep a look; the rollout stays where it is."""
    return RolloutRecords(ledger).put(rollout.with_look(look.short(), look.evidence.carried))


def move_on(
    ledger: Ledger,
    rollout: Rollout,
    *,
    actor: str,
    reason: str,
    look: Look | None = None,
    now: datetime | None = None,
) -> Rollout:
    """Bring a rollout, as it was read, to its next step; from the last one the version becomes champion.

    Raises
    ------
    Conflict
        When somebody changed it since.
    """
    records, moment = RolloutRecords(ledger), now or datetime.now(UTC)
    at = _event_moment(rollout, look)
    last = rollout.step + 1 == len(rollout.steps)
    after = _told(rollout, look, actor, reason)
    after = replace(
        after,
        step=rollout.step if last else rollout.step + 1,
        step_at=moment,
        status="ended" if last else rollout.status,
        outcome="promoted" if last else "",
        evidence=rollout.evidence if last else next_step_evidence(after.evidence),
    )
    details = ledger_details(look, rollout)
    if not last:
        told = f"{rollout.told_step} → {after.told_step}: {reason}"
        step = Event("rollout_step", rollout.model, rollout.version, actor, told, at, details)
        return _with_traffic(ledger, records, after, step)
    ended = Event("rollout_finished", rollout.model, rollout.version, actor, f"promoted: {reason}", at, details)

    def change(also: Any) -> None:
        promote(
            ledger, rollout.model, rollout.version, actor=actor, reason=f"{rollout.id} passed all its steps", at=at,
            details={"rollout": rollout.id}, keep_warm=rollout.keep_warm, also=also,
        )  # fmt: skip

    return _together(records, after, ended, change)


def send_back(
    ledger: Ledger, rollout: Rollout, outcome: Outcome, *, actor: str, reason: str, look: Look | None = None
) -> Rollout:
    """End a rollout, as it was read: the champion has all traffic again and the version is dismissed, at once."""
    at = _event_moment(rollout, look)
    after = replace(_told(rollout, look, actor, reason), status="ended", outcome=outcome)
    kind = "rollout_aborted" if outcome == "aborted" else "rollout_finished"
    told = f"{outcome} at {rollout.told_step}: {reason}"
    event = Event(kind, rollout.model, rollout.version, actor, told, at, ledger_details(look, rollout))

    def change(also: Any) -> None:
        dismiss(ledger, rollout.model, rollout.version, actor=actor, reason=told, at=at, also=also)

    return _together(RolloutRecords(ledger), after, event, change)


def overtaken_by(ledger: Ledger, rollout: Rollout) -> str | None:
    """Return in words who changed what a rollout stands on, another champion or candidate; None where nobody did."""
    entry = read_state(ledger)[1]["models"].get(rollout.model, {})
    champion, candidate = entry.get("champion"), entry.get("candidate")
    if champion != rollout.champion:
        why = read_history(ledger, rollout.model).reasons.get(str(champion), "")
        return f"the champion is {champion or 'none'} by now, not {rollout.champion} ({why})"
    if candidate != rollout.version:
        return f"version {rollout.version} is no candidate any more ({candidate or 'none'} is)"
    return None


def _with_traffic(ledger: Ledger, records: RolloutRecords, rollout: Rollout, event: Event) -> Rollout:
    """Commit a rollout together with the traffic of its step."""

    def change(also: Any) -> None:
        told = Event(
            "traffic_changed", rollout.model, rollout.version, rollout.actor, f"{rollout.id}: {rollout.told_step}"
        )
        if rollout.in_shadow:
            put_shadow(ledger, rollout.model, rollout.shadow, event=told, also=also)
        else:
            put_split(ledger, rollout.model, rollout.split, event=told, also=also)

    return _together(records, rollout, event, change)


def _together(records: RolloutRecords, rollout: Rollout, event: Event, change: Callable[[Any], None]) -> Rollout:
    """Commit a rollout with a change of the desired state; alone, where that has nothing left to change."""
    done: list[bool] = []
    write = records.writing(rollout, event)

    def also(connection: Any) -> None:
        write(connection)
        done.append(True)

    change(also)
    if not done:
        return records.put(rollout, event)
    return replace(rollout, revision=rollout.revision + 1)


def _marked(ledger: Ledger, model: str, status: Any, kind: str, actor: str, reason: str, step: int | None) -> Rollout:
    def change(rollout: Rollout) -> Rollout:
        if rollout.status == status:
            return rollout
        event = Event(kind, model, rollout.version, actor, reason, None, ledger_details(None, rollout))
        after = replace(rollout, status=status, actor=actor, reason=reason)
        return RolloutRecords(ledger).put(after, event)

    return _again(ledger, model, step, change)


def _again(ledger: Ledger, model: str, step: int | None, change: Callable[[Rollout], Rollout]) -> Rollout:
    """Do what a person wants to the rollout as it is now, and once more where a look came between."""
    records = RolloutRecords(ledger)
    for _ in range(_TRIES - 1):
        try:
            return change(records.wanted(model, step))
        except Conflict:
            continue  # where it is at another step by now, `wanted` says so below
    return change(records.wanted(model, step))


def _told(rollout: Rollout, look: Look | None, actor: str, reason: str) -> Rollout:
    kept = rollout.with_look(look.short(), look.evidence.carried) if look else rollout
    return replace(kept, actor=actor, reason=reason)


def _event_moment(rollout: Rollout, look: Look | None) -> datetime | None:
    """Return the event time of a change: the newest row's where history is replayed, else None for now."""
    if rollout.event_time is None:
        return None
    newest = look.evidence.newest if look else None
    return max(rollout.event_time, newest) if newest is not None else rollout.event_time
