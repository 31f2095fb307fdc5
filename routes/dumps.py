"""Reading the kernel's tables of routes and next-hop objects. Blocking; for threads and for the start."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

from config.prefix import Family
from routes import netlink
from routes.messages import Nexthop, Route, decode_nexthop, decode_route, nexthops_request, routes_request


def read_routes(sock: socket.socket, family: Family, table: int, *, protocol: int = 0, but: int = 0) -> Iterator[Route]:
    """Yield a table's routes, filtered in the kernel by ``protocol``, or all but those of protocol ``but``.

    Raises netlink.DumpInterruptedError at the end if the table changed meanwhile. Must be run to its end.
    """
    for data, msg in netlink.dump(sock, netlink.RTM_GETROUTE, routes_request(family, table, protocol)):
        if but and data[msg.start + 5] == but:  # rtm_protocol: a table full of these is not decoded
            continue
        route = decode_route(data, msg)
        # Kernels before 4.20 ignore the filter.
        if route is not None and route.table == table and protocol in (0, route.protocol):
            yield route


def read_nexthops(sock: socket.socket) -> list[Nexthop]:
    """Return all next-hop objects; none where the kernel knows no such thing."""
    try:
        found = netlink.settled_dump(sock, netlink.RTM_GETNEXTHOP, nexthops_request())
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return []
        raise
    return [decode_nexthop(data, msg) for data, msg in found]
