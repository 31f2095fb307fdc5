"""What a peer announces with path identifiers: several paths to one prefix, told apart by them (RFC 7911).

A session that has not negotiated them never comes here. NLRI are those of ``bgp.nlri.decode_numbered``.
"""

from __future__ import annotations

from weakref import WeakValueDictionary

from bgp.nlri import PATH_ID
from bgp.paths import Path
from bgp.table import PLACE, TOP, Table

MOST_PATHS = 256
"""Paths of one peer to one prefix. RFC 7911 section 7 warns of peers that use up memory with them."""


class NumberedPaths:
    """The Adj-RIB-In of one family on sessions whose NLRI carry path identifiers."""

    def __init__(self) -> None:
        self.table: Table[tuple[Path, ...]] = Table()
        """Paths by prefix, ordered by their identifiers."""
        self.count = 0
        """Paths of all prefixes."""
        self.stale = 0
        """Paths of an earlier session that the peer has not announced again."""
        self.overfull = False
        """The peer has announced more than ``MOST_PATHS`` paths to one prefix."""
        self._stale: list[dict[bytes, tuple[Path, ...]]] = []
        self._paths: WeakValueDictionary[tuple[Path, int], Path] = WeakValueDictionary()

    def announce(self, routes: list[bytes], path: Path) -> list[bytes]:
        """Set the path of each route, and return their prefixes; those that make too many paths are left out."""
        prefixes = []
        for route in routes:
            number, prefix = int.from_bytes(route[:PATH_ID], "big"), route[PATH_ID:]
            shard = self.table.shards[PLACE[hash(prefix) >> TOP]]
            before = shard.get(prefix, ())
            others = _without(before, number)
            if len(others) >= MOST_PATHS:
                self.overfull = True
                continue
            self.count += 1 + len(others) - len(before)
            shard[prefix] = tuple(sorted((*others, self._numbered(path, number)), key=_number))
            prefixes.append(prefix)
            if self.stale:
                self._freshen(prefix, number)
        return prefixes

    def withdraw(self, routes: list[bytes]) -> list[bytes]:
        """Remove routes, and return the prefixes of those that there were."""
        prefixes = []
        for route in routes:
            number, prefix = int.from_bytes(route[:PATH_ID], "big"), route[PATH_ID:]
            shard = self.table.shards[PLACE[hash(prefix) >> TOP]]
            before = shard.get(prefix, ())
            left = _without(before, number)
            if len(left) == len(before):
                continue
            if left:
                shard[prefix] = left
            else:
                del shard[prefix]
            self.count -= 1
            prefixes.append(prefix)
            if self.stale:
                self._freshen(prefix, number)
        return prefixes

    def mark_stale(self) -> None:
        """From now on, what the peer does not announce again is stale (RFC 4724 section 4.2)."""
        self._stale = [dict(shard) for shard in self.table.shards]
        self.stale = self.count

    def drop_stale(self) -> list[bytes]:
        """Withdraw what is stale, and return its prefixes, once per path."""
        stale, self._stale, self.stale = self._stale, [], 0
        return self.withdraw(
            [
                _number(path).to_bytes(PATH_ID, "big") + prefix
                for shard in stale
                for prefix in shard
                for path in shard[prefix]
            ]
        )

    def _freshen(self, prefix: bytes, number: int) -> None:
        """The peer has said something about a route: it is not stale any more."""
        shard = self._stale[PLACE[hash(prefix) >> TOP]]
        before = shard.get(prefix, ())
        left = _without(before, number)
        self.stale -= len(before) - len(left)
        if left:
            shard[prefix] = left
        else:
            shard.pop(prefix, None)

    def _numbered(self, path: Path, number: int) -> Path:
        found = self._paths.get((path, number))
        if found is None:
            found = Path(path.peer, path.attributes, path.hop, path.next_hops, path.fault, number)
            self._paths[path, number] = found
        return found


def _without(paths: tuple[Path, ...], number: int) -> tuple[Path, ...]:
    return tuple(path for path in paths if path.path_id != number)


def _number(path: Path) -> int:
    return path.path_id or 0
