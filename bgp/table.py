"""Tables of prefixes that never stop the event loop: many small dicts instead of one large one.

A dict is rebuilt as a whole when it grows, which takes a quarter of a second at a million entries. Here a prefix is
kept in one of ``SHARDS`` dicts, chosen by its hash, so that each rebuild is short, and a walk over everything can be
made a shard at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Final, Generic, TypeVar, overload

from bgp.containers import Shard
from config.prefix import Run

SHARDS: Final = 64
TOP: Final = 52
"""A shard is chosen by the 12 highest bits of a hash. A dict chooses its slots by the lowest, and prefixes that had
those in common would all meet in a few of them."""
_PLACES = 4096


def _places() -> bytes:
    """Give the last shard twice as many places as the first, and the others a share in between.

    Shards of one size would grow at the same time, and the pause would be as long as that of one large dict. So their
    growth is spread evenly over the time in which the table doubles.
    """
    shares: list[float] = [2.0 ** (n / SHARDS) for n in range(SHARDS)]
    ends = [sum(shares[: n + 1], 0.0) / sum(shares, 0.0) * _PLACES for n in range(SHARDS)]
    return bytes(next(n for n, end in enumerate(ends) if place < end or n == SHARDS - 1) for place in range(_PLACES))


PLACE: Final = _places()
"""``shards[PLACE[hash(prefix[:lead]) >> TOP]]`` is where a prefix belongs; a negative index counts from the end.
Loops over many prefixes say it themselves, without ``[:lead]`` where the whole prefix counts."""
WHOLE = 17

V = TypeVar("V")
D = TypeVar("D")


class Table(Generic[V]):
    """A mapping from prefix to value. Iterating goes shard by shard, over each as it was when its turn came."""

    __slots__ = ("lead", "shards", "shared")

    def __init__(self, lead: int = WHOLE) -> None:
        self.lead = lead
        """Octets of a prefix that choose its shard: those that have them in common are together."""
        self.shards: list[dict[bytes, V]] = [Shard() for _ in range(SHARDS)]
        self.shared: set[int] = set()
        """Shards that are not this table's alone, and only to be written to by way of ``writable``."""

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def __contains__(self, prefix: bytes) -> bool:
        return prefix in self.shards[PLACE[hash(prefix[: self.lead]) >> TOP]]

    def __iter__(self) -> Iterator[bytes]:
        for shard in self.shards:
            yield from list(shard)

    def items(self) -> Iterator[tuple[bytes, V]]:
        for shard in self.shards:
            yield from list(shard.items())

    def values(self) -> Iterator[V]:
        for shard in self.shards:
            yield from list(shard.values())

    def __getitem__(self, prefix: bytes) -> V:
        return self.shards[PLACE[hash(prefix[: self.lead]) >> TOP]][prefix]

    @overload
    def get(self, prefix: bytes) -> V | None: ...
    @overload
    def get(self, prefix: bytes, default: D) -> V | D: ...
    def get(self, prefix: bytes, default: D | None = None) -> V | D | None:
        return self.shards[PLACE[hash(prefix[: self.lead]) >> TOP]].get(prefix, default)

    def __setitem__(self, prefix: bytes, value: V) -> None:
        self.writable(PLACE[hash(prefix[: self.lead]) >> TOP])[prefix] = value

    def __delitem__(self, prefix: bytes) -> None:
        del self.writable(PLACE[hash(prefix[: self.lead]) >> TOP])[prefix]

    def pop(self, prefix: bytes) -> V | None:
        """Remove a prefix; return what it had, None where it is not in the table."""
        return self.writable(PLACE[hash(prefix[: self.lead]) >> TOP]).pop(prefix, None)

    def snapshot(self) -> list[dict[bytes, V]]:
        """Return the shards as they are now. Nobody may change them: the table copies one before it writes to it."""
        self.shared = set(range(SHARDS))
        return list(self.shards)

    def copy(self) -> Table[V]:
        """Return a table of the same content. A shard becomes two when one of the tables writes to it."""
        twin: Table[V] = Table(self.lead)
        twin.shards = self.snapshot()
        twin.shared = set(range(SHARDS))
        return twin

    def take(self, limit: int) -> list[tuple[bytes, V]]:
        """Remove and return up to ``limit`` items."""
        taken: list[tuple[bytes, V]] = []
        for index, shard in enumerate(self.shards):
            if shard and len(taken) < limit:
                own = self.writable(index)
                taken += [own.popitem() for _ in range(min(limit - len(taken), len(own)))]
        return taken

    def writable(self, index: int) -> dict[bytes, V]:
        """Return a shard to write to. Who never takes a snapshot may write to ``shards`` at once."""
        if index in self.shared:
            self.shared.discard(index)
            self.shards[index] = Shard(self.shards[index])
        return self.shards[index]


class Queue:
    """Prefixes that wait for the decision process, in order of arrival; one that changes twice may stand here twice.

    What arrives together is kept as it came, so that adding costs the same for one prefix and for a thousand.
    """

    __slots__ = ("_current", "_single", "_stretches", "added", "taken")

    def __init__(self) -> None:
        self.added = 0
        self.taken = 0
        """How many have been added, and taken, since the beginning."""
        self._stretches: deque[Collection[bytes]] = deque()
        self._single: list[bytes] = []
        """The last stretch, where it is made of prefixes that came one at a time."""
        self._current: Iterator[bytes] = iter(())

    @property
    def waiting(self) -> int:
        return self.added - self.taken

    def add(self, prefixes: Collection[bytes]) -> None:
        """Add prefixes. The collection must not change afterwards."""
        count = len(prefixes)
        self.added += count
        if count > 1:
            self._stretches.append(prefixes)
        elif count:
            if not self._stretches or self._stretches[-1] is not self._single:
                self._single = []
                self._stretches.append(self._single)
            self._single += prefixes

    def take(self, limit: int) -> list[bytes]:
        """Remove and return up to ``limit`` prefixes; those of a Run apart, as a Run."""
        taken = list(islice(self._current, limit))
        while len(taken) < limit and self._stretches:
            first = self._stretches[0]
            if isinstance(first, Run):
                if taken:
                    break
                self._stretches.popleft()
                if len(first) > limit:
                    self._stretches.appendleft(Run(first[limit:]))
                    first = Run(first[:limit])
                self.taken += len(first)
                return first
            self._current = iter(self._stretches.popleft())
            taken += islice(self._current, limit - len(taken))
        self.taken += len(taken)
        return taken
