"""Path attributes as routes carry them (RFC 4271 section 5): their codes, and the set that prefixes share."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType

ORIGIN, AS_PATH, NEXT_HOP, MED, LOCAL_PREF = 1, 2, 3, 4, 5
ATOMIC_AGGREGATE, AGGREGATOR, COMMUNITIES, ORIGINATOR_ID, CLUSTER_LIST = 6, 7, 8, 9, 10
MP_REACH, MP_UNREACH, EXTENDED_COMMUNITIES, AS4_PATH, AS4_AGGREGATOR = 14, 15, 16, 17, 18
IPV6_EXTENDED_COMMUNITIES, LARGE_COMMUNITIES = 25, 32

OPTIONAL, TRANSITIVE, PARTIAL, EXTENDED_LENGTH = 0x80, 0x40, 0x20, 0x10

WELL_KNOWN, OPTIONAL_TRANSITIVE = TRANSITIVE, OPTIONAL | TRANSITIVE

NO_EXPORT, NO_ADVERTISE, NO_EXPORT_SUBCONFED = 1, 2, 4
"""Bits of ``Attributes.scope``, one for each community of RFC 1997 that limits where a route may go."""

DEFAULT_LOCAL_PREF = 100

GRACEFUL_SHUTDOWN = b"\xff\xff\x00\x00"
"""The community of a route that will go soon (RFC 8326 section 3)."""

NAMES = MappingProxyType(
    {
        ORIGIN: "ORIGIN",
        AS_PATH: "AS_PATH",
        NEXT_HOP: "NEXT_HOP",
        MED: "MULTI_EXIT_DISC",
        LOCAL_PREF: "LOCAL_PREF",
        ATOMIC_AGGREGATE: "ATOMIC_AGGREGATE",
        AGGREGATOR: "AGGREGATOR",
        COMMUNITIES: "COMMUNITIES",
        ORIGINATOR_ID: "ORIGINATOR_ID",
        CLUSTER_LIST: "CLUSTER_LIST",
        MP_REACH: "MP_REACH_NLRI",
        MP_UNREACH: "MP_UNREACH_NLRI",
        EXTENDED_COMMUNITIES: "EXTENDED_COMMUNITIES",
        AS4_PATH: "AS4_PATH",
        AS4_AGGREGATOR: "AS4_AGGREGATOR",
        IPV6_EXTENDED_COMMUNITIES: "IPV6_EXTENDED_COMMUNITIES",
        LARGE_COMMUNITIES: "LARGE_COMMUNITIES",
    }
)
"""The attributes that podroute recognises."""

SCOPED = b"\xff\xff\xff"
"""What all communities that limit where a route may go begin with."""

_SCOPES = (
    (b"\xff\xff\xff\x01", NO_EXPORT),
    (b"\xff\xff\xff\x02", NO_ADVERTISE),
    (b"\xff\xff\xff\x03", NO_EXPORT_SUBCONFED),
)


class Attributes:
    """The attributes of a route, valid and in the form of a 4-octet AS session, without NLRI and their next hop."""

    __slots__ = (
        "local_pref",
        "med",
        "neighbor_as",
        "origin",
        "originator",
        "path_length",
        "raw",
        "scope",
        "weight",
    )

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        """The attribute section without MP_REACH_NLRI and MP_UNREACH_NLRI."""
        self.origin = 2
        self.path_length = 0
        """AS_PATH length as RFC 4271 section 9.1.2.2 (a) counts it."""
        self.neighbor_as = 0
        """First AS of an AS_PATH that starts with a sequence, else 0."""
        self.med: int | None = None
        self.local_pref: int | None = None
        self.originator: bytes | None = None
        self.scope = 0
        self.weight = 0
        """What import policy put above all else."""

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Iterate over ``(flags, code, value)`` in the order received."""
        raw, at = self.raw, 0
        while at < len(raw):
            flags, code = raw[at], raw[at + 1]
            start = at + 4 if flags & EXTENDED_LENGTH else at + 3
            at = start + int.from_bytes(raw[at + 2 : start], "big")
            yield flags, code, raw[start:at]

    def value(self, code: int) -> bytes | None:
        """Return the value of an attribute, None where it is absent."""
        return next((value for _, found, value in self if found == code), None)


def attribute_name(code: int) -> str:
    return NAMES.get(code, f"attribute {code}")


def scope_of(communities: bytes) -> int:
    """Return the scope bits that a COMMUNITIES value sets (RFC 1997)."""
    if SCOPED not in communities:
        return 0
    found = {communities[at : at + 4] for at in range(0, len(communities), 4)}
    return sum(bit for community, bit in _SCOPES if community in found)


def pack_attribute(flags: int, code: int, value: bytes) -> bytes:
    """Return a whole attribute; the Extended Length bit is set as its length needs it."""
    if len(value) > 255:
        return bytes((flags | EXTENDED_LENGTH, code)) + len(value).to_bytes(2, "big") + value
    return bytes((flags & ~EXTENDED_LENGTH, code, len(value))) + value
