"""Micro-batches without a timer: what has arrived is sent whenever fewer than `in_flight` batches are out.

At low load a row leaves at once; under load rows gather while the variant is busy. Each row's answer goes
back to the caller that waits for it, by position within its own batch.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from forge_core.errors import ServiceUnavailable

Send = Callable[[list[Any]], Awaitable[Sequence[Any]]]


class Lane:
    """The queue in front of one variant.

    Parameters
    ----------
    send : async callable
        Takes a list of rows and returns one answer a row, in the same order.
    max_batch, in_flight, max_waiting : int
        Rows in one batch, batches out at a time, rows that may wait before new ones are turned away.
    """

    def __init__(self, send: Send, *, max_batch: int = 256, in_flight: int = 2, max_waiting: int = 20_000) -> None:
        self._send, self.max_batch, self.in_flight, self.max_waiting = send, max_batch, in_flight, max_waiting
        self._waiting: deque[tuple[Any, asyncio.Future[Any]]] = deque()
        self._out: set[asyncio.Task[None]] = set()

    async def ask(self, rows: Sequence[Any]) -> list[Any]:
        """Return one answer a row, in order.

        Raises
        ------
        ServiceUnavailable
            When too many rows wait already.
        """
        if len(self._waiting) + len(rows) > self.max_waiting:
            raise ServiceUnavailable(f"{len(self._waiting)} rows wait already; retry in a few seconds")
        loop = asyncio.get_running_loop()
        answers = [loop.create_future() for _ in rows]
        self._waiting.extend(zip(rows, answers, strict=True))
        self._pump()
        return list(await asyncio.gather(*answers))

    def _pump(self) -> None:
        while self._waiting and len(self._out) < self.in_flight:
            batch = [self._waiting.popleft() for _ in range(min(self.max_batch, len(self._waiting)))]
            task = asyncio.ensure_future(self._run(batch))
            self._out.add(task)
            task.add_done_callback(self._returned)

    def _returned(self, task: "asyncio.Task[None]") -> None:
        self._out.discard(task)
        self._pump()

    async def _run(self, batch: list[tuple[Any, "asyncio.Future[Any]"]]) -> None:
        try:
            answers = await self._send([row for row, _ in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"the variant answered {len(answers)} of {len(batch)} rows")
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():  # the caller may have gone
                future.set_result(answer)
