"""What one peer has been told of a group's table, and what it is yet to be told, a part at a time."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import NamedTuple

from bgp.paths import Peer
from bgp.table import PLACE, SHARDS, TOP

SLICE = 5000
"""Prefixes looked at, or packed, in one go; some milliseconds of work."""


class Exported:
    """A route as a group's members see it; equal ones are one object."""

    __slots__ = ("after", "before", "next_hop", "only", "peer")

    def __init__(
        self,
        before: bytes,
        after: bytes,
        next_hop: bytes | None,
        peer: Peer | None,
        only: frozenset[Peer] | None = None,
    ) -> None:
        self.before = before
        self.after = after
        self.next_hop = next_hop
        """Packed; None: the session's own."""
        self.peer = peer
        """Who announced it: that peer does not get it back."""
        self.only = only
        """Who gets it; None: all. Of learned routes only, and only beside better ones."""

    def goes_to(self, peer: Peer) -> bool:
        return self.peer is not peer and (self.only is None or peer in self.only)

    def says(self, other: Exported) -> bool:
        """Tell whether a peer that knows ``other`` would learn nothing."""
        return (self.before, self.after, self.next_hop) == (other.before, other.after, other.next_hop)


Change = tuple[Exported | None, Exported | None]
"""What a prefix was announced with, and what it is to be announced with; None: not at all."""

Difference = tuple[bytes, Exported | None, Exported | None]
"""A prefix, what a peer has been told of it, and what it is to be told; None: nothing."""

Shards = list[dict[bytes, Exported]]
"""Of a table, as they were at one time; nobody changes them any more."""

Held = Iterable[tuple[bytes, Exported | None]]
"""Prefixes, and what a peer has been told of them; None: nothing. Can be iterated over again, and may be long."""


class Whole:
    """A table that a member is to be told, sorted by route before it is packed; a part at a time, both."""

    def __init__(self, shards: Shards, *, first: bool, marked: bool = False) -> None:
        self.first = first
        """The member has been told nothing of it yet."""
        self.marked = marked
        """Goes out between BoRR and EoRR (RFC 7313)."""
        self.begun = False
        self._shards = shards
        self._routes: defaultdict[Exported, list[bytes]] = defaultdict(list)

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the prefixes that are left."""
        for some in (*self._shards, *self._routes.values()):
            yield from some

    def sort(self) -> int:
        """Sort a part; return how many prefixes it were, 0: all is sorted."""
        self.begun = True
        count = 0
        while self._shards and count < SLICE:
            shard = self._shards.pop()
            count += len(shard)
            for prefix, route in shard.items():
                self._routes[route].append(prefix)
        return count

    def take(self) -> list[tuple[Exported, list[bytes]]]:
        """Remove and return about as many prefixes as are packed in one go; nothing where all is taken."""
        taken: list[tuple[Exported, list[bytes]]] = []
        left = SLICE
        while self._routes and left > 0:
            route, prefixes = self._routes.popitem()
            if len(prefixes) > left:
                self._routes[route] = prefixes
                prefixes = prefixes[-left:]
                del self._routes[route][-left:]
            taken.append((route, prefixes))
            left -= len(prefixes)
        return taken


class Untold(NamedTuple):
    """What a peer held before changes of a log, of which it has not been told."""

    log: Sequence[Difference]
    first: int
    """The first of the changes."""
    end: int
    """The first behind them."""

    def pairs(self) -> Iterator[tuple[bytes, Exported | None]]:
        """Iterate backwards: of several changes of a prefix the first one says what is held."""
        for number in range(self.end - 1, self.first - 1, -1):
            prefix, held, _ = self.log[number]
            yield prefix, held


class Backlog(NamedTuple):
    """What a peer held before the changes of its backlog."""

    changes: Mapping[bytes, Change]

    def pairs(self) -> Iterator[tuple[bytes, Exported | None]]:
        for prefix, (held, _) in self.changes.items():
            yield prefix, held


class Compared(NamedTuple):
    """What a peer holds of the part of a shard that has been compared with what it is to know."""

    known: Mapping[bytes, Exported | None]
    wanted: Mapping[bytes, Exported]
    seen: int
    """How many prefixes of first the one, then the other have been."""

    def pairs(self) -> Iterator[tuple[bytes, Exported | None]]:
        for prefix in islice(self.known, self.seen):
            yield prefix, self.wanted.get(prefix)
        yield from islice(self.wanted.items(), max(self.seen - len(self.known), 0))


class Told(NamedTuple):
    """What a peer has been told on its session, for a change of groups in the middle of it."""

    shards: Sequence[Mapping[bytes, Exported | None]]
    """Routes by prefix, with the path identifier before it where those are sent."""
    held: tuple[Callable[[], Held], ...]
    """What the peer has been told instead of some prefixes; None: nothing. The last word on a prefix counts."""
    untold: tuple[Whole, ...]
    """Of these, it has not been told what is left."""
    queue: deque[bytes]
    """Messages packed and not yet taken; they count as told."""
    end_of_rib_due: bool
    next_hop: bytes
    """The session's own next hop in all that; empty: not one and the same."""
    refresh: bool | None
    """A refresh is not complete: True: one between BoRR and EoRR (RFC 7313)."""


class Retelling:
    """Finds what a peer that has been told one table is to be told so that it knows another one."""

    def __init__(self, told: Told, peer: Peer, next_hop: bytes) -> None:
        self.refresh: bool | None = None
        """A refresh is to follow; True: one between BoRR and EoRR."""
        self._told = told._replace(shards=())
        self._peer = peer
        self._same_next_hop = told.next_hop == next_hop
        self._held: list[dict[bytes, Exported | None]] = [{} for _ in range(SHARDS)]
        self._exceptions = chain(
            chain.from_iterable(held() for held in told.held),
            ((prefix, None) for whole in told.untold for prefix in whole),
        )
        self._left = list(told.shards)
        """Of what the peer has been told; let go of a part at a time."""
        self._shards: Shards = []
        self._next = 0
        """The first shard that has not been begun."""
        self._known: Mapping[bytes, Exported | None] = {}
        """What the peer had been told of the shard before that one."""
        self._compared = 0
        """How much of that shard has been compared."""
        self._differences: Iterator[Difference | None] = iter(())

    @property
    def begun(self) -> bool:
        return bool(self._shards)

    def begin(self, shards: Shards) -> None:
        """Set what the peer is to know."""
        self._shards = shards

    def take(self) -> tuple[int, list[Difference]]:
        """Look at about ``SLICE`` prefixes; return how many it were, 0: that was all, and those that differ."""
        exceptions = list(islice(self._exceptions, SLICE))
        for prefix, held in exceptions:
            self._held[PLACE[hash(prefix) >> TOP]][prefix] = held
        if exceptions:
            return len(exceptions), []
        while True:
            seen = list(islice(self._differences, SLICE))
            self._compared += len(seen)
            if seen or self._next == SHARDS:
                return len(seen), [difference for difference in seen if difference is not None]
            if not self._next:
                self._told = self._told._replace(held=(), untold=())
            self._known = {**self._left[self._next], **self._held[self._next]}
            self._left[self._next] = self._held[self._next] = {}
            self._differences, self._compared = self._compare(self._known, self._shards[self._next]), 0
            self._next += 1

    def interrupt(self) -> Told:
        """Return what the peer has been told so far."""
        told = self._told._replace(shards=self._left)
        if self._next:
            current = self._next - 1
            compared = Compared(self._known, self._shards[current], self._compared)
            told = told._replace(
                shards=[*self._shards[:current], self._known, *self._left[self._next :]],
                held=(compared.pairs, *(some.items for some in self._held[self._next :])),
                untold=(),
            )
        return told._replace(refresh=self.refresh)

    def _compare(
        self, known: Mapping[bytes, Exported | None], wanted: Mapping[bytes, Exported]
    ) -> Iterator[Difference | None]:
        """Iterate over the prefixes of a shard: how they differ, or None."""
        peer = self._peer
        for prefix, held in known.items():
            route = wanted.get(prefix)
            if held is not None and not held.goes_to(peer):
                held = None
            if route is not None and not route.goes_to(peer):
                route = None
            same = held is route is None or (held is not None and route is not None and held.says(route))
            yield None if same and (self._same_next_hop or route is None) else (prefix, held, route)
        for prefix, route in wanted.items():
            yield (prefix, None, route) if prefix not in known and route.goes_to(peer) else None


class Member:
    """One peer's place in a group."""

    def __init__(self, peer: Peer, next_hop: bytes, cursor: int) -> None:
        self.peer = peer
        self.next_hop = next_hop
        self.cursor = cursor
        """Number of the first change in the log that the peer has not been told."""
        self.gather = cursor
        """Changes before this number become part of the backlog, so that a table told again is not undone by them."""
        self.tables: deque[Whole] = deque()
        """What comes first: the table when the member joined, and when it asked for it."""
        self.retelling: Retelling | None = None
        """What comes before all else: the way here from another group."""
        self.backlog: dict[bytes, Change] = {}
        """What comes before the log."""
        self.queue: deque[bytes] = deque()
        """Messages packed and not yet taken."""
        self.end_of_rib_due = True
        self.refresh_due = False
        """The peer asked for a refresh before it had End-of-RIB, after which it gets one (RFC 7313 section 4)."""
