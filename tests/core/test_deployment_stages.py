"""Every step between registration and archive, who took it and why, and what was live at any moment."""

import random
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from forge_core.deployment.routing import (
    approve,
    decline,
    dismiss,
    nominate,
    promote,
    read_history,
    read_state,
    roll_back,
    withdraw,
)
from forge_core.deployment.stages import TRANSITIONS, History, Stage, live_at
from forge_core.errors import Conflict, ForgeError, ModelError
from forge_core.ledger import Ledger
from tests.servers import postgres_server

WHO: dict[str, Any] = {"actor": "ana", "reason": "because"}
START = datetime(2013, 4, 1, tzinfo=UTC)
# How a version gets to each stage.
WAYS: dict[Stage, list[str]] = {
    "challenger": ["registered"],
    "refused": ["refused"],
    "approved": ["registered", "approved"],
    "trial": ["registered", "nominated"],
    "champion": ["registered", "nominated", "promoted"],
    "archived": ["registered", "nominated", "promoted", "nominated another", "promoted another"],
}


def ledger_with(stage: Stage) -> Ledger:
    """Return a ledger in which version 1 of model m stands at a stage."""
    ledger = Ledger("sqlite://")
    steps = {
        "registered": lambda: ledger.append_event("registered", "m", version="1", **WHO),
        "refused": lambda: ledger.append_event("refused", "m", version="1", actor="gate", reason="roc_auc 0.5 < 0.6"),
        "approved": lambda: approve(ledger, "m", "1", **WHO),
        "nominated": lambda: nominate(ledger, "m", "1", **WHO),
        "promoted": lambda: promote(ledger, "m", "1", **WHO),
        "nominated another": lambda: nominate(ledger, "m", "2", **WHO),
        "promoted another": lambda: promote(ledger, "m", "2", **WHO),
    }
    for step in WAYS[stage]:
        steps[step]()
    assert read_history(ledger, "m").stage("1") == stage
    return ledger


@pytest.mark.slow
@pytest.mark.parametrize("stage", WAYS)
@pytest.mark.parametrize(
    "kind", ["approved", "declined", "nominated", "dismissed", "promoted", "rolled_back", "withdrawn"]
)
def test_each_step_leads_from_each_stage_where_the_table_says_or_is_refused(stage: Stage, kind: str) -> None:
    ledger = ledger_with(stage)
    calls = {
        "approved": lambda: approve(ledger, "m", "1", **WHO),
        "declined": lambda: decline(ledger, "m", "1", **WHO),
        "nominated": lambda: nominate(ledger, "m", "1", **WHO),
        "dismissed": lambda: dismiss(ledger, "m", "1", **WHO),
        "promoted": lambda: promote(ledger, "m", "1", **WHO),
        "rolled_back": lambda: roll_back(ledger, "m", from_version="2", **WHO),
        "withdrawn": lambda: withdraw(ledger, "m", "1", **WHO),
    }
    before = ledger.events("m")
    if stage in TRANSITIONS[kind]:
        calls[kind]()
        assert read_history(ledger, "m").stage("1") == TRANSITIONS[kind][stage]
        new = ledger.events("m")[len(before) :]
        assert [(e["kind"], e["version"], e["actor"], e["reason"]) for e in new] in (
            [(kind, "1", "ana", "because")],
            [],  # an approval that was given already
        )
    else:
        try:
            calls[kind]()
        except ForgeError as error:
            assert "'m'" in str(error)
        assert read_history(ledger, "m").stage("1") == stage and ledger.events("m") == before


def test_a_version_that_its_gate_refused_is_not_promoted_and_the_error_has_the_verdict() -> None:
    ledger = ledger_with("refused")
    with pytest.raises(ModelError, match=r"version 1 of 'm' .* found it refused \(gate: roc_auc 0.5 < 0.6\); train"):
        nominate(ledger, "m", "1", **WHO)
    with pytest.raises(ModelError, match="roc_auc"):
        approve(ledger, "m", "1", **WHO)


def test_a_failed_trial_ends_an_approval_and_a_replaced_one_does_not() -> None:
    ledger = ledger_with("approved")
    nominate(ledger, "m", "1", **WHO)
    nominate(ledger, "m", "2", **WHO)
    assert read_history(ledger, "m").stage("1") == "approved"
    nominate(ledger, "m", "1", **WHO)
    dismiss(ledger, "m", "1", **WHO)
    assert read_history(ledger, "m").approvals == {} and read_history(ledger, "m").stage("1") == "challenger"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    if request.param == "sqlite":
        yield Ledger("sqlite://")
        return
    with postgres_server() as url:
        ledger = Ledger(url.replace("postgresql:", "postgresql+psycopg:"))
        yield ledger
        ledger.engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_was_live_at_any_moment_is_reconstructed_over_fifty_random_steps(ledger: Ledger, seed: int) -> None:
    chance = random.Random(seed)
    line: list[str] = []
    truth: list[tuple[datetime, str | None]] = []
    now, changes = START, 0
    while changes < 50:
        now += timedelta(seconds=chance.choice([0, 1, 60, 86_400]))
        step = chance.choice(["deploy", "deploy", "dismissed", "roll back", "withdraw", "decline"])
        version = str(chance.randint(1, 12))
        try:
            if step in ("deploy", "dismissed"):
                nominate(ledger, "m", version, at=now, **WHO)
                if version in line[-1:]:
                    continue
                if step == "dismissed":
                    dismiss(ledger, "m", version, at=now, **WHO)
                    continue
                promote(ledger, "m", version, at=now, **WHO)
                line = [v for v in line if v != version] + [version]
            elif step == "roll back":
                assert roll_back(ledger, "m", at=now, **WHO) == line[-2]
                line.pop()
            elif step == "withdraw" and line:
                withdraw(ledger, "m", line[-1], at=now, **WHO)
                line.pop()
            elif step == "decline":
                decline(ledger, "m", str(100 + changes), at=now, **WHO)
                continue
            else:
                continue
        except ModelError:
            continue
        changes += 1
        truth.append((now, line[-1] if line else None))
        state = read_state(ledger)[1]["models"].get("m", {})
        assert (state.get("champion"), state.get("previous")) == (*reversed([None, None, *line][-2:]),)
    events = ledger.events("m")
    moments = [START - timedelta(1), *(at for at, _ in truth), *(at + timedelta(milliseconds=1) for at, _ in truth)]
    for moment in [*moments, *(START + timedelta(days=40 * chance.random()) for _ in range(200))]:
        expected = next((live for at, live in reversed(truth) if at <= moment), None)
        assert live_at(events, moment) == expected
    print(
        f"seed {seed}: {len(events)} events, {changes} changes of what is live, {len(moments) + 200} moments, 0 wrong"
    )


def test_a_change_recorded_with_an_earlier_time_does_not_change_the_past() -> None:
    ledger = Ledger("sqlite://")
    for version, day in (("1", 0), ("2", 9), ("3", 5)):
        # A training registers and nominates with today's time, and promotes with that of its rows.
        ledger.append_event("registered", "m", version=version, **WHO)
        nominate(ledger, "m", version, **WHO)
        promote(ledger, "m", version, at=START + timedelta(days=day), **WHO)
    events = ledger.events("m")
    assert [live_at(events, START + timedelta(days=d)) for d in (-1, 0, 6, 8, 9)] == [None, "1", "1", "1", "3"]


def test_two_deployments_at_once_leave_one_champion_and_as_many_events_as_changes(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    Ledger(url)
    lost = []

    def deploy(version: str) -> None:
        ledger = Ledger(url)
        try:
            nominate(ledger, "m", version, **WHO)
            promote(ledger, "m", version, **WHO)
        except Conflict:
            lost.append(version)

    threads = [threading.Thread(target=deploy, args=(str(number),)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = Ledger(url)
    promoted = [e["version"] for e in ledger.events("m", "promoted")]
    assert sorted(promoted + lost) == [str(number) for number in range(6)]
    entry = read_state(ledger)[1]["models"]["m"]
    assert entry["champion"] == promoted[-1] == History.of(ledger.events("m")).live
    with ledger.engine.connect() as connection:
        revision = connection.execute(sa.text("SELECT revision FROM serving")).scalar_one()
    assert revision == len(ledger.events("m"))
