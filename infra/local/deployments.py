"""Registering the flows of deployments/prefect.yaml with the stack's Prefect server."""

import subprocess
import sys
from pathlib import Path

from forge_core.errors import ServiceUnavailable
from forge_core.settings import Settings
from infra.local.environment import ROOT, child_environment

FILE = Path("deployments") / "prefect.yaml"


def register_deployments(settings: Settings, variables: dict[str, str] | None = None) -> None:
    """Return once every deployment of the file is known to the server; what was there before is updated.

    Parameters
    ----------
    settings : Settings
        Home, where the log goes, and the seconds that it may take.
    variables : dict of str to str, optional
        The environment that names the server; by default the local stack's.

    Raises
    ------
    ServiceUnavailable
        Prefect refuses the file or a flow cannot be imported: ends with the last lines that Prefect printed.
    """
    log = settings.home.resolve() / "logs" / "deployments.log"
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(FILE)]
    with log.open("wb") as output:
        try:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=variables or child_environment(settings, "deployments"),
                timeout=settings.startup_timeout,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    if code != 0:
        reason = f"exit code {code}" if code > 0 else f"not done within {settings.startup_timeout:.0f} s"
        raise ServiceUnavailable(
            f"The flows of {FILE} were not registered: {reason}. The last lines:\n{tail(log)}\nThe whole log: {log}"
        )


def tail(path: Path, lines: int = 15) -> str:
    """Return the last lines of a log, indented; a word when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - 20_000, 0))
            last = file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        last = []
    return "\n".join(f"  {line}" for line in last) or "  (it is empty)"
