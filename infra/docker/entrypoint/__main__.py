"""`python -m infra.docker.entrypoint serve|worker|train|health …`: what a container of our image does."""

import logging
import sys
from collections.abc import Callable, Sequence

from forge_core.errors import ForgeError
from forge_core.settings import Settings, get_settings

_USAGE = """usage: python -m infra.docker.entrypoint COMMAND [OPTIONS]

  serve [options of `ray start`]   with MODEL_PATH one model file; with RAY_ADDRESS a node of that Ray cluster; else a
                                   Ray head with Serve as the ledger says it should be
  worker [--register]              a Prefect worker that runs the flows; --register tells the Prefect server of them
  train [options]                  distributed training (python -m forge_core.training.distributed_trainer)
  prepare --databases NAME… --buckets NAME…
                                   make what is not there yet
  health serve|node|worker         exit code 0 when that is well
"""


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; expected errors are a sentence on stderr, not a stack trace."""
    command, options = (arguments[0], tuple(arguments[1:])) if arguments else ("", ())
    if command not in _COMMANDS:
        sys.stderr.write(_USAGE)
        return 0 if command in ("-h", "--help") else 2
    settings = get_settings()
    logging.basicConfig(stream=sys.stdout, level=settings.log_level, format="%(asctime)s %(levelname)s %(message)s")
    try:
        return _COMMANDS[command](settings, options)
    except ForgeError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1


def _serve(settings: Settings, options: Sequence[str]) -> int:
    from infra.docker.entrypoint.serve import serve

    return serve(settings, options)


def _worker(settings: Settings, options: Sequence[str]) -> int:
    from infra.docker.entrypoint.worker import worker

    return worker(settings, options)


def _train(settings: Settings, options: Sequence[str]) -> int:
    from infra.docker.entrypoint.train import train

    return train(settings, options)


def _prepare(settings: Settings, options: Sequence[str]) -> int:
    from infra.docker.entrypoint.prepare import prepare

    return prepare(settings, options)


def _health(settings: Settings, options: Sequence[str]) -> int:
    from infra.docker.entrypoint.health import health

    return health(settings, options)


# Imports stay inside: a health check runs every few seconds and needs none of the others.
_COMMANDS: dict[str, Callable[[Settings, Sequence[str]], int]] = {
    "serve": _serve,
    "worker": _worker,
    "train": _train,
    "prepare": _prepare,
    "health": _health,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
