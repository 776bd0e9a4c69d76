"""`python -m forge_core.tracking versions | lineage | card | compare | alias | tag | delete | resend`: the registry."""

import argparse
import logging
import sys

from forge_core.errors import ConfigurationError, ForgeError
from forge_core.ledger import Ledger
from forge_core.settings import Settings, get_settings
from forge_core.storage import Storage
from forge_core.tracking.outbox import resend
from forge_core.tracking.provenance import card, compare, lineage
from forge_core.tracking.registry import CHAMPION, PREVIOUS, Registry
from forge_core.tracking.server import ping


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    chosen = _parser().parse_args(arguments)
    settings = get_settings()
    logging.basicConfig(level=settings.log_level, format="%(message)s")
    try:
        if chosen.command == "resend":
            return _resend(settings)
        ping(settings.mlflow_url)
        sys.stdout.write(_answer(Registry(settings.mlflow_url), settings, chosen).rstrip() + "\n")
    except ForgeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m forge_core.tracking", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("resend", help="send what runs had left while the tracking server was away")
    helps = {
        "versions": "all versions of a model with gate, dataset and aliases",
        "lineage": "where a version came from, down to its rows",
        "card": "a version's card as Markdown",
        "compare": "in what two versions differ",
        "alias": "point an alias at a version (champion is set by a deployment only)",
        "tag": "set a tag of a version; protected=true keeps it from being deleted",
        "delete": "delete a version that nothing needs",
    }
    for name, told in helps.items():
        command = commands.add_parser(name, help=told)
        command.add_argument("model")
        if name in ("lineage", "card"):
            command.add_argument("version", nargs="?", default=CHAMPION, help="number or alias, default champion")
        elif name == "compare":
            command.add_argument("a")
            command.add_argument("b")
        elif name != "versions":
            command.add_argument("version")
        if name == "alias":
            command.add_argument("alias")
        if name == "tag":
            command.add_argument("tag", metavar="KEY=VALUE")
    return parser


def _answer(registry: Registry, settings: Settings, chosen: argparse.Namespace) -> str:
    model: str = chosen.model
    match chosen.command:
        case "versions":
            return _versions(registry, model)
        case "lineage":
            return lineage(registry, model, chosen.version, storage=Storage(settings.storage)).text()
        case "card":
            return card(registry, model, chosen.version)
        case "compare":
            return compare(registry, model, chosen.a, chosen.b).text()
        case "alias":
            if chosen.alias in (CHAMPION, PREVIOUS):
                raise ConfigurationError(
                    f"expected an alias that a person may move, found {chosen.alias!r}, which follows what is live; "
                    "deploy the version instead"
                )
            version = registry.resolve(model, chosen.version)
            registry.set_alias(version, chosen.alias)
            return f"{chosen.alias} of {model} is version {version.version}"
        case "tag":
            key, sign, value = chosen.tag.partition("=")
            if not sign or not key:
                raise ConfigurationError(f"expected a tag as KEY=VALUE, found {chosen.tag!r}")
            version = registry.resolve(model, chosen.version)
            registry.set_tag(version, key, value)
            return f"version {version.version} of {model} has {key}={value}"
        case _:
            serving = Ledger(settings.ledger).serving_state("router")[1]
            gone = registry.delete_version(model, chosen.version, serving=serving)
            return f"deleted version {gone.version} of {model}; its run {gone.run_id} stays"


def _versions(registry: Registry, model: str) -> str:
    rows = [("version", "gate", "dataset", "aliases")]
    versions = registry.versions(model)
    aliases = registry.aliases(model) if versions else {}
    for version in versions:
        own = sorted(alias for alias, number in aliases.items() if number == version.version)
        gate = version.tags.get("forge.gate", "unknown")
        rows.append((version.version, gate, version.tags.get("dataset", "unknown"), ", ".join(own)))
    widths = [max(len(row[place]) for row in rows) for place in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) if versions else f"model {model!r} has no versions, train one"


def _resend(settings: Settings) -> int:
    folder = settings.home.resolve() / "outbox"
    done = resend(folder)
    sys.stdout.write(f"sent {done.records} records of {done.runs} runs; left in {folder}: {done.left}\n")
    sys.stdout.writelines(f"run {run}: {reason}\n" for run, reason in done.reasons.items())
    return 1 if done.left else 0


if __name__ == "__main__":
    sys.exit(main())
