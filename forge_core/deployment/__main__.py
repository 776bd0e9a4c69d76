"""`python -m forge_core.deployment reconcile | status | rollback MODEL`: the serving state at a terminal."""

import argparse
import logging
import sys
from collections.abc import Mapping

from forge_core.deployment.routing import read_state, roll_back
from forge_core.deployment.serve_client import get_serve_client
from forge_core.errors import ForgeError
from forge_core.ledger import Ledger
from forge_core.settings import get_settings


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m forge_core.deployment", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("reconcile", help="bring Serve to the desired state")
    commands.add_parser("status", help="print the desired state and the applications")
    back = commands.add_parser("rollback", help="make the previous champion champion again")
    back.add_argument("model")
    back.add_argument("--reason", default="asked for at a terminal")
    chosen = parser.parse_args(arguments)
    settings = get_settings()
    logging.basicConfig(level=settings.log_level, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        ledger, serve = Ledger(settings.ledger), get_serve_client(settings)
        if chosen.command == "rollback":
            roll_back(ledger, chosen.model, actor="terminal", reason=chosen.reason)
        if chosen.command == "status":
            revision, state = read_state(ledger)
            sys.stdout.write(f"revision {revision}\n")
            sys.stdout.writelines(f"{model}: {_told(entry)}\n" for model, entry in sorted(state["models"].items()))
            sys.stdout.writelines(f"{name}: {status}\n" for name, status in serve.statuses().items())
        else:
            serve.reconcile(ledger, progress=logging.info)
    except ForgeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _told(entry: Mapping[str, str | None]) -> str:
    words = [f"{role} {entry.get(role) or 'none'}" for role in ("champion", "previous")]
    if entry.get("candidate"):
        words.append(f"candidate {entry['candidate']} (on trial, or left by a deployment that was cut; no traffic)")
    return ", ".join(words)


if __name__ == "__main__":
    sys.exit(main())
