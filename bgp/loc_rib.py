"""Loc-RIB: per prefix the accepted paths of all peers, and which carry the traffic (RFC 4271 sections 3.2 and 9.1).

The entry of a prefix with one path is that path itself. With several it is a ``Selection``, shared by all prefixes that
have the same paths, so that the decision runs once per distinct set of paths and not once per prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bgp.decision import Options, decide, rank
from bgp.interning import Interned
from bgp.paths import Path, Peer
from bgp.table import PLACE, TOP, Table
from config.nexthop import NextHops
from config.prefix import LEAD, Family, Run


class Selection:
    """Two or more paths, ordered by peer and path identifier, and the outcome of the decision among them."""

    __slots__ = ("best", "next_hops", "paths", "ranked")

    def __init__(self, paths: tuple[Path, ...], best: Path | None, next_hops: NextHops | None) -> None:
        self.paths = paths
        self.best = best
        self.next_hops = next_hops
        self.ranked: tuple[Path, ...] | None = None
        """The eligible paths, best first; None: nobody has asked yet."""


Entry = Path | Selection


class Changes:
    """What a stretch of decisions changed in one family."""

    __slots__ = ("best", "fib", "others")

    def __init__(self) -> None:
        self.best: dict[bytes, Path | None] = {}
        """Prefixes whose best path changed, for Adj-RIB-Out."""
        self.others: dict[bytes, None] = {}
        """Prefixes of which another path than the best changed, where peers are told more than the best."""
        self.fib: list[tuple[Sequence[bytes], NextHops | None]] = []
        """Prefixes whose next hops changed, in order, those that follow each other together; None: no route."""


class LocRib:
    """The table of one family."""

    def __init__(self, family: Family, options: Options, intern: Callable[[NextHops], NextHops]) -> None:
        self.family = family
        self.options = options
        self.table: Table[Entry] = Table(LEAD[family])
        self.unsettled = 0
        """How many walks are under way over prefixes whose next hops resolve differently now. Until they are done, what
        was reported of a prefix cannot be told from its entry, and every change of one is reported."""
        self.all_paths = False
        """Some peer is told more than the best path (RFC 7911)."""
        self._intern = intern
        self._selections: Interned[tuple[Path, ...], Selection] = Interned()

    def replace(self, prefix: bytes, peer: Peer | None, path: Path | None, changes: Changes) -> int:
        """Set ``path`` as the only one from ``peer`` (None: from here); None removes that peer's.

        Returns by how much the number of accepted paths from the peer changes: -1, 0 or 1.
        """
        shard = self.table.shards[PLACE[hash(prefix[: self.table.lead]) >> TOP]]
        old = shard.get(prefix)
        new: Entry | None
        if old is None:
            if path is None:
                return 0
            new, gain = path, 1
        elif isinstance(old, Path):
            if old is path:
                return 0
            if old.peer is peer:
                new, gain = path, 0 if path is not None else -1
            elif path is None:
                return 0
            else:
                new, gain = self._select((old, path)), 1
        else:
            others = tuple(p for p in old.paths if p.peer is not peer)
            gain = (path is not None) - (len(old.paths) - len(others))
            paths = others if path is None else (*others, path)
            new = paths[0] if len(paths) == 1 else self._select(paths)
            if new is old:
                return gain
        if new is None:
            del shard[prefix]
        else:
            shard[prefix] = new
        self._note(prefix, old, new, changes)
        return gain

    def replace_all(self, prefix: bytes, peer: Peer, paths: tuple[Path, ...], changes: Changes) -> int:
        """Do ``replace`` for a peer that may announce several paths to a prefix (RFC 7911)."""
        old = self.table.get(prefix)
        before = self.paths(prefix)
        others = tuple(p for p in before if p.peer is not peer)
        gain = len(others) + len(paths) - len(before)
        wanted = others + paths
        new = self._select(wanted) if len(wanted) > 1 else wanted[0] if wanted else None
        if new is not old:
            if new is None:
                del self.table[prefix]
            else:
                self.table[prefix] = new
            self._note(prefix, old, new, changes)
        return gain

    def take(
        self, prefixes: Sequence[bytes], peer: Peer, table: Table[Path], changes: Changes, *, exported: bool
    ) -> int:
        """Do ``replace`` for many prefixes with what the ``table`` of a peer says of each.

        ``exported``: somebody wants to know the best path also where it is a learned one. Returns by how much the
        number of accepted paths from the peer changes.
        """
        if isinstance(prefixes, Run) and (gain := self._take_run(prefixes, peer, table, changes, exported)):
            return gain
        incoming, shards, lead = table.shards, self.table.shards, self.table.lead
        best, replace = changes.best, self.replace
        gained = 0
        last: Path | None = None
        hops: NextHops | None = None
        alike: list[bytes] = []
        for prefix in prefixes:
            at = PLACE[hash(prefix[:lead]) >> TOP]
            path = incoming[at].get(prefix)
            old = shards[at].get(prefix)
            if old is None and path is not None:  # the bulk of a table's first arrival
                shards[at][prefix] = path
                gained += 1
                if path is not last:
                    last, hops, alike = path, next_hops(path), []
                    if hops is not None:
                        changes.fib.append((alike, hops))
                if hops is not None:
                    alike.append(prefix)
                    if exported:
                        best[prefix] = path
            elif old is not path:
                gained += replace(prefix, peer, path, changes)
        return gained

    def _take_run(self, run: Run, peer: Peer, table: Table[Path], changes: Changes, exported: bool) -> int:
        """Do what ``take`` does where all of a run is new here, or goes; 0: it is neither."""
        at = PLACE[hash(run[0][: table.lead]) >> TOP]
        shard = self.table.shards[at]
        paths = list(map(table.shards[at].get, run))
        path, gain, old = paths[0], len(run), None
        if paths.count(path) < gain or self.unsettled:
            return 0
        if path is not None:
            if not shard.keys().isdisjoint(run):
                return 0
            shard.update(dict.fromkeys(run, path))
        else:
            olds = list(map(shard.get, run))
            old = olds[0]
            if not isinstance(old, Path) or old.peer is not peer or olds.count(old) < gain:
                return 0
            for prefix in run:
                del shard[prefix]
            gain = -gain
        hops = next_hops(path or old)
        if hops is not None:
            changes.fib.append((run, hops if path is not None else None))
            if exported:
                changes.best.update(dict.fromkeys(run, path))
        return gain

    def forget_decisions(self) -> list[dict[tuple[Path, ...], Selection]]:
        """Have ``redecide`` run the decision anew for every set of paths: what it depends on has changed.

        Returns what is of no use any more, to be let go of a part at a time.
        """
        return self._selections.release()

    def redecide(self, prefix: bytes, changes: Changes) -> None:
        """Decide again among the paths of a prefix, and report the outcome whether it differs or not."""
        entry = self.table.get(prefix)
        if isinstance(entry, Selection):
            entry = self.table[prefix] = self._select(entry.paths)
        changes.best[prefix] = best(entry)
        changes.fib.append(((prefix,), next_hops(entry)))

    def paths(self, prefix: bytes) -> tuple[Path, ...]:
        """Return all accepted paths of a prefix, ineligible ones too."""
        entry = self.table.get(prefix)
        return () if entry is None else (entry,) if isinstance(entry, Path) else entry.paths

    def ranked(self, prefix: bytes) -> tuple[Path, ...]:
        """Return the eligible paths of a prefix, best first."""
        entry = self.table.get(prefix)
        if not isinstance(entry, Selection):
            return (entry,) if entry is not None and entry.eligible else ()
        if entry.ranked is None:
            entry.ranked = rank(entry.paths, self.options)
        return entry.ranked

    def _note(self, prefix: bytes, old: Entry | None, new: Entry | None, changes: Changes) -> None:
        after, wanted = best(new), next_hops(new)
        if best(old) is not after or self.unsettled:
            changes.best[prefix] = after
        elif self.all_paths:
            changes.others[prefix] = None
        if next_hops(old) != wanted or self.unsettled:
            changes.fib.append(((prefix,), wanted))

    def _select(self, paths: tuple[Path, ...]) -> Selection:
        paths = tuple(sorted(paths, key=_order))
        known = self._selections.get(paths)
        if known is None:
            decision = decide(paths, self.options)
            hops = {hop for p in decision.multipath for hop in p.next_hops or ()}
            known = Selection(paths, decision.best, self._intern(tuple(sorted(hops))) if hops else None)
            self._selections[paths] = known
        return known


def best(entry: Entry | None) -> Path | None:
    """Return the best path of an entry, None where none is eligible."""
    if isinstance(entry, Path):
        return entry if entry.eligible else None
    return None if entry is None else entry.best


def next_hops(entry: Entry | None) -> NextHops | None:
    """Return what the FIB gets for an entry: None without an eligible path, and for a route of our own."""
    if isinstance(entry, Path):
        return entry.next_hops if entry.eligible else None
    return None if entry is None else entry.next_hops


def _order(path: Path) -> tuple[str, int]:
    return ("", 0) if path.peer is None else (path.peer.name, path.path_id or 0)
