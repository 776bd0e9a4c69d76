"""Splits and shadows in the desired state: who may change them, what ends them, what the reconciler makes of them."""

import threading
from typing import Any

import pytest

from forge_core.deployment.routing import dismiss, nominate, promote, read_state, roll_back, withdraw
from forge_core.deployment.routing_table import Split, desired_table, held_versions, told_table
from forge_core.deployment.splits import (
    check_unsplit,
    drop_shadow,
    drop_split,
    put_shadow,
    put_split,
    read_split,
)
from forge_core.errors import ConfigurationError, Conflict, ForgeError, ModelError, ModelNotFound
from forge_core.ledger import Event, Ledger
from tests.core.test_deployment import RecordedServe

WHO: dict[str, Any] = {"actor": "ana", "reason": "because"}


def split(id: str = "rollout:2", canary: str = "2", share: float = 0.05, **more: Any) -> Split:
    segments = [(1 - share, "champion"), (1.0, "canary")]
    variants = {"champion": "1", "canary": canary}
    made: Any = {"id": id, "salt": id, "key": "user", "variants": variants, "segments": segments, **more}
    return made


@pytest.fixture
def ledger() -> Ledger:
    """A ledger in which version 1 is champion and version 2 on trial."""
    ledger = Ledger("sqlite://")
    for version in ("1", "2"):
        nominate(ledger, "m", version, **WHO)
        if version == "1":
            promote(ledger, "m", version, **WHO)
    return ledger


def entry(ledger: Ledger) -> dict[str, Any]:
    return read_state(ledger)[1]["models"]["m"]


def test_a_split_is_put_changed_and_dropped_with_its_events(ledger: Ledger) -> None:
    event = Event("rollout_step", "m", "2", "ana", "5 %", details={"share": 0.05})
    first = put_split(ledger, "m", split(), event=event)
    assert put_split(ledger, "m", split(), event=event) == first
    assert ledger.events("m", "rollout_step")[0]["details"] == {"share": 0.05}
    put_split(ledger, "m", split(share=0.25))
    assert read_split(ledger, "m") == entry(ledger)["split"]
    assert entry(ledger)["split"]["segments"] == [[0.75, "champion"], [1.0, "canary"]]
    drop_split(ledger, "m", "rollout:3")
    assert "split" in entry(ledger)
    drop_split(ledger, "m", "rollout:2")
    assert entry(ledger) == {"champion": "1", "previous": None, "candidate": "2"}
    assert [e["kind"] for e in ledger.events("m")][3:] == ["rollout_step", "split_changed", "split_dropped"]
    with pytest.raises(Conflict, match="somebody ended it"):
        put_split(ledger, "m", split(), expected="rollout:2")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"segments": [(0.5, "champion"), (0.9, "canary")]}, "the last at 1"),
        ({"segments": [(0.5, "champion"), (0.5, "canary"), (1.0, "champion")]}, "ascending"),
        ({"segments": [(float("nan"), "champion"), (1.0, "canary")]}, "ascending"),
        ({"segments": [(1.0, "nobody")]}, "found nobody"),
        ({"overrides": {"user1": "nobody"}}, "found nobody"),
        ({"overrides": {f"user{n}": "canary" for n in range(1001)}}, "at most 1000"),
    ],
)
def test_a_split_that_cannot_be_is_refused(ledger: Ledger, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        put_split(ledger, "m", split(**wrong))


def test_a_model_has_one_split_and_the_other_one_is_told_whose_it_is(ledger: Ledger) -> None:
    put_split(ledger, "m", split("experiment:checkout"))
    with pytest.raises(Conflict, match="'experiment:checkout'"):
        put_split(ledger, "m", split())
    with pytest.raises(Conflict, match="'experiment:checkout'"):
        put_shadow(ledger, "m", {"version": "2", "share": 0.5})
    with pytest.raises(Conflict, match="'experiment:checkout'"):
        check_unsplit(ledger, "m")
    drop_split(ledger, "m", "experiment:checkout")
    put_shadow(ledger, "m", {"version": "2", "share": 0.5})
    with pytest.raises(Conflict, match="version 2 of 'm' is being rolled out"):
        put_split(ledger, "m", split("experiment:checkout"))
    with pytest.raises(Conflict, match="to version 2 already"):
        put_shadow(ledger, "m", {"version": "3", "share": 0.5})
    drop_shadow(ledger, "m", "3")
    assert entry(ledger)["shadow"]["version"] == "2"
    drop_shadow(ledger, "m", "2")
    assert "shadow" not in entry(ledger)
    put_shadow(ledger, "m", {"version": "2", "share": 0.5})
    put_split(ledger, "m", split())
    assert "shadow" not in entry(ledger) and entry(ledger)["split"]["id"] == "rollout:2"


def test_of_two_at_once_one_gets_the_split(tmp_path: Any) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    nominate(ledger, "m", "1", **WHO)
    promote(ledger, "m", "1", **WHO)
    told: list[str] = []

    def put(id: str) -> None:
        try:
            put_split(Ledger(ledger.url), "m", split(id))
            told.append("won")
        except Conflict as error:
            told.append(str(error))

    threads = [threading.Thread(target=put, args=(f"experiment:{n}",)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(t == "won" for t in told) == [False, True] and any("experiment:" in t for t in told)


def test_a_refused_version_and_a_model_without_champion_get_no_traffic(ledger: Ledger) -> None:
    ledger.append_event("refused", "m", version="3", actor="gate", reason="roc_auc 0.5")
    for put in (
        lambda: put_split(ledger, "m", split(canary="3")),
        lambda: put_shadow(ledger, "m", {"version": "3", "share": 0.5}),
    ):
        with pytest.raises(ModelError, match=r"version 3 of 'm' was refused \(gate: roc_auc 0.5\)"):
            put()
    with pytest.raises(ModelNotFound, match="no champion"):
        put_split(ledger, "other", split())
    with pytest.raises(ConfigurationError, match=r"above 0 and at most 1, found 1\.5"):
        put_shadow(ledger, "m", {"version": "2", "share": 1.5})


@pytest.mark.parametrize("end", ["promote", "dismiss", "withdraw", "roll back"])
@pytest.mark.parametrize("traffic", ["split", "shadow"])
def test_every_change_of_champion_and_a_dismissal_end_split_and_shadow(ledger: Ledger, end: str, traffic: str) -> None:
    if end == "roll back":
        promote(ledger, "m", "2", **WHO)
        nominate(ledger, "m", "3", **WHO)
    version = "3" if end == "roll back" else "2"
    if traffic == "split":
        put_split(ledger, "m", split(canary=version))
    else:
        put_shadow(ledger, "m", {"version": version, "share": 0.5})
    with pytest.raises(Conflict, match=f"version {version} of 'm' is being rolled out, so version 4 cannot be tried"):
        nominate(ledger, "m", "4", **WHO)
    if end == "promote":
        promote(ledger, "m", "2", keep_warm=True, **WHO)
        assert entry(ledger) == {"champion": "2", "previous": "1", "warm": "1"}
    elif end == "dismiss":
        dismiss(ledger, "m", "2", **WHO)
        assert entry(ledger) == {"champion": "1", "previous": None}
    elif end == "withdraw":
        withdraw(ledger, "m", "1", **WHO)
        assert entry(ledger) == {"candidate": "2"}
    else:
        roll_back(ledger, "m", **WHO)
        assert entry(ledger) == {"champion": "1", "previous": None, "candidate": "3"}


def test_an_experiment_goes_on_beside_a_candidate_that_is_dismissed(ledger: Ledger) -> None:
    dismiss(ledger, "m", "2", **WHO)
    put_split(ledger, "m", split("experiment:a", canary="5"))
    nominate(ledger, "m", "3", **WHO)
    dismiss(ledger, "m", "3", **WHO)
    assert entry(ledger)["split"]["id"] == "experiment:a"


def test_the_reconciler_loads_what_a_split_names_then_flips_once_and_drops_it_when_it_ends(ledger: Ledger) -> None:
    serve = RecordedServe()
    serve.reconcile(ledger)
    serve.puts.clear()
    put_shadow(ledger, "m", {"version": "2", "share": 0.5})
    serve.reconcile(ledger)
    shadowed = {"m": {"champion": "1", "candidate": "2", "shadow": {"version": "2", "share": 0.5}}}
    assert [table for _, table in serve.puts] == [{"m": {"champion": "1"}}, shadowed]
    assert serve.puts[0][0] == ["variant-m-v1", "variant-m-v2"]
    serve.puts.clear()
    put_split(ledger, "m", split())
    serve.reconcile(ledger)
    assert [(names, sorted(table["m"])) for names, table in serve.puts] == [
        (["variant-m-v1", "variant-m-v2"], ["candidate", "champion", "split"])
    ]
    serve.puts.clear()
    promote(ledger, "m", "2", keep_warm=True, **WHO)
    serve.reconcile(ledger)
    assert serve.puts == [(["variant-m-v1", "variant-m-v2"], {"m": {"champion": "2", "warm": "1"}})]
    serve.puts.clear()
    roll_back(ledger, "m", **WHO)
    serve.reconcile(ledger)
    # Back while still warm: the flip comes first, and only then version 2 goes.
    assert serve.puts == [
        (["variant-m-v1", "variant-m-v2"], {"m": {"champion": "1"}}),
        (["variant-m-v1"], {"m": {"champion": "1"}}),
    ]


def test_after_a_restart_the_split_is_there_again_and_a_variant_that_does_not_start_keeps_nobody_waiting(
    ledger: Ledger,
) -> None:
    put_split(ledger, "m", split())
    serve = RecordedServe()
    assert serve.reconcile(ledger)["m"]["split"]["variants"] == {"champion": "1", "canary": "2"}
    broken = RecordedServe(failing=("variant-m-v2",))
    with pytest.raises(ForgeError, match="variant-m-v2 did not start"):
        broken.reconcile(ledger)
    assert broken.table == {"m": {"champion": "1"}}


def test_the_table_is_told_in_words(ledger: Ledger) -> None:
    put_split(ledger, "m", split())
    table = desired_table(read_state(ledger)[1], {}, None)
    assert held_versions(table) == {("m", "1"), ("m", "2")}
    assert told_table(table) == (
        "routing traffic to variant-m-v1; rollout:2 shares that of m out: champion v1 95%, canary v2 5%"
    )
