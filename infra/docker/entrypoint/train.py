"""`train`: distributed training, as a node of the Ray cluster of RAY_ADDRESS where there is none on this machine."""

import os
import sys
from collections.abc import Sequence

from forge_core.settings import Settings
from infra.docker.entrypoint.children import Children
from infra.docker.entrypoint.node import node_runs
from infra.docker.entrypoint.variables import take_variables
from infra.docker.entrypoint.worker import join_for_drivers

_COMMAND = (sys.executable, "-m", "forge_core.training.distributed_trainer")


def train(settings: Settings, options: Sequence[str]) -> int:
    """Train as the options say and return the exit code."""
    address = os.environ.get("RAY_ADDRESS", "")
    take_variables(settings, new_token=not address)
    if not address or node_runs(address):
        os.execv(_COMMAND[0], [*_COMMAND, *options])
    with Children(settings) as children:
        if not join_for_drivers(children, address):
            return 0
        children.start("trainer", (*_COMMAND, *options))
        return children.wait() or 0
