"""`MODEL_PATH=model.skops python -m serve_app`: one model file on Ray Serve, without registry, ledger or flows.

The whole product, with registry and watching, is started by `make up`.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from forge_core.errors import ConfigurationError, ForgeError
from forge_core.settings import Settings, get_settings


def main() -> int:
    """Serve until told to stop; return the exit code."""
    settings = get_settings()
    try:
        _serve(settings)
    except ForgeError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    return 0


def _serve(settings: Settings) -> None:
    if not settings.model_path:
        raise ConfigurationError(
            "expected the file of a model in MODEL_PATH, found none; set it, or start the whole stack with `make up`"
        )
    from serve_app.model_file import load_model_file

    if not (settings.open_file_without_key or settings.api_key):
        raise ConfigurationError(
            f"expected FORGE_API_KEY, because {settings.host} is reached from other machines, found none; "
            "set it and let callers send it as `Authorization: Bearer …`"
        )
    if not (settings.open_without_key or settings.api_key):
        sys.stderr.write(
            f"whoever reaches {settings.host}:{settings.api_port} may ask for predictions (FORGE_KEYLESS=file); "
            "publish the port on 127.0.0.1, or set FORGE_API_KEY\n"
        )
    live = load_model_file(settings.model_path, allow_pickle=settings.allow_pickle)
    # A Ray of its own, whatever stack this terminal belongs to: there `router` is another application, and one
    # HAProxy a machine.
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_SERVE_ENABLE_HA_PROXY="0")
    import ray
    from ray import serve

    from serve_app.app import FileArguments, model_file

    ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=1)
    serve.start(proxy_location="HeadOnly", http_options={"host": settings.host, "port": settings.api_port})
    arguments = FileArguments(
        path=str(Path(settings.model_path).resolve()), allow_pickle=settings.allow_pickle, api_key=settings.api_key
    )
    serve.run(model_file(arguments), name="router", route_prefix="/")
    sys.stderr.write(f"{live.model} version {live.version} answers at {settings.api_url}/predict; Ctrl-C stops it\n")
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # only now: Ray sets handlers of its own while it starts
        signal.signal(number, lambda *_: told.set())
    told.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
