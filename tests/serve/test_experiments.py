"""Experiments over HTTP: who may do what, what is answered, and what is kept."""

import asyncio
import io
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from forge_core.experiments.ab_testing import ABTestManager
from forge_core.keys import KeyStore
from forge_core.ledger import Ledger
from serve_app.door import Door
from tests.serve.boards import served
from tests.serve.live_models import BoardInProcess

pytestmark = pytest.mark.slow

VARIANTS = {"model_v1": {"model": "flights", "version": "1"}, "model_v2": "models:/flights/2"}
HALVES = {"model_v1": 0.5, "model_v2": 0.5}


class Api:
    """A client that says what it expects."""

    def __init__(self, url: str, secret: str | None = None) -> None:
        self.url, self.headers = url, {"X-API-Key": secret} if secret else {}

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        sent = {} if body is None else {"json": body}
        return httpx.request(method, self.url + path, headers=self.headers, timeout=60, trust_env=False, **sent)

    def post(self, path: str, body: Any = None, status: int = 200) -> Any:
        answer = self.ask("POST", path, body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def get(self, path: str, status: int = 200) -> Any:
        answer = self.ask("GET", path)
        assert answer.status_code == status, answer.text
        return answer.json()


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def api(ledger: str) -> Iterator[Api]:
    with served(BoardInProcess([], "m", ledger)) as url:
        yield Api(url)


def make(api: Api, name: str = "checkout", **fields: Any) -> Any:
    body = {"id": name, "variants": VARIANTS, "traffic_allocation": HALVES, "auto_start": True, **fields}
    return api.post("/experiments", body)


def test_an_experiment_from_its_start_to_its_verdict(api: Api) -> None:
    made = make(api, auto_start=False, description="Comparing")
    assert (made["status"], made["control"], made["revision"]) == ("created", "model_v1", 1)
    assert made["variants"]["model_v2"] == {"model": "flights", "version": "2", "fingerprint": None}
    assert api.post("/experiments/checkout/start")["status"] == "running"
    met = {f"u{user}": api.get(f"/experiments/checkout/variant?user=u{user}") for user in range(60)}
    shares = Counter(one["variant"] for one in met.values())
    assert 18 < shares["model_v1"] < 42 and met["u1"]["model"].startswith("models:/flights/")
    assert api.get("/experiments/checkout/variant?user=u1") == met["u1"]
    sent = [{"user": user, "variant": one["variant"]} for user, one in list(met.items())[:20]]
    assert api.post("/experiments/checkout/conversions", {"conversions": sent})["counted"] == 20
    found = api.get("/experiments/checkout")
    assert found["verdict"]["state"] == "not yet" and found["verdict"]["users"] == dict(shares)
    assert found["verdict"]["advice"].startswith("Go on") and found["verdict"]["mismatch"]["alarm"] is False
    assert api.post("/experiments/checkout/pause")["status"] == "paused"
    assert api.post("/experiments/checkout/start")["status"] == "running"
    stopped = api.post("/experiments/checkout/stop", {"winner": "model_v2", "reason": "enough"})
    assert (stopped["status"], stopped["winner"]) == ("stopped", "model_v2")
    assert {api.get(f"/experiments/checkout/variant?user=x{n}")["variant"] for n in range(9)} == {"model_v2"}
    assert [one["id"] for one in api.get("/experiments")["experiments"]] == ["checkout"]


def test_the_picture_is_one(api: Api) -> None:
    make(api)
    api.get("/experiments/checkout/variant?user=ana")
    answer = api.ask("GET", "/experiments/checkout/picture")
    assert answer.headers["content-type"] == "image/png"
    assert np.asarray(Image.open(io.BytesIO(answer.content)).convert("L")).std() > 5


def test_what_happened_to_each_outcome_is_answered(api: Api) -> None:
    make(api, guard_rails=[{"name": "minutes", "kind": "mean", "better": "lower"}])
    met = api.get("/experiments/checkout/variant?user=ana")["variant"]
    other = next(name for name in VARIANTS if name != met)
    bulk = [{"user": "ana", "variant": other}, {"user": "ana"}, {"user": "ana", "variant": met}, {"user": "bob"},
            {"variant": other}]  # fmt: skip
    answer = api.post("/experiments/checkout/conversions", {"conversions": bulk})
    assert answer["counted"] == 1 and [one["reason"] for one in answer["recorded"]] == [
        "other variant", "", "twice", "no exposure", "more than exposures",
    ]  # fmt: skip
    assert api.post("/experiments/checkout/metrics", {"user": "ana", "metric": "minutes", "value": 3})["counted"] == 1
    undeclared = api.post("/experiments/checkout/metrics", {"user": "ana", "metric": "typo", "value": 3})
    assert undeclared["recorded"][0]["reason"] == "metric not declared"
    left = api.get("/experiments/checkout")["verdict"]["not_counted"]
    assert left == {
        "other variant": 1, "twice": 1, "no exposure": 1, "more than exposures": 1, "metric not declared": 1,
    }  # fmt: skip


def test_the_same_definition_again_is_no_error_and_another_one_is_a_conflict(api: Api) -> None:
    make(api)
    assert make(api, description="other words")["status"] == "running"
    body = {"id": "checkout", "variants": VARIANTS, "traffic_allocation": {"model_v1": 0.9, "model_v2": 0.1}}
    problem = api.post("/experiments", body, 409)
    assert "traffic_allocation.model_v1 is 0.5 and was given as 0.9" in problem["detail"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"traffic_allocation": {"model_v1": 0.5, "model_v2": 0.6}}, "add up to 1, found 1.1"),
        ({"traffic_allocation": {"model_v1": 0.5, "model_v3": 0.5}}, "no variant 'model_v3'"),
        ({"traffic_allocation": {"model_v1": "0.5", "model_v2": 0.5}}, "traffic_allocation.model_v1: Input should be"),
        ({"id": "a/b"}, "id: expected 1 to 64 letters"),
        ({"id": None}, "id: Input should be a valid string"),
        ({"variants": {"model_v1": "flights"}}, "models:/flights/3"),
        ({"variants": {"model_v1": "models:/flights@champion", "model_v2": "models:/flights/2"}}, "models:/flights/3"),
        ({"alpha": 2}, "alpha: Input should be less than 0.5"),
        ({"typo": 1}, "typo: Extra inputs are not permitted"),
        (
            {"live": True, "variants": {"model_v1": {"model": "a"}, "model_v2": {"model": "b"}}},
            "live: expected versions",
        ),
    ],
)
def test_a_definition_that_cannot_be_is_told_and_not_kept(api: Api, fields: dict[str, Any], told: str) -> None:
    body = {"id": "checkout", "variants": VARIANTS, "traffic_allocation": HALVES, **fields}
    problem = api.post("/experiments", body, 422)
    assert told in problem["detail"] and problem["errors"]
    assert api.get("/experiments") == {"experiments": []}


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/experiments/none/start", None, 404, "no experiment 'none'; known: checkout"),
        ("/experiments/none/conversions", {"user": "ana"}, 404, "no experiment 'none'"),
        ("/experiments/checkout/conversions", {}, 422, "a user or a variant"),
        ("/experiments/checkout/conversions", {"user": ""}, 422, "user: "),
        ("/experiments/checkout/conversions", {"user": 7}, 422, "user: Input should be a valid string"),
        ("/experiments/checkout/conversions", {"user": "a", "variant": "model_v9"}, 422, "no variant 'model_v9'"),
        ("/experiments/checkout/conversions", {"conversions": []}, 422, "at least 1 item"),
        ("/experiments/checkout/metrics", {"user": "a", "metric": "ms"}, 422, "value: Field required"),
        ("/experiments/checkout/metrics", {"user": "a", "metric": "conversion", "value": 2}, 422, "expected 1 (or 0)"),
        ("/experiments/checkout/stop", {"winner": "model_v9"}, 422, "no variant 'model_v9'"),
        ("/experiments/checkout/stop", {"typo": 1}, 422, "typo: Extra inputs"),
    ],
)
def test_bad_requests_hear_what_is_wrong(api: Api, path: str, body: Any, status: int, told: str) -> None:
    make(api)
    assert told in api.post(path, body, status)["detail"]


@pytest.mark.parametrize("query", ["", "?user=", "?user=" + "x" * 129])
def test_a_user_key_is_needed(api: Api, query: str) -> None:
    make(api)
    assert "user: expected a user key" in api.get(f"/experiments/checkout/variant{query}", 422)["detail"]


def test_states_that_do_not_follow_are_conflicts(api: Api) -> None:
    make(api, auto_start=False)
    assert "was not started" in api.get("/experiments/checkout/variant?user=ana", 409)["detail"]
    assert "is created and cannot be paused" in api.post("/experiments/checkout/pause", None, 409)["detail"]
    api.post("/experiments/checkout/stop")
    assert "stopped is final" in api.post("/experiments/checkout/start", None, 409)["detail"]


def test_live_traffic_without_serve_is_told(api: Api) -> None:
    made = make(api, auto_start=False, live=True)
    assert made["live"] is True
    assert "where Serve runs" in api.post("/experiments/checkout/start", None, 503)["detail"]
    assert api.get("/experiments/checkout")["status"] == "created"


def test_each_route_asks_for_its_scope(ledger: str) -> None:
    keys = KeyStore(Ledger(ledger))
    secrets = {scope: keys.create("ana", [scope]) for scope in ("predict", "feedback", "metrics", "admin")}
    door = Door(keys.all, open_without_key=False, keys=keys.all())
    with served(BoardInProcess([], "m", ledger), door=door) as url:
        make(Api(url, secrets["admin"]))
        asked = {
            ("POST", "/experiments"): "admin",
            ("GET", "/experiments"): "metrics",
            ("GET", "/experiments/checkout"): "metrics",
            ("GET", "/experiments/checkout/picture"): "metrics",
            ("GET", "/experiments/checkout/variant?user=ana"): "predict",
            ("POST", "/experiments/checkout/conversions"): "feedback",
            ("POST", "/experiments/checkout/metrics"): "feedback",
            ("POST", "/experiments/checkout/start"): "admin",
            ("POST", "/experiments/checkout/pause"): "admin",
            ("POST", "/experiments/checkout/stop"): "admin",
        }
        for (method, path), needed in asked.items():
            statuses = {s: Api(url, key).ask(method, path).status_code for s, key in secrets.items()}
            assert {s for s, status in statuses.items() if status == 403} == set(secrets) - {needed, "admin"}, path
            assert Api(url).ask(method, path).status_code == 401
        assert Ledger(ledger).events("flights")[0]["actor"] == "ana"


def test_what_is_answered_is_committed_however_many_come_at_once(api: Api, ledger: str) -> None:
    make(api)

    def visit(user: int) -> bool:
        variant = api.get(f"/experiments/checkout/variant?user={user}")["variant"]
        return api.post("/experiments/checkout/conversions", {"user": str(user), "variant": variant})["counted"] == 1

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(visit, range(200)))
    found = ABTestManager(Ledger(ledger))
    assert sum(found.results("checkout").users.values()) == 200
    assert len(found.records.outcomes("checkout")) == 200


def test_two_routers_and_a_notebook_see_one_experiment_before_and_after_a_restart(tmp_path: Path, ledger: str) -> None:
    users = [str(user) for user in range(40)]
    with ExitStack() as stack:
        first, second = (Api(stack.enter_context(served(BoardInProcess([], "m", ledger)))) for _ in range(2))
        make(first)
        here, there = (
            [a.get(f"/experiments/checkout/variant?user={u}")["variant"] for u in users] for a in (first, second)
        )
        assert here == there
        assert second.post("/experiments/checkout/conversions", {"user": "0"})["counted"] == 1
        assert first.post("/experiments/checkout/conversions", {"user": "0"})["recorded"][0]["reason"] == "twice"
    notebook = ABTestManager(Ledger(ledger))
    assert [notebook.get_variant(user)[1] for user in users] == here
    with served(BoardInProcess([], "m", ledger)) as url:
        again = Api(url)
        assert [again.get(f"/experiments/checkout/variant?user={u}")["variant"] for u in users] == here
        verdict = again.get("/experiments/checkout")["verdict"]
    assert verdict["users"] == dict(Counter(here)) and sum(verdict["users"].values()) == 40
    assert verdict["not_counted"] == {"twice": 1}


def test_a_writer_that_fails_tells_everybody_in_the_group(tmp_path: Path) -> None:
    from forge_core.errors import ExperimentNotFound
    from forge_core.experiments.records import Outcome
    from serve_app.experiment_writer import ExperimentWriter
    from tests.core.test_experiments_manager import NOW

    async def send() -> list[Any]:
        writer = ExperimentWriter(Ledger(f"sqlite:///{tmp_path}/ledger.db"))
        outcome = Outcome("conversion", "a" * 16, "old", 1.0, NOW)
        return await asyncio.gather(*(writer.record("none", [outcome]) for _ in range(5)), return_exceptions=True)

    assert [type(error) for error in asyncio.run(send())] == [ExperimentNotFound] * 5
