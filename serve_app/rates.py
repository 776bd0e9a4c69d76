"""Rows a minute per key: a token bucket in every router, brought into line with one for all of them.

A bucket holds a minute's rows and fills steadily. A batch larger than it passes when it is full, and leaves a debt.
Routers tell the recorder a few times a second what they let in and take over its level. Between two tellings each of n
routers knows only its own callers, so together they may let in up to n - 1 times the level at the last telling too
many, which the next one turns into debt: over a longer time the rate holds.
"""

import time
from collections.abc import Callable, Mapping

from serve_app.protocol import TooManyRequests

Spent = Mapping[str, tuple[int, float]]


class Buckets:
    """Levels of keys, in rows.

    Parameters
    ----------
    clock : callable
        Seconds, steady.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}
        self._spent: dict[str, tuple[int, float]] = {}

    def spend(self, key: str, per_minute: int, n_rows: int) -> None:
        """Take rows from a key's bucket.

        Raises
        ------
        TooManyRequests
            With the seconds until there are enough in `context["retry_after"]`; nothing is taken.
        """
        now, level = self._level(key, per_minute)
        lacking = min(n_rows, per_minute) - level
        if lacking > 0:
            seconds = lacking * 60 / per_minute
            raise TooManyRequests(
                f"expected at most {per_minute} rows a minute with this key; retry in {seconds:.0f} s",
                context={"retry_after": max(1, round(seconds + 0.5))},
            )
        self._levels[key] = (level - n_rows, now)
        self._spent[key] = (per_minute, self._spent.get(key, (0, 0.0))[1] + n_rows)

    def take(self) -> dict[str, tuple[int, float]]:
        """Return what was spent since the last call, key to (rows a minute, rows), and start afresh."""
        taken, self._spent = self._spent, {}
        return taken

    def settle(self, levels: Mapping[str, float]) -> None:
        """Take over the common levels, less what was spent since they were asked for."""
        now = self._clock()
        for key, level in levels.items():
            self._levels[key] = (level - self._spent.get(key, (0, 0.0))[1], now)

    def exchange(self, spent: Spent) -> dict[str, float]:
        """Return the levels after taking what a router let in; the side of the recorder."""
        for key, (per_minute, n_rows) in spent.items():
            now, level = self._level(key, per_minute)
            self._levels[key] = (level - n_rows, now)
        return {key: self._levels[key][0] for key in spent}

    def _level(self, key: str, per_minute: int) -> tuple[float, float]:
        now = self._clock()
        level, since = self._levels.get(key, (float(per_minute), now))
        return now, min(float(per_minute), level + (now - since) * per_minute / 60)
