"""Load from a process of its own: keep-alive connections over raw sockets, each reply held against its version.

`python -m tests.prove.serving_load PLAN REPORT` runs until the plan's steps are over, or its standard input is closed.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.local.environment import ROOT

# What each version's own pipeline says of each body: the prediction and its probability.
Expected = Mapping[str, Sequence[tuple[Any, float]]]
TOLERANCE = 1e-4


@dataclass
class Report:
    """What came of the load; times are those of `time.monotonic`, which all processes of a machine share."""

    requests: int = 0
    failures: list[tuple[float, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)
    longest_gap: float = 0.0
    per_second: Counter[int] = field(default_factory=Counter)
    last: float | None = None

    def answered(self, version: str) -> None:
        """Count a reply and the time since the one before, on whichever connection."""
        now = time.monotonic()
        self.longest_gap = max(self.longest_gap, now - (self.last or now))
        self.last = now
        self.versions[version] += 1
        self.per_second[int(now)] += 1


class Caller:
    """One connection that asks, reads, checks and asks again."""

    def __init__(self, plan: Mapping[str, Any], report: Report, first: int) -> None:
        self.plan, self.report, self.number = plan, report, first
        self.bodies = [json.dumps(body).encode() for body in plan["bodies"]]
        self.head = f"POST {plan['path']} HTTP/1.1\r\nHost: forge\r\nContent-Type: application/json\r\n"

    async def run(self, until: asyncio.Event) -> None:
        """Ask until told to stop; a connection that breaks is a failed request and is opened anew."""
        while not until.is_set():
            try:
                reader, writer = await asyncio.open_connection(self.plan["host"], self.plan["port"])
            except OSError as error:
                self._failed(f"no connection: {type(error).__name__}")
                await asyncio.sleep(0.1)
                continue
            try:
                while not until.is_set() and await self._ask(reader, writer):
                    pass
            except TimeoutError:
                self._failed(f"no answer in {self.plan['patience']:g} s")
            except (OSError, asyncio.IncompleteReadError) as error:
                self._failed(f"broken connection: {type(error).__name__}")
            finally:
                writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Send one request, check its reply, and return whether the connection stays."""
        self.report.requests += 1
        row, self.number = self.number % len(self.bodies), self.number + 1
        body = self.bodies[row]
        writer.write(f"{self.head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        async with asyncio.timeout(self.plan["patience"]):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
            answer = await reader.readexactly(length)
        status = head.split(" ", 2)[1]
        if status == "200":
            self._check(row, json.loads(answer))
        else:
            self._failed(f"status {status}")
        return "connection: close" not in head

    def _check(self, row: int, reply: Mapping[str, Any]) -> None:
        version = reply["model_version"]
        self.report.answered(version)
        prediction, probability = self.plan["expected"].get(version, {row: (None, -1.0)})[row]
        if reply["prediction"] != prediction or abs(reply["prediction_probability"] - probability) > TOLERANCE:
            self.report.wrong.append(f"row {row} of version {version}: {reply}")

    def _failed(self, kind: str) -> None:
        self.report.failures.append((time.monotonic(), kind))


async def _main(plan: Mapping[str, Any]) -> Report:
    report, ended = Report(), asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
    callers: list[tuple[asyncio.Event, asyncio.Task[None]]] = []
    for connections, seconds in plan["steps"]:
        while len(callers) < connections:
            stop = asyncio.Event()
            caller = Caller(plan, report, 97 * len(callers))
            callers.append((stop, asyncio.create_task(caller.run(stop))))
        for stop, _ in callers[connections:]:
            stop.set()
        await asyncio.gather(*(task for _, task in callers[connections:]))
        del callers[connections:]
        try:
            await asyncio.wait_for(ended.wait(), seconds)
            break
        except TimeoutError:
            continue
    for stop, _ in callers:
        stop.set()
    await asyncio.gather(*(task for _, task in callers))
    return report


class Load:
    """The load as a process, for as long as the context lasts; `report` is there afterwards.

    Parameters
    ----------
    folder : Path
        Where plan and report are written.
    target : tuple
        Host, port and path that is POSTed to.
    bodies, expected
        What is sent, and what each version's own pipeline says of it.
    steps : sequence of (int, float or None)
        Connections and for how many seconds; None is until the context ends.
    """

    report: Report

    def __init__(
        self,
        folder: Path,
        target: tuple[str, int, str],
        bodies: Sequence[Any],
        expected: Expected,
        steps: Sequence[tuple[int, float | None]],
        patience: float = 35.0,
    ) -> None:
        host, port, path = target
        plan = {"host": host, "port": port, "path": path, "bodies": bodies, "expected": expected}
        self.plan, self.out = folder / "plan.json", folder / "report.json"
        self.plan.write_text(json.dumps({**plan, "steps": steps, "patience": patience}))

    def __enter__(self) -> "Load":
        command = [sys.executable, "-m", "tests.prove.serving_load", str(self.plan), str(self.out)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        if (code := self.process.wait(60)) != 0:
            raise RuntimeError(f"the load ended with exit code {code}; its traceback stands above")
        told = json.loads(self.out.read_text())
        told["versions"] = Counter(told["versions"])
        told["per_second"] = Counter({int(second): n for second, n in told["per_second"].items()})
        self.report = Report(**told)


if __name__ == "__main__":
    found = asyncio.run(_main(json.loads(Path(sys.argv[1]).read_text())))
    Path(sys.argv[2]).write_text(json.dumps(vars(found)))
