"""What a policy rule can ask of a path beside its prefix: communities, AS_PATH, next hop."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from bgp import as_path
from bgp.attributes import AS_PATH, COMMUNITIES, EXTENDED_COMMUNITIES, LARGE_COMMUNITIES
from bgp.paths import Path

Condition = Callable[[Path], bool]

COMMUNITY_CODES = {4: COMMUNITIES, 8: EXTENDED_COMMUNITIES, 12: LARGE_COMMUNITIES}
"""Attributes that hold communities, by the octets of one (RFC 1997, RFC 4360, RFC 8092)."""

_BOUNDARY = r"(?:^|[ ,{}]|$)"


def compile_as_path(expression: str) -> re.Pattern[str]:
    """Return a regular expression over the usual text of an AS_PATH, ``65001 65002 {65003,65004}``.

    ``_`` is a boundary between two AS numbers, the beginning or the end. Raises ValueError.
    """
    try:
        return re.compile(expression.replace("_", _BOUNDARY))
    except re.error as error:
        raise ValueError(f"{expression!r} is not a regular expression: {error}") from None


def has_community(wanted: Iterable[bytes]) -> Condition:
    """Return what tells whether a path has any of these communities, of 4, 8 or 12 octets each."""
    by_size: dict[int, frozenset[bytes]] = {}
    for community in wanted:
        by_size[len(community)] = by_size.get(len(community), frozenset()) | {community}

    def holds(path: Path) -> bool:
        for size, some in by_size.items():
            value = path.attributes.value(COMMUNITY_CODES[size]) or b""
            if not some.isdisjoint(value[at : at + size] for at in range(0, len(value), size)):
                return True
        return False

    return holds


def has_as_path(expression: str) -> Condition:
    """Return what tells whether the AS_PATH of a path matches; that of our own routes is empty."""
    pattern = compile_as_path(expression)

    def holds(path: Path) -> bool:
        return pattern.search(as_path.text(path.attributes.value(AS_PATH) or b"")) is not None

    return holds


_REMEMBERED = 16384
"""Sets of attributes at most, as their octets are held by that: some megabytes."""


class All:
    """All of some conditions; what they said is remembered for a while, because many prefixes share a path.

    It is remembered by all that they go by, not by the path, which would keep its next hop and its peer alive.
    """

    def __init__(self, conditions: Iterable[Condition]) -> None:
        self._conditions = tuple(conditions)
        self._known: dict[tuple[bytes, bytes], bool] = {}

    def __bool__(self) -> bool:
        return bool(self._conditions)

    def hold(self, path: Path | None) -> bool:
        """Tell whether all hold for a path; where there is none, only no condition does."""
        if not self._conditions:
            return True
        if path is None:
            return False
        key = path.raw, path.hop.address if path.hop is not None else b""
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[key] = all(condition(path) for condition in self._conditions)
        return known
