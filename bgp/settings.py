"""What the speaker is told about a peer."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from bgp.messages import ADD_PATH_RECEIVE, ADD_PATH_SEND
from bgp.policy import Policy
from bgp.sockets import MAXIMUM_TTL, Endpoint, TcpOptions
from config.prefix import BITS, FAMILIES, Family, contains, text
from config.remote_as import RemoteAs

BGP_PORT = 179
UNKNOWN_AS = 0
"""No AS has this number (RFC 7607)."""

_OPEN_HOLD = 30.0
"""Seconds without an OPEN after which a dynamic neighbour makes room for another."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """What holds for the sessions with one peer, or with all peers of a listen range; times in seconds."""

    import_policy: Policy
    export_policy: Policy
    families: frozenset[Family] = frozenset(FAMILIES)
    """Address families to offer. IPv4 over an IPv6 session has IPv6 next hops where the peer can too (RFC 8950)."""
    hold_time: int = 90
    password: bytes | None = field(default=None, repr=False)
    """TCP-MD5 key (RFC 2385)."""
    multihop: int | None = None
    """Routers that packets of an external session may cross plus one; None: the peer is on the link."""
    prefix_limit: PrefixLimit | None = None
    route_reflector_client: bool = False
    """We reflect routes of other internal peers to this one, and its routes to them (RFC 4456)."""
    add_path: AddPath = AddPath()
    allow_own_as: int = 0
    """How often our own AS may be in an AS_PATH from the peer."""
    enforce_first_as: bool = True
    """An AS_PATH from an external peer must begin with the peer's AS (RFC 4271 section 6.3); route servers' do not."""
    ttl_security: int | None = None
    """GTSM (RFC 5082): the peer is at most so many hops away, 1 is on the link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSettings(SessionSettings):
    """One peer: configured, or made for a connection from inside a listen range."""

    name: str
    address: str
    """``10.1.1.1``, ``fd00::1`` or ``fe80::1%eth0``."""
    asn: int
    """UNKNOWN_AS where the listen range admits several and the peer has not told its own yet."""
    local_address: str | None = None
    """The address to connect from; None: the kernel's choice."""
    port: int = BGP_PORT
    passive: bool = False
    """Never connect, wait for the peer to."""
    connect_retry: float = 5.0
    delay_open: float = 0.0
    open_hold: float = 240.0
    """How long a connection may go without an OPEN (RFC 4271 section 8.2.2 suggests four minutes)."""
    listen_range: ListenRange | None = None
    """What the peer was made for; None: it is configured."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenRange(SessionSettings):
    """Dynamic neighbours: whoever connects from inside a prefix and is in the right AS becomes a peer."""

    name: str
    family: Family
    prefix: bytes
    """Wire bytes (config.prefix)."""
    remote_as: RemoteAs
    limit: int
    """Peers that may be there at once."""

    def __str__(self) -> str:
        return text(self.family, self.prefix)

    @property
    def network(self) -> Endpoint:
        """The address that the prefix begins with."""
        return Endpoint(self.prefix[1:].ljust(BITS[self.family] // 8, b"\0"))

    def holds(self, address: bytes) -> bool:
        """Tell whether a packed address lies inside."""
        return len(address) * 8 == BITS[self.family] and contains(self.prefix, bytes((BITS[self.family],)) + address)

    def made(self, name: str) -> bool:
        """Tell whether a peer's name is one that this range gives."""
        owner, _, address = name.partition("/")
        try:
            return owner == self.name and self.holds(Endpoint.parse(address).packed)
        except ValueError:
            return False

    def peer(self, remote: Endpoint, local_as: int) -> PeerSettings:
        """Return the settings of the peer at ``remote`` for a speaker in ``local_as``."""
        shared = {each.name: getattr(self, each.name) for each in fields(SessionSettings)}
        return PeerSettings(
            **shared,
            name=f"{self.name}/{remote}",
            address=str(remote),
            asn=self.remote_as.known(local_as) or UNKNOWN_AS,
            passive=True,
            open_hold=_OPEN_HOLD,
            listen_range=self,
        )


Neighbour = PeerSettings | ListenRange
"""What an operator configures: one peer, or all that come from inside a prefix."""
