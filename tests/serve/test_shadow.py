"""Copies of the traffic for a version whose answers nobody sees, over real HTTP: what is copied, dropped and logged."""

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from forge_core.deployment.routing_table import Route
from forge_core.experiments.assignment import unit_point
from forge_core.monitoring.metric_names import SHADOW_DROPPED, SHADOWED
from forge_core.monitoring.shadow_log import SHADOW_COLUMNS, ShadowLog
from forge_core.storage import Storage
from serve_app.columns import packed
from serve_app.journal import Watch
from serve_app.profiler import Profiler
from tests.serve.boards import Board, rising, served
from tests.serve.test_splits import NarrowBoard, falling

pytestmark = pytest.mark.slow

ROW = {"x": 7.0, "town": "Oslo"}


def table(share: float = 1.0) -> Route:
    return {"champion": "1", "candidate": "2", "shadow": {"version": "2", "share": share}}


def shadowed(board: Board) -> list[dict[str, Any]]:
    """Return the shadow's rows that would be shipped."""
    rows = board.journal.rows.get(("m", "2", Watch(1.0, (), "shadow")), [])
    return [dict(zip(SHADOW_COLUMNS, row, strict=True)) for row in rows]


def post(board: Board, bodies: list[Any], share: float = 1.0, path: str = "/predict") -> list[Any]:
    """Return the replies to requests, once the shadow has answered too."""
    with served(board) as url, httpx.Client(base_url=url, trust_env=False) as client:
        asyncio.run(board.route({"m": table(share)}))
        replies = [client.post(path, json=body, headers=headers).json() for body, headers in bodies]
        wait(lambda: not any(s.waiting or (s.task and not s.task.done()) for s in board.shadows.of.values()))
    return replies


def wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_champion_answers_and_the_share_of_the_hash_is_copied() -> None:
    board = Board({"1": rising, "2": falling})
    ids = [f"r{n}" for n in range(60)]
    replies = post(board, [({"features": ROW}, {"X-Request-ID": i}) for i in ids], share=0.3)
    assert {(r["model_version"], r["variant"]) for r in replies} == {("1", "champion")}
    assert all("experiment" not in r for r in replies)
    rows = shadowed(board)
    assert [r["request_id"] for r in rows] == [i for i in ids if unit_point("shadow:2", i) < 0.3]
    for row in rows:
        assert (row["version"], row["champion_version"], row["fault"]) == ("2", "1", "")
        assert row["champion_probability"] == rising([7.0])[0] and row["probability"] == falling([7.0])[0]
        assert (row["champion_prediction"], row["prediction"]) == (0, 1)
        assert row["latency_ms"] > 0 and row["champion_latency_ms"] > 0
    assert board.counting.counts[SHADOWED, ("m", "2")] == len(rows)
    assert len(board.journal.rows["m", "1", Watch(24.0)]) == 60


@pytest.mark.parametrize("form", ["records", "columns"])
def test_rows_of_a_batch_are_copied_each_with_its_own_answer(form: str) -> None:
    board = Board({"1": rising, "2": falling})
    xs = [float(n) for n in range(300)]
    body = {"records": [{"x": x, "town": "Oslo"} for x in xs]} if form == "records" else {"columns": {
        "x": xs, "town": ["Oslo"] * 300}}  # fmt: skip
    post(board, [({**body, "request_ids": [str(n) for n in range(300)]}, {})], path="/predict/batch")
    rows = {int(r["request_id"]): r for r in shadowed(board)}
    assert sorted(rows) == list(range(300))
    for n, row in rows.items():
        assert (row["champion_probability"], row["probability"]) == (rising([n])[0], falling([n])[0])


def test_a_shadow_that_fails_or_refuses_a_row_costs_the_caller_nothing_and_is_told() -> None:
    def broken(values: list[float]) -> list[float]:
        if 13.0 in values:
            raise RuntimeError("no such index")
        return falling(values)

    board = NarrowBoard({"1": rising, "2": broken})
    bodies = [({"features": {"x": x, "town": "Oslo"}}, {"X-Request-ID": str(x)}) for x in (7.0, 13.0, 200.0)]
    assert [r["model_version"] for r in post(board, bodies)] == ["1"] * 3
    found = {r["request_id"]: r for r in shadowed(board)}
    assert {i: r["fault"] for i, r in found.items()} == {"7.0": "", "13.0": "error", "200.0": "contract"}
    assert found["13.0"]["prediction"] is None and found["13.0"]["champion_prediction"] == 0


def test_one_row_that_fails_a_whole_batch_is_found_and_the_others_are_answered() -> None:
    def broken(values: list[float]) -> list[float]:
        if 13.0 in values:
            raise RuntimeError("no such index")
        return falling(values)

    board = Board({"1": rising, "2": broken})
    records = [{"x": float(x), "town": "Oslo"} for x in range(60)]
    post(board, [({"records": records, "request_ids": [str(n) for n in range(60)]}, {})], path="/predict/batch")
    found = {r["request_id"]: (r["fault"], r["probability"]) for r in shadowed(board)}
    assert found.pop("13") == ("error", None)
    assert found == {str(n): ("", falling([float(n)])[0]) for n in range(60) if n != 13}


def test_a_shadow_that_hangs_holds_no_reply_and_what_does_not_fit_is_dropped_and_counted() -> None:
    board = Board({"1": rising, "2": falling})
    board.shadows.max_rows = 8

    async def play() -> float:
        await board.route({"m": table()})
        released = asyncio.Event()
        lane = board.held["m"]["2"].lane
        ask = lane.ask

        async def held_up(rows: Any) -> Any:
            await released.wait()
            return await ask(rows)

        lane.ask = held_up  # type: ignore[method-assign]
        started = time.perf_counter()
        await board.predict("m", [ROW])
        await asyncio.sleep(0)  # the first copy is out, and hangs
        for _ in range(20):
            await board.predict("m", [ROW])
        took = time.perf_counter() - started
        assert len(board.shadows.of["m"].waiting) == 8
        await board.predict("m", [ROW] * 30)
        assert board.counting.counts[SHADOW_DROPPED, ("m", "2", "queue")] == 12 + 30
        released.set()
        await board.shadows.of["m"].task
        return took

    assert asyncio.run(play()) < 2.0
    assert len(shadowed(board)) == 9
    assert len(board.journal.rows["m", "1", Watch(24.0)]) == 21 and len(board.journal.tables[0][1]) == 30


def test_a_shadow_that_ends_drops_what_waits_and_another_share_loads_nothing() -> None:
    board = Board({"1": rising, "2": falling})

    async def play() -> None:
        await board.route({"m": table(1.0)})
        shadow = board.shadows.of["m"]
        await board.route({"m": table(0.5)})
        assert board.shadows.of["m"] is shadow and shadow.share == 0.5 and sorted(board.loads) == ["1", "2"]
        await board.predict("m", [ROW] * 30)
        n_waiting = len(shadow.waiting)
        await board.route({"m": {"champion": "1"}})
        assert n_waiting and board.counting.counts[SHADOW_DROPPED, ("m", "2", "queue")] == n_waiting
        await board.predict("m", [ROW])
        assert not board.shadows.of

    asyncio.run(play())


def test_what_a_shadow_answered_is_read_back(tmp_path: Path) -> None:
    board = Board({"1": rising, "2": falling})
    post(board, [({"features": ROW}, {"X-Request-ID": f"r{n}"}) for n in range(5)])
    rows = board.journal.rows["m", "2", Watch(1.0, (), "shadow")]

    async def write() -> None:
        profiler = Profiler(str(tmp_path), flush_seconds=0.1)
        await asyncio.gather(
            *(profiler.log("m", "2", Watch(1.0, (), "shadow"), packed(part)) for part in (rows, rows[:2]))
        )
        await profiler.stop()

    asyncio.run(write())
    log = ShadowLog(Storage(str(tmp_path)), "m")
    found = log.read("2")
    assert found["request_id"].tolist() == [f"r{n}" for n in range(5)]
    assert found["prediction"].tolist() == ["1"] * 5 and found["champion_prediction"].tolist() == ["0"] * 5
    assert len(log.read("3")) == 0 and list(log.read("3").columns) == list(SHADOW_COLUMNS)
    day = found["event_time"][0].to_pydatetime()
    assert log.maintain(day) == log.maintain(day, retention_days=1) == 0 and len(log.read("2")) == 5
    half = log.read("2", since=found["event_time"][0], received_since=found["received_at"][2])
    assert half["request_id"].tolist() == ["r2", "r3", "r4"]
    assert log.maintain(day + timedelta(days=9), retention_days=7) == 1 and len(log.read("2")) == 0
    assert not Storage(str(tmp_path)).list("windows") and not Storage(str(tmp_path)).list("predictions")
