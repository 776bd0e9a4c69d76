"""`python -m infra.local up|status|down|clean|env`: the local stack from a terminal."""

import argparse
import sys

from forge_core.errors import ForgeError
from forge_core.settings import Settings, get_settings

_COMMANDS = {
    "up": "start Prefect, MLflow, Ray and a worker, and wait until they answer",
    "status": "show every member (exit code 0: all healthy, 1: not all, 3: not running)",
    "down": "stop everything and keep the data",
    "clean": "stop everything and remove the data",
    "env": 'print the variables of the stack: eval "$(make -s env)"',
    "demo": "tell the whole story on the running stack",
    "supervise": argparse.SUPPRESS,
}


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code of one command; expected errors are a sentence on stderr, not a stack trace."""
    parser = argparse.ArgumentParser(prog="python -m infra.local", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name) if text == argparse.SUPPRESS else commands.add_parser(name, help=text)
        if name == "clean":
            command.add_argument("--yes", action="store_true", help="do not ask")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except ForgeError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    settings = get_settings()
    # Imports stay inside: the supervisor lives as long as the stack and must not carry a terminal library.
    if options.command == "supervise":
        from infra.local.supervisor import supervise

        return supervise(settings)
    if options.command == "env":
        from infra.local.environment import export_lines

        print(export_lines(settings))
        return 0
    if options.command == "demo":
        from infra.local.demo import run

        run(settings)
        return 0
    return _manage(options, settings)


def _manage(options: argparse.Namespace, settings: Settings) -> int:
    from infra.local import stack

    if options.command == "status":
        from infra.local.table import show

        return show(stack.status(settings), settings)
    if options.command == "up":
        stack.up(settings)
    elif options.command == "down":
        stack.down(settings)
    else:
        home = settings.home.resolve()
        if not options.yes and not _agrees(f"Remove {home} with all models, runs and logs? Type yes: "):
            print("Nothing was removed.")
            return 1
        stack.clean(settings)
        print(f"Removed {home}.")
    return 0


def _agrees(question: str) -> bool:
    try:
        return input(question).strip() == "yes"
    except EOFError:
        return False


if __name__ == "__main__":
    sys.exit(main())
