"""`serve`: one model file, a node of a Ray cluster, or a Ray head with Serve as the ledger says it should be."""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence

from forge_core.settings import Settings
from infra.docker.entrypoint.children import Children
from infra.docker.entrypoint.logs import Follower, replica_logs
from infra.docker.entrypoint.node import answers, head_command, node_command
from infra.docker.entrypoint.variables import member_variables, take_variables
from infra.local import health
from infra.local.environment import ROOT
from infra.local.serving import drain_applications

log = logging.getLogger(__name__)

_AGAIN_SECONDS = 10.0


def serve(settings: Settings, options: Sequence[str]) -> int:
    """Serve until told to stop and return the exit code; `options` are further ones of `ray start`."""
    address = os.environ.get("RAY_ADDRESS", "")
    if settings.model_path:
        os.execv(sys.executable, [sys.executable, "-m", "serve_app"])
    take_variables(settings, new_token=not address)
    with Children(settings) as children:
        return _join(children, address, options) if address else _lead(children, settings, options)


def _join(children: Children, address: str, options: Sequence[str]) -> int:
    if not children.until(lambda: answers(address), "the Ray head"):
        return 0
    Follower(replica_logs(address)).begin(children.told)
    children.start("node", node_command(address, options))
    return children.wait() or 0


def _lead(children: Children, settings: Settings, options: Sequence[str]) -> int:
    Follower(replica_logs(f"127.0.0.1:{settings.ray_port}")).begin(children.told)
    children.start("ray", *head_command(settings, options))
    if not children.until(lambda: health.ask("ray", settings, 0.0), "the Ray head"):
        return 0
    code = None
    while code is None and not _reconciled(settings):
        log.error("Serve is not as the ledger says; tried again in %.0f s", _AGAIN_SECONDS)
        code = children.wait(_AGAIN_SECONDS)
    if code is None:
        log.info("the prediction API answers at %s", settings.api_url)
        code = children.wait() or 0
    if children.told.is_set():
        drain_applications(settings)
    return code


def _reconciled(settings: Settings) -> bool:
    command = [sys.executable, "-m", "forge_core.deployment", "reconcile"]
    variables = member_variables(settings, "serving")
    return subprocess.run(command, stdin=subprocess.DEVNULL, cwd=ROOT, env=variables, check=False).returncode == 0
