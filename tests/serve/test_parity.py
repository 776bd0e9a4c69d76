"""The router's table with a candidate, and the replay through real HTTP; the variants' scores are given in place."""

import asyncio
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from forge_core.data.contracts import Contract
from forge_core.deployment.parity import check_parity
from forge_core.deployment.replay_rows import ReplayRows
from forge_core.deployment.served_path import ServedPath
from forge_core.errors import ModelError, ModelNotFound, ServiceUnavailable
from serve_app.journal import Watch
from tests.serve.boards import CONTRACT, Board, Scores, rising, served

pytestmark = pytest.mark.slow

ROWS = pd.DataFrame({"x": np.arange(300.0), "town": ["Oslo", "Bergen", "Bodø"] * 100})


class Pipeline:
    """What `rising` is served from."""

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray:
        second = np.array(rising(rows["x"].tolist()))
        return np.column_stack([1 - second, second])

    def predict(self, rows: pd.DataFrame) -> np.ndarray:
        return self.predict_proba(rows).argmax(axis=1)


@dataclass
class Folder:
    """The parts of a version that a comparison reads."""

    pipeline: Pipeline
    contract: Contract = CONTRACT
    task: str = "classification"
    classes: tuple[int, ...] = (0, 1)


ROW = {"x": 1.0, "town": "Oslo"}


def test_a_candidate_is_held_without_traffic_and_its_promotion_loads_nothing() -> None:
    async def play() -> None:
        board = Board({"1": rising, "2": rising})
        await board.route({"m": {"champion": "1"}})
        await board.route({"m": {"champion": "1", "candidate": "2"}})
        assert (await board.predict("m", [ROW])).records()[0]["model_version"] == "1"
        assert (await board.predict("m", [ROW], version="2")).records()[0]["model_version"] == "2"
        assert board.health()["models"] == {"m": "1"} and board.health()["candidates"] == {"m": "2"}
        held = board.held["m"]["2"]
        await board.route({"m": {"champion": "2"}})
        assert board.live["m"] is held and board.loads == ["1", "2"]
        with pytest.raises(ModelNotFound, match=r"version '1' of 'm' is not held here; held: 2 \(champion\)"):
            board.version_of("m", "1")

    asyncio.run(play())


def test_a_first_candidate_leaves_the_model_without_a_live_version() -> None:
    async def play() -> None:
        board = Board({"1": rising})
        await board.route({"m": {"candidate": "1"}})
        with pytest.raises(ServiceUnavailable, match="no version of 'm' is live yet"):
            board.version_of(None)
        assert board.version_of(None, "1").version == "1"

    asyncio.run(play())


def test_a_candidate_that_cannot_be_loaded_leaves_the_champion_alone() -> None:
    async def play() -> None:
        board = Board({"1": rising})
        await board.route({"m": {"champion": "1"}})
        await board.route({"m": {"champion": "1", "candidate": "9"}})
        assert board.version_of("m").version == "1"
        with pytest.raises(ModelNotFound, match="'9'"):
            board.version_of("m", "9")

    asyncio.run(play())


def test_only_rows_of_the_live_path_are_journalled() -> None:
    async def play() -> None:
        board = Board({"1": rising, "2": rising})
        await board.route({"m": {"champion": "1", "candidate": "2"}})
        for version in (None, "1", "2"):
            await board.predict("m", [ROW, ROW], version=version)
        assert board.journal.waiting == 2 and [key for key, _ in board.journal.tables] == [("m", "1", Watch(24.0))]

    asyncio.run(play())


def replay(candidate: Scores, rows: pd.DataFrame = ROWS) -> Any:
    with served(Board({"1": rising, "2": candidate})) as url, ServedPath(url, "m", "2", patience=1.0) as path:
        replayed = ReplayRows(rows, rows.head(0), "test rows")
        return check_parity(Folder(Pipeline()), replayed, path, tolerance=1e-4)  # type: ignore[arg-type]


def test_equal_answers_pass_with_every_row_in_its_place() -> None:
    report = replay(rising)
    assert report.passed and (report.n_rows, report.n_single, report.n_wrong) == (300, 8, 0)
    assert report.largest_difference < 1e-12 and report.label_agreement == 1.0


def test_two_swapped_answers_in_a_micro_batch_are_found() -> None:
    def swapped(values: list[float]) -> list[float]:
        scores = rising(values)
        return [*scores[1::-1], *scores[2:]] if len(scores) > 1 else scores

    report = replay(swapped)
    assert not report.passed and report.n_wrong >= 2
    assert report.n_wrong < 40 and report.worst[0]["difference"] > 1e-4


def test_one_row_that_differs_is_named_with_both_answers() -> None:
    report = replay(lambda values: [s + 0.2 * (v == 123.0) for v, s in zip(values, rising(values), strict=True)])
    assert {fault["row"] for fault in report.worst} == {123}
    assert "row 123, x=123.0 town='Oslo': served 0 (0.594" in report.told()


def test_a_row_that_only_the_served_path_refuses_is_a_difference() -> None:
    report = replay(rising, pd.concat([ROWS.head(20), ROWS.tail(1).assign(x=401.0)], ignore_index=True))
    assert report.n_refused == report.n_wrong >= 1 and report.worst[0]["row"] == 20
    assert "expected at most 400, found 401" in report.told()


def test_a_version_that_fails_or_is_not_held_is_told_and_no_server_is_an_outage() -> None:
    def broken(values: list[float]) -> list[float]:
        raise RuntimeError("the graph has no such input")

    with pytest.raises(ModelError, match="version 2 of 'm' does not answer: status 500"):
        replay(broken)
    with served(Board({"1": rising})) as url, ServedPath(url, "m", "2", patience=0.3) as path:
        with pytest.raises(ModelError, match=r"status 404, version '2' of 'm' is not held here; held: 1 \(champion\)"):
            path.ask_one(ROW, "a")
        answer = httpx.get(f"{url}/models/m", headers={"X-Forge-Version": "2"}, trust_env=False)
        assert answer.status_code == 404 and answer.json()["held"] == ["1"]
    with (
        ServedPath("http://127.0.0.1:1", "m", "2", patience=0.0) as path,
        pytest.raises(ServiceUnavailable, match="make up"),
    ):
        path.ask([ROW], ["a"])
