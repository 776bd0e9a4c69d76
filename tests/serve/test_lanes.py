"""The micro-batch lane: order, isolation, back-pressure."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import ActorUnavailableError

from forge_core.errors import ServiceUnavailable
from serve_app.lanes import Lane, Send
from serve_app.live_version import outliving_replicas


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0, 0.003)), min_size=1, max_size=40), st.integers(1, 16))
def test_answers_never_cross_between_callers(calls: list[tuple[int, float]], max_batch: int) -> None:
    sizes = []

    async def send(rows: list[Any]) -> list[Any]:
        sizes.append(len(rows))
        await asyncio.sleep(0.0005 * (len(rows) % 3))
        return [("answer", row) for row in rows]

    async def caller(lane: Lane, name: int, n_rows: int, delay: float) -> None:
        await asyncio.sleep(delay)
        rows = [(name, i) for i in range(n_rows)]
        assert await lane.ask(rows) == [("answer", row) for row in rows]

    async def main() -> None:
        lane = Lane(send, max_batch=max_batch, max_rows=max_batch)
        await asyncio.gather(*(caller(lane, i, n, d) for i, (n, d) in enumerate(calls)))

    asyncio.run(main())
    assert max(sizes) <= max_batch and sum(sizes) == sum(n for n, _ in calls)


def _slow(seconds: float) -> tuple[Send, list[int]]:
    """Return a variant that takes its time, and the sizes of the batches that it got."""
    sizes: list[int] = []

    async def send(rows: Any) -> Any:
        sizes.append(len(rows))
        await asyncio.sleep(seconds)
        return rows

    return send, sizes


def test_rows_gather_while_the_variant_is_busy_and_leave_at_once_when_it_is_not() -> None:
    send, sizes = _slow(0.02)

    async def main() -> None:
        lane = Lane(send, in_flight=1)
        first = asyncio.ensure_future(lane.ask([0]))
        await asyncio.sleep(0.005)
        assert sizes == [1]
        await asyncio.gather(first, *(lane.ask([i]) for i in range(49)))

    asyncio.run(main())
    assert sizes == [1, 49]


def test_calls_that_arrive_together_are_shared_out_over_the_batches_that_may_be_out() -> None:
    send, sizes = _slow(0.02)

    async def main() -> None:
        lane = Lane(send, in_flight=2)
        await asyncio.gather(*(lane.ask([i]) for i in range(64)))

    asyncio.run(main())
    assert sizes == [32, 32]


def test_a_batch_follows_another_once_it_is_as_large_and_goes_at_the_latest_when_that_returns() -> None:
    send, sizes = _slow(0.05)

    async def main() -> None:
        lane = Lane(send, in_flight=3)
        calls = [asyncio.ensure_future(lane.ask([i])) for i in range(12)]
        await asyncio.sleep(0.01)
        assert sizes == [4, 4, 4]
        await asyncio.gather(*calls)
        calls = [asyncio.ensure_future(lane.ask([i])) for i in range(1)]
        await asyncio.sleep(0.01)
        calls += [asyncio.ensure_future(lane.ask(["a", "b", "c"]))]  # a call counts as one, however many rows it has
        await asyncio.sleep(0.01)
        assert sizes[3:] == [1, 3]
        calls += [asyncio.ensure_future(lane.ask([i])) for i in range(8)]
        await asyncio.sleep(0.01)
        assert sizes[5:] == [4]  # its share of ten calls; four are left, and wait
        await asyncio.gather(*calls)
        assert sum(sizes[6:]) == 4

    asyncio.run(main())


def test_a_failed_batch_fails_its_own_callers_only() -> None:
    async def send(rows: list[Any]) -> list[Any]:
        await asyncio.sleep(0)
        if "bad" in rows:
            raise ValueError("variant died")
        return rows

    async def main() -> list[Any]:
        lane = Lane(send, max_batch=1)
        return await asyncio.gather(lane.ask(["good"]), lane.ask(["bad"]), lane.ask(["fine"]), return_exceptions=True)

    good, bad, fine = asyncio.run(main())
    assert good == ["good"] and isinstance(bad, ValueError) and fine == ["fine"]


def test_too_many_waiting_rows_are_turned_away_not_hung() -> None:
    async def send(rows: list[Any]) -> list[Any]:
        await asyncio.sleep(0.05)
        return rows

    async def main() -> None:
        lane = Lane(send, max_batch=1, in_flight=1, max_waiting=3)
        waiting = [asyncio.ensure_future(lane.ask([0]))]
        await asyncio.sleep(0.01)
        waiting += [asyncio.ensure_future(lane.ask([i])) for i in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ServiceUnavailable, match="retry"):
            await lane.ask([1, 2])
        await asyncio.gather(*waiting)

    asyncio.run(main())


def test_a_batch_whose_replica_died_is_scored_by_another_and_only_so_often() -> None:
    deaths: list[list[Any]] = []

    async def send(rows: list[Any]) -> list[Any]:
        if len(deaths) < n_deaths:
            deaths.append(rows)
            raise ActorUnavailableError("Actor is unavailable.", b"1" * 16)
        return [row * 10 for row in rows]

    n_deaths = 2
    assert asyncio.run(outliving_replicas(send)([1, 2])) == [10, 20] and deaths == [[1, 2], [1, 2]]
    deaths.clear()
    n_deaths = 3
    with pytest.raises(ServiceUnavailable, match="3 replicas died"):
        asyncio.run(outliving_replicas(send)([1, 2]))
