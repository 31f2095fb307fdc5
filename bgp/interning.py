"""Values that many share, found by what they are made of, and forgotten when nobody else holds them any more.

A weak dictionary would do the same at 170 octets more for each value. Here the reference counts of a part of the
values are looked at whenever that part has tripled, so that the cost of it is a constant for each value put in, and no
look at them takes long.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from sys import getrefcount
from typing import Generic, TypeVar

from bgp.containers import Shard
from bgp.table import PLACE, SHARDS, TOP

_FIRST_SWEEP = 64
"""Values in a shard at which it is looked through for the first time."""

_GROWTH = 3
"""By how much a shard grows until it is looked through again: what nobody uses is two thirds of it at most."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Interned(Generic[K, V]):
    """A mapping whose values stay at least as long as they are used. A value must not be a part of a key."""

    __slots__ = ("_limits", "_shards")

    def __init__(self) -> None:
        self._shards: list[dict[K, V]] = [Shard() for _ in range(SHARDS)]
        self._limits = [_FIRST_SWEEP] * SHARDS

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def get(self, key: K) -> V | None:
        return self._shards[PLACE[hash(key) >> TOP]].get(key)

    def __setitem__(self, key: K, value: V) -> None:
        at = PLACE[hash(key) >> TOP]
        shard = self._shards[at]
        shard[key] = value
        if len(shard) > self._limits[at]:
            self._sweep(at)

    def find(self, key: K, make: Callable[[K], V | None]) -> V | None:
        """Return the value of a key; where there is none, what ``make`` makes of it, which is kept unless it is None.

        ``make`` must not put anything in itself.
        """
        at = PLACE[hash(key) >> TOP]
        shard = self._shards[at]
        value = shard.get(key)
        if value is None:
            value = make(key)
            if value is not None:
                shard[key] = value
                if len(shard) > self._limits[at]:
                    self._sweep(at)
        return value

    def release(self) -> list[dict[K, V]]:
        """Forget everything; return it in parts, to be let go of one at a time where it may be much."""
        shards, self._shards = self._shards, [Shard() for _ in range(SHARDS)]
        self._limits = [_FIRST_SWEEP] * SHARDS
        return [shard for shard in shards if shard]

    def _sweep(self, at: int) -> None:
        shard = self._shards[at]
        for key in _with_references(shard, _ALONE):
            del shard[key]
        self._limits[at] = max(_FIRST_SWEEP, _GROWTH * len(shard))


def _with_references(shard: dict[K, V], count: int) -> list[K]:
    """Return the keys whose values have so many references while they are looked at."""
    return [key for key, value in shard.items() if getrefcount(value) == count]


_ALONE = next(count for count in range(10) if _with_references(Shard({0: object()}), count))
"""References to a value that nobody holds but the mapping; compiled code makes another number of them."""
