"""What a look at a rollout says: on, wait, or back, and why, in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from forge_core.experiments.rollout_evidence import Evidence
from forge_core.experiments.rollout_records import Rollout
from forge_core.policy import RolloutPolicy

Action = Literal["promote", "hold", "roll back"]


@dataclass(frozen=True)
class Look:
    """One look: when, at which step, the verdict with its reason, and the evidence."""

    at: datetime
    step: int
    told_step: str
    action: Action
    reason: str
    evidence: Evidence

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "at": self.at.isoformat(),
            "step": self.step,
            "told_step": self.told_step,
            "action": self.action,
            "reason": self.reason,
            "rows": self.evidence.n_rows,
            "rows_of_the_champions_contract": self.evidence.n_contract,
            "guards": [guard.to_dict() for guard in self.evidence.guards],
        }

    def short(self) -> dict[str, Any]:
        """Return what the picture needs, since a rollout keeps hundreds of looks."""
        told = self.to_dict()
        figures = {g.name: [g.state, g.value, g.limit, round(g.log_e, 3)] for g in self.evidence.guards}
        return {**{name: told[name] for name in ("at", "step", "told_step", "action", "rows")}, "guards": figures}

    def table(self) -> list[dict[str, Any]]:
        """Return the guards as rows for people."""
        return [{"guard": g.name, "state": g.state, "found": g.reason} for g in self.evidence.guards]


def judge(rollout: Rollout, evidence: Evidence, policy: RolloutPolicy, now: datetime) -> Look:
    """Return what is to be done after a look.

    Back, where a guard is broken beyond doubt or the time is over; on, where the step has its rows and minutes and
    every guard that knows something is fine; else wait.
    """
    action, reason = _judged(rollout, evidence, policy, now)
    return Look(now, rollout.step, rollout.told_step, action, reason, evidence)


def _judged(rollout: Rollout, evidence: Evidence, policy: RolloutPolicy, now: datetime) -> tuple[Action, str]:
    if harmed := [guard.reason for guard in evidence.guards if guard.state == "harm"]:
        return "roll back", "; ".join(harmed)
    waits = _waits(rollout, evidence, policy, now)
    if now - rollout.started_at > timedelta(hours=policy.max_hours):
        return "roll back", f"no end within {policy.max_hours:g} hours: {'; '.join(waits) or 'held by a person'}"
    if waits:
        return "hold", "; ".join(waits)
    known = [guard.reason for guard in evidence.guards if guard.state == "fine"]
    blind = [guard.reason for guard in evidence.guards if guard.state == "unknown"]
    return "promote", "; ".join([*known, *(f"not judged: {reason}" for reason in blind)])


def _waits(rollout: Rollout, evidence: Evidence, policy: RolloutPolicy, now: datetime) -> list[str]:
    """Return why a step is not over yet."""
    waits = []
    least = policy.shadow_rows if rollout.in_shadow else policy.min_rows
    if evidence.n_rows < least:
        waits.append(f"{evidence.n_rows:,} of {least:,} rows")
    minutes = (now - rollout.step_at).total_seconds() / 60
    if minutes < policy.min_minutes:
        waits.append(f"{minutes:.1f} of {policy.min_minutes:g} minutes")
    waits += [guard.reason for guard in evidence.guards if guard.state == "doubt"]
    if rollout.in_shadow and policy.require_better and not evidence["labelled quality"].better:
        waits.append(f"not shown to be better yet ({evidence['labelled quality'].reason})")
    return waits


def ledger_details(look: Look | None, rollout: Rollout) -> Mapping[str, Any]:
    """Return what an event of a rollout keeps."""
    details = {"rollout": rollout.id, "champion": rollout.champion, "step": rollout.told_step}
    return {**details, **({"look": look.to_dict()} if look else {})}
