"""Adj-RIB-Out for peers that take several paths to a prefix (RFC 7911): what an ``ExportGroup`` holds, once per path.

A path identifier is a group's own: it belongs to whoever announced the path for as long as that one is told, so that
changed attributes replace a path and do not add another one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count, filterfalse

from bgp.adj_rib_out import ExportGroup, GroupKey
from bgp.nlri import PATH_ID
from bgp.paths import Path, Peer
from bgp.policy import Source
from bgp.table import Table
from bgp.telling import Exported

_Origin = tuple[Peer | None, int | None]
"""Who announced a path, and with which identifier."""


class AddPathGroup(ExportGroup):
    """``ranked`` returns the eligible paths to a prefix, best first."""

    def __init__(
        self, key: GroupKey, source: Callable[[bytes], Source], ranked: Callable[[bytes], tuple[Path, ...]]
    ) -> None:
        super().__init__(key, source)
        self._ranked = ranked
        self._numbers: Table[dict[_Origin, int]] = Table()
        """The identifiers in use, by prefix. Not changed in place."""
        self._restricted = 0
        """How many routes of the table only some of the members get."""

    def update(self, best: Mapping[bytes, Path | None], others: Iterable[bytes] = ()) -> None:
        wanted: dict[bytes, Exported | None] = {}
        for prefix in (*best, *others):
            before = self._numbers.get(prefix, {})
            routes = dict(self._routes(prefix))
            kept = {number for origin, number in before.items() if origin in routes}
            free = filterfalse(kept.__contains__, count(1))
            numbers = {origin: before.get(origin) or next(free) for origin in routes}
            for origin, route in routes.items():
                wanted[_nlri(numbers[origin], prefix)] = route
            for number in before.values():
                wanted.setdefault(_nlri(number, prefix), None)
            if numbers:
                self._numbers[prefix] = numbers
            elif before:
                del self._numbers[prefix]
        for nlri, new in wanted.items():
            held = self.table.get(nlri)
            if held is not new:
                self._count(held, -1)
                self._count(new, 1)
        self._store(wanted, lambda _, route: route, constant=False)

    def _count(self, route: Exported | None, by: int) -> None:
        """Count a route that only some get as one that the others do not get."""
        if route is not None and route.peer is not None and route.only is not None:
            self._restricted += by
            self.kept_back[route.peer] -= by
            self.kept_back.update(dict.fromkeys(route.only, -by))

    def advertised(self, name: str) -> int:
        return super().advertised(name) - self._restricted

    def _routes(self, prefix: bytes) -> Iterator[tuple[_Origin, Exported]]:
        """Iterate over what is told of a prefix, best first.

        Each member is to get so many paths. To one that announced some of the first itself, others go instead.
        """
        announced: Counter[Peer] = Counter()
        rank = 0
        for path in self._ranked(prefix):
            route = None if self.own_only and path.peer is not None else self._export(prefix, path)
            if route is None:
                continue
            origin = path.peer, path.path_id
            if rank < self.key.paths:
                yield origin, route
            else:
                short = [peer for peer, own in announced.items() if own > rank - self.key.paths]
                if not short:
                    return
                only = frozenset(peer for peer in short if peer is not path.peer)
                if only:
                    yield origin, self._shared((route.before, route.after, route.next_hop, route.peer, only))
            if path.peer is not None:
                announced[path.peer] += 1
            rank += 1

    def announces(self, prefix: bytes) -> bool:
        return prefix in self._numbers

    @property
    def prefixes(self) -> Sequence[Mapping[bytes, object]]:
        return self._numbers.shards

    def routes_to(self, peer: Peer, prefix: bytes) -> list[tuple[int | None, Exported]]:
        numbers = sorted(self._numbers.get(prefix, {}).values())
        routes = ((number, self.table.get(_nlri(number, prefix))) for number in numbers)
        return [(number, route) for number, route in routes if route is not None and route.goes_to(peer)]

    def route(self, prefix: bytes, path: Path) -> tuple[int, Exported] | None:
        """Return how a path to a prefix is told, with its identifier; None where it is not."""
        number = self._numbers.get(prefix, {}).get((path.peer, path.path_id))
        return None if number is None else (number, self.table[_nlri(number, prefix)])


def _nlri(number: int, prefix: bytes) -> bytes:
    return number.to_bytes(PATH_ID, "big") + prefix
