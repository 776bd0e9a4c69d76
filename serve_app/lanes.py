"""Micro-batches without a timer: what has arrived is sent whenever fewer than `in_flight` batches are out.

At low load a row leaves at once; under load calls gather while the variant is busy. A batch takes no more than its
share of the calls that are here, and follows another only once it is as large: so the variant scores some while the
router reads and answers others. Each row's answer goes back to the caller that waits for it, by position within its own
batch.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from forge_core.errors import ServiceUnavailable
from serve_app.columns import Table

Send = Callable[[Sequence[Any] | Table], Awaitable[Sequence[Any]]]
_Waiting = tuple[Sequence[Any] | Table, "asyncio.Future[Sequence[Any]]"]
_LOOKS = 20


class Lane:
    """The queue in front of one variant.

    Parameters
    ----------
    send : async callable
        Takes rows, or one call's table of them, and returns one answer a row, in the same order.
    max_batch : int
        Rows of different calls in one batch.
    max_rows : int
        Rows of one call in one batch; a longer call is sent in pieces.
    in_flight : int
        Batches out at a time.
    max_waiting : int
        Rows that may wait before new ones are turned away.
    seconds : float
        How long a caller waits at most. One timer looks after all of them, because a timer each costs more than the
        row.
    """

    def __init__(
        self,
        send: Send,
        *,
        max_batch: int = 256,
        max_rows: int = 4096,
        in_flight: int = 2,
        max_waiting: int = 20_000,
        seconds: float = 30.0,
    ) -> None:
        self._send, self.max_batch, self.max_rows = send, max_batch, max(max_batch, max_rows)
        self.in_flight, self.max_waiting = in_flight, max_waiting
        self._waiting: deque[_Waiting] = deque()
        self._n_waiting = 0
        self.seconds = seconds
        self._asked: deque[tuple[float, asyncio.Future[Sequence[Any]]]] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._out: dict[asyncio.Task[None], int] = {}
        self._pump_is_due = False

    async def ask(self, rows: Sequence[Any] | Table) -> Sequence[Any]:
        """Return one answer a row, in order.

        Raises
        ------
        ServiceUnavailable
            When too many rows wait already, or no answer came in time.
        """
        if self._n_waiting + len(rows) > self.max_waiting:
            raise ServiceUnavailable(f"{self._n_waiting} rows wait already; retry in a few seconds")
        if len(rows) <= self.max_rows:
            return await self._line_up(rows)
        pieces = [self._line_up(rows[i : i + self.max_rows]) for i in range(0, len(rows), self.max_rows)]
        return [answer for answers in await asyncio.gather(*pieces) for answer in answers]

    def _line_up(self, rows: Sequence[Any] | Table) -> "asyncio.Future[Sequence[Any]]":
        loop = asyncio.get_running_loop()
        answers: asyncio.Future[Sequence[Any]] = loop.create_future()
        self._waiting.append((rows, answers))
        self._asked.append((loop.time() + self.seconds, answers))
        if self._watch is None:
            self._watch = loop.call_later(self.seconds / _LOOKS, self._look, loop)
        self._n_waiting += len(rows)
        if not self._pump_is_due:  # once all that arrived together stand in line
            self._pump_is_due = True
            loop.call_soon(self._pump)
        return answers

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give up whoever has waited too long."""
        while self._asked and (self._asked[0][1].done() or self._asked[0][0] <= loop.time()):
            _, answers = self._asked.popleft()
            if not answers.done():
                answers.set_exception(ServiceUnavailable(f"no answer came within {self.seconds:g} s; retry later"))
        self._watch = loop.call_later(self.seconds / _LOOKS, self._look, loop) if self._asked else None

    def _pump(self) -> None:
        self._pump_is_due = False
        while self._waiting and len(self._out) < self.in_flight:
            n_out = sum(self._out.values())
            if len(self._waiting) * len(self._out) < n_out:
                return
            share = -(-(len(self._waiting) + n_out) // self.in_flight)
            if batch := self._next_batch(share):
                task = asyncio.ensure_future(self._run(batch))
                self._out[task] = len(batch)
                task.add_done_callback(self._returned)

    def _next_batch(self, n_calls: int) -> list[_Waiting]:
        batch: list[_Waiting] = []
        n_rows = 0
        while self._waiting and len(batch) < n_calls:
            rows, answers = self._waiting[0]
            if batch and n_rows + len(rows) > self.max_batch:
                break
            self._waiting.popleft()
            self._n_waiting -= len(rows)
            if not answers.done():  # else the caller has gone
                batch.append((rows, answers))
                n_rows += len(rows)
        return batch

    def _returned(self, task: "asyncio.Task[None]") -> None:
        del self._out[task]
        self._pump()

    async def _run(self, batch: list[_Waiting]) -> None:
        try:
            rows = batch[0][0] if len(batch) == 1 else [row for part, _ in batch for row in part]
            answers = await self._send(rows)
            if len(answers) != len(rows):
                raise RuntimeError(f"the variant answered {len(answers)} of {len(rows)} rows")
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        start = 0
        for part, future in batch:
            if not future.done():
                future.set_result(answers[start : start + len(part)])
            start += len(part)
