"""What stands between HAProxy and Serve's own handling of a request.

Ray Serve asks for it when a router starts (`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`).
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

_UNWATCHED = (b"x-request-disconnect-disabled", b"?1")


class AnswersWhoeverLeft:
    """Tells Serve not to watch whether a caller leaves: the two tasks for that cost more than most rows do.

    A row whose caller has left is answered into the void, and logged like any other.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http":
            scope["headers"] = [*scope["headers"], _UNWATCHED]
        await self.app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Return what Serve puts around its routers' servers."""
    return [Middleware(AnswersWhoeverLeft)]
