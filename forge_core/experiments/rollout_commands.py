"""Rollouts at a terminal: what `python -m forge_core.deployment` says and does about them."""

import argparse
import getpass
import logging
import sys
from typing import Any

from forge_core.deployment.serve_client import get_serve_client
from forge_core.experiments.rollout import abort, advance, hold, resume
from forge_core.experiments.rollout_records import Rollout, RolloutRecords
from forge_core.experiments.rollout_run import roll_back_now, settle
from forge_core.ledger import Ledger
from forge_core.settings import Settings
from forge_core.tracking.registry import Registry

_STEERING: dict[str, tuple[Any, str]] = {
    "hold": (hold, "keep a rollout at its step"),
    "resume": (resume, "let a held rollout go on"),
    "advance": (advance, "bring a rollout to its next step, whatever the evidence says"),
    "abort": (abort, "give the traffic back to the champion and dismiss the version"),
}


def add_rollout_commands(commands: Any) -> None:
    """Add the commands to a parser's."""
    told = commands.add_parser("rollouts", help="where rollouts stand, and why")
    told.add_argument("model", nargs="?", default=None)
    for name, (_, words) in _STEERING.items():
        command = commands.add_parser(name, help=words)
        command.add_argument("model")
        command.add_argument("--step", type=int, default=None, help="where you saw it (default: where it is)")
        command.add_argument("--by", default=getpass.getuser())
        command.add_argument("--reason", default="asked for at a terminal")
    back = commands.add_parser("rollback", help="end a rollout, or make the champion before this one champion again")
    back.add_argument("model")
    back.add_argument("--by", default=getpass.getuser())
    back.add_argument("--reason", default="asked for at a terminal")


def tell_rollouts(ledger: Ledger, settings: Settings, chosen: argparse.Namespace) -> None:
    """Print the newest rollout of each model, or of one with what became of it."""
    found = [r for r in RolloutRecords(ledger).all() if chosen.model in (None, r.model)]
    sys.stdout.writelines(f"{_told(rollout)}\n" for rollout in found)
    if not found:
        sys.stdout.write("no rollout yet\n")
    if chosen.model is None:
        return
    kinds = ("rollout_started", "rollout_step", "rollout_held", "rollout_resumed", "rollout_aborted",
             "rollout_finished")  # fmt: skip
    for event in ledger.events(chosen.model, *kinds):
        when = f"{event['recorded_at']:%Y-%m-%d %H:%M:%S}"
        sys.stdout.write(
            f"{when} {event['details'].get('rollout')} {event['kind']} {event['actor']}: {event['reason']}\n"
        )


def steer(ledger: Ledger, settings: Settings, chosen: argparse.Namespace) -> None:
    """Hold, resume, advance or abort a rollout."""
    # Advancing needs the step that somebody saw; at a terminal that is where it is now.
    seen = chosen.step if chosen.step is not None else RolloutRecords(ledger).wanted(chosen.model).step
    change, _ = _STEERING[chosen.command]
    rollout = change(ledger, chosen.model, step=seen, actor=chosen.by, reason=chosen.reason)
    registry, serve = Registry(settings.mlflow_url), get_serve_client(settings)
    settle(ledger, registry, serve, chosen.model, progress=logging.info)
    sys.stdout.write(f"{_told(rollout)}\n")


def roll_back_command(ledger: Ledger, settings: Settings, chosen: argparse.Namespace) -> None:
    """Give the traffic to the last good champion."""
    registry, serve = Registry(settings.mlflow_url), get_serve_client(settings)
    roll_back_now(
        ledger, registry, serve, chosen.model, actor=chosen.by, reason=chosen.reason, progress=logging.info
    )  # fmt: skip


def _told(rollout: Rollout) -> str:
    state = rollout.outcome or rollout.status
    return (
        f"{rollout.model}: {rollout.id}, version {rollout.version} for {rollout.champion}, {state} at step "
        f"{rollout.step} ({rollout.told_step}); {rollout.actor}: {rollout.reason}"
    )


ROLLOUT_COMMANDS = {
    "rollouts": tell_rollouts,
    "rollback": roll_back_command,
    **dict.fromkeys(_STEERING, steer),
}
