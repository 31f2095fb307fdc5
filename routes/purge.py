"""Removal of everything of ours, going by what the kernel holds and not by what we remember."""

from __future__ import annotations

import socket

from config.prefix import FAMILIES
from routes import netlink
from routes.dumps import read_nexthops, read_routes
from routes.encode import MOST, Placement, delete_nexthop, delete_shape, numbered, route_batch


def purge(sock: socket.socket, table: int, protocol: int) -> None:
    """Delete all next-hop objects of a protocol, and its routes in a table. Blocks. Raises OSError.

    Groups go first: the kernel drops their routes faster than they could be deleted.
    """
    objects = [nexthop for nexthop in read_nexthops(sock) if nexthop.protocol == protocol]
    requests = [delete_nexthop(nexthop.id) for nexthop in sorted(objects, key=lambda nexthop: not nexthop.members)]
    for start in range(0, len(requests), MOST):
        _send(sock, numbered(requests[start : start + MOST]))
    for family in FAMILIES:
        for _ in range(3):  # a dump of a table in motion may miss some
            left: dict[int, list[bytes]] = {}
            try:
                for route in read_routes(sock, family, table, protocol=protocol):
                    left.setdefault(route.metric, []).append(route.prefix)
            except netlink.DumpInterruptedError:
                pass
            else:
                if not left:
                    break
            for metric, prefixes in left.items():
                shape = delete_shape(Placement(family, table, metric, protocol))
                for start in range(0, len(prefixes), MOST):
                    _send(sock, route_batch(shape, prefixes[start : start + MOST]))


def _send(sock: socket.socket, data: bytes | bytearray) -> None:
    sock.send(data)
    netlink.receive_refusals(sock)
