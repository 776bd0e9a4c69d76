"""`python -m tests.prove.replica_death`: kills one of two replicas in the middle of its batches, on a Serve of its own.

Prints, as JSON, what each batch got with and without another try.
"""

import asyncio
import json
import os
import signal
import sys
import time
from typing import Any

import ray
from ray import serve

from serve_app.live_version import outliving_replicas

N_BATCHES = 8


class Slow:
    """Scores a batch in a second, with the number of its process."""

    async def score(self, rows: list[int]) -> list[int]:
        await asyncio.sleep(1.0)
        return [os.getpid() for _ in rows]


async def _batches(handle: Any, *, again: bool) -> list[str]:
    """Send batches, kill the process that answered the first time, and return `answered` or an error's name each."""

    async def send(rows: list[Any]) -> list[int]:
        return await handle.score.remote(rows)

    (victim,) = await send([0])
    asked = outliving_replicas(send) if again else send
    batches = [asyncio.ensure_future(asked([number])) for number in range(N_BATCHES)]
    await asyncio.sleep(0.5)
    os.kill(victim, signal.SIGKILL)
    answers = await asyncio.gather(*batches, return_exceptions=True)
    return [type(a).__name__ if isinstance(a, BaseException) else "answered" for a in answers]


async def _await_two(handle: Any) -> None:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        answers = await asyncio.gather(*(handle.score.remote([0]) for _ in range(8)), return_exceptions=True)
        if len({answer[0] for answer in answers if isinstance(answer, list)}) == 2:
            return
    raise TimeoutError("no two replicas within 60 s")


async def _kill_twice(handle: Any) -> dict[str, list[str]]:
    found = {}
    for name, again in (("once", False), ("again", True)):
        await _await_two(handle)
        found[name] = await _batches(handle, again=again)
    return found


def main() -> None:
    """Kill a replica with and without another try, and print what became of the batches."""
    ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=1)
    serve.start(proxy_location="Disabled")
    options = {"num_replicas": 2, "max_ongoing_requests": 100, "ray_actor_options": {"num_cpus": 0}}
    handle = serve.run(serve.deployment(Slow).options(**options).bind(), name="slow", route_prefix=None)
    found = asyncio.run(_kill_twice(handle))
    ray.shutdown()  # the cluster is this process's own and takes Serve with it
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
