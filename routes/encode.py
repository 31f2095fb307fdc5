"""Requests for routes and next-hop objects, made so that a bulk of them costs little (rtnetlink(7), linux/nexthop.h).

All routes of one shape (table, metric, target) are messages of one size, which differ in sequence number, prefix length
and address only. So many of them are the shape repeated, with those octets written over it a column at a time: an octet
of all messages in one call, instead of a message in several. A shape is made once and kept with its target.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

from config.prefix import BITS, Family
from routes.messages import (
    AF,
    NEXTHOP_GRP_TYPE_RES,
    NHA_GATEWAY,
    NHA_GROUP,
    NHA_GROUP_TYPE,
    NHA_ID,
    NHA_OIF,
    NHA_RES_GROUP,
    NHA_RES_GROUP_BUCKETS,
    NHA_RES_GROUP_IDLE_TIMER,
    NHA_RES_GROUP_UNBALANCED_TIMER,
    NHMSG,
    RT_SCOPE_NOWHERE,
    RT_SCOPE_UNIVERSE,
    RTA_DST,
    RTA_GATEWAY,
    RTA_MULTIPATH,
    RTA_NH_ID,
    RTA_OIF,
    RTA_PRIORITY,
    RTA_TABLE,
    RTA_VIA,
    RTMSG,
    RTNH_F_ONLINK,
    Path,
    Resilience,
)
from routes.netlink import (
    NLA_F_NESTED,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RTM_DELNEXTHOP,
    RTM_DELROUTE,
    RTM_GETNEXTHOP,
    RTM_NEWNEXTHOP,
    RTM_NEWROUTE,
    attribute,
    message,
)

ADD, REPLACE = NLM_F_CREATE | NLM_F_EXCL, NLM_F_CREATE | NLM_F_REPLACE
"""The two ways to write. ADD refuses where anything stands in the way (CREATE alone would silently double an IPv4
route); REPLACE overwrites a route of any protocol, so it is only for a route known to be ours."""


class Placement(NamedTuple):
    """What routes of one kind have in common. ``table`` and ``metric`` select the kernel's entry."""

    family: Family
    table: int
    metric: int
    protocol: int


Shape = bytes
"""A request for a route whose sequence number, prefix length and address are 0; the address is at its end."""

MOST = 1 << 14
"""Messages that are sent before the answers are read: these fit the socket's buffer if all are refusals."""
_LOW = bytes(range(256)) * (MOST >> 8)
_HIGH = b"".join(bytes((high,)) * 256 for high in range(MOST >> 8))
"""The two octets of all sequence numbers."""
_LOW_AT, _HIGH_AT = (8, 9) if sys.byteorder == "little" else (11, 10)
_FAMILY_AT, _LENGTH_AT = 16, 17
_OCTETS = {AF[family]: bits // 8 for family, bits in BITS.items()}


def write_shape(place: Placement, flags: int, kind: int, scope: int, attrs: bytes) -> Shape:
    """Return the shape of RTM_NEWROUTE; ``flags`` is ADD or REPLACE, ``attrs`` says where packets go."""
    return _shape(place, RTM_NEWROUTE, flags, kind, scope, attrs)


def delete_shape(place: Placement) -> Shape:
    """Return the shape of RTM_DELROUTE for whatever route of our protocol has the prefix and metric."""
    return _shape(place, RTM_DELROUTE, 0, 0, RT_SCOPE_NOWHERE, b"")


def _shape(place: Placement, request: int, flags: int, kind: int, scope: int, attrs: bytes) -> Shape:
    small = place.table if place.table < 256 else 0
    if not small:
        attrs += attribute(RTA_TABLE, struct.pack("=I", place.table))
    if place.metric:
        attrs += attribute(RTA_PRIORITY, struct.pack("=I", place.metric))
    attrs += attribute(RTA_DST, bytes(BITS[place.family] // 8))
    return message(request, flags, RTMSG.pack(AF[place.family], 0, 0, 0, small, place.protocol, scope, kind, 0) + attrs)


def route_batch(shape: Shape, prefixes: Sequence[bytes], first: int = 0) -> bytearray:
    """Return a request for each prefix, numbered from ``first``, which together must stay below MOST."""
    count, size = len(prefixes), len(shape)
    sizes = set(map(len, prefixes))
    step = max(sizes)
    data = b"".join(prefixes if len(sizes) == 1 else map(bytes.ljust, prefixes, repeat(step), repeat(b"\0")))
    buffer = bytearray(shape) * count
    buffer[_LOW_AT::size] = _LOW[first : first + count]
    buffer[_HIGH_AT::size] = _HIGH[first : first + count]
    buffer[_LENGTH_AT::size] = data[::step]
    address = size - _OCTETS[shape[_FAMILY_AT]]
    for at in range(1, step):
        buffer[address + at - 1 :: size] = data[at::step]
    return buffer


def numbered(requests: Sequence[bytes]) -> bytes:
    """Return framed requests as one buffer, numbered by place. Empty ones are places only."""
    return b"".join([r[:8] + struct.pack("=I", number) + r[12:] for number, r in enumerate(requests) if r])


def via_nexthop(nexthop: int) -> bytes:
    """Route attributes: through a next-hop object or group."""
    return attribute(RTA_NH_ID, struct.pack("=I", nexthop))


def via_device(ifindex: int) -> bytes:
    """Route attributes: on-link at an interface."""
    return attribute(RTA_OIF, struct.pack("=I", ifindex))


def via_paths(family: Family, paths: Sequence[Path]) -> bytes:
    """Route attributes without next-hop objects: one gateway, or several as a multipath route.

    Flags of a path have their place in a multipath route only; the kernel takes one of a single path too.
    """
    if len(paths) == 1 and not paths[0].onlink:
        return _gateway(family, paths[0].gateway) + via_device(paths[0].ifindex)
    hops = b""
    for path in paths:
        gateway = _gateway(family, path.gateway)
        flags = RTNH_F_ONLINK if path.onlink else 0
        hops += struct.pack("=HBBi", 8 + len(gateway), flags, path.weight - 1, path.ifindex) + gateway
    return attribute(RTA_MULTIPATH, hops)


def _gateway(family: Family, address: bytes) -> bytes:
    if family == 4 and len(address) == 16:  # RFC 8950: IPv4 over an IPv6 next hop
        return attribute(RTA_VIA, struct.pack("=H", AF[6]) + address)
    return attribute(RTA_GATEWAY, address)


def new_nexthop(identifier: int, protocol: int, gateway: bytes, ifindex: int, *, onlink: bool = False) -> bytes:
    """Frame the creation of one next-hop object; EEXIST if the id is taken."""
    family, flags = AF[4] if len(gateway) == 4 else AF[6], RTNH_F_ONLINK if onlink else 0
    body = NHMSG.pack(family, RT_SCOPE_UNIVERSE, protocol, 0, flags) + attribute(NHA_ID, struct.pack("=I", identifier))
    body += attribute(NHA_OIF, struct.pack("=I", ifindex)) + attribute(NHA_GATEWAY, gateway)
    return message(RTM_NEWNEXTHOP, ADD, body)


def new_group(
    identifier: int,
    protocol: int,
    members: Sequence[tuple[int, int]],
    *,
    replace: bool = False,
    resilience: Resilience | None = None,
) -> bytes:
    """Frame a group of ``(object id, weight 1..256)``; EEXIST if the id is taken.

    Replacing moves all its routes at once. ENOENT: there is no such group any more, and so none of its routes.
    Of a resilient group replacing moves no bucket whose member stays, unless another member has too few and the timers
    allow it. A group of another type, or with another number of buckets, cannot be replaced.
    """
    body = NHMSG.pack(0, 0, protocol, 0, 0) + attribute(NHA_ID, struct.pack("=I", identifier))
    body += attribute(NHA_GROUP, b"".join(struct.pack("=IBBH", member, weight - 1, 0, 0) for member, weight in members))
    if resilience is not None:
        body += attribute(NHA_GROUP_TYPE, struct.pack("=H", NEXTHOP_GRP_TYPE_RES))
        inner = attribute(NHA_RES_GROUP_BUCKETS, struct.pack("=H", resilience.buckets))
        inner += attribute(NHA_RES_GROUP_IDLE_TIMER, struct.pack("=I", resilience.idle_timer))
        inner += attribute(NHA_RES_GROUP_UNBALANCED_TIMER, struct.pack("=I", resilience.unbalanced_timer))
        body += attribute(NLA_F_NESTED | NHA_RES_GROUP, inner)
    return message(RTM_NEWNEXTHOP, NLM_F_REPLACE if replace else ADD, body)


def get_nexthop(identifier: int) -> bytes:
    """Frame the question for one object or group: RTM_NEWNEXTHOP, or ENOENT."""
    return message(RTM_GETNEXTHOP, 0, NHMSG.pack(0, 0, 0, 0, 0) + attribute(NHA_ID, struct.pack("=I", identifier)))


def delete_nexthop(identifier: int) -> bytes:
    """Frame the deletion of an object or group: the kernel takes it out of groups and drops the routes that it ends."""
    return message(RTM_DELNEXTHOP, 0, NHMSG.pack(0, 0, 0, 0, 0) + attribute(NHA_ID, struct.pack("=I", identifier)))
