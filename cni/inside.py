"""What a pod finds inside: its addresses, and a default route per family via a gateway that nobody holds.

A further interface of the same pod cannot have the default routes too. It gets a table of its own, which a rule gives
to what comes from its addresses: so answers leave where the question came in, and the host lets them pass.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Final

from cni import netlink
from cni.links import await_carrier, await_local, set_link
from cni.namespaces import set_sysctl
from cni.netlink import Message, Netlink, Reply, Rule
from config.prefix import BITS, FAMILIES, Family

HOST_MAC: Final = bytes.fromhex("027072686f73")
"""Of every host end: links of two stations share no segment, and a pod's entry for its gateway never goes stale."""
GATEWAYS: Final[dict[Family, bytes]] = {
    4: socket.inet_aton("169.254.1.1"),
    6: socket.inet_pton(socket.AF_INET6, "fe80::1"),
}
_FORWARDING: Final[dict[Family, str]] = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}
_TABLES = 1 << 24
"""Where further interfaces' tables begin: far from what people number."""
_INDEXES = 1 << 31
"""Interfaces are numbered below."""


def configure(
    inside: Netlink, index: int, name: str, addresses: Sequence[tuple[Family, bytes]], *, forwarding: bool, ipv6: bool
) -> frozenset[Family]:
    """Set up the pod's end, behind a host's end that is up; ``inside`` is strict, the calling thread in its namespace.

    Returns the families whose default route leads through this interface; of the others another one has it.
    """
    families: list[Family] = sorted({family for family, _ in addresses})
    if 6 in families:
        set_sysctl(f"ipv6/conf/{name}/disable_ipv6", 0)
    _set_forwarding(inside, [4, 6] if ipv6 else [4], forwarding)
    main = frozenset(family for family in families if not _has_default(inside, family))
    inside.transact([set_link(index, b"", f"bring {name} up", up=True)])
    await_carrier(inside, index)
    messages = [netlink.add_address(family, address, index) for family, address in addresses]
    for family in families:
        messages.append(netlink.set_neighbour(family, GATEWAYS[family], HOST_MAC, index))
        messages += _routes(family, index, netlink.TABLE_MAIN if family in main else _TABLES + index)
    for family, address in addresses:
        if family not in main:
            messages.append(netlink.change_rule(family, address, _TABLES + index, add=True))
    inside.transact(messages)
    for family, address in addresses:
        if family == 6:
            await_local(inside, address)
    return main


def set_gateways(inside: Netlink, index: int, families: Sequence[Family]) -> None:
    """Set the gateways' neighbour entries again; a change of the interface's MAC address takes them away."""
    inside.transact([netlink.set_neighbour(family, GATEWAYS[family], HOST_MAC, index) for family in families])


def missing_rules(
    inside: Netlink, index: int, family: Family, addresses: Sequence[tuple[Family, bytes]]
) -> list[bytes]:
    """Return the addresses of a further interface that lack the rule which leads what comes from them to its table."""
    (replies,) = inside.transact([netlink.list_rules(family)])
    present = {rule.source for rule in map(_rule, replies) if rule.table == _TABLES + index}
    return [address for of, address in addresses if of == family and address not in present]


def forget(inside: Netlink, gone: int | None) -> None:
    """Take away what outlives a further interface, its rules; those of others that went without DEL, too.

    ``gone``: index of an interface that is about to go.
    """
    listed = inside.transact([netlink.list_rules(family) for family in FAMILIES], tolerate=[errno.EAFNOSUPPORT])
    stale = []
    for family, replies in zip(FAMILIES, listed, strict=True):
        for rule in map(_rule, replies):
            index = rule.table - _TABLES
            if rule.length != BITS[family] or not 0 < index < _INDEXES:
                continue
            if index == gone or inside.one(netlink.get_link_by_index(index)) is None:
                stale.append(netlink.change_rule(family, rule.source, rule.table, add=False))
    inside.transact(stale, tolerate=[errno.ENOENT])


def _rule(reply: Reply) -> Rule:
    return netlink.decode_rule(reply.body)


def _set_forwarding(inside: Netlink, families: Sequence[Family], wanted: bool) -> None:
    """Have the namespace forward or not. It is asked first: a path below /proc/sys leads past all namespaces' entries,
    which on a node of 2,000 pods takes longer than the question."""
    known = inside.transact([netlink.get_forwarding(family) for family in families])
    for family, (reply, *_) in zip(families, known, strict=True):
        if netlink.decode_forwarding(reply.body) != wanted:
            set_sysctl(_FORWARDING[family], int(wanted))


def _has_default(inside: Netlink, family: Family) -> bool:
    (replies,) = inside.transact([netlink.list_routes(family)], tolerate=[errno.ENOENT])
    return any(netlink.decode_route(reply.body).length == 0 for reply in replies)


def _routes(family: Family, index: int, table: int) -> list[Message]:
    gateway = GATEWAYS[family]
    # An IPv6 gateway is on the link by being link-local.
    on_link = [netlink.add_route(4, gateway, index, table=table)] if family == 4 else []
    return [*on_link, netlink.add_route(family, b"", index, gateway=gateway, table=table)]
