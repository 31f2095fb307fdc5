"""What the kernel says of links, addresses, routes, next hops and neighbours, decoded (rtnetlink(7), nexthop.h)."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

from config.prefix import Family
from routes.netlink import (
    NLM_F_APPEND,
    NLM_F_REPLACE,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELNEXTHOP,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWNEXTHOP,
    RTM_NEWROUTE,
    Message,
    attribute,
    attributes,
)

AF: dict[Family, int] = {4: 2, 6: 10}
_FAMILY: dict[int, Family] = {2: 4, 10: 6}

RTN_UNICAST, RTN_LOCAL, RTN_UNREACHABLE = 1, 2, 7
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_NOWHERE = 0, 253, 255
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_MULTIPATH, RTA_TABLE, RTA_VIA, RTA_NH_ID = 1, 4, 5, 6, 9, 15, 18, 30
RTM_F_CLONED, RTM_F_LOOKUP_TABLE, RTM_F_FIB_MATCH = 0x200, 0x1000, 0x2000
RTNH_F_ONLINK = 4
"""Of rtm_flags, rtnh_flags and nhm_flags: the gateway is on the link, whatever the subnets say."""
NHA_ID, NHA_GROUP, NHA_GROUP_TYPE, NHA_OIF, NHA_GATEWAY, NHA_RES_GROUP = 1, 2, 3, 5, 6, 12
NHA_RES_GROUP_BUCKETS, NHA_RES_GROUP_IDLE_TIMER, NHA_RES_GROUP_UNBALANCED_TIMER = 1, 2, 3
NEXTHOP_GRP_TYPE_RES = 1
_IFLA_IFNAME, _IFLA_EXT_MASK = 3, 29
_SKIP_STATS = 1 << 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_NDA_DST = 1
_NTF_USE = 0x01
NUD_REACHABLE, NUD_STALE, NUD_DELAY, NUD_PROBE, NUD_FAILED, NUD_NOARP, NUD_PERMANENT = 2, 4, 8, 16, 32, 64, 128
NUD_VALID = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_NOARP | NUD_PERMANENT
"""The kernel has a link-layer address for the neighbour and sends to it."""

IFF_UP, IFF_RUNNING, IFF_LOWER_UP = 0x1, 0x40, 0x10000
IFA_F_TEMPORARY, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE = 0x01, 0x08, 0x20, 0x40

RTMSG = struct.Struct("=BBBBBBBBI")
NHMSG = struct.Struct("=BBBBI")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")
_RTNEXTHOP = struct.Struct("=HBBi")
_GROUP = struct.Struct("=IBBH")
_read_u16 = struct.Struct("=H").unpack
_TABLE_HEAD = struct.pack("=HH", 8, RTA_TABLE)
_BEFORE_DST = RTMSG.size + 8
"""Where the kernel puts the destination: behind the table."""
_DST_OCTETS = {struct.pack("=HH", 4 + octets, RTA_DST): octets for octets in (4, 16)}
_read_u32 = struct.Struct("=I").unpack


class Link(NamedTuple):
    ifindex: int
    name: str
    flags: int

    @property
    def up(self) -> bool:
        """Administratively up and with carrier: the condition under which the kernel keeps next-hop objects."""
        return bool(self.flags & IFF_UP and self.flags & (IFF_RUNNING | IFF_LOWER_UP))


class Address(NamedTuple):
    ifindex: int
    family: Family
    address: bytes
    """Our own address, packed."""
    length: int
    scope: int
    flags: int


class Path(NamedTuple):
    """One next hop of a route. An empty gateway: on-link."""

    gateway: bytes
    ifindex: int
    weight: int = 1
    onlink: bool = False

    @property
    def way(self) -> tuple[bytes, int, bool]:
        """What makes it another path: all but its weight."""
        return self.gateway, self.ifindex, self.onlink


class Route(NamedTuple):
    family: Family
    table: int
    protocol: int
    kind: int
    """RTN_*."""
    prefix: bytes
    """Wire bytes (config.prefix)."""
    metric: int
    nexthop: int
    """Next-hop object id, 0 for none."""
    paths: tuple[Path, ...]
    tos: int = 0


class Resilience(NamedTuple):
    """What a resilient group has beside its members (Linux >= 5.13). Timers in hundredths of a second (clock_t)."""

    buckets: int
    """Fixed with the group's creation, as is its being resilient."""
    idle_timer: int
    """So long must a bucket have been idle before it moves to a member that has too few."""
    unbalanced_timer: int
    """After so long buckets move also while they are in use; 0: never."""


class Nexthop(NamedTuple):
    """A next-hop object: of a group only ``members`` (id, weight) and ``resilience``, of another only the rest."""

    id: int
    protocol: int
    gateway: bytes
    ifindex: int
    members: tuple[tuple[int, int], ...]
    onlink: bool = False
    resilience: Resilience | None = None


class Neighbour(NamedTuple):
    ifindex: int
    address: bytes
    state: int
    """NUD_*; 0 where the entry went."""


class LinkEvent(NamedTuple):
    link: Link
    gone: bool


class AddressEvent(NamedTuple):
    address: Address
    gone: bool


class RouteEvent(NamedTuple):
    route: Route
    gone: bool
    replaced: bool
    """It took the place of the routes with the same prefix, TOS and metric (IPv6: or joined their paths)."""
    port: int
    """Netlink port of who did it; 0 is the kernel."""


class NexthopEvent(NamedTuple):
    nexthop: Nexthop
    gone: bool
    port: int


class NeighbourEvent(NamedTuple):
    neighbour: Neighbour


Event = LinkEvent | AddressEvent | RouteEvent | NexthopEvent | NeighbourEvent


def links_request() -> bytes:
    """Payload of RTM_GETLINK for a dump of all links."""
    return _IFINFO.pack(0, 0, 0, 0, 0) + attribute(_IFLA_EXT_MASK, struct.pack("=I", _SKIP_STATS))


def addresses_request() -> bytes:
    """Payload of RTM_GETADDR for a dump of all addresses of both families."""
    return _IFADDR.pack(0, 0, 0, 0, 0)


def routes_request(family: Family, table: int, protocol: int = 0) -> bytes:
    """Payload of RTM_GETROUTE for a dump of one table, of one protocol unless 0; the kernel filters."""
    return RTMSG.pack(AF[family], 0, 0, 0, 0, protocol, 0, 0, 0) + attribute(RTA_TABLE, struct.pack("=I", table))


def nexthops_request() -> bytes:
    """Payload of RTM_GETNEXTHOP for a dump of all next-hop objects."""
    return NHMSG.pack(0, 0, 0, 0, 0)


def neighbours_request() -> bytes:
    """Payload of RTM_GETNEIGH for a dump of all neighbours of both families."""
    return _NDMSG.pack(0, 0, 0, 0, 0)


def resolve_request(ifindex: int, address: bytes) -> bytes:
    """Payload of RTM_NEWNEIGH that has the kernel resolve a neighbour, or confirm it, as a packet to it would."""
    af = AF[4] if len(address) == 4 else AF[6]
    return _NDMSG.pack(af, ifindex, 0, _NTF_USE, 0) + attribute(_NDA_DST, address)


def match_request(family: Family, prefix: bytes) -> bytes:
    """Payload of RTM_GETROUTE for the FIB entry that the prefix's first address matches."""
    octets = 4 if family == 4 else 16
    flags = RTM_F_FIB_MATCH | (RTM_F_LOOKUP_TABLE if family == 4 else 0)  # which IPv6 knows not, and refuses
    head = RTMSG.pack(AF[family], octets * 8, 0, 0, 0, 0, 0, 0, flags)
    return head + attribute(RTA_DST, prefix[1:].ljust(octets, b"\0"))


def decode(data: bytes, msg: Message) -> Event | None:
    """Decode one notification; None for what is of no interest here."""
    kind = msg.kind
    if kind in (RTM_NEWROUTE, RTM_DELROUTE):
        route = decode_route(data, msg)
        gone = kind == RTM_DELROUTE
        instead = NLM_F_REPLACE if data[msg.start] == AF[4] else NLM_F_REPLACE | NLM_F_APPEND
        return route and RouteEvent(route, gone, not gone and bool(msg.flags & instead), msg.port)
    if kind in (RTM_NEWNEXTHOP, RTM_DELNEXTHOP):
        return NexthopEvent(decode_nexthop(data, msg), kind == RTM_DELNEXTHOP, msg.port)
    if kind in (RTM_NEWLINK, RTM_DELLINK):
        link = decode_link(data, msg)
        return link and LinkEvent(link, kind == RTM_DELLINK)
    if kind in (RTM_NEWADDR, RTM_DELADDR):
        address = decode_address(data, msg)
        return address and AddressEvent(address, kind == RTM_DELADDR)
    if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
        neighbour = decode_neighbour(data, msg)
        return neighbour and NeighbourEvent(neighbour._replace(state=0) if kind == RTM_DELNEIGH else neighbour)
    return None


def decode_link(data: bytes, msg: Message) -> Link | None:
    """Decode RTM_NEWLINK; None for what bridges say of their ports (AF_BRIDGE)."""
    family, _, index, flags, _ = _IFINFO.unpack_from(data, msg.start)
    name = attributes(data, msg.start + 16, msg.end).get(_IFLA_IFNAME)
    if family or name is None:
        return None
    return Link(index, name.rstrip(b"\0").decode("utf-8", "surrogateescape"), flags)


def decode_address(data: bytes, msg: Message) -> Address | None:
    """Decode RTM_NEWADDR; None for other families than IPv4 and IPv6."""
    af, length, flags, scope, index = _IFADDR.unpack_from(data, msg.start)
    found = attributes(data, msg.start + 8, msg.end)
    address = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if af not in _FAMILY or address is None:
        return None
    if _IFA_FLAGS in found:
        flags = _u32(found, _IFA_FLAGS)
    return Address(index, _FAMILY[af], address, length, scope, flags)


def decode_route(data: bytes, msg: Message) -> Route | None:
    """Decode RTM_NEWROUTE; None for other families, and for cache entries.

    A table's routes differ by little more than the destination, so what surrounds it is decoded once.
    """
    start = msg.start + _BEFORE_DST
    octets = _DST_OCTETS.get(data[start : start + 4], 0)
    if octets and data[start - 8 : start - 4] == _TABLE_HEAD:
        start += 4
        known = _decode_route(data[msg.start : start - 4] + data[start + octets : msg.end])
        if known is None:
            return None
        family, table, protocol, kind, length, metric, nexthop, paths, tos = known
        prefix = length + data[start : start + (length[0] + 7 >> 3)]
        return Route(family, table, protocol, kind, prefix, metric, nexthop, paths, tos)
    return _decode_route(data[msg.start : msg.end])


@lru_cache(256)
def _decode_route(payload: bytes) -> Route | None:
    af, length, _, tos, table, protocol, _, kind, flags = RTMSG.unpack_from(payload)
    family = _FAMILY.get(af)
    if family is None or flags & RTM_F_CLONED:
        return None
    found = attributes(payload, RTMSG.size, len(payload))
    if RTA_TABLE in found:
        table = _u32(found, RTA_TABLE)
    prefix = bytes((length,)) + found.get(RTA_DST, b"")[: (length + 7) // 8]
    if RTA_MULTIPATH in found:
        paths = _paths(found[RTA_MULTIPATH])
    elif RTA_OIF in found:
        paths = (Path(_gateway(found), _u32(found, RTA_OIF), onlink=bool(flags & RTNH_F_ONLINK)),)
    else:
        paths = ()
    return Route(family, table, protocol, kind, prefix, _u32(found, RTA_PRIORITY), _u32(found, RTA_NH_ID), paths, tos)


def decode_nexthop(data: bytes, msg: Message) -> Nexthop:
    """Decode RTM_NEWNEXTHOP."""
    _, _, protocol, _, flags = NHMSG.unpack_from(data, msg.start)
    found = attributes(data, msg.start + 8, msg.end)
    group = found.get(NHA_GROUP, b"")
    entries = _GROUP.iter_unpack(group[: len(group) // _GROUP.size * _GROUP.size])
    members = tuple((member, low + (high << 8) + 1) for member, low, high, _ in entries)
    gateway, onlink = found.get(NHA_GATEWAY, b""), bool(flags & RTNH_F_ONLINK)
    resilience = _resilience(found[NHA_RES_GROUP]) if NHA_RES_GROUP in found else None
    return Nexthop(_u32(found, NHA_ID), protocol, gateway, _u32(found, NHA_OIF), members, onlink, resilience)


def decode_neighbour(data: bytes, msg: Message) -> Neighbour | None:
    """Decode RTM_NEWNEIGH; None for bridges' entries."""
    af, index, state, _, _ = _NDMSG.unpack_from(data, msg.start)
    address = attributes(data, msg.start + 12, msg.end).get(_NDA_DST)
    return None if address is None or af not in _FAMILY else Neighbour(index, address, state)


def _resilience(data: bytes) -> Resilience:
    found = attributes(data, 0, len(data))
    buckets = found.get(NHA_RES_GROUP_BUCKETS, b"")
    return Resilience(
        _read_u16(buckets)[0] if len(buckets) == 2 else 0,
        _u32(found, NHA_RES_GROUP_IDLE_TIMER),
        _u32(found, NHA_RES_GROUP_UNBALANCED_TIMER),
    )


def _u32(found: dict[int, bytes], kind: int) -> int:
    value = found.get(kind, b"")
    number: int = _read_u32(value)[0] if len(value) == 4 else 0
    return number


def _gateway(found: dict[int, bytes]) -> bytes:
    if RTA_VIA in found:
        return found[RTA_VIA][2:]
    return found.get(RTA_GATEWAY, b"")


def _paths(data: bytes) -> tuple[Path, ...]:
    paths = []
    offset = 0
    while offset + 8 <= len(data):
        length, flags, hops, index = _RTNEXTHOP.unpack_from(data, offset)
        if length < 8 or offset + length > len(data):
            break
        gateway = _gateway(attributes(data, offset + 8, offset + length))
        paths.append(Path(gateway, index, hops + 1, bool(flags & RTNH_F_ONLINK)))
        offset += (length + 3) & ~3
    return tuple(paths)
