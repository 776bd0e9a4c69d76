"""Ids of requests and rows whose callers gave none."""

import os
import time

# What the ids of a batch end in, made once: putting texts together takes half as long as making them of numbers.
_ENDS: list[str] = []


def new_ids(n_rows: int) -> list[str]:
    """Return an id a row; those of a batch begin alike."""
    first = new_id()
    return [first] if n_rows == 1 else list(map(first.__add__, _ends(n_rows)))


def new_id() -> str:
    """Return a time-ordered id (RFC 9562, section 5.7)."""
    value = time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    text = f"{value & ~(0x3 << 62) | 0x2 << 62:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _ends(n_rows: int) -> list[str]:
    if len(_ENDS) < n_rows:
        _ENDS.extend(f"-{number}" for number in range(len(_ENDS), n_rows))
    return _ENDS[:n_rows]
