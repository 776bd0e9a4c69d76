"""Which variant a user gets: a point of a hash, and the segment of [0, 1) that it falls into.

No state and no numpy: this runs for every request, in every replica, and all of them agree.
"""

import math
from collections.abc import Mapping
from hashlib import sha256
from itertools import accumulate

from forge_core.errors import ConfigurationError

# Upper ends in ascending order, the last one 1.0, each with the variant that has the points below it.
Segments = tuple[tuple[float, str], ...]

_SUM_WITHIN = 1e-9
# Widths are reckoned in whole parts of this many, so that reallocations add up no error and leave no slivers.
_WHOLE = 10**12


def unit_point(salt: str, key: str) -> float:
    """Return the point of a key, uniform in [0, 1): the first 53 bits of SHA-256(salt, zero byte, key).

    Parameters
    ----------
    salt : str
        Of the split; points of two salts are independent.
    key : str
        Of the user or the request.

    Examples
    --------
    >>> round(unit_point("checkout", "user123"), 6)
    0.343886
    """
    return point_of(unit_id(salt, key))


def unit_id(salt: str, key: str) -> str:
    """Return what logs keep of a user's key: 16 hexadecimal digits of the hash that `unit_point` reads.

    >>> unit_id("checkout", "user123")
    '5808e3aeaf73eb1c'
    """
    return _digest(salt, key)[:8].hex()


def point_of(unit: str) -> float:
    """Return the point of a unit's id, for who needs both: the hash costs most.

    >>> point_of(unit_id("checkout", "user123")) == unit_point("checkout", "user123")
    True
    """
    # All 64 bits could round up to 1.0, which is in no segment.
    return (int(unit, 16) >> 11) / 9007199254740992.0


def assign(segments: Segments, point: float) -> str:
    """Return the variant that has a point.

    >>> assign(segments_of({"champion": 0.95, "canary": 0.05}), 0.96)
    'canary'
    """
    for end, variant in segments:
        if point < end:
            return variant
    return segments[-1][1]


def segments_of(shares: Mapping[str, float]) -> Segments:
    """Return segments as wide as the shares, in their order; a share of 0 has none.

    Parameters
    ----------
    shares : mapping from variant to its share of users
        Finite, at least 0, 1 together (within 1e-9).

    Raises
    ------
    ConfigurationError
        When they are not.

    Examples
    --------
    >>> segments_of({"model_v1": 0.5, "model_v2": 0.25, "model_v3": 0.25})
    ((0.5, 'model_v1'), (0.75, 'model_v2'), (1.0, 'model_v3'))
    """
    return _joined([(width, variant) for variant, width in _whole(shares).items()])


def share_of(segments: Segments) -> dict[str, float]:
    """Return each variant's share of users, in the order of their first segments.

    >>> share_of(((0.5, "a"), (0.75, "b"), (1.0, "a")))
    {'a': 0.75, 'b': 0.25}
    """
    return {variant: width / _WHOLE for variant, width in _held(segments).items()}


def reallocate(segments: Segments, shares: Mapping[str, float]) -> Segments:
    """Return segments with new shares that move only the users who must move.

    Variants that shrink give up the upper ends of what they have; variants that grow, or are new, take them. So the
    share of users who move is half the sum of the changes of the shares, and nobody moves between two variants that
    both grow or both shrink.

    Parameters
    ----------
    segments : Segments
        As they are now.
    shares : mapping from variant to its new share
        As `segments_of` takes them; a variant that is not named gets 0.

    Raises
    ------
    ConfigurationError
        When the shares cannot be used.

    Examples
    --------
    >>> reallocate(segments_of({"champion": 0.95, "canary": 0.05}), {"champion": 0.75, "canary": 0.25})
    ((0.75, 'champion'), (1.0, 'canary'))
    """
    wanted, held = _whole(shares), _held(segments)
    surplus = {variant: max(width - wanted.get(variant, 0), 0) for variant, width in held.items()}
    takers = [(width - held.get(variant, 0), variant) for variant, width in wanted.items()]
    takers = [taker for taker in takers if taker[0] > 0]
    pieces: list[tuple[int, str]] = []
    for width, variant in reversed(_widths(segments)):
        given = min(width, surplus[variant])
        surplus[variant] -= given
        kept = width - given
        while given:
            needed, taker = takers.pop()
            taken = min(given, needed)
            pieces.append((taken, taker))
            given -= taken
            if taken < needed:
                takers.append((needed - taken, taker))
        pieces.append((kept, variant))
    return _joined(pieces[::-1])


def _whole(shares: Mapping[str, float]) -> dict[str, int]:
    """Return the shares as whole numbers of parts that are `_WHOLE` together."""
    wrong = {v: s for v, s in shares.items() if not (isinstance(s, (int, float)) and math.isfinite(s) and s >= 0)}
    total = sum(shares.values()) if not wrong else math.nan
    if wrong or abs(total - 1) > _SUM_WITHIN:
        found = f"{wrong}" if wrong else f"a sum of {total:g} in {dict(shares)}"
        raise ConfigurationError(
            f"expected shares of traffic that are at least 0 and 1 together, found {found}",
            context={"shares": {variant: str(share) for variant, share in shares.items()}},
        )
    ends = [round(end / total * _WHOLE) for end in accumulate(shares.values())]
    return {v: end - start for v, start, end in zip(shares, [0, *ends], ends, strict=False)}


def _held(segments: Segments) -> dict[str, int]:
    held: dict[str, int] = {}
    for width, variant in _widths(segments):
        held[variant] = held.get(variant, 0) + width
    return held


def _widths(segments: Segments) -> list[tuple[int, str]]:
    ends = [round(end * _WHOLE) for end, _ in segments]
    return [(end - start, v) for start, end, (_, v) in zip([0, *ends], ends, segments, strict=False)]


def _joined(pieces: list[tuple[int, str]]) -> Segments:
    """Return segments of these widths from 0 on, neighbours of one variant as one."""
    found: list[tuple[float, str]] = []
    end = 0
    for width, variant in pieces:
        end += width
        if found and (not width or found[-1][1] == variant):
            variant = found.pop()[1]
        if end:
            found.append((end / _WHOLE, variant))
    return tuple(found)


def _digest(salt: str, key: str) -> bytes:
    return sha256(f"{salt}\0{key}".encode(errors="surrogatepass")).digest()
