"""Rollouts over HTTP: what is told, what a person with the admin scope does, and what the traffic makes of it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from forge_core.deployment.routing import nominate, promote, read_state
from forge_core.deployment.routing_table import desired_table
from forge_core.experiments.rollout import begin
from forge_core.keys import Key, hash_of
from forge_core.ledger import Ledger
from forge_core.policy import RolloutPolicy
from serve_app.door import Door
from serve_app.steering import Steering
from tests.serve.boards import Board, rising, served
from tests.serve.test_splits import falling

pytestmark = pytest.mark.slow

WHO: dict[str, Any] = {"actor": "ana", "reason": "because"}
WHY = {"reason": "the night shift wants sleep"}
ROW = {"features": {"x": 7.0, "town": "Oslo"}}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def key(secret: str, *scopes: str) -> Key:
    return Key(secret.split("_")[1], hash_of(secret), f"owner of {scopes[0]}", frozenset(scopes), None, NOW)


ADMIN, READER = "forge_admin000_secret", "forge_reader00_secret"


@contextmanager
def service(tmp_path: Path, *, rollout: bool = True) -> Iterator[tuple[httpx.Client, Ledger, list[str]]]:
    """Give a client of an API over a board that follows a ledger, the ledger, and the names that followed."""
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    for version in ("1", "2"):
        nominate(ledger, "m", version, **WHO)
        if version == "1":
            promote(ledger, "m", version, **WHO)
    if rollout:
        begin(ledger, "m", "2", policy=RolloutPolicy(steps=(0.5, 1.0)), **WHO)
    board, named = Board({"1": rising, "2": falling}), list[str]()

    async def reconcile(ledger: Ledger, model: str) -> None:
        await board.route(desired_table(read_state(ledger)[1], {}, None))

    async def name(ledger: Ledger, model: str) -> None:
        named.append(model)

    door = Door(list, keys=[key(ADMIN, "admin"), key(READER, "metrics", "predict")], open_without_key=False)
    with (
        served(board, door=door, steering=Steering(ledger.url, reconcile, name)) as url,
        httpx.Client(base_url=url, trust_env=False, headers={"X-API-Key": ADMIN}) as client,
    ):
        yield client, ledger, named


def who_answers(client: httpx.Client) -> set[str]:
    return {client.post("/predict", json=ROW).json()["model_version"] for _ in range(20)}


def test_a_rollout_is_told_and_advanced_to_its_end_by_persons(tmp_path: Path) -> None:
    with service(tmp_path) as (client, _, named):
        told = client.get("/rollouts").json()["rollouts"]
        assert [(r["model"], r["id"], r["step"], r["told_step"], r["status"]) for r in told] == [
            ("m", "rollout:2", 0, "shadow", "running")
        ]
        for step, (share, answers) in enumerate([(0.5, {"1", "2"}), (1.0, {"2"}), (1.0, {"2"})]):
            moved = client.post("/rollouts/m/advance", json={**WHY, "step": step})
            assert moved.status_code == 200 and moved.json()["share"] == share
            assert who_answers(client) == answers
        assert moved.json()["outcome"] == "promoted" and moved.json()["actor"] == "owner of admin"
        one = client.get("/rollouts/m").json()
        assert (one["status"], one["reason"], one["looks"]) == ("ended", WHY["reason"], [])
        assert named == ["m"] * 3
        late = client.post("/rollouts/m/advance", json={**WHY, "step": 2})
        assert late.status_code == 404 and "was promoted: the night shift" in late.json()["detail"]
        stale = client.post("/models/m/rollback", json={**WHY, "from_version": "7"})
        assert stale.json() == {"model": "m", "champion": "2"} and who_answers(client) == {"2"}
        back = client.post("/models/m/rollback", json={**WHY, "from_version": "2"})
        assert back.json() == {"model": "m", "champion": "1"} and who_answers(client) == {"1"}
        assert client.post("/models/m/rollback", json=WHY).status_code == 404


def test_of_two_who_advance_at_once_one_wins_and_the_other_hears_409(tmp_path: Path) -> None:
    with service(tmp_path) as (client, ledger, _), ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(client.post, "/rollouts/m/advance", json={**WHY, "step": 0}) for _ in range(2)]
        answers = [a.result() for a in asked]
        assert sorted(a.status_code for a in answers) == [200, 409]
        lost = next(a for a in answers if a.status_code == 409).json()
        assert "expected rollout:2 of 'm' at step 0, found it at step 1 (50 %)" in lost["detail"]
        assert len(ledger.events("m", "rollout_step")) == 1


def test_hold_resume_and_abort(tmp_path: Path) -> None:
    with service(tmp_path) as (client, ledger, _):
        assert client.post("/rollouts/m/hold", json=WHY).json()["status"] == "held"
        assert client.post("/rollouts/m/resume", json={**WHY, "step": 1}).status_code == 409
        assert client.post("/rollouts/m/resume", json=WHY).json()["status"] == "running"
        assert client.post("/rollouts/m/advance", json={**WHY, "step": 0}).json()["step"] == 1
        assert client.post("/rollouts/m/abort", json=WHY).json()["outcome"] == "aborted"
        assert who_answers(client) == {"1"} and read_state(ledger)[1]["models"]["m"]["champion"] == "1"


def test_a_rollback_ends_a_rollout_that_is_under_way(tmp_path: Path) -> None:
    with service(tmp_path) as (client, ledger, _):
        client.post("/rollouts/m/advance", json={**WHY, "step": 0})
        assert client.post("/models/m/rollback", json=WHY).json() == {"model": "m", "champion": "1"}
        assert who_answers(client) == {"1"} and client.get("/rollouts/m").json()["outcome"] == "rolled back"
        (event,) = ledger.events("m", "rollout_finished")
        assert (event["actor"], event["reason"]) == ("owner of admin", f"rolled back at 50 %: {WHY['reason']}")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/rollouts/m/advance", WHY, 422),
        ("/rollouts/m/advance", {**WHY, "step": -1}, 422),
        ("/rollouts/m/hold", {}, 422),
        ("/rollouts/m/hold", {"reason": ""}, 422),
        ("/rollouts/m/hold", {**WHY, "who": "me"}, 422),
        ("/rollouts/other/hold", WHY, 404),
        ("/models/m/rollback", {**WHY, "step": 0}, 422),
        ("/models/other/rollback", WHY, 404),
        ("/rollouts/m/go", WHY, 404),
    ],
)
def test_what_cannot_be_done_is_told_and_nothing_changes(tmp_path: Path, path: str, body: Any, status: int) -> None:
    with service(tmp_path) as (client, ledger, _):
        before = read_state(ledger)
        answer = client.post(path, json=body)
        assert answer.status_code == status and answer.json()["status"] == status
        assert read_state(ledger) == before


def test_reading_needs_a_key_and_changing_the_admin_scope(tmp_path: Path) -> None:
    with service(tmp_path) as (client, ledger, _):
        reader, nobody = {"X-API-Key": READER}, {"X-API-Key": "forge_nobody00_secret"}
        assert client.get("/rollouts", headers=reader).status_code == 200
        assert client.get("/rollouts/m", headers=nobody).status_code == 401
        for path in ("/rollouts/m/abort", "/models/m/rollback"):
            assert client.post(path, json=WHY, headers=reader).status_code == 403
        assert ledger.events("m", "rollout_aborted", "rollout_finished") == []


def test_a_server_without_a_ledger_and_a_model_without_rollout_say_so(tmp_path: Path) -> None:
    with served(Board({"1": rising})) as url:
        answer = httpx.get(f"{url}/rollouts", trust_env=False)
        assert answer.status_code == 503 and "serves one file" in answer.json()["detail"]
    with service(tmp_path, rollout=False) as (client, _, _):
        assert client.get("/rollouts").json() == {"rollouts": []} and client.get("/rollouts/m").status_code == 404
