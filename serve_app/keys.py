"""Keys of the prediction API, at a terminal.

python -m serve_app.keys create --owner ana --scopes predict,feedback [--rate 600] [--days 30]
python -m serve_app.keys adopt --owner flows [--scopes predict]  # makes the secret in FORGE_API_KEY a key
python -m serve_app.keys list
python -m serve_app.keys rotate ID [--hours 24]
python -m serve_app.keys revoke ID
"""

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.table import Table

from forge_core.errors import ForgeError
from forge_core.keys import SCOPES, Key, KeyStore
from forge_core.ledger import Ledger
from forge_core.settings import get_settings


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    chosen = _parser().parse_args(arguments)
    try:
        _COMMANDS[chosen.command](KeyStore(Ledger(get_settings().ledger)), chosen)
    except ForgeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serve_app.keys", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and print its secret, once")
    create.add_argument("--owner", required=True, help="whose it is")
    create.add_argument("--scopes", default="predict", help=f"comma-separated, of {', '.join(SCOPES)}")
    create.add_argument("--rate", type=int, default=None, help="rows a minute (default: no limit)")
    create.add_argument("--days", type=_positive, default=None, help="how long it works (default: until it is revoked)")
    adopt = commands.add_parser("adopt", help="make the secret in FORGE_API_KEY a key, where it is none yet")
    adopt.add_argument("--owner", required=True, help="whose it is")
    adopt.add_argument("--scopes", default="predict", help=f"comma-separated, of {', '.join(SCOPES)}")
    commands.add_parser("list", help="show every key, without secrets")
    rotate = commands.add_parser("rotate", help="make a second key like this one, which ends later")
    rotate.add_argument("id")
    rotate.add_argument("--hours", type=_positive, default=24.0, help="how long the old one still works")
    commands.add_parser("revoke", help="end a key").add_argument("id")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 100_000:
        raise ValueError
    return value


def _create(store: KeyStore, chosen: argparse.Namespace) -> None:
    ends = datetime.now(UTC) + timedelta(days=chosen.days) if chosen.days else None
    _show(store.create(chosen.owner, _scopes(chosen), per_minute=chosen.rate, expires_at=ends))


def _adopt(store: KeyStore, chosen: argparse.Namespace) -> None:
    # Not from the command line, which other processes can read.
    made = store.adopt(get_settings().api_key, chosen.owner, _scopes(chosen))
    sys.stdout.write(f"FORGE_API_KEY {'is a key now' if made else 'was a key already'}, of {chosen.owner}\n")


def _scopes(chosen: argparse.Namespace) -> list[str]:
    return [scope.strip() for scope in chosen.scopes.split(",") if scope.strip()]


def _rotate(store: KeyStore, chosen: argparse.Namespace) -> None:
    until = datetime.now(UTC) + timedelta(hours=chosen.hours)
    _show(store.rotate(chosen.id, until))
    sys.stderr.write(f"the old key works until {until:%Y-%m-%d %H:%M} UTC\n")


def _show(secret: str) -> None:
    sys.stderr.write("the key, shown this once; routers know it within seconds:\n")
    sys.stdout.write(f"{secret}\n")


def _revoke(store: KeyStore, chosen: argparse.Namespace) -> None:
    key = store.revoke(chosen.id)
    sys.stdout.write(f"{key.id} of {key.owner} is revoked; routers know it within seconds\n")


def _list(store: KeyStore, chosen: argparse.Namespace) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("id", "owner", "scopes", "rows a minute", "made", "ends", "state"):
        table.add_column(name, no_wrap=name == "id", overflow="fold")
    now = datetime.now(UTC)
    for key in store.all():
        rate = "no limit" if key.per_minute is None else str(key.per_minute)
        ends = min((end for end in (key.expires_at, key.revoked_at) if end), default=None)
        scopes = ", ".join(sorted(key.scopes))
        table.add_row(key.id, key.owner, scopes, rate, _day(key.created_at), _day(ends), _state(key, now))
    console = Console(highlight=False)
    console.width = max(console.width, 110)
    console.print(table)


def _state(key: Key, now: datetime) -> str:
    if key.works(now):
        return "works"
    return "revoked" if key.revoked_at is not None else "expired"


def _day(moment: datetime | None) -> str:
    return "–" if moment is None else f"{moment:%Y-%m-%d %H:%M}"


_COMMANDS: dict[str, Callable[[KeyStore, argparse.Namespace], None]] = {
    "create": _create,
    "adopt": _adopt,
    "list": _list,
    "rotate": _rotate,
    "revoke": _revoke,
}

if __name__ == "__main__":
    sys.exit(main())
