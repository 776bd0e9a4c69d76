"""Load from wrk: different bodies one after another at a number of connections, and what came of it."""

import json
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__).with_name("serving_load.lua")


@dataclass(frozen=True)
class Load:
    """One measurement: requests answered per second, latencies in ms, and how many requests failed."""

    per_second: float
    p50: float
    p99: float
    errors: int

    def told(self) -> str:
        """Return the figures in words."""
        told = f"{self.per_second:8.1f} requests/s, p50 {self.p50:7.2f} ms, p99 {self.p99:7.2f} ms"
        return told + (f", {self.errors} FAILED" if self.errors else "")


def need_wrk() -> None:
    """Raise a RuntimeError that says how to get wrk where it is not installed."""
    if shutil.which("wrk") is None:
        raise RuntimeError("this benchmark sends its load with wrk, which is not here: apt-get install wrk")


def write_bodies(file: Path, bodies: Iterable[Any]) -> Path:
    """Write one JSON body a line and return the file."""
    file.write_text("".join(json.dumps(body, allow_nan=False, separators=(",", ":")) + "\n" for body in bodies))
    return file


def measure(url: str, path: str, bodies: Path, connections: int, seconds: float, key: str | None = None) -> Load:
    """Send the bodies for some seconds and return what was measured.

    Parameters
    ----------
    url, path : str
        Base URL of the server, and the path that is POSTed to.
    bodies : Path
        One JSON body a line.
    connections : int
        Each sends its next request when its last was answered.
    seconds : float
        wrk counts whole ones.
    key : str, optional
        API key, sent as `Authorization: Bearer`.
    """
    command = ["wrk", "-t", "1", "-c", str(connections), "-d", f"{max(1, round(seconds))}s", "--timeout", "60s"]
    command += ["-s", str(_SCRIPT), url, "--", path, str(bodies), *([f"Bearer {key}"] if key else [])]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise RuntimeError(f"wrk failed: {answer.stderr or answer.stdout}")
    told = json.loads(answer.stdout.strip().splitlines()[-1])
    if told["requests"] == 0:
        raise RuntimeError(f"{url}{path} answered no request in {seconds:g} s at {connections} connections")
    return Load(
        per_second=told["requests"] / told["seconds"],
        p50=told["p50"] * 1000,
        p99=told["p99"] * 1000,
        errors=told["refused"] + told["broken"] + told["timed_out"],
    )


def mean(loads: Sequence[Load]) -> Load:
    """Return the mean of measurements of the same thing, with all of their errors."""
    n = len(loads)
    return Load(
        per_second=sum(load.per_second for load in loads) / n,
        p50=sum(load.p50 for load in loads) / n,
        p99=sum(load.p99 for load in loads) / n,
        errors=sum(load.errors for load in loads),
    )
