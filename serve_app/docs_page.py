"""The API's page for people: Swagger UI from files on this machine; the browser asks nobody else."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from serve_app.protocol import json_reply
from serve_app.v2_routes import Admit, Counted

_FILES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript", "favicon-32x32.png": "image/png"}
# What the browser may load: our own files only. Swagger UI writes styles into its elements.
_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>MLOps-Forge API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# Where a key is needed even to read the document, the page asks for it and keeps it for the calls.
_START = """const fetched = (key) => fetch("openapi.json", key ? { headers: { "X-API-Key": key } } : {});

async function start() {
  let key = null;
  let answer = await fetched(key);
  if (answer.status === 401 || answer.status === 403) {
    key = prompt("API key");
    answer = await fetched(key);
  }
  const spec = await answer.json();
  if (!answer.ok) {
    document.getElementById("page").textContent = spec.detail;
    return;
  }
  const ui = SwaggerUIBundle({
    spec,
    dom_id: "#page",
    validatorUrl: null,
    tryItOutEnabled: true,
    defaultModelsExpandDepth: 0,
    docExpansion: "list",
    onComplete: () => { if (key) ui.preauthorizeApiKey("key", key); },
  });
}

start();
"""


def docs_routes(
    document: Callable[[], dict[str, Any]],
    admit: Admit,
    *,
    counted: Counted,
) -> list[Route]:
    """Return `/docs`, the files it needs, and `/openapi.json`.

    Parameters
    ----------
    document : callable
        Returns the OpenAPI document as it is now.
    admit : callable
        Called with the request and the scope "predict" before the document is given; the page itself is open.
    counted : callable
        Takes a path and its handler, and returns the handler that is to run.
    """

    async def page(request: Request) -> Response:
        return Response(_PAGE, media_type="text/html", headers={"Content-Security-Policy": _POLICY})

    async def start(request: Request) -> Response:
        return Response(_START, media_type="text/javascript")

    async def openapi(request: Request) -> Response:
        admit(request, "predict")
        return json_reply(document())

    def file(name: str, kind: str) -> Route:
        async def send(request: Request) -> Response:
            return FileResponse(_folder() / name, media_type=kind, headers={"Cache-Control": "max-age=3600"})

        return Route(f"/docs/{name}", counted(f"/docs/{name}", send))

    return [
        Route("/docs", counted("/docs", page)),
        Route("/openapi.json", counted("/openapi.json", openapi)),
        Route("/docs/start.js", counted("/docs/start.js", start)),
        *(file(name, kind) for name, kind in _FILES.items()),
    ]


def _folder() -> Path:
    """Return where the package keeps Swagger UI; importing it would import Flask."""
    spec = find_spec("flask_swagger_ui")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package flask-swagger-ui is not installed; install the project's requirements")
    return Path(spec.origin).parent / "dist"
