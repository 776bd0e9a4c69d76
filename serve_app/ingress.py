"""The way of a request within a router's HTTP server: straight to the router, or by what Serve does around each one.

Ray Serve asks for it when a router starts (`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`).
"""

import asyncio

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forge_core.errors import ServiceUnavailable
from serve_app.protocol import headers_of, problem_of
from serve_app.request_ids import new_id

AT_ONCE = 2000
_UNWATCHED = (b"x-request-disconnect-disabled", b"?1")
_ID = b"x-request-id"

_routers: dict[asyncio.AbstractEventLoop, ASGIApp] = {}


def answer_here(router: ASGIApp) -> None:
    """Give requests that arrive in this event loop straight to a router from now on.

    What Serve does around each of them (metadata, contexts, counts) takes as long as all that we do with a row. It is
    needed where Serve counts requests to choose the number of routers, and nowhere else.
    """
    _routers[asyncio.get_running_loop()] = router


class Way:
    """Gives each request an id, which its reply names, and passes it to the router of this loop, or on to Serve.

    Serve is told not to watch whether a caller leaves: the two tasks for that cost more than most rows do. A row whose
    caller has left is answered into the void, and logged like any other.

    Parameters
    ----------
    app : ASGI application
        Serve's.
    at_once : int
        Requests that the router works on at most; more are turned away.
    """

    def __init__(self, app: ASGIApp, at_once: int = AT_ONCE) -> None:
        self.app, self.at_once, self._n_under_way = app, at_once, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        router = _routers.get(asyncio.get_running_loop())
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # Serve's own: is this replica alive?
            await self.app(scope, receive, send)
        elif router is None:
            scope["headers"] = [*scope["headers"], _UNWATCHED]
            await self.app(scope, receive, send)
        else:
            await self._answer(router, scope, receive, send)

    async def _answer(self, router: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        headers = headers_of(scope)
        if _ID not in headers:
            headers[_ID] = new_id().encode()
            scope["headers"] = [*scope["headers"], (_ID, headers[_ID])]
        request_id = headers[_ID]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((_ID, request_id))
            await send(message)

        if self._n_under_way >= self.at_once:
            error = ServiceUnavailable(f"{self._n_under_way} requests are under way already; retry in a few seconds")
            await problem_of(error)(scope, receive, send_with_id)
            return
        self._n_under_way += 1
        try:
            await router(scope, receive, send_with_id)
        finally:
            self._n_under_way -= 1


def middlewares() -> list[Middleware]:
    """Return what Serve puts around its routers' servers."""
    return [Middleware(Way)]
