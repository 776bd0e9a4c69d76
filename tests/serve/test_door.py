"""Keys, scopes and rates: at the door alone, over HTTP, from the terminal, and for several routers at once."""

import asyncio
import hmac
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from forge_core.errors import ConfigurationError
from forge_core.keys import SCOPES, KeyStore, hash_of, new_secret
from forge_core.ledger import Ledger
from forge_core.settings import get_settings
from serve_app.door import Door
from serve_app.keys import main as keys_command
from serve_app.protocol import Forbidden, TooManyRequests, Unauthorized
from serve_app.rates import Buckets
from tests.serve.boards import Board, rising, served

pytestmark = pytest.mark.slow

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(Ledger(f"sqlite:///{tmp_path}/ledger.db"))


def door_of(store: KeyStore, now: datetime | None = None, **options: Any) -> Door:
    door = Door(store.all, **{"open_without_key": False, **options}, now=lambda: now or datetime.now(UTC))
    asyncio.run(door.refresh())
    return door


@pytest.mark.parametrize("has", SCOPES)
def test_a_key_may_what_its_scopes_say(store: KeyStore, has: str) -> None:
    secret = store.create("ana", [has])
    door = door_of(store)
    for wanted in SCOPES:
        if has in (wanted, "admin"):
            assert door.admit(None, secret, wanted).owner == "ana"
            assert door.admit(f"Bearer {secret}", None, wanted).owner == "ana"
        else:
            with pytest.raises(Forbidden, match=f"the scope '{wanted}'; this one has {has}"):
                door.admit(None, secret, wanted)
    assert door.admit(None, secret, None).owner == "ana"


def test_whatever_is_wrong_with_a_key_the_words_are_the_same(store: KeyStore) -> None:
    secret = store.create("ana", ["predict"])
    ended = store.create("bob", ["predict"], expires_at=NOW - timedelta(days=1))
    revoked = store.create("eve", ["predict"])
    store.revoke(revoked.split("_")[1], NOW - timedelta(days=1))
    door, told = door_of(store, NOW), set()
    wrong = ("", "forge", "forge__", secret[:-1], secret + "x", secret.upper(), "forge_000000000000_x", ended, revoked)
    for shown in (*((None, text) for text in wrong), (f"Basic {secret}", None), (secret, None), ("Bearer", None)):
        with pytest.raises(Unauthorized) as caught:
            door.admit(*shown, "predict")
        told.add(str(caught.value))
    with pytest.raises(Unauthorized) as caught:
        door.admit(None, None, "predict")
    assert told == {str(caught.value)}


def test_an_open_door_still_refuses_a_wrong_key(store: KeyStore) -> None:
    door = door_of(store, open_without_key=True)
    assert door.admit(None, None, "admin").key is None
    with pytest.raises(Unauthorized):
        door.admit(None, "forge_a_b", "predict")


def test_a_key_ends_at_its_moment_and_a_revoked_one_at_the_next_reading(store: KeyStore) -> None:
    secret = store.create("ana", ["predict"], expires_at=NOW)
    assert door_of(store, NOW - timedelta(microseconds=1)).admit(None, secret, "predict")
    with pytest.raises(Unauthorized):
        door_of(store, NOW).admit(None, secret, "predict")
    other = store.create("bob", ["predict"])
    door = door_of(store)
    assert door.admit(None, other, "predict")
    store.revoke(other.split("_")[1])
    assert door.admit(None, other, "predict")
    asyncio.run(door.refresh())
    with pytest.raises(Unauthorized):
        door.admit(None, other, "predict")


def test_while_the_ledger_is_away_the_last_keys_stay(store: KeyStore) -> None:
    secret = store.create("ana", ["predict"])
    away = []

    def read() -> Any:
        if away:
            raise ConnectionError("gone")
        return store.all()

    async def play() -> None:
        door = Door(read, open_without_key=False)
        await door.start()
        away.append(True)
        with pytest.raises(ConnectionError):
            await door.refresh()
        assert door.admit(None, secret, "predict").owner == "ana"

    asyncio.run(play())


def test_secrets_are_compared_whole_even_where_the_id_is_unknown(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create("ana", ["predict"])
    door, compared = door_of(store), list[bool]()

    def watched(left: str, right: str) -> bool:
        compared.append(len(left) == len(right) == 64)
        return left == right

    monkeypatch.setattr(hmac, "compare_digest", watched)
    for secret in ("nonsense", "forge_unknown_secret", ""):
        with pytest.raises(Unauthorized):
            door.admit(None, secret, "predict")
    assert compared == [True] * 3


def test_rotation_leaves_both_keys_working_for_a_while(store: KeyStore) -> None:
    old = store.create("ana", ["feedback", "predict"], per_minute=7)
    new = store.rotate(old.split("_")[1], datetime.now(UTC) + timedelta(hours=1))
    door = door_of(store)
    first, second = (door.admit(None, secret, "feedback") for secret in (old, new))
    assert first.key != second.key and first[1:] == second[1:] == ("ana", 7)
    with pytest.raises(Unauthorized):
        door_of(store, datetime.now(UTC) + timedelta(hours=2)).admit(None, old, "predict")


@pytest.mark.parametrize(
    ("owner", "scopes", "rate", "told"),
    [
        ("a", ["fly"], None, "found fly"),
        ("a", [], None, "found none"),
        ("", ["predict"], None, "owner"),
        ("a", ["predict"], 0, "found 0"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(
    store: KeyStore, owner: str, scopes: list[str], rate: int | None, told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        store.create(owner, scopes, per_minute=rate)
    assert store.all() == []


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_holds_a_minute_and_fills_steadily() -> None:
    clock = Clock()
    buckets = Buckets(clock)
    buckets.spend("k", 60, 60)
    with pytest.raises(TooManyRequests) as caught:
        buckets.spend("k", 60, 10)
    assert caught.value.context["retry_after"] in (10, 11)
    clock.now = 10.0
    buckets.spend("k", 60, 10)
    with pytest.raises(TooManyRequests):
        buckets.spend("k", 60, 1)
    clock.now = 70.0
    buckets.spend("k", 60, 600)  # more than a minute's rows: passes when full, and leaves a debt
    clock.now = 600.0
    with pytest.raises(TooManyRequests):
        buckets.spend("k", 60, 1)
    clock.now = 612.0
    buckets.spend("k", 60, 1)


@pytest.mark.parametrize("n_routers", [1, 2, 5])
def test_several_routers_keep_one_rate(n_routers: int) -> None:
    clock, rate, let_in = Clock(), 600, 0
    routers, centre = [Buckets(clock) for _ in range(n_routers)], Buckets(clock)
    for tick in range(10 * 60 * 5):  # five minutes in tenths of a second, each router asked for far too much
        clock.now = tick / 10
        for router in routers:
            for _ in range(5):
                try:
                    router.spend("k", rate, 1)
                    let_in += 1
                except TooManyRequests:
                    break
        if tick % 2:
            for router in routers:
                router.settle(centre.exchange(router.take()))
    allowed = rate + rate * 5
    # At the start each router lets in what it can within the first telling.
    assert allowed - rate / 60 <= let_in <= allowed + n_routers * 10 * 2


def test_without_the_centre_a_router_keeps_its_own_rate(store: KeyStore) -> None:
    async def gone(spent: Any) -> Any:
        raise ConnectionError("gone")

    secret = store.create("ana", ["predict"], per_minute=5)
    door = door_of(store, exchange=gone)
    caller = door.admit(None, secret, "predict")
    for _ in range(5):
        door.spend(caller, 1)
    with pytest.raises(ConnectionError):
        asyncio.run(door.balance())
    with pytest.raises(TooManyRequests):
        door.spend(caller, 1)


@pytest.fixture
def guarded(store: KeyStore) -> Iterator[tuple[str, dict[str, str]]]:
    secrets = {scope: store.create(scope, [scope]) for scope in SCOPES}
    secrets["slow"] = store.create("slow", ["predict"], per_minute=3)
    with served(Board({"1": rising}), door=door_of(store)) as url:
        yield url, secrets


ROW = {"features": {"x": 1.0, "town": "Oslo"}}


def test_who_is_not_let_in_learns_nothing(guarded: tuple[str, dict[str, str]]) -> None:
    url, secrets = guarded
    for method, path in (
        ("POST", "/predict"), ("POST", "/predict/batch"), ("POST", "/feedback"), ("GET", "/model/info"),
        ("GET", "/models/none"), ("POST", "/models/none/predict"), ("GET", "/metrics"), ("GET", "/monitoring"),
    ):  # fmt: skip
        for headers in ({}, {"X-API-Key": "forge_0_0"}, {"Authorization": "Bearer x"}):
            answer = httpx.request(method, url + path, content=b"{", headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
            assert not {"x", "town", "m"} & set(answer.json()["detail"].split())
    assert set(httpx.get(f"{url}/health").json()) == {"status", "version"}
    assert "models" in httpx.get(f"{url}/health", headers={"X-API-Key": secrets["metrics"]}).json()


def test_keys_open_their_routes_and_no_others(guarded: tuple[str, dict[str, str]]) -> None:
    url, secrets = guarded
    for scope in SCOPES:
        headers = {"Authorization": f"Bearer {secrets[scope]}"}
        assert (httpx.post(f"{url}/predict", json=ROW, headers=headers).status_code == 200) == (
            scope in ("predict", "admin")
        )
        labels = httpx.post(f"{url}/feedback", json={}, headers=headers).status_code
        assert labels == (422 if scope in ("feedback", "admin") else 403)


def test_a_used_up_rate_is_429_with_the_time_to_wait(guarded: tuple[str, dict[str, str]]) -> None:
    url, secrets = guarded
    headers = {"X-API-Key": secrets["slow"]}
    answers = [httpx.post(f"{url}/predict", json=ROW, headers=headers) for _ in range(4)]
    assert [a.status_code for a in answers] == [200, 200, 200, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 21 and "3 rows a minute" in answers[-1].json()["detail"]
    assert httpx.post(f"{url}/predict", json=ROW, headers={"X-API-Key": secrets["predict"]}).status_code == 200


def test_keys_are_made_shown_turned_and_ended_at_a_terminal(tmp_path: Path) -> None:
    environment = {**os.environ, "FORGE_LEDGER_URL": f"sqlite:///{tmp_path}/keys.db"}

    def keys(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "serve_app.keys", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    secret = keys(
        "create", "--owner", "ana", "--scopes", "predict, feedback", "--rate", "600", "--days", "30"
    ).stdout.strip()
    key_id = secret.split("_")[1]
    assert keys("rotate", key_id, "--hours", "2").returncode == 0
    assert keys("revoke", key_id).stdout.startswith(f"{key_id} of ana is revoked")
    listed = keys("list").stdout
    assert secret not in listed and "revoked" in listed and "works" in listed and listed.count("ana") == 2
    wrong = keys("revoke", "nobody")
    assert wrong.returncode == 1 and "expected the id of a key, found 'nobody'" in wrong.stderr
    assert keys("create", "--owner", "ana", "--scopes", "fly").returncode == 1


def test_a_clusters_own_secret_becomes_a_key_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, secret = KeyStore(Ledger(f"sqlite:///{tmp_path}/ledger.db")), new_secret()
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))
    monkeypatch.setenv("FORGE_LEDGER_URL", f"sqlite:///{tmp_path}/ledger.db")
    monkeypatch.setenv("FORGE_API_KEY", secret)
    for told in ("is a key now", "was a key already"):
        get_settings.cache_clear()
        assert keys_command(["adopt", "--owner", "flows", "--scopes", "predict"]) == 0
        assert told in capsys.readouterr().out
    (key,) = store.all()
    assert (key.hash, key.owner, key.may("predict"), key.may("feedback")) == (hash_of(secret), "flows", True, False)
    store.revoke(key.id)
    assert not store.adopt(secret, "flows", ["predict"]) and store.all()[0].revoked_at is not None
    with pytest.raises(ConfigurationError, match="found another one"):
        store.adopt(secret[:-4] + "none", "flows", ["predict"])
    for wrong in ("", "a-plain-password", "forge_x_y"):
        with pytest.raises(ConfigurationError, match="forge_ID_SECRET"):
            store.adopt(wrong, "flows", ["predict"])
    with pytest.raises(ConfigurationError, match="expected scopes"):
        store.adopt(new_secret(), "flows", ["everything"])
    get_settings.cache_clear()
