"""Octets of BGP messages, right and wrong ones: an encoder that lets everything through, and a plain decoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from struct import pack, unpack_from

MARKER = b"\xff" * 16
OPEN, UPDATE, NOTIFICATION, KEEPALIVE, REFRESH = 1, 2, 3, 4, 5
ORIGIN, AS_PATH, NEXT_HOP, MED, LOCAL_PREF, ATOMIC, AGGREGATOR = 1, 2, 3, 4, 5, 6, 7
COMMUNITIES, ORIGINATOR_ID, CLUSTER_LIST, MP_REACH, MP_UNREACH = 8, 9, 10, 14, 15
EXTENDED_COMMUNITIES, AS4_PATH, AS4_AGGREGATOR, IPV6_EXTENDED_COMMUNITIES, LARGE_COMMUNITIES = 16, 17, 18, 25, 32
AS_TRANS = 23456


def message(kind: int, body: bytes = b"", *, length: int | None = None, marker: bytes = MARKER) -> bytes:
    """Return a framed message (RFC 4271 section 4.1); ``length`` replaces the true one."""
    return marker + pack("!HB", 19 + len(body) if length is None else length, kind) + body


def packed(address: str) -> bytes:
    return ip_address(address).packed


def capability(code: int, value: bytes = b"") -> bytes:
    return bytes((code, len(value))) + value


def multiprotocol(afi: int, safi: int = 1) -> bytes:
    return capability(1, pack("!HBB", afi, 0, safi))


def four_octet_as(asn: int) -> bytes:
    return capability(65, pack("!I", asn))


def parameter(value: bytes, kind: int = 2) -> bytes:
    """Return an optional parameter; kind 2 holds capabilities (RFC 5492)."""
    return bytes((kind, len(value))) + value


def long_parameter(value: bytes, kind: int = 2) -> bytes:
    """Return an optional parameter in the form of RFC 9072."""
    return pack("!BH", kind, len(value)) + value


def opening(
    asn: int, hold_time: int, identifier: str, parameters: bytes = b"", *, version: int = 4, length: int | None = None
) -> bytes:
    """Return the body of an OPEN; ``length`` replaces the true length of the parameters."""
    size = len(parameters) if length is None else length
    short = asn if asn < 65536 else AS_TRANS
    return pack("!BHH", version, short, hold_time) + packed(identifier) + bytes((size & 0xFF,)) + parameters


def attribute(flags: int, code: int, value: bytes, *, length: int | None = None) -> bytes:
    """Return a path attribute; flag 0x10 gives it a length of two octets, ``length`` replaces the true one."""
    size = len(value) if length is None else length
    head = pack("!BBH", flags, code, size) if flags & 0x10 else bytes((flags, code, size & 0xFF))
    return head + value


def segment(*asns: int, kind: int = 2, width: int = 4, count: int | None = None) -> bytes:
    """Return an AS_PATH segment; ``count`` replaces the true number of its AS numbers."""
    body = b"".join(asn.to_bytes(width, "big") for asn in asns)
    return bytes((kind, len(asns) if count is None else count)) + body


def nlri(*prefixes: str) -> bytes:
    """Return prefixes as NLRI; host bits stay."""
    out = b""
    for text in prefixes:
        address, _, length = text.partition("/")
        out += bytes((int(length),)) + packed(address)[: (int(length) + 7) // 8]
    return out


def update(attributes: bytes = b"", announced: bytes = b"", withdrawn: bytes = b"") -> bytes:
    """Return the framed UPDATE (RFC 4271 section 4.3)."""
    return message(
        UPDATE, pack("!H", len(withdrawn)) + withdrawn + pack("!H", len(attributes)) + attributes + announced
    )


def mp_reach(
    prefixes: bytes, next_hop: bytes, *, afi: int = 2, safi: int = 1, flags: int = 0x80, size: int | None = None
) -> bytes:
    """Return an MP_REACH_NLRI attribute (RFC 4760 section 3); ``size`` replaces the true length of the next hop."""
    head = pack("!HBB", afi, safi, len(next_hop) if size is None else size)
    return attribute(flags, MP_REACH, head + next_hop + b"\0" + prefixes)


def mp_unreach(prefixes: bytes, *, afi: int = 2, safi: int = 1, flags: int = 0x80) -> bytes:
    return attribute(flags, MP_UNREACH, pack("!HB", afi, safi) + prefixes)


@dataclass
class Opening:
    """An OPEN received."""

    version: int
    asn: int
    hold_time: int
    identifier: bytes
    capabilities: dict[int, list[bytes]] = field(default_factory=dict)

    @property
    def true_as(self) -> int:
        value = self.capabilities.get(65)
        return int.from_bytes(value[0], "big") if value else self.asn


def decode_opening(body: bytes) -> Opening:
    """Take an OPEN apart. Raises ValueError or IndexError for what is not one."""
    version, asn, hold_time = unpack_from("!BHH", body)
    found = Opening(version, asn, hold_time, body[5:9])
    at, end, head = 10, 10 + body[9], 2
    if body[9] and body[10] == 255:
        at, end, head = 13, 13 + int.from_bytes(body[11:13], "big"), 3
    if end != len(body):
        raise ValueError("optional parameters do not fill the OPEN")
    while at < end:
        kind, size = body[at], int.from_bytes(body[at + 1 : at + head], "big")
        value = body[at + head : at + head + size]
        at += head + size
        while kind == 2 and value:
            found.capabilities.setdefault(value[0], []).append(value[2 : 2 + value[1]])
            value = value[2 + value[1] :]
    return found


Attributes = dict[int, tuple[int, bytes]]
"""Flags and value by code."""


@dataclass
class Update:
    """An UPDATE received."""

    announced: list[str]
    withdrawn: list[str]
    attributes: Attributes
    end_of_rib: int | None = None
    """AFI of which it is the End-of-RIB."""


def decode_update(body: bytes) -> Update:
    """Take a well-formed UPDATE apart; IPv4 and IPv6 unicast."""
    size = int.from_bytes(body[:2], "big")
    withdrawn = _prefixes(body[2 : 2 + size], 4)
    start = 4 + size
    end = start + int.from_bytes(body[start - 2 : start], "big")
    announced = _prefixes(body[end:], 4)
    attributes: Attributes = {}
    at = start
    while at < end:
        flags, code = body[at], body[at + 1]
        head = 4 if flags & 0x10 else 3
        length = int.from_bytes(body[at + 2 : at + head], "big")
        attributes[code] = flags, body[at + head : at + head + length]
        at += head + length
    marker = None if withdrawn or announced or attributes else 1
    if MP_REACH in attributes:
        value = attributes[MP_REACH][1]
        announced += _prefixes(value[5 + value[3] :], 4 if value[:2] == b"\0\1" else 16)
    if MP_UNREACH in attributes:
        value = attributes[MP_UNREACH][1]
        gone = _prefixes(value[3:], 4 if value[:2] == b"\0\1" else 16)
        withdrawn += gone
        if not gone and len(attributes) == 1 and not announced and not withdrawn:
            marker = int.from_bytes(value[:2], "big")
    return Update(announced, withdrawn, attributes, marker)


def _prefixes(data: bytes, width: int) -> list[str]:
    found, at = [], 0
    while at < len(data):
        size = (data[at] + 7) // 8
        address = data[at + 1 : at + 1 + size].ljust(width, b"\0")
        found.append(str(ip_network((address, data[at]), strict=False)))
        at += 1 + size
    return found
