"""Where a version stands between its registration and its end, as the ledger's events tell it.

    registered ──► challenger ──► approved ──► trial ──► champion ──► archived
                    ▲   │  └──────────────────►│  ▲                    │   ▲
    refused         │   └► declined (refused)  │  └──── nominated ─────┘   │
    (by the gate)   └───────── dismissed ──────┘        rolled_back ◄──────┘

Who may take which step is `TRANSITIONS`; the rest follows: a promotion archives the champion before it, a rollback the
one that was live. A version that the ledger does not know (registered by another tool) stands as a challenger.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from forge_core.errors import ModelError

Stage = Literal["challenger", "refused", "approved", "trial", "champion", "archived"]

# What an event makes of a version, by where the version stood.
TRANSITIONS: dict[str, dict[Stage, Stage]] = {
    "registered": {"challenger": "challenger"},
    "refused": {"challenger": "refused"},
    "approved": {"challenger": "approved", "approved": "approved", "archived": "approved"},
    "declined": {"challenger": "refused", "approved": "refused", "archived": "refused"},
    "nominated": {"challenger": "trial", "approved": "trial", "archived": "trial"},
    "dismissed": {"trial": "challenger"},
    "promoted": {"trial": "champion"},
    "rolled_back": {"archived": "champion"},
    "withdrawn": {"champion": "archived"},
}


@dataclass
class History:
    """What became of a model's versions.

    Attributes
    ----------
    stages : dict of str to Stage
        By version.
    line : list of str
        Champions, the live one last; a rollback takes the last one away.
    approvals : dict of str to str
        Who approved a version; a refusal or a failed trial ends an approval.
    reasons : dict of str to str
        Why a version stands where it stands.
    """

    stages: dict[str, Stage] = field(default_factory=dict)
    line: list[str] = field(default_factory=list)
    approvals: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]]) -> "History":
        """Return the history that a model's events, in the order they were recorded, add up to."""
        history = cls()
        for event in events:
            if event["kind"] in TRANSITIONS:
                history.take(event["kind"], event["version"], actor=event["actor"], reason=event["reason"])
        return history

    def stage(self, version: str) -> Stage:
        """Return where a version stands."""
        return self.stages.get(version, "challenger")

    def take(self, kind: str, version: str | None, *, actor: str, reason: str) -> None:
        """Add one event."""
        if kind in ("rolled_back", "withdrawn") and self.line:
            fallen = self.line.pop()
            self.stages[fallen], self.reasons[fallen] = "archived", reason
        if version is None or kind == "withdrawn":
            if self.line:
                self.stages[self.line[-1]] = "champion"
            return
        before = self.stage(version)
        for other, stage in self.stages.items():
            if stage == "trial" and kind == "nominated" and other != version:
                self.stages[other] = "approved" if other in self.approvals else "challenger"
        if kind == "promoted":
            if self.line:
                self.stages[self.line[-1]] = "archived"
            self.line = [v for v in self.line if v != version] + [version]
        self.stages[version] = TRANSITIONS[kind].get(before, before)
        self.reasons[version] = f"{actor}: {reason}"
        if kind == "approved":
            self.approvals[version] = actor
        elif kind in ("refused", "declined", "dismissed"):
            self.approvals.pop(version, None)

    @property
    def live(self) -> str | None:
        """The champion; None before the first, and after the only one was withdrawn."""
        return self.line[-1] if self.line else None

    def check(self, kind: str, model: str, version: str) -> None:
        """Raise ModelError where a version may not take a step from where it stands."""
        stage = self.stage(version)
        if stage in TRANSITIONS[kind]:
            return
        why = f" ({self.reasons[version]})" if version in self.reasons else ""
        raise ModelError(
            f"expected version {version} of {model!r} to stand as {_any_of(TRANSITIONS[kind])} before it is {kind}, "
            f"found it {stage}{why}; {_ADVICE.get(stage, 'choose another version')}",
            context={"model": model, "version": version, "stage": stage, "step": kind},
        )


def live_at(events: Iterable[Mapping[str, Any]], at: datetime) -> str | None:
    """Return the version that was live at a moment of event time (`at` itself included), or None.

    A change whose time lies before that of an earlier change counts from the earlier one's time on: what was live
    never changes backwards.
    """
    history, now = History(), None
    for event in events:
        if event["kind"] not in _CHANGES:
            continue
        now = event["at"] if now is None else max(now, event["at"])
        if now > at:
            break
        history.take(event["kind"], event["version"], actor=event["actor"], reason=event["reason"])
    return history.live


# The events after which another version is live, or none.
_CHANGES = ("promoted", "rolled_back", "withdrawn")

_ADVICE = {
    "refused": "train another version",
    "champion": "it is live already",
    "trial": "wait for the deployment that tries it, or deploy it again",
}


def _any_of(stages: Iterable[str]) -> str:
    return " or ".join(stages)
