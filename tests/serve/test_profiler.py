"""The profiler on a real folder: what is written, what is told, and what is lost where the disk says no."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from forge_core.errors import ServiceUnavailable
from forge_core.monitoring.prediction_log import PredictionLog
from forge_core.monitoring.profiles import describe_profile
from forge_core.monitoring.windows import ReferenceProfile, Window, WindowStore
from forge_core.storage import Storage
from serve_app.columns import Packed, Row, Same, Table, packed
from serve_app.counting import Counting
from serve_app.journal import Journal, Watch
from serve_app.profiler import Profiler

pytestmark = pytest.mark.slow

DAY = datetime(2024, 1, 1, tzinfo=UTC)
FEATURES = ["age", "version"]  # one is named like a column of the log
WATCH = Watch(24.0)
REFERENCE = ReferenceProfile.build(
    pd.DataFrame({"age": np.arange(500.0), "version": ["a", "b"] * 250}),
    ["version"],
    ["age"],
    outputs=pd.DataFrame({"probability": np.linspace(0, 1, 300)}),
)


class Known(Profiler):
    """A profiler that has its reference in hand, and no timer but a slow one."""

    def __init__(self, folder: Path, **options: float) -> None:
        super().__init__(str(folder), **{"flush_seconds": 0.2, **options})  # type: ignore[arg-type]

    def _reference(self, model: str, version: str) -> tuple[ReferenceProfile, list[str]]:
        return REFERENCE, FEATURES


def rows(n: int, first: int = 0, at: datetime = DAY) -> Packed:
    return packed(rows_of(n, first, at))


def rows_of(n: int, first: int = 0, at: datetime = DAY) -> list[Row]:
    return [
        (f"r{i}", at + timedelta(minutes=i), DAY, "7", "champion", "ann", "x", 0.5, float(i), "a")
        for i in range(first, first + n)
    ]


def test_rows_of_one_window_are_one_part_however_often_they_are_written(tmp_path: Path) -> None:
    async def play() -> None:
        profiler = Known(tmp_path)
        for turn in range(3):
            await profiler.log("m", "7", WATCH, rows(10, 10 * turn))
        assert (await profiler.counts()) == {"received": 30, "written": 30, "dropped": 0, "waiting": 0}
        await profiler.stop()

    asyncio.run(play())
    store = WindowStore(Storage(str(tmp_path)), "m")
    assert store.windows("7") == [Window("7", DAY, 30)]
    assert len(list((tmp_path / "windows/m/7/20240101T000000Z").iterdir())) == 2
    assert store.counts("7", REFERENCE.grid)["age"].n_rows == 30
    assert describe_profile(store.profile("7")).loc["age", "n"] == 30
    logged = PredictionLog(Storage(str(tmp_path)), "m").read()
    assert logged["version"].unique().tolist() == ["7"] and logged["owner"].unique().tolist() == ["ann"]
    assert logged["feature.version"].unique().tolist() == ["a"] and logged["age"].tolist() == list(range(30))


def test_rows_of_batches_and_single_ones_are_written_together(tmp_path: Path) -> None:
    async def play() -> None:
        profiler = Known(tmp_path)
        facts = [Same(fact, 100) for fact in (DAY, DAY, "7", "champion", "ann")]
        towns = ["a", None] * 50
        batch = Table.of([[f"b{i}" for i in range(100)], *facts, ["x"] * 100, [0.5] * 100, np.arange(100.0), towns])
        await asyncio.gather(*(profiler.log("m", "7", WATCH, part) for part in (rows(10), packed(batch), rows(80, 10))))
        await profiler.stop()

    asyncio.run(play())
    logged = PredictionLog(Storage(str(tmp_path)), "m").read()
    of_batch = logged[logged["request_id"].str.startswith("b")].sort_values("age")
    assert len(logged) == 190 and set(logged["owner"]) == {"ann"} and set(logged["prediction"]) == {"x"}
    assert (
        of_batch["age"].tolist() == list(range(100))
        and of_batch["feature.version"].fillna("").tolist() == ["a", ""] * 50
    )
    counts = WindowStore(Storage(str(tmp_path)), "m").counts("7", REFERENCE.grid)
    assert counts["version"].cells.tolist() == [140, 0] and counts["version"].missing == 50


def test_two_profilers_of_one_window_add_up(tmp_path: Path) -> None:
    async def play() -> None:
        one, two = Known(tmp_path), Known(tmp_path)
        await asyncio.gather(one.log("m", "7", WATCH, rows(10)), two.log("m", "7", WATCH, rows(5, 10)))
        await asyncio.gather(one.stop(), two.stop())

    asyncio.run(play())
    assert WindowStore(Storage(str(tmp_path)), "m").windows("7") == [Window("7", DAY, 15)]


def test_who_sent_rows_hears_of_them_when_they_are_written_or_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        profiler = Known(tmp_path, flush_seconds=0.4)
        sent = asyncio.ensure_future(profiler.log("m", "7", WATCH, rows(10)))
        await asyncio.sleep(0.05)
        assert not sent.done()
        await sent
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
            with pytest.raises(ServiceUnavailable, match="no space left"):
                await profiler.log("m", "7", WATCH, rows(5, 10))
        await profiler.log("m", "7", WATCH, rows(2, 20))
        assert (await profiler.counts())["dropped"] == 5
        await profiler.stop()

    asyncio.run(play())
    assert WindowStore(Storage(str(tmp_path)), "m").windows("7") == [Window("7", DAY, 12)]


def test_too_many_waiting_rows_are_refused_and_one_that_gives_up_takes_nobody_along(tmp_path: Path) -> None:
    async def play() -> None:
        profiler = Known(tmp_path, max_waiting=12)
        first, second = (asyncio.ensure_future(profiler.log("m", "7", WATCH, rows(5, 10 * i))) for i in range(2))
        await asyncio.sleep(0)
        with pytest.raises(ServiceUnavailable, match="at most 12 rows"):
            await profiler.log("m", "7", WATCH, rows(5, 50))
        first.cancel()
        await second
        assert (await profiler.counts())["written"] == 10
        await profiler.stop()

    asyncio.run(play())


def test_redacted_features_are_counted_and_never_logged(tmp_path: Path) -> None:
    async def play() -> None:
        profiler = Known(tmp_path)
        await profiler.log("m", "7", Watch(24.0, ("age",)), rows(10))
        await profiler.stop()

    asyncio.run(play())
    assert "age" not in PredictionLog(Storage(str(tmp_path)), "m").read().columns
    assert WindowStore(Storage(str(tmp_path)), "m").counts("7", REFERENCE.grid)["age"].n_rows == 10


def test_late_rows_and_a_clock_that_goes_backwards_land_in_their_own_windows(tmp_path: Path) -> None:
    async def play() -> None:
        profiler = Known(tmp_path)
        for day in (3, 1, 2, 1):
            await profiler.log("m", "7", WATCH, rows(5, 10 * day, DAY + timedelta(days=day)))
        await profiler.stop()

    asyncio.run(play())
    found = WindowStore(Storage(str(tmp_path)), "m").windows("7")
    assert [(w.start - DAY, w.n_rows) for w in found] == [(timedelta(days=d), n) for d, n in ((1, 10), (2, 5), (3, 5))]


def test_who_asks_for_it_has_what_came_before_written_at_once_whatever_comes_after(tmp_path: Path) -> None:
    async def play() -> None:
        profiler, journal = Known(tmp_path, flush_seconds=600), Journal(Counting())
        journal._log = SimpleNamespace(remote=profiler.log)
        journal.add("m", "7", WATCH, rows_of(10))

        async def go_on() -> None:
            while True:
                journal.add("m", "7", WATCH, rows_of(1))
                await asyncio.sleep(0.01)

        others = asyncio.ensure_future(go_on())
        async with asyncio.timeout(30):
            await journal.settle(profiler.flush)
        assert (await profiler.counts())["written"] >= 10
        others.cancel()
        async with asyncio.timeout(30):
            await journal.settle(profiler.flush)
        counts = await profiler.counts()
        assert journal.waiting == journal.dropped == 0 and counts["written"] == counts["received"] > 10
        await profiler.stop()

    asyncio.run(play())
