"""What others write to files, on the standard output, where a container's logs belong."""

import re
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from infra.docker.entrypoint.node import session_folder

_SECONDS = 0.5
# What Ray writes between a replica's lines, for readers of its own.
_MARKS = (b":job_id:", b":actor_name:", b":task_name:")
_PASSWORD = re.compile(rb"(://[^:/@\s]+):[^@\s]+@")


class Follower:
    """Prints what is appended to files, those that appear later too; passwords in URLs are not printed.

    Parameters
    ----------
    files : callable
        Returns the files that there are now.
    """

    def __init__(self, files: Callable[[], Iterable[Path]]) -> None:
        self._files = files
        # What was there before belongs to an earlier start.
        self._read = {path: path.stat().st_size for path in files()}

    def step(self) -> None:
        """Print what is new in whole lines."""
        for path in self._files():
            begun = self._read.get(path, 0)
            try:
                with path.open("rb") as file:
                    file.seek(begun)
                    whole, end, _ = file.read().rpartition(b"\n")
            except OSError:
                continue
            self._read[path] = begun + len(whole) + len(end)
            lines = [line for line in whole.split(b"\n") if line and not line.startswith(_MARKS)]
            sys.stdout.buffer.writelines(_PASSWORD.sub(rb"\1:***@", line) + b"\n" for line in lines)
        sys.stdout.buffer.flush()

    def begin(self, told: threading.Event) -> None:
        """Go on in a thread until told to stop."""

        def run() -> None:
            while not told.wait(_SECONDS):
                self.step()

        threading.Thread(target=run, name="follower", daemon=True).start()


def replica_logs(address: str) -> Callable[[], list[Path]]:
    """Return what finds the output of Ray's processes here (Serve's replicas), once a node of that cluster runs."""
    found: list[Path] = []

    def files() -> list[Path]:
        if not found and (folder := session_folder(address)):
            found.append(folder / "logs")
        return [path for folder in found for path in sorted(folder.glob("worker-*.[oe][ur][tr]"))]

    return files
