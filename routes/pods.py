"""The host routes to pods as the kernel has them: for comparisons, and for a ledger that was lost."""

from __future__ import annotations

import contextlib
import socket
from contextlib import closing
from typing import NamedTuple

from config.kernel import POD_METRIC, ROUTE_PROTOCOL
from config.prefix import BITS, FAMILIES, Family
from routes import netlink
from routes.dumps import read_routes
from routes.netlink import DumpInterruptedError

_ATTEMPTS = 5


class PodRoute(NamedTuple):
    family: Family
    prefix: bytes
    device: str


def pod_routes(table: int) -> list[PodRoute]:
    """Return our host routes over an interface. Blocking; in the calling thread's network namespace."""
    found: dict[tuple[Family, bytes], PodRoute] = {}
    with closing(netlink.open_socket()) as sock:
        for family in FAMILIES:
            for _ in range(_ATTEMPTS):
                with contextlib.suppress(DumpInterruptedError):
                    for route in read_routes(sock, family, table, protocol=ROUTE_PROTOCOL):
                        if route.prefix[0] != BITS[family] or route.metric != POD_METRIC[family] or not route.paths:
                            continue
                        with contextlib.suppress(OSError):  # gone since
                            device = socket.if_indextoname(route.paths[0].ifindex)
                            found[family, route.prefix] = PodRoute(family, route.prefix, device)
                    break
    return list(found.values())
