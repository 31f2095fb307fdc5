"""rtnetlink as far as a pod's wiring needs it: encoders, and a socket that takes messages in batches.

The general library takes longer to encode one message than the kernel to carry it out. Constants and layouts are those
of linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h and linux/veth.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from config.prefix import BITS, Family

AF: Final[dict[Family, int]] = {4: socket.AF_INET, 6: socket.AF_INET6}

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, GETADDR = 20, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, GETNEIGH = 28, 30
NEWRULE, DELRULE, GETRULE = 32, 33, 34
GETNETCONF = 82

REQUEST, ACK = 0x1, 0x4
REPLACE, EXCL, CREATE = 0x100, 0x200, 0x400
DUMP = 0x300

IFF_UP = 0x1
IF_OPER_UP = 6
NUD_PERMANENT = 0x80
IFA_F_NODAD = 0x02
SCOPE_UNIVERSE, SCOPE_LINK = 0, 253
TABLE_MAIN = 254
PROTO_BOOT = 3
RTM_F_FIB_MATCH = 0x2000
RTN_UNICAST, RTN_LOCAL = 1, 2

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_OPERSTATE, IFLA_LINKINFO = 1, 3, 4, 5, 16, 18
IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK = 20, 26, 27, 28, 29
IFLA_LINK_NETNSID, IFLA_TARGET_NETNSID = 37, 46
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_INET_CONF, IFLA_INET6_ADDR_GEN_MODE = 1, 8
IPV4_FORWARDING, IPV4_RP_FILTER, IPV4_TAG = 1, 8, 12
SKIP_STATISTICS = 8
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
NDA_DST, NDA_LLADDR = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE = 1, 4, 5, 6, 15
NETCONFA_IFINDEX, NETCONFA_FORWARDING, NETCONFA_IFINDEX_ALL = 1, 2, 0xFFFFFFFF
FRA_SRC, FRA_TABLE, FR_ACT_TO_TABLE = 2, 15, 1

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ERROR = struct.Struct("=i")
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT_CHECK = 270, 10, 11, 12
_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1


class Message(NamedTuple):
    type: int
    flags: int
    body: bytes
    step: str
    """What it does, for errors: ``"add address 10.64.0.5"``."""


class Reply(NamedTuple):
    type: int
    body: bytes


class NetlinkError(OSError):
    """The kernel refused a message; ``step`` says which, the text holds the kernel's own explanation if it gave one."""

    def __init__(self, code: int, step: str, explanation: str) -> None:
        super().__init__(code, f"{step}: {os.strerror(code)}" + (f" ({explanation})" if explanation else ""))
        self.step = step


class Netlink:
    """A socket in the network namespace that the calling thread is in when it is made; there it stays."""

    def __init__(self, *, strict: bool = False) -> None:
        """``strict``: the kernel filters dumps by what the request's header and attributes say (Linux 4.20)."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._sequence = 0
        for option in (_CAP_ACK, _EXT_ACK, *((_STRICT_CHECK,) if strict else ())):
            self._socket.setsockopt(SOL_NETLINK, option, 1)

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def transact(self, messages: Sequence[Message], *, tolerate: Sequence[int] = ()) -> list[list[Reply]]:
        """Send messages in one batch and return the replies to each.

        The kernel works them off in order and goes on behind a failing one. Raises NetlinkError for the first that
        failed with an errno not in ``tolerate``.
        """
        if not messages:
            return []
        first = self._sequence + 1
        datagram = bytearray()
        for message in messages:
            self._sequence += 1
            length = _HEADER.size + len(message.body)
            datagram += _HEADER.pack(length, message.type, message.flags | REQUEST | ACK, self._sequence, 0)
            datagram += message.body + bytes(-length % 4)
        self._socket.send(datagram)
        replies: list[list[Reply]] = [[] for _ in messages]
        fault: NetlinkError | None = None
        left = len(messages)
        while left:
            for kind, flags, sequence, body in _messages(self._socket.recv(65536)):
                index = sequence - first
                if not 0 <= index < len(messages):
                    continue
                if kind not in (_NLMSG_ERROR, _NLMSG_DONE):
                    replies[index].append(Reply(kind, body))
                    continue
                left -= 1
                code = -_ERROR.unpack_from(body)[0] if len(body) >= _ERROR.size else 0
                if code and code not in tolerate and fault is None:
                    fault = NetlinkError(code, messages[index].step, _explanation(flags, body))
        if fault:
            raise fault
        return replies

    def one(self, message: Message) -> bytes | None:
        """Send one request; return the body of its first reply, None where the kernel has nothing of that kind."""
        try:
            (replies,) = self.transact([message])
        except NetlinkError as error:
            if error.errno in (errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.ENETUNREACH, errno.EHOSTUNREACH):
                return None
            raise
        return replies[0].body if replies else None


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    at = 0
    while len(data) - at >= _HEADER.size:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _explanation(flags: int, body: bytes) -> str:
    """Return the text that the kernel adds to an error (extended acknowledgement), or nothing."""
    if not flags & _ACK_TLVS:
        return ""
    text = attributes(body[_ERROR.size + _HEADER.size :]).get(_NLMSGERR_ATTR_MSG, b"")
    return text.rstrip(b"\0").decode(errors="replace")


def attribute(kind: int, payload: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + bytes(-length % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Decode a run of attributes; the flags for nesting and byte order are masked."""
    found = {}
    at = 0
    while len(data) - at >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def number(value: int) -> bytes:
    return struct.pack("=I", value)


def to_number(payload: bytes | None) -> int:
    return int.from_bytes(payload or b"", "little" if struct.pack("=H", 1)[0] else "big")


def name(text: str) -> bytes:
    return os.fsencode(text) + b"\0"


def to_name(payload: bytes | None) -> str:
    return os.fsdecode((payload or b"").rstrip(b"\0"))


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    flags: int
    name: str
    mac: bytes
    mtu: int
    kind: str
    """``"veth"``, ``"bridge"``; empty for hardware."""
    peer: int
    """Index of a veth's other end, in the namespace where that one is."""
    group: int
    tag: int
    """net.ipv4.conf.*.tag: a number that the kernel keeps and does nothing with."""
    alias: str
    namespace: int
    """Id of the namespace where the other end is; -1 where it is here."""

    operational: bool
    """It carries packets (RFC 2863, ifOperStatus up)."""

    @property
    def up(self) -> bool:
        return bool(self.flags & IFF_UP)


def decode_link(body: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    found = attributes(body[_LINK.size :])
    return Link(
        index=index,
        flags=flags,
        name=to_name(found.get(IFLA_IFNAME)),
        mac=found.get(IFLA_ADDRESS, b""),
        mtu=to_number(found.get(IFLA_MTU)),
        kind=to_name(attributes(found.get(IFLA_LINKINFO, b"")).get(IFLA_INFO_KIND)),
        peer=to_number(found.get(IFLA_LINK)),
        group=to_number(found.get(IFLA_GROUP)),
        tag=_ipv4_setting(found.get(IFLA_AF_SPEC, b""), IPV4_TAG),
        alias=to_name(found.get(IFLA_IFALIAS)),
        namespace=to_number(found[IFLA_LINK_NETNSID]) if IFLA_LINK_NETNSID in found else -1,
        operational=found.get(IFLA_OPERSTATE) == bytes([IF_OPER_UP]),
    )


def _ipv4_setting(families: bytes, setting: int) -> int:
    """Return one of net.ipv4.conf.*, 0 where a link has no IPv4; they are numbered from 1."""
    values = attributes(attributes(families).get(socket.AF_INET, b"")).get(IFLA_INET_CONF, b"")
    return to_number(values[4 * (setting - 1) : 4 * setting])


def decode_address(body: bytes) -> tuple[int, bytes]:
    """Return ``(interface index, packed address)`` of an RTM_NEWADDR."""
    _, _, _, _, index = _ADDRESS.unpack_from(body)
    found = attributes(body[_ADDRESS.size :])
    return index, found.get(IFA_LOCAL) or found.get(IFA_ADDRESS, b"")


def decode_neighbour(body: bytes) -> tuple[int, bytes, bytes, int]:
    """Return ``(interface index, packed address, link-layer address, state)`` of an RTM_NEWNEIGH."""
    _, index, state, _, _ = _NEIGHBOUR.unpack_from(body)
    found = attributes(body[_NEIGHBOUR.size :])
    return index, found.get(NDA_DST, b""), found.get(NDA_LLADDR, b""), state


class KernelRoute(NamedTuple):
    destination: bytes
    """Packed, empty for the default."""
    length: int
    device: int
    gateway: bytes
    protocol: int
    local: bool
    """To this namespace itself."""
    table: int


class Rule(NamedTuple):
    """What comes from a source is looked up in a table; others than those of ``change_rule`` may have no source."""

    source: bytes
    """Packed."""
    length: int
    table: int


def decode_rule(body: bytes) -> Rule:
    _, _, length, _, table, _, _, _, _ = _ROUTE.unpack_from(body)
    found = attributes(body[_ROUTE.size :])
    return Rule(found.get(FRA_SRC, b""), length, to_number(found.get(FRA_TABLE)) or table)


def decode_route(body: bytes) -> KernelRoute:
    _, length, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(body)
    found = attributes(body[_ROUTE.size :])
    destination = found.get(RTA_DST, b"")
    device, gateway = to_number(found.get(RTA_OIF)), found.get(RTA_GATEWAY, b"")
    table = to_number(found.get(RTA_TABLE)) or table
    return KernelRoute(destination, length, device, gateway, protocol, kind == RTN_LOCAL, table)


def link_header(index: int = 0, *, up: bool = False, down: bool = False) -> bytes:
    """Return the fixed part of a link message; ``up`` or ``down`` brings the link there, else its flags stay."""
    return _LINK.pack(0, 0, index, IFF_UP if up else 0, IFF_UP if up or down else 0)


def get_link(link: str) -> Message:
    body = link_header() + attribute(IFLA_IFNAME, name(link))
    return Message(GETLINK, 0, body + attribute(IFLA_EXT_MASK, number(SKIP_STATISTICS)), f"look up {link}")


def get_link_by_index(index: int) -> Message:
    body = link_header(index) + attribute(IFLA_EXT_MASK, number(SKIP_STATISTICS))
    return Message(GETLINK, 0, body, f"look up interface {index}")


def get_link_elsewhere(index: int, namespace: int) -> Message:
    """Look up a link of another namespace, by this one's id of it (IFLA_LINK_NETNSID)."""
    body = link_header(index) + attribute(IFLA_TARGET_NETNSID, number(namespace))
    return Message(
        GETLINK, 0, body + attribute(IFLA_EXT_MASK, number(SKIP_STATISTICS)), f"look up pod interface {index}"
    )


def delete_group(group: int) -> Message:
    """Delete all links of an interface group, for little more than the price of one."""
    return Message(DELLINK, 0, link_header() + attribute(IFLA_GROUP, number(group)), f"delete interface group {group}")


def delete_link(link: str) -> Message:
    return Message(DELLINK, 0, link_header() + attribute(IFLA_IFNAME, name(link)), f"delete {link}")


def delete_link_by_index(index: int) -> Message:
    return Message(DELLINK, 0, link_header(index), f"delete interface {index}")


def list_links(kind: str) -> Message:
    """List the links of one kind; the kernel filters."""
    body = link_header()
    body += attribute(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, name(kind)))
    return Message(GETLINK, DUMP, body + attribute(IFLA_EXT_MASK, number(SKIP_STATISTICS)), f"list {kind} links")


def add_address(family: Family, address: bytes, index: int) -> Message:
    """An address of host length; IPv6 without duplicate address detection (RFC 4862 section 5.4), usable at once."""
    body = _ADDRESS.pack(AF[family], BITS[family], 0, SCOPE_UNIVERSE, index)
    body += attribute(IFA_LOCAL, address) + attribute(IFA_ADDRESS, address)
    if family == 6:
        body += attribute(IFA_FLAGS, number(IFA_F_NODAD))
    return Message(NEWADDR, CREATE | EXCL, body, f"add address {show(address)}")


def list_addresses(index: int) -> Message:
    return Message(GETADDR, DUMP, _ADDRESS.pack(0, 0, 0, 0, index), "list addresses")


def set_neighbour(family: Family, address: bytes, mac: bytes, index: int) -> Message:
    body = _NEIGHBOUR.pack(AF[family], index, NUD_PERMANENT, 0, 0)
    body += attribute(NDA_DST, address) + attribute(NDA_LLADDR, mac)
    return Message(NEWNEIGH, CREATE | REPLACE, body, f"set neighbour {show(address)}")


def get_neighbour(family: Family, address: bytes, index: int) -> Message:
    body = _NEIGHBOUR.pack(AF[family], index, 0, 0, 0) + attribute(NDA_DST, address)
    return Message(GETNEIGH, 0, body, f"look up neighbour {show(address)}")


def add_route(
    family: Family,
    destination: bytes,
    index: int,
    *,
    gateway: bytes = b"",
    protocol: int = PROTO_BOOT,
    metric: int = 0,
    replace: bool = False,
    table: int = TABLE_MAIN,
) -> Message:
    """A route to one address, or the default where ``destination`` is empty."""
    length = BITS[family] if destination else 0
    scope = SCOPE_LINK if family == 4 and not gateway else SCOPE_UNIVERSE
    body = _ROUTE.pack(AF[family], length, 0, 0, 0, protocol, scope, RTN_UNICAST, 0)
    body += attribute(RTA_TABLE, number(table))
    if destination:
        body += attribute(RTA_DST, destination)
    if gateway:
        body += attribute(RTA_GATEWAY, gateway)
    if metric:
        body += attribute(RTA_PRIORITY, number(metric))
    body += attribute(RTA_OIF, number(index))
    flags = CREATE | (REPLACE if replace else EXCL)
    return Message(NEWROUTE, flags, body, f"add route {show(destination) if destination else 'default'}/{length}")


def find_route(family: Family, destination: bytes, *, entry: bool) -> Message:
    """Ask which route leads to an address: the FIB's ``entry``, or else the way resolved to one device and gateway."""
    flags = RTM_F_FIB_MATCH if entry else 0
    body = _ROUTE.pack(AF[family], BITS[family], 0, 0, 0, 0, 0, 0, flags) + attribute(RTA_DST, destination)
    return Message(GETROUTE, 0, body, f"look up the route to {show(destination)}")


def list_routes(family: Family, *, table: int = TABLE_MAIN) -> Message:
    """List a table, all with 0, on a strict socket; for a pod's namespace, a host's may be huge."""
    body = _ROUTE.pack(AF[family], 0, 0, 0, 0, 0, 0, 0, 0) + attribute(RTA_TABLE, number(table))
    return Message(GETROUTE, DUMP, body, "list routes")


def get_forwarding(family: Family) -> Message:
    """Ask whether a namespace forwards (RTM_GETNETCONF, all interfaces)."""
    body = struct.pack("=Bxxx", AF[family]) + attribute(NETCONFA_IFINDEX, number(NETCONFA_IFINDEX_ALL))
    return Message(GETNETCONF, 0, body, f"look up IPv{family} forwarding")


def decode_forwarding(body: bytes) -> bool:
    return bool(to_number(attributes(body[4:]).get(NETCONFA_FORWARDING)))


def change_rule(family: Family, source: bytes, table: int, *, add: bool) -> Message:
    """Have what comes from an address looked up in a table of its own, or no longer."""
    body = _ROUTE.pack(AF[family], 0, BITS[family], 0, 0, 0, 0, FR_ACT_TO_TABLE, 0)
    body += attribute(FRA_SRC, source) + attribute(FRA_TABLE, number(table))
    verb, flags = (NEWRULE, CREATE | EXCL) if add else (DELRULE, 0)
    return Message(verb, flags, body, f"{'add' if add else 'delete'} rule for {show(source)}")


def list_rules(family: Family) -> Message:
    return Message(GETRULE, DUMP, _ROUTE.pack(AF[family], 0, 0, 0, 0, 0, 0, 0, 0), f"list IPv{family} rules")


def show(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
