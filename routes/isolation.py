"""Containers that use addresses of blocks which are another node's now: nothing that they send leaves the node.

One policy rule per address and interface: ``from ADDRESS iif INTERFACE prohibit`` (ip-rule(8)). What comes over another
interface from the same address, from its new user, is not concerned, nor what the container sends to the node itself.
Nothing leads to such a container either, as its host route goes when the block is lost.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from contextlib import closing
from typing import NamedTuple

from config.kernel import ROUTE_PROTOCOL, RULE_PRIORITY
from config.prefix import FAMILIES, Family
from routes import netlink

_FAMILIES: dict[Family, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
_PROHIBIT = 8  # FR_ACT_PROHIBIT
_SRC, _IIFNAME, _PRIORITY, _PROTOCOL = 2, 3, 6, 21  # FRA_*
_HEADER = struct.Struct("=BBBBBBBBI")  # struct fib_rule_hdr


class Isolated(NamedTuple):
    family: Family
    packed: bytes
    device: str


def isolate(wanted: Iterable[Isolated]) -> list[str]:
    """Have these isolated, and no others; return what the kernel refused, a line each.

    Blocking; in the calling thread's network namespace.
    """
    with closing(netlink.open_socket()) as sock:
        there, desired = set(read(sock)), set(wanted)
        refused = []
        for kind, flags, rules in (
            (netlink.RTM_DELRULE, 0, there - desired),
            (netlink.RTM_NEWRULE, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, desired - there),
        ):
            for rule in rules:
                sock.send(netlink.message(kind, flags, _encode(rule)))
                refused += [f"{rule.device}: {one.text or one.errno}" for one in netlink.receive_refusals(sock)[0]]
        return refused


def read(sock: socket.socket) -> list[Isolated]:
    """Return the rules that are there."""
    found = []
    for family in FAMILIES:
        request = _HEADER.pack(_FAMILIES[family], 0, 0, 0, 0, 0, 0, 0, 0)
        for data, msg in netlink.settled_dump(sock, netlink.RTM_GETRULE, request):
            attributes = netlink.attributes(data, msg.start + _HEADER.size, msg.end)
            if attributes.get(_PROTOCOL) == bytes((ROUTE_PROTOCOL,)) and _SRC in attributes and _IIFNAME in attributes:
                device = attributes[_IIFNAME].rstrip(b"\0").decode()
                found.append(Isolated(family, attributes[_SRC], device))
    return found


def _encode(rule: Isolated) -> bytes:
    header = _HEADER.pack(_FAMILIES[rule.family], 0, 8 * len(rule.packed), 0, 0, 0, 0, _PROHIBIT, 0)
    return b"".join(
        (
            header,
            netlink.attribute(_SRC, rule.packed),
            netlink.attribute(_IIFNAME, rule.device.encode() + b"\0"),
            netlink.attribute(_PRIORITY, struct.pack("=I", RULE_PRIORITY)),
            netlink.attribute(_PROTOCOL, bytes((ROUTE_PROTOCOL,))),
        )
    )
