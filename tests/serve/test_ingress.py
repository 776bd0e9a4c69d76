"""The way of a request within a router's HTTP server."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from infra.local.environment import ROOT
from serve_app.ingress import AT_ONCE, Way, answer_here


async def _serve(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve's own handling, as far as it can be told apart here."""
    unwatched = Request(scope).headers.get("x-request-disconnect-disabled")
    await JSONResponse({"by": "Serve", "unwatched": unwatched})(scope, receive, send)


async def _router(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"by": "router", "id": Request(scope).headers["x-request-id"]})(scope, receive, send)


def _run(work: Callable[[httpx.AsyncClient], Awaitable[Any]], way: Way, router: Any = None) -> Any:
    async def main() -> Any:
        if router is not None:
            answer_here(router)
        transport = httpx.ASGITransport(app=way)
        async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
            return await work(client)

    return asyncio.run(main())


def test_a_request_goes_straight_to_the_router_with_an_id_that_its_reply_names() -> None:
    async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.get("/predict"), await client.get("/predict", headers={"X-Request-ID": "mine"})]

    ours, own = _run(work, Way(_serve), _router)
    assert ours.json()["by"] == own.json()["by"] == "router"
    assert len(ours.json()["id"]) == 36 and ours.headers["x-request-id"] == ours.json()["id"]
    assert own.json()["id"] == own.headers["x-request-id"] == "mine"


def test_serve_hears_whether_the_replica_lives_and_gets_all_where_it_counts() -> None:
    async def work(client: httpx.AsyncClient) -> list[dict[str, Any]]:
        return [(await client.get(path)).json() for path in ("/-/healthz", "/predict")]

    assert [told["by"] for told in _run(work, Way(_serve), _router)] == ["Serve", "router"]
    # another event loop, in which no router answers
    assert _run(work, Way(_serve)) == [{"by": "Serve", "unwatched": None}, {"by": "Serve", "unwatched": "?1"}]


def test_more_requests_than_it_works_on_are_turned_away_at_once_and_later_ones_let_in() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.05)
        await Response("done")(scope, receive, send)

    async def work(client: httpx.AsyncClient) -> tuple[list[httpx.Response], httpx.Response]:
        return await asyncio.gather(*(client.get("/predict") for _ in range(5))), await client.get("/predict")

    replies, later = _run(work, Way(_serve, at_once=3), slow)
    assert sorted(reply.status_code for reply in replies) == [200, 200, 200, 503, 503]
    turned_away = next(reply for reply in replies if reply.status_code == 503)
    assert int(turned_away.headers["retry-after"]) > 0 and "3 requests are under way" in turned_away.json()["detail"]
    assert later.status_code == 200


@pytest.mark.parametrize("file", ["serve.yaml", "serve-cluster.yaml"])
def test_both_ways_turn_away_beyond_the_same_number(file: str) -> None:
    applications = yaml.safe_load((ROOT / "deployments" / file).read_text())["applications"]
    (router,) = (d for app in applications if app["name"] == "router" for d in app["deployments"])
    assert router["max_ongoing_requests"] == AT_ONCE


def test_a_router_that_fails_gives_its_place_back() -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("no reply")

    async def work(client: httpx.AsyncClient) -> list[str]:
        told = []
        for _ in range(3):
            try:
                told.append(str((await client.get("/predict")).status_code))
            except RuntimeError as error:
                told.append(str(error))
        return told

    assert _run(work, Way(_serve, at_once=1), failing) == ["no reply"] * 3
