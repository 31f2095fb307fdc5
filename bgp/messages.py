"""The plain data that the speaker's parts pass to each other: messages, errors, and what a session negotiated.

Nothing here does I/O or knows exabgp. Addresses and router identifiers are packed bytes, families are 4 and 6,
prefixes are wire bytes (config.prefix), AS numbers are integers of up to four octets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from config.prefix import Family


class MessageType(IntEnum):
    """RFC 4271 section 4.1 and RFC 2918."""

    OPEN = 1
    UPDATE = 2
    NOTIFICATION = 3
    KEEPALIVE = 4
    ROUTE_REFRESH = 5


class BgpError(Exception):
    """A fault that RFC 4271 section 6 answers with a NOTIFICATION of this code, subcode and data.

    ``reason`` is for people: it says what was expected and what was received.
    """

    def __init__(self, code: int, subcode: int, data: bytes = b"", reason: str = "") -> None:
        super().__init__(reason or f"{code}/{subcode}")
        self.code = code
        self.subcode = subcode
        self.data = data
        self.reason = reason


ADD_PATH_RECEIVE, ADD_PATH_SEND = 1, 2
"""What the sender of the ADD-PATH capability is able and willing to do; 3 is both (RFC 7911 section 4)."""

ADD_PATH_TEXT = ("", "receive", "send", "receive and send")


@dataclass(frozen=True, slots=True)
class GracefulRestart:
    """RFC 4724 section 3, with the N bit of RFC 8538."""

    restarting: bool = False
    notification: bool = False
    restart_time: int = 120
    """Seconds, 0 to 4095."""
    forwarding: Mapping[Family, bool] = field(default_factory=dict)
    """Families in the capability, and whether their forwarding state was preserved."""


@dataclass(frozen=True, slots=True)
class Open:
    """An OPEN as sent or received (RFC 4271 section 4.2), capabilities decoded."""

    asn: int
    """The true AS: out of the 4-octet capability where there is one (RFC 6793)."""
    hold_time: int
    identifier: bytes
    """BGP identifier, four octets."""
    families: frozenset[Family] = frozenset((4,))
    """Without a multiprotocol capability: IPv4 unicast only (RFC 4760 section 8)."""
    four_octet_as: bool = True
    multiprotocol: bool = True
    route_refresh: bool = True
    enhanced_refresh: bool = False
    extended_message: bool = False
    extended_next_hop: frozenset[tuple[Family, Family]] = frozenset()
    """RFC 8950: pairs (family of the prefix, family of the next hop)."""
    graceful_restart: GracefulRestart | None = None
    add_path: Mapping[Family, int] = field(default_factory=dict)
    """By family, ``ADD_PATH_RECEIVE``, ``ADD_PATH_SEND`` or both together (RFC 7911 section 4)."""
    hostname: str = ""
    software: str = ""
    other: tuple[int, ...] = ()
    """Codes of received capabilities that podroute does not use."""


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What both ends of an established session agreed on."""

    local: Open
    peer: Open
    hold_time: int
    """Seconds; 0 means neither hold nor keepalive timer (RFC 4271 section 4.2)."""
    families: frozenset[Family]
    four_octet_as: bool
    receive_limit: int
    """Longest message we accept: 65535 where *we* advertised extended messages (RFC 8654), else 4096."""
    send_limit: int

    @property
    def ibgp(self) -> bool:
        return self.local.asn == self.peer.asn

    def extended(self, family: Family) -> bool:
        """Tell whether prefixes of a family may have IPv6 next hops (RFC 8950 section 4)."""
        return family == 4 and (4, 6) in self.local.extended_next_hop & self.peer.extended_next_hop

    def add_path(self, family: Family) -> int:
        """Return what we do of RFC 7911 in a family: ``ADD_PATH_RECEIVE``, ``ADD_PATH_SEND``, both, or 0."""
        ours, theirs = self.local.add_path.get(family, 0), self.peer.add_path.get(family, 0)
        receives = ours & ADD_PATH_RECEIVE if theirs & ADD_PATH_SEND else 0
        return receives | (ours & ADD_PATH_SEND if theirs & ADD_PATH_RECEIVE else 0)

    def receives_paths(self, family: Family) -> bool:
        """Tell whether NLRI of a family from the peer carry path identifiers (RFC 7911 section 4)."""
        return bool(self.add_path(family) & ADD_PATH_RECEIVE)

    def sends_paths(self, family: Family) -> bool:
        """Tell whether NLRI of a family to the peer carry path identifiers (RFC 7911 section 4)."""
        return bool(self.add_path(family) & ADD_PATH_SEND)

    @property
    def enhanced_refresh(self) -> bool:
        return self.local.enhanced_refresh and self.peer.enhanced_refresh

    @property
    def keepalive(self) -> float:
        """Seconds between KEEPALIVEs, a third of the hold time (RFC 4271 section 4.4)."""
        return self.hold_time / 3


@dataclass(frozen=True, slots=True)
class Notification:
    """A NOTIFICATION (RFC 4271 section 4.5) with its raw data."""

    code: int
    subcode: int
    data: bytes = b""


BORR, EORR = 1, 2
"""Subtypes of ROUTE-REFRESH that begin and end the answer to one (RFC 7313 section 3.2)."""


@dataclass(frozen=True, slots=True)
class RouteRefresh:
    """ROUTE-REFRESH (RFC 2918); subtype 1 and 2 are BoRR and EoRR of RFC 7313."""

    family: Family
    subtype: int = 0
