"""Traffic shared out among versions over real HTTP: who answers, what is logged, and the champion where one cannot."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pandera.pandas as pa
import pytest

from forge_core.data.contracts import Contract
from forge_core.deployment.routing_table import Route
from forge_core.experiments.assignment import assign, unit_id, unit_point
from forge_core.monitoring.metric_names import SPLIT_FAULTS
from serve_app.journal import Watch
from serve_app.live_version import LiveVersion
from serve_app.profiler import LOG_COLUMNS, SPLIT_COLUMNS
from tests.serve.boards import Board, rising, served

pytestmark = pytest.mark.slow

COLUMNS = [*LOG_COLUMNS, *SPLIT_COLUMNS, "x", "town"]
SEGMENTS = ((0.5, "champion"), (1.0, "canary"))
NARROW = Contract(pa.DataFrameSchema({"x": pa.Column("float64", pa.Check.le(100)), "town": pa.Column("str")}))


def falling(values: list[float]) -> list[float]:
    """Return a score that tells the row and that version 2 gave it."""
    return [1.0 - score for score in rising(values)]


def row(segments: Any = SEGMENTS, **more: Any) -> Route:
    split = {
        "id": "rollout:2",
        "salt": "s",
        "key": "user",
        "variants": {"champion": "1", "canary": "2"},
        "segments": [list(segment) for segment in segments],
        **more,
    }
    return {"champion": "1", "candidate": "2", "split": split}  # type: ignore[typeddict-item]


class NarrowBoard(Board):
    """Its version 2 refuses x above 100."""

    def _load(self, model: str, version: str) -> LiveVersion:
        live = super()._load(model, version)
        return live if version == "1" else LiveVersion(**{**vars(live), "contract": NARROW})


@contextmanager
def api(board: Board, table: Route | None = None) -> Iterator[httpx.Client]:
    with served(board) as url, httpx.Client(base_url=url, trust_env=False) as client:
        asyncio.run(board.route({"m": table or row()}))
        yield client


def variant_of(user: str) -> str:
    return assign(SEGMENTS, unit_point("s", user))


def logged(board: Board) -> list[dict[str, Any]]:
    """Return what was journalled, in order of the request ids."""
    rows = [dict(zip(COLUMNS, r, strict=True)) for key, rows in board.journal.rows.items() for r in rows]
    assert all(key[2].form == "split" for key in board.journal.rows)
    return sorted(rows, key=lambda r: r["request_id"])


def test_a_user_gets_the_variant_of_the_hash_by_header_and_by_body_and_again() -> None:
    board = Board({"1": rising, "2": falling})
    users = [f"user{n}" for n in range(40)]
    body = {"features": {"x": 7.0, "town": "Oslo"}}
    with api(board) as client:
        by_header = [client.post("/predict", json=body, headers={"X-Forge-User": u}).json() for u in users]
        by_body = [client.post("/predict", json={**body, "user": u}).json() for u in users]
        both = client.post("/predict", json={**body, "user": "user0"}, headers={"X-Forge-User": "user1"}).json()
    assert [r["variant"] for r in by_header] == [r["variant"] for r in by_body] == [variant_of(u) for u in users]
    assert {r["variant"] for r in by_header} == {"champion", "canary"} and both["variant"] == variant_of("user1")
    for reply in by_header:
        version, score = ("1", rising([7.0])[0]) if reply["variant"] == "champion" else ("2", falling([7.0])[0])
        probability = score if reply["prediction"] == 1 else 1 - score
        assert (reply["model_version"], reply["experiment"]) == (version, "rollout:2")
        assert reply["prediction_probability"] == pytest.approx(probability)


def test_without_a_user_the_request_id_decides_and_so_it_does_where_the_split_has_no_key() -> None:
    board = Board({"1": rising, "2": falling})
    body = {"features": {"x": 7.0, "town": "Oslo"}, "user": "user1"}
    ids = [f"id-{n}" for n in range(20)]
    with api(board, row(key=None)) as client:
        no_key = [client.post("/predict", json=body, headers={"X-Request-ID": i}).json() for i in ids]
        asyncio.run(board.route({"m": row()}))
        del body["user"]
        no_user = [client.post("/predict", json=body, headers={"X-Request-ID": i}).json() for i in ids]
    wanted = [variant_of(i) for i in ids]
    assert [r["variant"] for r in no_key] == [r["variant"] for r in no_user] == wanted


def test_a_batch_over_both_variants_keeps_its_order_and_each_reply_names_who_answered() -> None:
    board = Board({"1": rising, "2": falling})
    users = [f"user{n}" for n in range(200)]
    columns = {"x": [float(n) for n in range(200)], "town": ["Oslo"] * 200}
    records = [{"x": x, "town": "Oslo"} for x in columns["x"]]
    ids = [f"r{n:03d}" for n in range(200)]
    with api(board) as client:
        for rows in ({"columns": columns}, {"records": records}):
            board.journal.rows.clear()
            answer = client.post("/predict/batch", json={**rows, "users": users, "request_ids": ids})
            replies = answer.json()["predictions"]
            assert [r["request_id"] for r in replies] == ids
            for n, reply in enumerate(replies):
                assert reply["variant"] == variant_of(users[n])
                score = (rising if reply["variant"] == "champion" else falling)([float(n)])[0]
                assert reply["prediction_probability"] == pytest.approx(max(score, 1 - score))
            found = logged(board)
            assert [r["x"] for r in found] == columns["x"] and [r["unit"] for r in found] == [
                unit_id("s", u) for u in users
            ]
            assert {(r["version"], r["variant"], r["assigned"]) for r in found} == {
                ("1", "champion", "champion"),
                ("2", "canary", "canary"),
            }
            assert {r["propensity"] for r in found} == {0.5} and {r["fault"] for r in found} == {""}
            assert all(r["latency_ms"] > 0 and r["split"] == "rollout:2" for r in found)
            asked = {**rows, "users": users, "request_ids": ids, "reply": "columns"}
            by_column = client.post("/predict/batch", json=asked).json()["predictions"]
            assert set(by_column) == set(replies[0]) and by_column["variant"] == [r["variant"] for r in replies]
        with_header = client.post(
            "/predict/batch", json={"records": records[:5], "users": users[:5]}, headers={"X-Forge-User": "user3"}
        )
        assert {r["variant"] for r in with_header.json()["predictions"]} == {variant_of("user3")}


def test_overrides_come_before_the_hash_and_have_no_propensity() -> None:
    board = Board({"1": rising, "2": falling})
    one = next(u for u in map(str, range(99)) if variant_of(u) == "champion")
    with api(board, row(overrides={one: "canary"})) as client:
        reply = client.post("/predict", json={"features": {"x": 1.0, "town": "Oslo"}, "user": one}).json()
    assert reply["variant"] == "canary" and logged(board)[0]["propensity"] is None


def test_rows_that_only_the_champion_takes_go_to_it_and_what_nobody_takes_is_named_by_its_place() -> None:
    board = NarrowBoard({"1": rising, "2": falling})
    records = [{"x": float(x), "town": "Oslo"} for x in (50, 150, 60, 250, 399)]
    table = row(segments=((1.0, "canary"),))
    with api(board, table) as client:
        replies = client.post("/predict/batch", json={"records": records}).json()["predictions"]
        assert [r["variant"] for r in replies] == ["canary", "champion", "canary", "champion", "champion"]
        alone = client.post("/predict", json={"features": records[1]}).json()
        assert (alone["variant"], alone["model_version"]) == ("champion", "1")
        refused = client.post("/predict/batch", json={"records": [*records, {"x": 401.0, "town": "Oslo"}]})
        assert refused.status_code == 422 and [e["row"] for e in refused.json()["errors"]] == [5]
        many = client.post("/predict/batch", json={"records": [records[0], records[1]] * 150}).json()["predictions"]
        assert [r["variant"] for r in many] == ["canary", "champion"] * 150
    found = [r for r in logged(board) if r["x"] == 150.0]
    assert {(r["assigned"], r["variant"], r["fault"], r["version"]) for r in found} == {
        ("canary", "champion", "contract", "1")
    }
    assert board.counting.counts[SPLIT_FAULTS, ("m", "canary", "contract")] == 3 + 1 + 150


def test_where_the_variant_fails_the_champion_answers_and_it_is_counted_against_the_variant() -> None:
    def broken(values: list[float]) -> list[float]:
        if 13.0 in values:
            raise RuntimeError("the graph has no such index")
        return falling(values)

    board = Board({"1": rising, "2": broken})
    with api(board, row(segments=((1.0, "canary"),))) as client:
        fine = client.post("/predict", json={"features": {"x": 12.0, "town": "Oslo"}}).json()
        fallen = client.post("/predict", json={"features": {"x": 13.0, "town": "Oslo"}})
    assert fine["variant"] == "canary" and fallen.status_code == 200 and fallen.json()["variant"] == "champion"
    assert fallen.json()["prediction_probability"] == pytest.approx(1 - rising([13.0])[0])
    assert [r["fault"] for r in logged(board)] == ["", "error"]
    assert board.counting.counts[SPLIT_FAULTS, ("m", "canary", "error")] == 1


def test_a_variant_that_cannot_be_loaded_leaves_its_rows_to_the_champion() -> None:
    board = Board({"1": rising})
    with api(board, row(segments=((1.0, "canary"),))) as client:
        reply = client.post("/predict", json={"features": {"x": 1.0, "town": "Oslo"}})
    assert reply.status_code == 200 and reply.json()["model_version"] == "1"
    assert logged(board)[0]["fault"] == "error"


def test_steps_and_the_end_of_a_split_load_nothing_and_lose_nothing_under_load() -> None:
    board = Board({"1": rising, "2": falling})
    shares = [0.99, 0.95, 0.75, 0.5]
    tables: list[Route] = [row(segments=((s, "champion"), (1.0, "canary"))) for s in shares]
    tables += [row(segments=((1.0, "canary"),)), {"champion": "2", "warm": "1"}, {"champion": "1"}]

    async def play() -> list[dict[str, Any]]:
        await board.route({"m": tables[0]})
        ended = asyncio.Event()
        replies: list[dict[str, Any]] = []

        async def ask(first: int) -> None:
            number = first
            while not ended.is_set():
                number += 16
                x = float(number % 400)
                (reply,) = (await board.predict("m", [{"x": x, "town": "Oslo"}], users=[f"user{number}"])).records()
                score = (rising if reply["model_version"] == "1" else falling)([x])[0]
                assert reply["prediction_probability"] == pytest.approx(max(score, 1 - score))
                replies.append(reply)

        callers = [asyncio.ensure_future(ask(n)) for n in range(16)]
        for table in tables[1:]:
            await asyncio.sleep(0.1)
            await board.route({"m": table})
        await asyncio.sleep(0.1)
        ended.set()
        await asyncio.gather(*callers)
        return replies

    replies = asyncio.run(play())
    assert sorted(board.loads) == ["1", "2"]
    assert set(Counter(r["variant"] for r in replies)) == {"champion", "canary"}
    assert board.live["m"].version == "1" and not board.splits and not board.trials


def test_outside_of_a_split_nothing_more_is_logged() -> None:
    board = Board({"1": rising, "2": falling})
    with served(board) as url:
        body = {"features": {"x": 1.0, "town": "Oslo"}, "user": "user1"}
        reply = httpx.post(f"{url}/predict", json=body, headers={"X-Forge-User": "user2"}, trust_env=False).json()
        asked = httpx.post(f"{url}/predict", json=body, headers={"X-Forge-Version": "2"}, trust_env=False).json()
    assert reply["variant"] == "champion" and "experiment" not in reply and asked["variant"] == "asked"
    assert list(board.journal.rows) == [("m", "1", Watch(24.0))]
    assert [len(r) for rows in board.journal.rows.values() for r in rows] == [len(LOG_COLUMNS) + 2]


@pytest.mark.parametrize(
    "body",
    [
        {"features": {"x": 1.0, "town": "Oslo"}, "user": 7},
        {"features": {"x": 1.0, "town": "Oslo"}, "user": ""},
        {"features": {"x": 1.0, "town": "Oslo"}, "user": "u" * 129},
        {"features": {"x": 1.0, "town": "Oslo"}, "who": "user1"},
    ],
)
def test_a_user_that_is_no_short_text_is_told(body: dict[str, Any]) -> None:
    with api(Board({"1": rising, "2": falling})) as client:
        answer = client.post("/predict", json=body)
        many = client.post("/predict/batch", json={"records": [body["features"]], "users": [body.get("user", 1)]})
    assert answer.status_code == many.status_code == 422


def test_a_tensor_request_is_answered_by_one_variant() -> None:
    board = Board({"1": rising, "2": falling})
    inputs = [
        {"name": "x", "datatype": "FP64", "shape": [4], "data": [1.0, 2.0, 3.0, 4.0]},
        {"name": "town", "datatype": "BYTES", "shape": [4], "data": ["Oslo"] * 4},
    ]
    with api(board) as client:
        for user in ("user1", "user2", "user3", "user4"):
            path = "/v2/models/m/infer"
            reply = client.post(path, json={"inputs": inputs}, headers={"X-Forge-User": user}).json()
            assert reply["model_version"] == {"champion": "1", "canary": "2"}[variant_of(user)]
            assert reply["parameters"] == {"variant": variant_of(user), "experiment": "rollout:2"}
