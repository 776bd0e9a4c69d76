"""What a caller with the admin scope changes in the serving state, and bringing Serve to it from within a router.

The ledger is changed first, so that nothing is lost where the router dies with the request: the next reconcile
finishes it. The registry's names follow in a process of their own, because its client takes seconds and memory that
a router does not have.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import TypeVar

from forge_core.deployment.serve_client import get_serve_client
from forge_core.errors import ServiceUnavailable
from forge_core.ledger import Ledger
from forge_core.settings import get_settings

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
# Brings Serve, or the registry's names, to what the ledger says of a model.
Follow = Callable[[Ledger, str], Awaitable[None]]


class Steering:
    """The ledger, and what follows a change of it.

    Parameters
    ----------
    ledger_url : str
    reconcile, name : async callable, optional
        What follows; by default Serve is brought to the ledger's state, and the registry's names to it.
    """

    def __init__(self, ledger_url: str, reconcile: Follow | None = None, name: Follow | None = None) -> None:
        self.ledger_url = ledger_url
        self._reconcile, self._name = reconcile or _reconcile, name or _name
        self._following: set[asyncio.Future[None]] = set()

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger; opened when it is first asked."""
        return Ledger(self.ledger_url)

    async def read(self, question: Callable[[Ledger], Result]) -> Result:
        """Return what the ledger says."""
        return await asyncio.to_thread(lambda: question(self.ledger))

    async def change(self, model: str, change: Callable[[Ledger], Result]) -> Result:
        """Change the ledger, bring Serve to it, and return what the change gave; the registry's names follow."""
        result = await self.read(change)
        await self._reconcile(self.ledger, model)
        following = asyncio.ensure_future(self._name(self.ledger, model))
        self._following.add(following)
        following.add_done_callback(self._following.discard)
        return result


async def _reconcile(ledger: Ledger, model: str) -> None:
    settings = get_settings()
    if settings.ledger != ledger.url:
        # What would be composed of them would replace the running configuration by another one.
        raise ServiceUnavailable(
            "the change is recorded, and this replica's settings are not those of the stack, so it cannot bring Serve "
            "to it; `python -m forge_core.deployment reconcile` where the stack's settings are does"
        )
    await asyncio.to_thread(lambda: get_serve_client(settings).reconcile(ledger))


async def _name(ledger: Ledger, model: str) -> None:
    command = [sys.executable, "-m", "forge_core.deployment", "names", model]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, told = await process.communicate()
    if process.returncode:
        logger.warning("the registry's names do not follow yet model=%s: %s", model, told.decode()[-500:])
