"""Bringing Ray Serve to the desired state after the stack came up, or after its Ray head was started again."""

import logging
import subprocess
import sys
import time

import psutil

from forge_core.errors import ForgeError, ServiceUnavailable
from forge_core.settings import Settings
from infra.local import health
from infra.local.deployments import tail
from infra.local.environment import ROOT, child_environment
from infra.local.processes import stack_processes

log = logging.getLogger(__name__)

_DRAIN_SECONDS = 15.0


def begin_reconcile(settings: Settings) -> "subprocess.Popen[bytes]":
    """Start the reconciler in a process of its own; its log is home/logs/serving.log."""
    with (settings.home.resolve() / "logs" / "serving.log").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "forge_core.deployment", "reconcile"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=child_environment(settings, "serving"),
            start_new_session=True,
        )


def await_api(settings: Settings, reconciler: "subprocess.Popen[bytes]") -> None:
    """Return once the reconciler is done and the prediction API answers `/health`.

    Raises
    ------
    ServiceUnavailable
        It was not done within the start-up timeout, or failed: ends with the last lines of its log.
    """
    log = settings.home.resolve() / "logs" / "serving.log"
    deadline = time.monotonic() + settings.startup_timeout
    try:
        code = reconciler.wait(timeout=settings.startup_timeout)
    except subprocess.TimeoutExpired:
        reconciler.kill()
        code = -1
    while code == 0 and time.monotonic() < deadline:
        try:
            health.fetch(f"{settings.api_url}/health")
            return
        except ServiceUnavailable:
            time.sleep(0.2)
    raise ServiceUnavailable(
        f"The prediction API at {settings.api_url} is not up. The last lines:\n{tail(log)}\nThe whole log: {log}"
    )


def drain_applications(settings: Settings) -> None:
    """Let Serve's applications end in order, with what they hold written; nothing where Serve does not run."""
    if not serve_runs(stack_processes(settings.home, member="ray")):
        return
    try:
        health.dashboard(settings, "/api/serve/applications/", method="DELETE", timeout=_DRAIN_SECONDS)
    except (ForgeError, OSError) as error:
        log.warning("applications did not shut down in order: %s", error)


def serve_runs(processes: list[psutil.Process]) -> bool:
    """Tell whether Ray Serve was started, without asking the dashboard, which would load Serve to answer."""
    for process in processes:
        try:
            if any("ServeController" in part for part in process.cmdline()):
                return True
        except psutil.Error:
            continue
    return False
