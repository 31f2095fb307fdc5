"""What a peer announces with path identifiers: several paths to one prefix, told apart by them (RFC 7911).

A session that has not negotiated them never comes here. NLRI are those of ``bgp.nlri.decode`` with path identifiers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence, Sized

from bgp.interning import Interned
from bgp.nlri import PATH_ID
from bgp.paths import Path
from bgp.table import Table

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
        self.leaving = 0
        """Those that were stale for too long, and that ``withdraw_stale`` has yet to withdraw."""
        self.overfull = False
        """The peer has announced more than ``MOST_PATHS`` paths to one prefix."""
        self._stale: Table[tuple[Path, ...]] = Table()
        self._leaving: deque[Table[tuple[Path, ...]]] = deque()
        self._paths: Interned[tuple[Path, int], Path] = Interned()

    def announce(self, routes: list[bytes], path: Path) -> list[bytes]:
        """Set the path of each route, and return their prefixes; those that make too many paths are left out."""
        prefixes = []
        for route in routes:
            number, prefix = int.from_bytes(route[:PATH_ID], "big"), route[PATH_ID:]
            before = self.table.get(prefix, ())
            others = _without(before, number)
            if len(others) >= MOST_PATHS:
                self.overfull = True
                continue
            self.count += 1 + len(others) - len(before)
            self.table[prefix] = tuple(sorted((*others, self._numbered(path, number)), key=_number))
            prefixes.append(prefix)
            if self.stale or self.leaving:
                self._freshen(prefix, number)
        return prefixes

    def withdraw(self, routes: list[bytes]) -> list[bytes]:
        """Remove routes, and return the prefixes of those that there were."""
        prefixes = []
        for route in routes:
            number, prefix = int.from_bytes(route[:PATH_ID], "big"), route[PATH_ID:]
            if not _remove(self.table, prefix, number):
                continue
            self.count -= 1
            prefixes.append(prefix)
            if self.stale or self.leaving:
                self._freshen(prefix, number)
        return prefixes

    def mark_stale(self) -> None:
        """From now on, what the peer does not announce again is stale (RFC 4724 section 4.2)."""
        self._stale, self.stale = self.table.copy(), self.count

    def drop_stale(self) -> int:
        """Have what is stale withdrawn by ``withdraw_stale``; return how many paths it is."""
        count = self.stale
        self._leaving.append(self._stale)
        self.leaving += count
        self._stale, self.stale = Table(), 0
        return count

    def withdraw_stale(self, limit: int) -> list[bytes]:
        """Withdraw about ``limit`` of the paths that ``drop_stale`` has found; return their prefixes, once per path."""
        gone: list[bytes] = []
        while self._leaving and len(gone) < limit:
            part = self._leaving[0].take(limit - len(gone))
            self.leaving -= sum(len(paths) for _, paths in part)
            gone += self.withdraw(
                [_number(path).to_bytes(PATH_ID, "big") + prefix for prefix, paths in part for path in paths]
            )
            if not self._leaving[0]:
                self._leaving.popleft()
        return gone

    def release(self) -> Sequence[Sized]:
        """Forget which paths are known, when a session ends; return that in parts."""
        return self._paths.release()

    def _freshen(self, prefix: bytes, number: int) -> None:
        """The peer has said something about a route: it is not stale any more."""
        self.stale -= _remove(self._stale, prefix, number)
        for leaving in self._leaving:
            self.leaving -= _remove(leaving, prefix, number)

    def _numbered(self, path: Path, number: int) -> Path:
        found = self._paths.get((path, number))
        if found is None:
            found = Path(path.peer, path.attributes, path.hop, path.next_hops, path.fault, number)
            self._paths[path, number] = found
        return found


def _without(paths: tuple[Path, ...], number: int) -> tuple[Path, ...]:
    return tuple(path for path in paths if path.path_id != number)


def _remove(table: Table[tuple[Path, ...]], prefix: bytes, number: int) -> bool:
    """Remove the path of a route; tell whether there was one."""
    before = table.get(prefix, ())
    left = _without(before, number)
    if left and len(left) < len(before):
        table[prefix] = left
    elif before and not left:
        del table[prefix]
    return len(left) < len(before)


def _number(path: Path) -> int:
    return path.path_id or 0
