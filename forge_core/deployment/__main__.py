"""What is live, at a terminal.

python -m forge_core.deployment status | reconcile
python -m forge_core.deployment history MODEL | live MODEL --at TIME
python -m forge_core.deployment approve | decline MODEL VERSION --by NAME --reason WHY
python -m forge_core.deployment rollouts [MODEL] | hold | resume | advance | abort MODEL [--step N] --reason WHY
python -m forge_core.deployment rollback MODEL
python -m forge_core.deployment names MODEL
python -m forge_core.deployment rayservice [--name NAME] [--image IMAGE]
"""

import argparse
import getpass
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from forge_core.deployment.go_back import name_roles
from forge_core.deployment.ray_pods import manifest_yaml
from forge_core.deployment.rayservice import IMAGE, config_for_pods, ray_service
from forge_core.deployment.routing import approve, decline, read_history, read_state, without_traffic
from forge_core.deployment.routing_table import desired_table, held_versions, told_split
from forge_core.deployment.serve_client import get_serve_client
from forge_core.deployment.serve_config import get_serve_config
from forge_core.deployment.stages import TRANSITIONS, live_at
from forge_core.errors import ForgeError
from forge_core.experiments.rollout_commands import ROLLOUT_COMMANDS, add_rollout_commands
from forge_core.ledger import Ledger
from forge_core.settings import Settings, get_settings
from forge_core.tracking.registry import Registry


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    chosen = _parser().parse_args(arguments)
    settings = get_settings()
    logging.basicConfig(level=settings.log_level, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        _COMMANDS[chosen.command](Ledger(settings.ledger), settings, chosen)
    except ForgeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m forge_core.deployment", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("reconcile", help="bring Serve to the desired state")
    commands.add_parser("status", help="print the desired state and the applications")
    commands.add_parser("history", help="who did what to which version, when and why").add_argument("model")
    live = commands.add_parser("live", help="which version was live")
    live.add_argument("model")
    live.add_argument("--at", type=_moment, default=None, help="ISO time, UTC where it names no zone (default: now)")
    for name, told in (("approve", "let a version go live"), ("decline", "refuse a version for good")):
        command = commands.add_parser(name, help=told)
        command.add_argument("model")
        command.add_argument("version")
        command.add_argument("--by", default=getpass.getuser())
        command.add_argument("--reason", required=True)
    add_rollout_commands(commands)
    commands.add_parser("names", help="bring the registry's aliases to what is live").add_argument("model")
    service = commands.add_parser("rayservice", help="print what is live as a KubeRay manifest")
    service.add_argument("--name", default="forge")
    service.add_argument("--image", default=IMAGE)
    return parser


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _status(ledger: Ledger, settings: Settings, chosen: argparse.Namespace) -> None:
    revision, state = read_state(ledger)
    sys.stdout.write(f"revision {revision}\n")
    sys.stdout.writelines(f"{model}: {_told(entry)}\n" for model, entry in sorted(state["models"].items()))
    sys.stdout.writelines(f"{name}: {status}\n" for name, status in get_serve_client(settings).statuses().items())


def _reconcile(ledger: Ledger, settings: Settings, chosen: argparse.Namespace) -> None:
    get_serve_client(settings).reconcile(ledger, progress=logging.info)


def _rayservice(ledger: Ledger, settings: Settings, chosen: argparse.Namespace) -> None:
    # Not the local profile, which trusts whoever calls.
    config = config_for_pods(get_serve_config(settings.model_copy(update={"profile": "cluster"})))
    table = desired_table(read_state(ledger)[1], {}, None)
    manifest = ray_service(config.compose(held_versions(table), table), name=chosen.name, image=chosen.image)
    sys.stdout.write(manifest_yaml(manifest))


def _history(ledger: Ledger, settings: Settings, chosen: argparse.Namespace) -> None:
    events = ledger.events(chosen.model, *TRANSITIONS)
    rows = [{"when": f"{e['at']:%Y-%m-%d %H:%M:%S}", "what": e["kind"], "version": e["version"], "who": e["actor"],
             "why": e["reason"]} for e in events]  # fmt: skip
    told = pd.DataFrame(rows).to_markdown(index=False) if rows else f"nothing happened to {chosen.model!r} yet"
    stages = read_history(ledger, chosen.model).stages
    sys.stdout.write(f"{told}\n\n" + "".join(f"version {v}: {stage}\n" for v, stage in stages.items()))


def _live(ledger: Ledger, settings: Settings, chosen: argparse.Namespace) -> None:
    version = live_at(ledger.events(chosen.model), chosen.at or datetime.now(UTC))
    sys.stdout.write(f"{version or 'none'}\n")


def _judge(ledger: Ledger, settings: Settings, chosen: argparse.Namespace) -> None:
    registry = Registry(settings.mlflow_url)
    version = registry.resolve(chosen.model, chosen.version).version
    judge = {"approve": approve, "decline": decline}[chosen.command]
    judge(ledger, chosen.model, version, actor=chosen.by, reason=chosen.reason)
    name_roles(registry, ledger, chosen.model)


def _names(ledger: Ledger, settings: Settings, chosen: argparse.Namespace) -> None:
    name_roles(Registry(settings.mlflow_url), ledger, chosen.model)


_COMMANDS: dict[str, Callable[[Ledger, Settings, argparse.Namespace], None]] = {
    "status": _status,
    "reconcile": _reconcile,
    "rayservice": _rayservice,
    "history": _history,
    "live": _live,
    "approve": _judge,
    "decline": _judge,
    "names": _names,
    **ROLLOUT_COMMANDS,
}


def _told(entry: dict[str, Any]) -> str:
    words = [f"{role} {entry.get(role) or 'none'}" for role in ("champion", "previous")]
    if "split" in entry:
        words.append(f"{entry['split']['id']} shares the traffic out: {told_split(entry['split'])}")
    if "shadow" in entry:
        words.append(f"{entry['shadow']['share']:.3g} of it copied to {entry['shadow']['version']}")
    if entry.get("candidate") and without_traffic(entry, entry["candidate"]) == entry:
        words.append(f"candidate {entry['candidate']} (on trial, or left by a deployment that was cut; no traffic)")
    return ", ".join(words)


if __name__ == "__main__":
    sys.exit(main())
