"""Where a route leads: a set of next hops, an interface, or nowhere. What the desired table holds per prefix."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from config.nexthop import NextHops
from config.prefix import Family
from routes.encode import Placement, Shape, via_device, via_nexthop, via_paths, write_shape
from routes.messages import (
    RT_SCOPE_LINK,
    RT_SCOPE_UNIVERSE,
    RTN_UNICAST,
    RTN_UNREACHABLE,
    Path,
    Resilience,
    Route,
)


class MemberKey(NamedTuple):
    """What a lost session, gateway or link each take away with one delete."""

    peer: str
    gateway: bytes
    device: str
    onlink: bool = False


class Kind(Enum):
    LEARNED = "learned"
    COVER = "cover"
    POD = "pod"
    OTHER = "other"
    """A route of ours in the kernel that leads elsewhere than anything desired."""


class Loss(NamedTuple):
    """A next hop that went without our doing."""

    cause: str
    routes: int
    """So many had it."""


class Member:
    """One next-hop object, in all groups that need it."""

    __slots__ = ("attempts", "id", "ifindex", "key", "users")

    def __init__(self, key: MemberKey, ifindex: int, identifier: int) -> None:
        self.key = key
        self.ifindex = ifindex
        self.id = identifier
        self.users: set[Target] = set()
        self.attempts = 0
        """How often in turn the kernel has refused it for a reason that passes."""


class Target:
    """One destination of routes; compared by identity.

    ``refs`` counts the table entries that name it: one for each prefix that is to lead here (``wanted`` are these), one
    for each that the kernel still holds so. ``absent`` never turns back: the kernel has no route this way any more (it
    drops routes with their group), or could not be given one. ``current`` is False when prefixes have to move to a
    successor.
    """

    __slots__ = (
        "_shapes",
        "absent",
        "attempts",
        "current",
        "errno",
        "heir",
        "hops",
        "id",
        "ifindex",
        "key",
        "kind",
        "lost",
        "members",
        "ready",
        "refs",
        "resilience",
        "shades",
        "successor",
        "text",
        "version",
        "wanted",
        "weights",
    )

    def __init__(self, kind: Kind, *, key: NextHops = (), ifindex: int = 0) -> None:
        self.kind = kind
        self.key = key
        self.ifindex = ifindex
        self.id = 0
        """Group id; 0 without next-hop objects."""
        self.resilience: Resilience | None = None
        """Of the group, fixed with it but for its timers."""
        self.heir: Target | None = None
        """Who has taken over the group through which what is left here still goes (routes.heirs)."""
        self.shades: tuple[Target, ...] = ()
        """Whose heir this is."""
        self.members: dict[MemberKey, Member] = {}
        self.weights: dict[MemberKey, int] = {}
        self.lost: dict[MemberKey, Loss] = {}
        """What it had and is to have again."""
        self.hops: tuple[Path, ...] = ()
        """What routes show without objects; fixed, for other threads read it."""
        self.refs = 0
        self.wanted = 0
        self.ready = True
        self.absent = False
        self.current = True
        self.successor: Target | None = None
        self.version = 0
        self.attempts = 0
        """How often in turn the kernel has refused the group for a reason that passes."""
        self.errno = 0
        self.text = ""
        # The one or two routes to a pod are written once: keeping how would be the most of what a pod takes.
        self._shapes: dict[tuple[Placement, int], Shape] | None = None if kind is Kind.POD else {}

    @property
    def peers(self) -> set[str]:
        return {hop.peer for hop in self.key}

    def group(self) -> list[tuple[int, int]]:
        """Return ``(object id, weight)`` of each member, in id order."""
        return sorted((member.id, self.weights[key]) for key, member in self.members.items())

    def paths(self) -> tuple[Path, ...]:
        """Return the gateways, each once however many peers announced it."""
        weights: dict[Path, int] = {}
        for key, member in self.members.items():
            path = Path(key.gateway, member.ifindex, onlink=key.onlink)
            weights[path] = weights.get(path, 0) + self.weights[key]
        least = min(weights.values(), default=1)
        return tuple(sorted(path._replace(weight=max(1, weight // least)) for path, weight in weights.items()))

    def shape(self, place: Placement, flags: int) -> Shape:
        """Return the shape of requests that write a route to here (encode.ADD or REPLACE)."""
        known = self._shapes
        found = known.get((place, flags)) if known is not None else None
        if found is None:
            kind = RTN_UNREACHABLE if self.kind is Kind.COVER else RTN_UNICAST
            scope = RT_SCOPE_LINK if self.kind is Kind.POD else RT_SCOPE_UNIVERSE
            found = write_shape(place, flags, kind, scope, self._attributes(place.family))
            if known is not None:
                known[place, flags] = found
        return found

    def matches(self, route: Route) -> bool:
        """Tell whether a route in the kernel leads here."""
        if self.kind is Kind.COVER:
            return route.kind == RTN_UNREACHABLE
        if route.kind != RTN_UNICAST:
            return False
        if self.kind is Kind.POD:
            return not route.nexthop and route.paths == (Path(b"", self.ifindex),)
        if self.id or route.nexthop:
            return route.nexthop == self.id
        return {path.way for path in route.paths} == {path.way for path in self.hops}

    def _attributes(self, family: Family) -> bytes:
        if self.kind is Kind.POD:
            return via_device(self.ifindex)
        if self.kind is Kind.COVER:
            return b""
        return via_nexthop(self.id) if self.id else via_paths(family, self.hops)
