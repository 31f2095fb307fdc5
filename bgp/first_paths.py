"""Prefixes that had no path at all: the first one to arrive needs no decision (RFC 4271 section 9.1.2.2).

By far the most of a table are such. They go into the Loc-RIB along with the Adj-RIB-In, while they are at hand, and not
by way of the queue of the decision process.
"""

from __future__ import annotations

from collections.abc import Sequence

from bgp.loc_rib import Changes, LocRib, next_hops
from bgp.paths import Path
from bgp.table import PLACE, TOP, Table
from config.nexthop import NextHops
from config.prefix import Run


class FirstPaths:
    """Of one family, for as long as nothing changes but what one peer announces.

    Every path of it is accepted as it is, but for prefixes with one of ``leads`` as their first octet. At most ``room``
    prefixes are taken. ``exported``: somebody wants to know the best paths.
    """

    __slots__ = ("_changes", "_exported", "_hops", "_leads", "_room", "_shards", "_together", "family", "gained")

    def __init__(self, loc: LocRib, changes: Changes, leads: frozenset[bytes], *, room: int, exported: bool) -> None:
        self.family = loc.family
        self.gained = 0
        """How many prefixes have got their first path."""
        self._shards = loc.table.shards
        self._changes = changes
        self._leads = leads
        self._room = room
        self._exported = exported
        self._hops: NextHops | None = None
        self._together: list[bytes] = []
        """The prefixes by way of ``_hops``: the last in ``Changes.fib``, unless these lead nowhere."""

    def announce(self, table: Table[Path], prefixes: Sequence[bytes], path: Path) -> Sequence[bytes]:
        """Set the path of prefixes in ``table``, the Adj-RIB-In, and in the Loc-RIB where there is none yet.

        Returns the prefixes about which there is something to decide.
        """
        incoming, shards, lead = table.shards, self._shards, table.lead
        leads = self._leads
        self._room -= len(prefixes)
        if self._room < 0 or (leads and not leads.isdisjoint([prefix[1:2] for prefix in prefixes])):
            for prefix in prefixes:
                table[prefix] = path
            return prefixes
        hops = next_hops(path)
        if hops is not self._hops:
            self._hops, self._together = hops, []
            if hops is not None:
                self._changes.fib.append((self._together, hops))
        together, place = self._together, PLACE
        others: list[bytes] = []
        before = len(together)
        for prefix in prefixes:
            at = place[hash(prefix[:lead]) >> TOP]
            incoming[at][prefix] = path
            shard = shards[at]
            if prefix in shard:
                others.append(prefix)
            else:
                shard[prefix] = path
                together.append(prefix)
        self.gained += len(together) - before
        if hops is None:
            together.clear()
        elif self._exported:
            self._changes.best.update(dict.fromkeys(together[before:], path))
        return others

    def announce_run(self, at: int, run: Run, path: Path) -> bool:
        """Set the path of a run in the Loc-RIB, in the shard of this number, if all of it is without one."""
        shard = self._shards[at]
        self._room -= len(run)
        if self._room < 0 or run[0][1:2] in self._leads or not shard.keys().isdisjoint(run):
            return False
        paths = dict.fromkeys(run, path)
        shard.update(paths)
        self.gained += len(run)
        hops = next_hops(path)
        if hops is not None:
            self._hops = None
            self._together = []
            self._changes.fib.append((run, hops))
            if self._exported:
                self._changes.best.update(paths)
        return True
