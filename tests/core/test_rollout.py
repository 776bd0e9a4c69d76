"""Every step of a rollout: who may take it, what it makes of the desired state, and what two at once hear."""

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from forge_core.deployment.routing import nominate, promote, read_history, read_state, roll_back
from forge_core.deployment.splits import put_split
from forge_core.deployment.stages import live_at
from forge_core.errors import Conflict, ForgeError, ModelError, ModelNotFound
from forge_core.experiments.assignment import assign, unit_point
from forge_core.experiments.rollout import (
    abort,
    advance,
    begin,
    hold,
    move_on,
    overtaken_by,
    resume,
    seen,
    send_back,
)
from forge_core.experiments.rollout_evidence import Evidence
from forge_core.experiments.rollout_guards import Guard
from forge_core.experiments.rollout_records import Rollout, RolloutRecords
from forge_core.experiments.rollout_run import flip_back
from forge_core.experiments.rollout_verdict import Look
from forge_core.ledger import Ledger
from forge_core.policy import RolloutPolicy
from tests.servers import postgres_server

pytestmark = pytest.mark.slow

ANA: dict[str, Any] = {"actor": "ana", "reason": "because"}
POLICY = RolloutPolicy(steps=(0.01, 0.25, 1.0))
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def champion_and_candidate(ledger: Ledger) -> Ledger:
    """Make version 1 champion and version 2 the candidate of model m."""
    nominate(ledger, "m", "1", **ANA)
    promote(ledger, "m", "1", **ANA)
    nominate(ledger, "m", "2", **ANA)
    return ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return champion_and_candidate(Ledger(f"sqlite:///{tmp_path / 'ledger.db'}"))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def any_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    if request.param == "sqlite":
        yield champion_and_candidate(Ledger(f"sqlite:///{tmp_path / 'ledger.db'}"))
        return
    with postgres_server() as url:
        ledger = champion_and_candidate(Ledger(url.replace("postgresql:", "postgresql+psycopg:")))
        yield ledger
        ledger.engine.dispose()


def entry(ledger: Ledger) -> dict[str, Any]:
    return read_state(ledger)[1]["models"]["m"]


def kinds(ledger: Ledger) -> list[str]:
    return [e["kind"] for e in ledger.events("m")][3:]


def start(ledger: Ledger, policy: RolloutPolicy = POLICY, **more: Any) -> Rollout:
    return begin(ledger, "m", "2", policy=policy, **ANA, **more)


def a_look(at: datetime = NOON, **carried: Any) -> Look:
    guard = Guard("errors", "fine", "errors in 0 % of 500 rows", 0.0, 0.005, 500, 0.0)
    return Look(at, 0, "shadow", "hold", "too early", Evidence((guard,), 500, 2, carried, at))


def test_a_rollout_goes_from_shadow_through_its_shares_to_champion_each_step_with_its_evidence(
    any_ledger: Ledger,
) -> None:
    ledger = any_ledger
    rollout = start(ledger, now=NOON)
    assert (rollout.id, rollout.told_step, rollout.in_shadow) == ("rollout:2", "shadow", True)
    assert entry(ledger)["shadow"] == {"version": "2", "share": 0.25} and entry(ledger)["candidate"] == "2"
    told = []
    for _ in range(3):
        rollout = move_on(ledger, rollout, look=a_look(log_e={"errors": 3.0}, champion_p95=7.0), **ANA)
        told.append(rollout.told_step)
        assert rollout.evidence == {"champion_p95": 7.0}
        assert entry(ledger)["split"]["segments"][-1] == [1.0, "canary"] and "shadow" not in entry(ledger)
    assert told == ["1 %", "25 %", "100 %"]
    assert entry(ledger)["split"]["segments"] == [[1.0, "canary"]]
    assert read_history(ledger, "m").stage("2") == "trial" and live_at(ledger.events("m"), datetime.now(UTC)) == "1"
    rollout = move_on(ledger, rollout, look=a_look(), **ANA)
    assert (
        (rollout.status, rollout.outcome)
        == ("ended", "promoted")
        == (
            RolloutRecords(ledger).newest("m").status,  # type: ignore[union-attr]
            "promoted",
        )
    )
    assert entry(ledger) == {"champion": "2", "previous": "1", "warm": "1"}
    assert read_history(ledger, "m").live == "2" and live_at(ledger.events("m"), datetime.now(UTC)) == "2"
    steps = ledger.events("m", "rollout_started", "rollout_step", "rollout_finished")
    assert [e["kind"] for e in steps] == ["rollout_started", *["rollout_step"] * 3, "rollout_finished"]
    assert [e["details"]["look"]["guards"][0]["name"] for e in steps[1:]] == ["errors"] * 4
    assert steps[1]["reason"] == "shadow → 1 %: because" and steps[1]["actor"] == "ana"
    assert RolloutRecords(ledger).under_way("m") is None


def test_without_a_shadow_it_begins_with_its_first_share_and_the_champion_need_not_stay_warm(ledger: Ledger) -> None:
    rollout = start(ledger, RolloutPolicy(shadow_share=0, steps=(0.5, 1.0), keep_warm=False))
    assert rollout.steps == (0.5, 1.0) and entry(ledger)["split"]["segments"] == [[0.5, "champion"], [1.0, "canary"]]
    move_on(ledger, move_on(ledger, rollout, **ANA), **ANA)
    assert entry(ledger) == {"champion": "2", "previous": "1"}


def test_a_growing_share_moves_only_the_users_who_must_move(ledger: Ledger) -> None:
    rollout = start(ledger, RolloutPolicy(shadow_share=0))
    users = [f"user{n}" for n in range(20_000)]
    before: set[str] = set()
    for _ in range(5):
        split = rollout.split
        segments = tuple((end, name) for end, name in split["segments"])
        mine = {u for u in users if assign(segments, unit_point(split["salt"], u)) == "canary"}
        assert before <= mine and abs(len(mine) / len(users) - rollout.share) < 0.015
        before, rollout = mine, move_on(ledger, rollout, **ANA)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("outcome", ["rolled back", "aborted"])
def test_back_from_any_step_is_one_change_of_the_table_and_the_version_may_come_again(
    ledger: Ledger, steps: int, outcome: Any
) -> None:
    rollout = start(ledger)
    for _ in range(steps):
        rollout = move_on(ledger, rollout, **ANA)
    revision = read_state(ledger)[0]
    ended = send_back(ledger, rollout, outcome, look=a_look(), actor="flow", reason="errors in 2 % of 500 rows")
    assert read_state(ledger)[0] == revision + 1 and entry(ledger) == {"champion": "1", "previous": None}
    assert (ended.status, ended.outcome) == ("ended", outcome)
    (event,) = ledger.events("m", "rollout_finished", "rollout_aborted")
    assert event["kind"] == ("rollout_aborted" if outcome == "aborted" else "rollout_finished")
    assert event["details"]["look"]["rows"] == 500 and "errors in 2 % of 500 rows" in event["reason"]
    assert read_history(ledger, "m").stage("2") == "challenger" and read_history(ledger, "m").live == "1"
    nominate(ledger, "m", "2", **ANA)
    again = start(ledger)
    assert again.id == "rollout:2.2" and again.split["salt"] != rollout.split["salt"]


def test_a_held_rollout_stays_until_it_is_resumed_or_advanced(ledger: Ledger) -> None:
    start(ledger)
    held = hold(ledger, "m", step=0, **ANA)
    assert held.status == hold(ledger, "m", **ANA).status == "held"
    assert advance(ledger, "m", step=0, **ANA).status == "held"
    assert resume(ledger, "m", **ANA).status == "running"
    assert kinds(ledger) == ["traffic_changed", "rollout_started", "rollout_held", "traffic_changed", "rollout_step",
                             "rollout_resumed"]  # fmt: skip
    assert abort(ledger, "m", **ANA).outcome == "aborted"
    calls: list[Callable[[], Any]] = [
        lambda: hold(ledger, "m", **ANA),
        lambda: resume(ledger, "m", **ANA),
        lambda: advance(ledger, "m", step=0, **ANA),
        lambda: abort(ledger, "m", **ANA),
    ]
    for call in calls:
        with pytest.raises(ModelNotFound, match=r"no rollout of 'm' .* \(rollout:2\) was aborted: because"):
            call()


@pytest.mark.parametrize("seed", range(2))
def test_of_two_persons_who_advance_at_once_one_wins_and_the_other_is_told(any_ledger: Ledger, seed: int) -> None:
    start(any_ledger)
    told: dict[str, str] = {}
    barrier = threading.Barrier(2)

    def go(name: str) -> None:
        mine = Ledger(any_ledger.url)
        barrier.wait()
        try:
            told[name] = advance(mine, "m", step=0, actor=name, reason="looks fine").told_step
        except Conflict as error:
            told[name] = str(error)
        mine.engine.dispose()

    threads = [threading.Thread(target=go, args=(name,)) for name in ("ana", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = next(name for name, what in told.items() if what == "1 %")
    loser = "bob" if winner == "ana" else "ana"
    assert told[loser] == (
        "expected rollout:2 of 'm' at step 0, found it at step 1 (1 %): meanwhile "
        f"{winner} brought it there (looks fine); look at it again"
    )
    assert len(any_ledger.events("m", "rollout_step")) == 1


def test_a_person_is_not_disturbed_by_looks_and_a_look_is_told_of_the_person(ledger: Ledger) -> None:
    rollout = start(ledger)
    looked = seen(ledger, rollout, a_look())
    assert (looked.revision, len(looked.looks), looked.step) == (2, 1, 0)
    assert advance(ledger, "m", step=0, **ANA).step == 1
    for stale in (seen, lambda *a: move_on(*a[:2], **ANA), lambda *a: send_back(*a[:2], "rolled back", **ANA)):
        revision = read_state(ledger)[0]
        with pytest.raises(
            Conflict, match=r"expected revision 2 .* found 3: by now it is running at 1 % \(ana: because"
        ):
            stale(ledger, looked, a_look())
        assert read_state(ledger)[0] == revision and entry(ledger)["split"]["segments"][0][0] == 0.99


def test_hundreds_of_looks_are_thinned_and_the_newest_stay(ledger: Ledger) -> None:
    rollout = start(ledger)
    for n in range(450):
        rollout = rollout.with_look({"at": n}, {})
    assert len(rollout.looks) <= 200
    numbers = [look["at"] for look in rollout.looks]
    assert numbers == sorted(numbers) and numbers[0] == 0 and numbers[-50:] == list(range(400, 450))
    assert Rollout.from_dict(rollout.to_dict()) == rollout


def test_what_may_not_begin_is_told(ledger: Ledger) -> None:
    with pytest.raises(Conflict, match="expected version 3 of 'm' to be the candidate, found 2"):
        begin(ledger, "m", "3", policy=POLICY, **ANA)
    with pytest.raises(ModelNotFound, match="no champion"):
        begin(ledger, "other", "1", policy=POLICY, **ANA)
    ledger.append_event("refused", "m", version="4", actor="gate", reason="roc_auc 0.5")
    with pytest.raises(ModelError, match="refused"):
        nominate(ledger, "m", "4", **ANA)
    split: Any = {"id": "experiment:a", "salt": "a", "key": None, "variants": {"x": "1"}, "segments": [(1.0, "x")]}
    put_split(ledger, "m", split)
    with pytest.raises(Conflict, match="'experiment:a'"):
        start(ledger)
    assert RolloutRecords(ledger).under_way("m") is None and RolloutRecords(ledger).all() == []


def test_another_rollout_of_the_model_waits_and_the_same_one_goes_on(ledger: Ledger) -> None:
    rollout = start(ledger)
    assert start(ledger) == rollout
    with pytest.raises(Conflict, match=r"rollout:2 of 'm' is under way \(shadow\); abort it first"):
        begin(ledger, "m", "3", policy=POLICY, **ANA)
    with pytest.raises(Conflict, match="version 2 of 'm' is being rolled out, so version 3 cannot be tried"):
        nominate(ledger, "m", "3", **ANA)


def test_a_change_of_champion_by_somebody_else_is_seen(ledger: Ledger) -> None:
    rollout = start(ledger)
    assert overtaken_by(ledger, rollout) is None
    promote(ledger, "m", "2", actor="bob", reason="a fire")
    assert overtaken_by(ledger, rollout) == "the champion is 2 by now, not 1 (bob: a fire)"
    assert send_back(ledger, rollout, "overtaken", **ANA).outcome == "overtaken"
    assert entry(ledger) == {"champion": "2", "previous": "1"}
    roll_back(ledger, "m", **ANA)
    assert entry(ledger)["champion"] == "1"


def test_flipping_back_wins_over_whoever_changes_the_rollout_meanwhile(ledger: Ledger) -> None:
    start(ledger)
    stop = threading.Event()

    def disturb() -> None:
        mine = Ledger(ledger.url)
        while not stop.is_set():
            try:
                hold(mine, "m", **ANA)
                resume(mine, "m", **ANA)
            except ForgeError:
                pass

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        assert flip_back(ledger, "m", actor="bob", reason="a fire") == "1"
    finally:
        stop.set()
        thread.join()
    assert entry(ledger) == {"champion": "1", "previous": None}
    assert flip_back(ledger, "m", actor="bob", reason="a fire") is None


def test_in_replayed_history_the_champion_is_live_from_the_newest_rows_time_on(ledger: Ledger) -> None:
    past = datetime(2013, 4, 1, tzinfo=UTC)
    rollout = start(ledger, RolloutPolicy(shadow_share=0, steps=(1.0,)), at=past)
    move_on(ledger, rollout, look=a_look(past + timedelta(days=3)), **ANA)
    (promoted,) = [e for e in ledger.events("m", "promoted") if e["version"] == "2"]
    assert promoted["at"] == past + timedelta(days=3)
