"""The one encoding of a prefix that passes between rooms: its wire bytes.

A prefix is ``length octet + significant octets`` with the host bits masked, as in an UPDATE (RFC 4271 section 4.3).
The bytes say nothing of the family (``08 0a`` is 10.0.0.0/8 in one and a00::/8 in the other), so every table and every
call that takes a prefix takes the family (4 or 6) beside it.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Literal

Family = Literal[4, 6]

FAMILIES: tuple[Family, Family] = (4, 6)
BITS: dict[Family, int] = {4: 32, 6: 128}
NAMES: dict[Family, str] = {4: "ipv4", 6: "ipv6"}
BY_NAME: dict[str, Family] = {"ipv4": 4, "ipv6": 6}
LEAD: dict[Family, int] = {4: 3, 6: 8}
"""Leading octets of wire bytes that neighbours have in common: one length, and one /16 or /56."""


class Run(list[bytes]):
    """Distinct prefixes that share their leading octets (LEAD), as most do that arrive in one UPDATE.

    Tables keep neighbours together, so that a run is looked up and stored by a few calls and not one by one.
    """


def parse(text: str) -> tuple[Family, bytes]:
    """Return ``(family, wire bytes)`` of ``"10.0.0.0/8"`` or ``"fd00::/8"``.

    A bare address is its host prefix (/32 or /128). Raises ValueError for anything else, host bits included.
    """
    net = ip_network(text)
    return (4 if net.version == 4 else 6), _wire(net)


def of_address(address: str) -> tuple[Family, bytes]:
    """Return ``(family, wire bytes)`` of the host prefix of one address, ``"10.0.0.1"`` -> /32."""
    packed = ip_address(address).packed
    return (4 if len(packed) == 4 else 6), bytes((len(packed) * 8,)) + packed


def make(family: Family, address: int, length: int) -> bytes:
    """Return the wire bytes of ``address/length``; bits behind the length are cleared."""
    bits = BITS[family]
    masked = address >> (bits - length) << (bits - length) if length else 0
    return bytes((length,)) + masked.to_bytes(bits // 8, "big")[: (length + 7) // 8]


def text(family: Family, prefix: bytes) -> str:
    """Return the usual text form, ``"10.0.0.0/8"``."""
    return str(network(family, prefix))


def network(family: Family, prefix: bytes) -> IPv4Network | IPv6Network:
    """Return the prefix as a network object of the standard library."""
    packed = prefix[1:].ljust(BITS[family] // 8, b"\0")
    return IPv4Network((packed, prefix[0])) if family == 4 else IPv6Network((packed, prefix[0]))


def contains(outer: bytes, inner: bytes) -> bool:
    """Tell whether ``inner`` is ``outer`` or a more specific of it (both of one family)."""
    length = outer[0]
    if inner[0] < length:
        return False
    whole, rest = divmod(length, 8)
    if inner[1 : 1 + whole] != outer[1 : 1 + whole]:
        return False
    return not rest or (inner[1 + whole] ^ outer[1 + whole]) >> (8 - rest) == 0


def address_text(packed: bytes) -> str:
    """Return the text form of a packed address of 4 or 16 octets."""
    return ".".join(map(str, packed)) if len(packed) == 4 else str(ip_address(packed))


def _wire(net: IPv4Network | IPv6Network) -> bytes:
    return bytes((net.prefixlen,)) + net.network_address.packed[: (net.prefixlen + 7) // 8]
