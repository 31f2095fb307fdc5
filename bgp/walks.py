"""Walks over whole tables: each is worked off a part at a time, so that none holds the event loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from bgp.hops import Hop
from bgp.loc_rib import Changes, LocRib
from bgp.own_prefixes import OwnPrefixes
from bgp.peer_rib import PeerRib
from bgp.table import SHARDS, Queue
from config.prefix import Family

LIGHT = 8
"""So many prefixes may be looked at, or let go of, in a walk where one could be decided over."""

_STRETCH = 500
"""Prefixes decided over in one step of a walk."""


class Walks:
    """Those over the tables of all peers. A walk is an iterator: a step does a part, and says how much it was.

    ``leaving`` are the peers that are gone but for what is to be decided yet, ``changes`` where decisions are noted:
    both may change.
    """

    def __init__(
        self,
        loc: Mapping[Family, LocRib],
        own: Mapping[Family, OwnPrefixes],
        peers: Mapping[str, PeerRib],
        leaving: Sequence[PeerRib],
        changes: Mapping[Family, Changes],
    ) -> None:
        self._loc, self._own, self._peers, self._leaving, self._changes = loc, own, peers, leaving, changes
        self._walks: dict[Family, deque[Iterator[int]]] = {4: deque(), 6: deque()}
        self._guard_walk: dict[Family, Iterator[int]] = {}
        """The walk for what the guard of our own prefixes keeps out, of which one at a time is enough."""
        self._settling: dict[Family, list[list[tuple[Queue, int]]]] = {4: [], 6: []}
        """Per finished walk over moved next hops: how far the queues must get until their reports are complete."""

    @property
    def busy(self) -> bool:
        """There are walks under way."""
        return any(self._walks.values())

    def run(self, family: Family, budget: int) -> int:
        """Do about ``budget`` prefixes' worth of work; return how much it was."""
        done, walks = 0, self._walks[family]
        while walks and done < budget:
            for cost in walks[0]:
                done += cost
                if done >= budget:
                    break
            else:
                walks.popleft()
        return done

    def settle(self, family: Family) -> None:
        """Take note that the queues have got further."""
        for marks in list(self._settling[family]):
            if all(queue.taken >= added for queue, added in marks):
                self._settling[family].remove(marks)
                self._loc[family].unsettled -= 1

    def next_hops_changed(self, family: Family, affected: set[Hop]) -> None:
        """Decide again over every prefix with a path by one of these next hops."""
        self._loc[family].unsettled += 1
        self._walks[family].append(self._redecide(family, affected))

    def policy_changed(self, rib: PeerRib, family: Family) -> None:
        """Have the decision process look again at everything that a peer announces."""
        self._walks[family].append(_reconsider(rib, family))

    def guard_changed(self, family: Family) -> None:
        """Look again at what the guard of our own prefixes refuses, or would refuse now."""
        walks = self._walks[family]
        if family in self._guard_walk and self._guard_walk[family] in walks:
            walks.remove(self._guard_walk[family])
        self._guard_walk[family] = self._reguard(family)
        walks.append(self._guard_walk[family])

    def _redecide(self, family: Family, affected: set[Hop]) -> Iterator[int]:
        loc = self._loc[family]
        for rib in list(self._peers.values()):
            for size, prefixes in rib.adj_in.by_hops(family, affected):
                yield 1 + size // LIGHT
                for start in range(0, len(prefixes), _STRETCH):
                    changes = self._changes[family]
                    for prefix in prefixes[start : start + _STRETCH]:
                        loc.redecide(prefix, changes)
                    yield len(prefixes[start : start + _STRETCH])
        # What was withdrawn meanwhile is in no table, but in the queues.
        queues = [rib.adj_in.dirty[family] for rib in (*self._peers.values(), *self._leaving)]
        self._settling[family].append([(queue, queue.added) for queue in queues])

    def _reguard(self, family: Family) -> Iterator[int]:
        own = self._own[family]
        for rib in list(self._peers.values()):
            rib.adj_in.reconsider(family, list(rib.refused[family]))
            for shard in list(rib.adj_in.shards(family)):
                if own.guards:
                    rib.adj_in.reconsider(family, [prefix for prefix in shard if own.violated(prefix) is not None])
                yield 1 + len(shard) // LIGHT


def _reconsider(rib: PeerRib, family: Family) -> Iterator[int]:
    for part in range(SHARDS):
        yield 1 + rib.adj_in.reconsider_part(family, part) // LIGHT
