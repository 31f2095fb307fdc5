"""What the speaker is told about a peer."""

from __future__ import annotations

from dataclasses import dataclass, field

from bgp.messages import ADD_PATH_RECEIVE, ADD_PATH_SEND
from bgp.policy import Policy
from bgp.sockets import MAXIMUM_TTL, Endpoint, TcpOptions
from config.prefix import FAMILIES, Family

BGP_PORT = 179


@dataclass(frozen=True, slots=True)
class PrefixLimit:
    """How many prefixes a peer may announce in one family (RFC 4486 section 4)."""

    maximum: int
    warning: float = 0.8
    """The share of ``maximum`` at which a warning is logged."""
    restart_after: float | None = None
    """Seconds after which the peer may come back; None: when an operator starts it."""


EVERY_PATH = 0xFFFF
"""More paths to one prefix than there ever are."""


@dataclass(frozen=True, slots=True)
class AddPath:
    """Several paths to a prefix on one session (RFC 7911), in all its families."""

    receive: bool = False
    send: int = 0
    """How many paths to a prefix the peer is told; 0: the best one, without identifier."""

    @property
    def mode(self) -> int:
        """What we are able and willing to do, as the capability says it; 0: nothing (RFC 7911 section 4)."""
        return (ADD_PATH_RECEIVE if self.receive else 0) | (ADD_PATH_SEND if self.send else 0)


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """One configured peer; times in seconds."""

    name: str
    address: str
    """``10.1.1.1``, ``fd00::1`` or ``fe80::1%eth0``."""
    asn: int
    import_policy: Policy
    export_policy: Policy
    local_address: str | None = None
    """The address to connect from; None: the kernel's choice."""
    port: int = BGP_PORT
    families: frozenset[Family] = frozenset(FAMILIES)
    """Address families to offer. IPv4 over an IPv6 session has IPv6 next hops where the peer can too (RFC 8950)."""
    passive: bool = False
    """Never connect, wait for the peer to."""
    hold_time: int = 90
    connect_retry: float = 5.0
    delay_open: float = 0.0
    password: bytes | None = field(default=None, repr=False)
    """TCP-MD5 key (RFC 2385)."""
    multihop: int | None = None
    """Routers that packets of an external session may cross plus one; None: the peer is on the link."""
    prefix_limit: PrefixLimit | None = None
    route_reflector_client: bool = False
    """We reflect routes of other internal peers to this one, and its routes to them (RFC 4456)."""
    add_path: AddPath = AddPath()
    ttl_security: int | None = None
    """GTSM (RFC 5082): the peer is at most so many hops away, 1 is on the link."""

    def __post_init__(self) -> None:
        peer, local = self.endpoint, self.local_endpoint
        if local is not None and local.family != peer.family:
            raise ValueError(f"peer {self.name}: {self.local_address} and {self.address} are not of one family")

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint.parse(self.address)

    @property
    def local_endpoint(self) -> Endpoint | None:
        return None if self.local_address is None else Endpoint.parse(self.local_address)

    @property
    def extended_next_hop(self) -> frozenset[tuple[Family, Family]]:
        """What we offer of RFC 8950: IPv4 prefixes with IPv6 next hops, where the session itself is IPv6."""
        return frozenset(((4, 6),)) if len(self.endpoint.packed) == 16 and 4 in self.families else frozenset()

    def tcp_options(self, local_as: int) -> TcpOptions:
        """Return the socket options for this peer as seen from a speaker in ``local_as``."""
        if self.ttl_security is not None:
            return TcpOptions(MAXIMUM_TTL, MAXIMUM_TTL + 1 - self.ttl_security, self.password)
        if self.multihop is not None:
            return TcpOptions(self.multihop, 0, self.password)
        return TcpOptions(1 if self.asn != local_as else MAXIMUM_TTL, 0, self.password)
