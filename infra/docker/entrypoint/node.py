"""A place in a Ray cluster: its head, or a node that joins it."""

import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from forge_core.errors import ConfigurationError
from forge_core.settings import Settings
from infra.local.members import INNER_PORTS, head_variables, ray_head
from infra.local.ports import stack_ports
from infra.local.processes import free_ports

_OBJECT_STORE_OF_DRIVERS = 100_000_000


def head_command(settings: Settings, options: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return command and variables of a Ray head; where FORGE_HOST is 127.0.0.1 the cluster is of this machine only."""
    free = free_ports(len(INNER_PORTS), but=stack_ports(settings).values())
    inner = dict(zip(INNER_PORTS, free, strict=True))
    command = ray_head(settings, inner, address=_loopback(settings.host), host=settings.host)
    return (*command, *options), head_variables(inner)


def node_command(address: str, options: Sequence[str], *, drivers_only: bool = False) -> tuple[str, ...]:
    """Return the command of a node of the cluster at `address` (host:port).

    Parameters
    ----------
    address : str
        Of the cluster's head.
    options : sequence of str
        Further options of `ray start`.
    drivers_only : bool
        A place for programs that use the cluster and give it nothing: Ray lets a program in only where a node is.
    """
    host, port = _split(address)
    agent, metrics = free_ports(2)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={host}:{port}", "--block"]
    command += ["--disable-usage-stats", "--log-color=false", "--min-worker-port=0", "--max-worker-port=0"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
    if here := _loopback(host):
        command.append(f"--node-ip-address={here}")
    if drivers_only:
        # deployments/serve.yaml keeps replicas off such nodes: they end with the program.
        command += ["--labels=forge-drivers=only", "--num-cpus=0", "--num-gpus=0"]
        command += [f"--object-store-memory={_OBJECT_STORE_OF_DRIVERS}"]
    return (*command, *options)


def session_folder(address: str) -> Path | None:
    """Return the session folder of the node of the cluster at `address` that runs on this machine; None without one."""
    host, port = _split(address)
    hosts = {host}
    with suppress(OSError):  # not yet known to the name server: nothing of it can run here
        hosts.add(socket.gethostbyname(host))
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name() != "raylet":
                continue
            words = dict(word.split("=", 1) for word in process.cmdline() if word.startswith("--") and "=" in word)
            found, _, its_port = words.get("--gcs-address", "").rpartition(":")
            # A head of this machine calls itself by another of its addresses.
            if its_port == str(port) and (found in hosts or _loopback(host)):
                return Path(words["--session_dir"])
    return None


def node_runs(address: str) -> bool:
    """Tell whether a node of the cluster at `address` runs on this machine (in a container: in this one)."""
    return session_folder(address) is not None


def answers(address: str) -> str:
    """Return why the head at `address` cannot be reached; the empty string when it can."""
    host, port = _split(address)
    try:
        socket.create_connection((host, port), timeout=3.0).close()
    except OSError as error:
        return f"{address} does not answer: {error}"
    return ""


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:
        raise ConfigurationError(f"expected host:port of a Ray head in RAY_ADDRESS, found {address!r}")
    return host, int(port)


def _loopback(host: str) -> str:
    return "127.0.0.1" if host in ("127.0.0.1", "localhost") else ""
