"""What one run still has to tell its tracking server: lines in a file, written before they are sent.

    {outbox}/{run id}/run.json        the server
                      lines.jsonl     one record a line, in the order of the calls
                      sent            how many bytes of it the server has
                      refused.jsonl   records that the server will never take, each with the reason
                      files/          artifacts that are not sent yet
                      lock            held by the process that sends

A call returns once its line is with the operating system: it outlives the death of the process (a power cut may take
the last seconds). A line that was cut in the middle belongs to a call that never returned, and is left out.
"""

import fcntl
import json
import shutil
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forge_core.errors import ConfigurationError, ServiceUnavailable

Record = dict[str, Any]
_BATCH_BYTES = 400_000  # MLflow takes requests of 1 MB


class Journal:
    """One run's records on disk, held by one process at a time.

    Parameters
    ----------
    folder : Path
        `{outbox}/{run id}`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.run_id = folder, folder.name
        self._lines, self._mark = folder / "lines.jsonl", folder / "sent"
        self._writing = threading.Lock()
        self._lock: Any = None
        self._file: Any = None
        self._size = self._sent = 0
        self.refresh()

    @classmethod
    def create(cls, outbox: Path, run_id: str, tracking_uri: str) -> "Journal":
        """Return a run's journal, made and held, for a process that writes."""
        folder = outbox / run_id
        try:
            (folder / "files").mkdir(parents=True, exist_ok=True)
            journal = cls(folder)
            if not journal.hold():
                raise ConfigurationError(f"expected to write for run {run_id} alone, found another process doing it")
            # Last, because it is what those who send the leftovers of others look for.
            (folder / "run.json").write_text(json.dumps({"tracking_uri": tracking_uri}))
            journal._file = journal._lines.open("ab")
        except OSError as error:
            raise ConfigurationError(
                f"expected an outbox folder that can be written, found {outbox}: {error}; set FORGE_HOME"
            ) from error
        return journal

    @property
    def tracking_uri(self) -> str:
        """The server that the records are for."""
        return json.loads((self.folder / "run.json").read_text())["tracking_uri"]

    @property
    def is_empty(self) -> bool:
        """Whether the server has everything."""
        return self._sent >= self._size

    @property
    def unsent_bytes(self) -> int:
        """How much the server does not have yet."""
        return max(0, self._size - self._sent)

    @property
    def has_end(self) -> bool:
        """Whether the run was ended; else its process died."""
        if not self._lines.is_file():
            return False
        with self._lines.open("rb") as file:
            file.seek(max(0, self._lines.stat().st_size - 500))
            return file.read().rstrip().split(b"\n")[-1].startswith(b'{"end":')

    def hold(self) -> bool:
        """Take the journal for this process; False where another one, or another part of this one, has it."""
        handle = (self.folder / "lock").open("a")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.close()
            return False
        self._lock = handle
        return True

    def refresh(self) -> None:
        """Read again how much there is and how much was sent, by whoever held the journal before."""
        self._size = self._lines.stat().st_size if self._lines.is_file() else 0
        self._sent = self._read_mark()

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record; it is kept once this returns."""
        line = json.dumps(record).encode() + b"\n"
        with self._writing:
            try:
                self._file.write(line)
                self._file.flush()
            except OSError as error:
                raise ServiceUnavailable(
                    f"{self._lines} cannot be written: {error}; make room and run again"
                ) from error
            self._size += len(line)

    def keep_file(self, data: bytes, name: str) -> str:
        """Keep an artifact's bytes and return where they lie, relative to the folder."""
        place = Path("files") / uuid.uuid4().hex / name
        (self.folder / place).parent.mkdir()
        (self.folder / place).write_bytes(data)
        return place.as_posix()

    def drop_file(self, place: str) -> None:
        """Remove an artifact that was sent."""
        shutil.rmtree((self.folder / place).parent, ignore_errors=True)

    def read(self) -> tuple[list[Record], int]:
        """Return the next records, some hundred kilobytes of them, and the position after them."""
        if self.is_empty:
            return [], self._sent
        with self._lines.open("rb") as file:
            file.seek(self._sent)
            data = file.read(_BATCH_BYTES)
            if b"\n" not in data:
                data += file.readline()
        data = data[: data.rfind(b"\n") + 1]
        records = []
        for line in data.splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:  # a disk that lost power in the middle of a write
                self.refuse({"line": line.decode(errors="replace")}, "the line is damaged")
        return records, self._sent + len(data) if data else self._size

    def advance(self, position: int) -> None:
        """Remember that the server has everything before a position."""
        self._sent = position
        self._mark.write_text(str(position))

    def refuse(self, record: Mapping[str, Any], reason: str) -> None:
        """Keep a record that the server will never take."""
        with (self.folder / "refused.jsonl").open("a") as file:
            file.write(json.dumps({**record, "reason": reason}) + "\n")

    def count(self) -> int:
        """Return how many records the server does not have."""
        if self.is_empty:
            return 0
        with self._lines.open("rb") as file:
            file.seek(self._sent)
            return sum(line.endswith(b"\n") for line in file)

    def close(self) -> None:
        """Let go of the journal, and remove it where nothing is left to send or to look at."""
        if self._file is not None:
            self._file.close()
        if self.is_empty and not (self.folder / "refused.jsonl").exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _read_mark(self) -> int:
        try:
            return int(self._mark.read_text())
        except (OSError, ValueError):
            return 0
