"""A router's metrics on their way to the recorder, which adds up those of all routers."""

import asyncio
import logging
from typing import Any

from ray import serve

from forge_core.monitoring.metrics import Tally

logger = logging.getLogger(__name__)

_SECONDS = 1.0


class Counting(Tally):
    """A tally that is handed over once a second; what could not be handed over is kept."""

    def __init__(self) -> None:
        super().__init__()
        self._leaving: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._recorder: Any = None

    def start(self) -> None:
        """Hand over from now on; asked again, it does nothing."""
        if self._leaving is None:
            self._leaving = asyncio.ensure_future(self._leave())

    async def hand_over(self) -> None:
        """Give the recorder what was counted since the last time."""
        async with self._turn:
            if not (taken := self.take()):
                return
            try:
                self._recorder = self._recorder or serve.get_app_handle("recorder")
                await self._recorder.gather.remote(taken)
            except Exception as error:
                self.add(taken)
                logger.warning("metrics kept for later: %s", type(error).__name__)

    async def _leave(self) -> None:
        while True:
            await asyncio.sleep(_SECONDS)
            await self.hand_over()
