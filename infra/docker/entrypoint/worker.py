"""`worker`: a Prefect worker that runs the flows, on a node of the Ray cluster of its own where there is none."""

import argparse
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

import psutil

from forge_core.errors import ServiceUnavailable
from forge_core.settings import Settings
from infra.docker.entrypoint.children import Children
from infra.docker.entrypoint.logs import Follower
from infra.docker.entrypoint.node import answers, node_command, node_runs
from infra.docker.entrypoint.variables import member_variables, take_variables
from infra.local import health
from infra.local.deployments import register_deployments
from infra.local.environment import POOL, ROOT
from infra.local.members import worker_command

log = logging.getLogger(__name__)


def worker(settings: Settings, options: Sequence[str]) -> int:
    """Run flows until told to stop and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m infra.docker.entrypoint worker", description=__doc__)
    parser.add_argument("--register", action="store_true", help="tell the Prefect server of deployments/prefect.yaml")
    chosen = parser.parse_args(options)
    address = os.environ.get("RAY_ADDRESS", "")
    take_variables(settings, new_token=not address)
    with Children(settings) as children:
        if not (join_for_drivers(children, address) and children.until(_prefect, "the Prefect server")):
            return 0
        _settle_runs()
        Follower(lambda: settings.home.resolve().glob("logs/flows.log")).begin(children.told)
        if chosen.register:
            _register(settings)
        children.start("worker", (*worker_command(f"forge-{socket.gethostname()}"), "--with-healthcheck"))
        return children.wait() or 0


def _register(settings: Settings) -> None:
    """Tell the server of pool and flows, before the worker is there: who sees it well can start them."""
    variables = member_variables(settings, "deployments")
    if _why_not(f"/work_pools/{POOL}"):
        command = [sys.executable, "-m", "prefect", "--no-prompt", "work-pool", "create", POOL, "--type", "process"]
        # Another worker may have been faster; if there is no pool, the registration says so.
        subprocess.run(command, stdin=subprocess.DEVNULL, env=variables, cwd=ROOT, check=False)
    register_deployments(settings, variables)
    log.info("the flows of deployments/prefect.yaml are registered")


def join_for_drivers(children: Children, address: str) -> bool:
    """Start a node for programs of this machine where it has none; return False when told to stop meanwhile.

    Without an address (RAY_ADDRESS) each flow starts a Ray of its own.
    """
    if not address or node_runs(address):
        return True
    if not children.until(lambda: answers(address), "the Ray head"):
        return False
    children.start("node", node_command(address, (), drivers_only=True))
    return children.until(lambda: "" if node_runs(address) else "no raylet yet", "this machine's place in the cluster")


def _api(path: str) -> str:
    return f"{os.environ['PREFECT_API_URL'].rstrip('/')}{path}"


def _token() -> str:
    return os.environ.get("PREFECT_API_KEY", "")


def _prefect() -> str:
    return _why_not("/health")


def _why_not(path: str) -> str:
    try:
        health.fetch(_api(path), token=_token())
    except ServiceUnavailable as error:
        return str(error)
    return ""


def _settle_runs() -> None:
    """Mark runs crashed that ran in this container before it was started again: their slots are free."""
    count = health.crash_dead_runs(_api(""), _died_here, token=_token())
    if count:
        log.info("marked dead flow runs crashed count=%d", count)


def _died_here(run: health.Run) -> bool:
    host, _, pid = (run["infrastructure_pid"] or "").rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        # A new container gives the numbers out again, from the start.
        return psutil.Process(int(pid)).environ().get("PREFECT__FLOW_RUN_ID") != run["id"]
    except psutil.Error:
        return True
