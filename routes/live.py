"""What the kernel holds of one prefix at this moment, read from it and not from what we believe. Blocking.

RTM_GETROUTE is no help: it tells one route of several metrics, and of IPv6 routes that share a next-hop object it names
whichever was looked up first. So the table is dumped, and only what can be the prefix is decoded.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import NamedTuple

from config.prefix import BITS, Family, address_text
from routes import netlink
from routes.dumps import read_nexthops
from routes.messages import (
    RTA_DST,
    RTN_UNICAST,
    Nexthop,
    Path,
    Route,
    decode_route,
    routes_request,
)

_KINDS = {2: "local", 3: "broadcast", 5: "multicast", 6: "blackhole", 7: "unreachable", 8: "prohibit", 9: "throw"}
_PROTOCOLS = {
    1: "redirect",
    2: "kernel",
    3: "boot",
    4: "static",
    9: "ra",
    11: "zebra",
    12: "bird",
    16: "dhcp",
    17: "mrouted",
    18: "keepalived",
    42: "babel",
    186: "bgp",
    187: "isis",
    188: "ospf",
    189: "rip",
    192: "eigrp",
}
"""linux/rtnetlink.h"""


class KernelRoute(NamedTuple):
    """One entry of the kernel's table."""

    protocol: int
    metric: int
    ways: tuple[str, ...]
    """Each once, ``10.1.1.1 dev eth0``, or what else becomes of packets: ``unreachable``."""
    nexthop: int
    """Id of its next-hop object or group, 0 without one."""


def read_prefix(sock: socket.socket, family: Family, table: int, prefix: bytes) -> list[Route]:
    """Return the entries of exactly this prefix, of any protocol, the one that the kernel uses first.

    Raises OSError.
    """
    octets = BITS[family] // 8
    address = prefix[1:].ljust(octets, b"\0")
    needle = netlink.attribute(RTA_DST, address) if prefix[0] else b""
    found = []
    try:
        for data, msg in netlink.dump(sock, netlink.RTM_GETROUTE, routes_request(family, table), needle=needle):
            route = decode_route(data, msg)
            if route is not None and route.table == table and route.prefix == prefix:
                found.append(route)
    except netlink.DumpInterruptedError:
        pass  # the table is in motion: what was seen was there
    return sorted(found, key=lambda route: route.metric)


def describe(sock: socket.socket, routes: list[Route], names: Mapping[int, str]) -> list[KernelRoute]:
    """Return routes for people; ``names`` are the interfaces'. Raises OSError."""
    objects: dict[int, Nexthop] = {}
    if any(route.nexthop and not route.paths for route in routes):  # net.ipv4.nexthop_compat_mode=0
        objects = {nexthop.id: nexthop for nexthop in read_nexthops(sock)}
    return [kernel_route(route, objects, names) for route in routes]


def kernel_route(route: Route, objects: Mapping[int, Nexthop], names: Mapping[int, str]) -> KernelRoute:
    """Return one route for people; ``objects`` are the next-hop objects by id."""
    return KernelRoute(route.protocol, route.metric, _ways(route, objects, names), route.nexthop)


def protocol_name(number: int) -> str:
    """Return how `ip route` names a protocol, as far as the kernel's header knows it."""
    return _PROTOCOLS.get(number, str(number))


def _ways(route: Route, objects: Mapping[int, Nexthop], names: Mapping[int, str]) -> tuple[str, ...]:
    if route.kind != RTN_UNICAST:
        return (_KINDS.get(route.kind, f"type {route.kind}"),)
    paths = list(route.paths)
    if not paths and route.nexthop in objects:
        found = objects[route.nexthop]
        members = [objects[i] for i, _ in found.members if i in objects] if found.members else [found]
        paths = [Path(member.gateway, member.ifindex, onlink=member.onlink) for member in members]
    named = (
        (
            address_text(path.gateway) if path.gateway else "",
            f"dev {names.get(path.ifindex, path.ifindex)}",
            "onlink" if path.onlink else "",
        )
        for path in sorted(paths)  # the kernel has them in the order in which sessions came up
    )
    return tuple(dict.fromkeys(" ".join(filter(None, way)) for way in named))
