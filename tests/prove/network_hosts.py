"""Hosts on one machine: network namespaces on a bridge, each with an address, a name, a `/tmp` and a link to cut.

They share the machine's processors, memory, clock and the rest of its disk, which stands for a shared storage.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from infra.local.environment import ROOT
from infra.local.processes import stop_processes


class Hosts:
    """So many hosts for as long as the context lasts; whatever happens, their processes and links go with it.

    Parameters
    ----------
    names : sequence of str
        Short names.

    Attributes
    ----------
    home : Path
        A folder that all of them see.
    addresses : dict of str to str
        The IPv4 address of each.

    Raises
    ------
    PermissionError
        Network namespaces cannot be made here; says why.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.mark = secrets.token_hex(2)
        self.bridge = f"fb{self.mark}"
        self.network = f"10.231.{int(self.mark[:2], 16)}"
        self.addresses = {name: f"{self.network}.{number}" for number, name in enumerate(names, 11)}
        # Not below /tmp, which each host has for itself.
        self.home = Path(tempfile.mkdtemp(prefix="fc-", dir="/var/tmp"))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Hosts":
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise PermissionError("network namespaces need root and the program ip (Debian's iproute2)")
        try:
            _ip("link", "add", self.bridge, "type", "bridge")
            _ip("addr", "add", f"{self.network}.1/24", "dev", self.bridge)
            _ip("link", "set", self.bridge, "up")
            for name, address in self.addresses.items():
                self._add(name, address)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # Told to end meanwhile, it cleans up first: what were left would stay for good.
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            # Whatever runs on a host was started there.
            for _ in range(3):
                stop_processes(self.processes(), grace=5.0)
            for process in self._processes.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)
        finally:
            for name in self.addresses:
                # The cable goes with the namespace in which its other end is.
                subprocess.run(["ip", "netns", "del", self._space(name)], capture_output=True, check=False)
            subprocess.run(["ip", "link", "del", self.bridge], capture_output=True, check=False)
            # Twice: who ended last may have written once more.
            for _ in range(2):
                shutil.rmtree(self.home, ignore_errors=True)
                time.sleep(0.5)
            for number, handler in before.items():
                signal.signal(number, handler)

    def start(self, name: str, command: Sequence[str], variables: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """Start a program on a host, with a `/tmp` and a host name of its own; its log is home/{name}.log."""
        folder = self.home / f"tmp-{name}"
        folder.mkdir(exist_ok=True)
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{self.addresses[name]} {name}\n")
        own = f"mount --bind {folder}/hosts /etc/hosts && mount --bind {folder} /tmp"
        within = ["unshare", "--uts", "sh", "-c", f'{own} && echo {name} > /proc/sys/kernel/hostname && exec "$@"']
        within += ["sh", *command]
        with (self.home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self._space(name), *within],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=dict(variables),
                start_new_session=True,
            )
        self._processes[f"{name}-{process.pid}"] = process
        return process

    def cut(self, name: str) -> None:
        """Take a host off the network, as if its cable were pulled."""
        _ip("link", "set", self._cable(name), "down")

    def join(self, name: str) -> None:
        """Plug it in again."""
        _ip("link", "set", self._cable(name), "up")

    def processes(self) -> list[psutil.Process]:
        """Return what runs on the hosts."""
        return [process for process in psutil.process_iter() if self.host_of(process)]

    def host_of(self, process: psutil.Process) -> str:
        """Return the host on which a process runs; the empty string for none of them."""
        try:
            mine = Path(f"/proc/{process.pid}/ns/net").stat().st_ino
        except OSError:
            return ""
        files = {name: Path(f"/run/netns/{self._space(name)}") for name in self.addresses}
        return next((name for name, file in files.items() if file.exists() and file.stat().st_ino == mine), "")

    def _add(self, name: str, address: str) -> None:
        space, cable = self._space(name), self._cable(name)
        _ip("netns", "add", space)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", cable, "master", self.bridge, "up")
        _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", space, "link", "set", device, "up")
        # Ray asks the system by which address it reaches the world.
        _ip("-n", space, "route", "add", "default", "via", f"{self.network}.1")

    def _space(self, name: str) -> str:
        return f"forge-{self.mark}-{name}"

    def _cable(self, name: str) -> str:
        return f"fv{self.mark}{list(self.addresses).index(name)}"


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}; are namespaces allowed here?")


def python(*arguments: str) -> tuple[str, ...]:
    """Return a command of this Python."""
    return (sys.executable, *arguments)
