"""Who may come in: a key per caller, its scopes, its rate. Who has none hears that one is needed, and nothing else."""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from forge_core.keys import Key, hash_of, id_of
from serve_app.protocol import Forbidden, Unauthorized
from serve_app.rates import Buckets, Spent

logger = logging.getLogger(__name__)

Exchange = Callable[[Spent], Awaitable[Mapping[str, float]]]

_REFRESH_SECONDS = 3.0
_EXCHANGE_SECONDS = 0.2
_REMEMBERED = 10_000
_NOBODY = hash_of("")


class Caller(NamedTuple):
    """Who was let in: a key's id and owner, or nobody in particular where the door is open."""

    key: str | None
    owner: str
    per_minute: int | None


_ANYONE = Caller(None, "", None)


class Door:
    """The keys in memory, read again every few seconds; while the ledger is away the last ones stay.

    Parameters
    ----------
    read_keys : callable
        Returns the ledger's keys.
    open_without_key : bool
        Let in who shows no key. A key that is shown must be right all the same.
    keys : iterable of Key
        Those that are known from the start.
    exchange : async callable, optional
        Gives what was spent to all routers' common buckets, and returns their levels.
    now : callable
        The time in UTC.
    """

    def __init__(
        self,
        read_keys: Callable[[], Iterable[Key]],
        *,
        open_without_key: bool,
        keys: Iterable[Key] = (),
        exchange: Exchange | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._read_keys, self.open_without_key, self._exchange, self._now = read_keys, open_without_key, exchange, now
        self._keys = {key.id: key for key in keys}
        self._known: dict[str, Key] = {}
        self._buckets = Buckets()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Read the keys and balance the buckets, now and from now on; asked again, it does nothing."""
        if not self._tasks:
            tried = asyncio.Event()
            loops = [
                self._repeat(self.refresh, _REFRESH_SECONDS, tried),
                self._repeat(self.balance, _EXCHANGE_SECONDS, asyncio.Event()),
            ]
            self._tasks = [asyncio.ensure_future(loop) for loop in loops]
            await tried.wait()

    async def refresh(self) -> None:
        """Read the keys again."""
        keys = {key.id: key for key in await asyncio.to_thread(lambda: list(self._read_keys()))}
        if keys != self._keys:
            self._keys, self._known = keys, {}

    async def balance(self) -> None:
        """Bring the buckets into line with those of the other routers."""
        if self._exchange is not None and (spent := self._buckets.take()):
            self._buckets.settle(await self._exchange(spent))

    def admit(self, authorization: str | None, api_key: str | None, scope: str | None) -> Caller:
        """Return who calls.

        Parameters
        ----------
        authorization, api_key : str, optional
            The headers `Authorization: Bearer …` and `X-API-Key`.
        scope : str, optional
            What the route needs; None for any key that works.

        Raises
        ------
        Unauthorized
            For no key where one is needed, and, in the same words, one that is unknown, ended or ill-formed.
        Forbidden
            For a key without the scope.
        """
        if authorization is None and api_key is None:
            if self.open_without_key:
                return _ANYONE
            raise _unauthorized()
        secret = api_key if api_key is not None else _bearer(authorization or "")
        key = self._known.get(secret) or self._verified(secret)
        if key is None or not key.works(self._now()):
            raise _unauthorized()
        if scope is not None and not key.may(scope):
            raise Forbidden(f"expected a key with the scope {scope!r}; this one has {', '.join(sorted(key.scopes))}")
        return Caller(key.id, key.owner, key.per_minute)

    def spend(self, caller: Caller, n_rows: int) -> None:
        """Count rows against the caller's rate; see `Buckets.spend`."""
        if caller.per_minute is not None and caller.key is not None:
            self._buckets.spend(caller.key, caller.per_minute, n_rows)

    def _verified(self, secret: str) -> Key | None:
        key = self._keys.get(id_of(secret) or "")
        # Compared against something in any case, so that time does not tell whether the id exists.
        if not hmac.compare_digest(hash_of(secret), key.hash if key else _NOBODY) or key is None:
            return None
        if len(self._known) < _REMEMBERED:
            self._known[secret] = key
        return key

    async def _repeat(self, work: Callable[[], Awaitable[None]], seconds: float, tried: asyncio.Event) -> None:
        silent = False
        while True:
            try:
                await work()
                silent = False
            except Exception as error:
                if not silent:
                    logger.warning("the door goes on with what it knows: %s: %s", type(error).__name__, error)
                silent = True
            tried.set()
            await asyncio.sleep(seconds)


def _bearer(authorization: str) -> str:
    kind, _, secret = authorization.partition(" ")
    return secret.strip() if kind.lower() == "bearer" else ""


def _unauthorized() -> Unauthorized:
    return Unauthorized("expected a key that works in `Authorization: Bearer …` or `X-API-Key`")
