"""Records on their way to MLflow: written to disk at once, sent by a thread, kept while the server is away."""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge_core.tracking.delivery import end_killed, send_next
from forge_core.tracking.journal import Journal
from forge_core.tracking.server import ping

logger = logging.getLogger(__name__)

_LITTLE = 200_000  # bytes for which no call is made before others have joined them


class Outbox:
    """One run's way to its server.

    Parameters
    ----------
    folder : Path
        Where records are kept; one folder for all runs.
    linger, pause : float
        Seconds in which records gather into one call, and between two tries while the server is away.
    """

    def __init__(
        self, folder: Path, run_id: str, tracking_uri: str, *, linger: float = 5.0, pause: float = 1.0
    ) -> None:
        self.journal = Journal.create(folder, run_id, tracking_uri)
        self.run_id, self.tracking_uri, self._linger, self._pause = run_id, tracking_uri, linger, pause
        self._news, self._hurry, self._stop = threading.Event(), threading.Event(), threading.Event()
        self._empty = threading.Condition()
        self._trouble = ""
        self._thread = threading.Thread(target=self._work, name=f"outbox-{run_id[:8]}", daemon=True)
        self._thread.start()

    def put(self, **record: Any) -> None:
        """Keep a record and return; it is sent soon."""
        self.journal.append(record)
        self._news.set()

    def put_file(self, data: bytes, name: str, folder: str) -> None:
        """Keep an artifact's bytes and return; they are sent in their turn."""
        self.put(artifact=[self.journal.keep_file(data, name), folder])

    def flush(self, seconds: float) -> bool:
        """Wait so many seconds at most and tell whether the server has everything."""
        self._hurry.set()
        self._news.set()
        with self._empty:
            done = self._empty.wait_for(lambda: self.journal.is_empty, seconds)
        self._hurry.clear()
        return done

    def close(self, seconds: float) -> int:
        """Wait so many seconds at most, stop sending, and return how many records are left; says where they lie."""
        self.flush(seconds)
        for event in (self._stop, self._hurry, self._news):
            event.set()
        self._thread.join(0.1 if self._trouble else seconds)  # a call that hangs is left to itself
        left = self.journal.count()
        if left:
            logger.warning(
                "MLflow at %s does not have %d records of run %s (%s); they are kept in %s, and the next tracker or "
                "`python -m forge_core.tracking resend` sends them",
                self.tracking_uri, left, self.run_id, self._trouble or "too slow", self.journal.folder,
            )  # fmt: skip
        self.journal.close()
        return left

    def _work(self) -> None:
        client = None
        while not self._stop.is_set():
            if self.journal.is_empty:
                with self._empty:
                    self._empty.notify_all()
                self._news.wait()
                self._news.clear()
                self._hurry.wait(self._linger)
                continue
            try:
                ping(self.tracking_uri)
                client = client or _client(self.tracking_uri)
                while not self._stop.is_set() and not self.journal.is_empty:
                    send_next(self.journal, client)
                    if self._trouble:
                        logger.warning("MLflow at %s answers again, run %s goes on", self.tracking_uri, self.run_id)
                        self._trouble = ""
                    if self.journal.unsent_bytes < _LITTLE:  # calls are dear, for the server and for this process
                        self._hurry.wait(self._linger)
            except Exception as error:  # whatever MLflow or the network raise: the record is kept
                if not self._trouble:
                    logger.warning(
                        "MLflow at %s does not take records of run %s, they are kept in %s and tried again: %s",
                        self.tracking_uri, self.run_id, self.journal.folder, _short(error),
                    )  # fmt: skip
                self._trouble = _short(error)
                self._stop.wait(self._pause)


@dataclass(frozen=True)
class Resent:
    """What sending again did: runs and records sent, records left, and of each run with some left why."""

    runs: int
    records: int
    left: int
    reasons: dict[str, str]


def resend(folder: str | Path, tracking_uri: str | None = None) -> Resent:
    """Send what earlier processes left in an outbox, run by run; journals that a living process holds are left alone.

    Parameters
    ----------
    tracking_uri : str, optional
        Only records for this server; None takes all.
    """
    runs, sent, left = 0, 0, 0
    reasons: dict[str, str] = {}
    for journal in _left_journals(Path(folder), tracking_uri):
        try:
            ping(journal.tracking_uri)
            client = _client(journal.tracking_uri)
            while not journal.is_empty:
                sent += send_next(journal, client)
            if not journal.has_end:
                end_killed(journal.run_id, client)
            runs += 1
        except Exception as error:
            reasons[journal.run_id] = _short(error)
            left += journal.count()
        finally:
            journal.close()
    return Resent(runs, sent, left, reasons)


def resend_later(folder: Path, tracking_uri: str, told: Callable[[str], None] = logger.info) -> None:
    """Send what earlier processes left, in the background, where there is something."""
    if not any(folder.glob("*/lines.jsonl")):
        return

    def work() -> None:
        done = resend(folder, tracking_uri)
        if done.records or done.left:
            told(f"sent {done.records} records that earlier runs had left in {folder}, {done.left} are left")

    threading.Thread(target=work, name="outbox-resend", daemon=True).start()


def _left_journals(folder: Path, tracking_uri: str | None) -> Iterator[Journal]:
    for place in sorted(folder.glob("*/run.json"), key=lambda file: file.stat().st_mtime if file.exists() else 0.0):
        try:
            journal = Journal(place.parent)
            wanted = tracking_uri is None or journal.tracking_uri == tracking_uri
            if not wanted or not journal.hold():
                continue
        except (OSError, ValueError):  # removed meanwhile by who sent it
            continue
        journal.refresh()
        yield journal


def _client(tracking_uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri)


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
