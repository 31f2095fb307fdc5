"""What other protocols have in a routing table, kept for longest match."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, KeysView

from config.prefix import Family, make
from routes.messages import Path, Route

_Identity = tuple[int, int, tuple[Path, ...], int]


class ForeignRoutes:
    """Routes of one family and table by prefix."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._by_prefix: dict[bytes, dict[_Identity, Route]] = {}
        self._lengths: dict[int, int] = {}
        self._nexthops: Counter[int] = Counter()

    @property
    def prefixes(self) -> KeysView[bytes]:
        return self._by_prefix.keys()

    def of(self, prefix: bytes) -> list[Route]:
        """Return the routes to exactly this prefix, lowest metric first."""
        return sorted(self._by_prefix.get(prefix, {}).values(), key=lambda route: route.metric)

    def uses(self, nexthop: int) -> bool:
        """Tell whether a route leads through this next-hop object or group."""
        return self._nexthops[nexthop] > 0

    def add(self, route: Route) -> None:
        same = self._by_prefix.get(route.prefix)
        if same is None:
            same = self._by_prefix[route.prefix] = {}
            self._lengths[route.prefix[0]] = self._lengths.get(route.prefix[0], 0) + 1
        self._put(same, route)

    def remove(self, route: Route) -> None:
        same = self._by_prefix.get(route.prefix, {})
        identity = self._identity(route)
        if identity in same:
            self._drop(same, identity)
        elif route.family == 6:
            self._remove_paths(same, route)
        self._tidy(route.prefix)

    def supersede(self, route: Route) -> None:
        """Take out what a route written with NLM_F_REPLACE took the place of: same prefix, TOS and metric."""
        same = self._by_prefix.get(route.prefix, {})
        for identity in [i for i, r in same.items() if (r.metric, r.tos) == (route.metric, route.tos)]:
            self._drop(same, identity)
        self._tidy(route.prefix)

    def forget_device(self, ifindex: int) -> list[bytes]:
        """Take out the routes with only this device, which the kernel drops, IPv4 ones without a word.

        Returns the prefixes that had such routes.
        """
        gone = []
        for prefix, same in list(self._by_prefix.items()):
            for identity, route in list(same.items()):
                if route.paths and all(path.ifindex == ifindex for path in route.paths):
                    self._drop(same, identity)
                    gone.append(prefix)
            self._tidy(prefix)
        return gone

    def matches(self, address: bytes) -> Iterator[Route]:
        """Yield what covers an address, most specific first, then lowest metric first."""
        number = int.from_bytes(address, "big")
        for length in sorted(self._lengths, reverse=True):
            same = self._by_prefix.get(make(self._family, number, length))
            if same:
                yield from sorted(same.values(), key=lambda route: (route.metric, route.paths))

    def _remove_paths(self, same: dict[_Identity, Route], route: Route) -> None:
        """Shorten a multipath route: IPv6 tells of the loss of one path as if it were a route."""
        for identity, known in list(same.items()):
            left = tuple(path for path in known.paths if path not in route.paths)
            if known.metric == route.metric and known.protocol == route.protocol and left != known.paths:
                self._drop(same, identity)
                if left:
                    self._put(same, known._replace(paths=left))

    def _put(self, same: dict[_Identity, Route], route: Route) -> None:
        identity = self._identity(route)
        if route.nexthop and identity not in same:
            self._nexthops[route.nexthop] += 1
        same[identity] = route

    def _drop(self, same: dict[_Identity, Route], identity: _Identity) -> None:
        nexthop = same.pop(identity).nexthop
        if nexthop:
            self._nexthops[nexthop] -= 1
            if not self._nexthops[nexthop]:
                del self._nexthops[nexthop]

    @staticmethod
    def _identity(route: Route) -> _Identity:
        return route.metric, route.protocol, route.paths, route.nexthop

    def _tidy(self, prefix: bytes) -> None:
        if prefix in self._by_prefix and not self._by_prefix[prefix]:
            del self._by_prefix[prefix]
            self._lengths[prefix[0]] -= 1
            if not self._lengths[prefix[0]]:
                del self._lengths[prefix[0]]
