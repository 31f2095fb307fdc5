"""A path: one way to a prefix, from a peer or from here, as the decision process compares it (RFC 4271 section 9.1)."""

from __future__ import annotations

from bgp.attributes import DEFAULT_LOCAL_PREF, SCOPED, Attributes
from bgp.hops import Hop
from bgp.usual_attributes import read
from config.nexthop import NextHops


class Peer:
    """Who announces paths. One object per configured peer; the session's facts are set when it comes up."""

    __slots__ = ("address", "asn", "client", "device", "ibgp", "identifier", "name")

    def __init__(self, name: str, asn: int, *, ibgp: bool, client: bool = False) -> None:
        self.name = name
        self.asn = asn
        self.ibgp = ibgp
        self.client = client
        """An internal peer to and from which we reflect routes (RFC 4456 section 6)."""
        self.identifier = bytes(4)
        """BGP identifier."""
        self.address = b""
        """Address of the session's far end, 4 or 16 octets."""
        self.device = ""
        """Interface that the session leaves by; link-local next hops are on it."""


class Path:
    """Attributes as one peer announced them, with their next hop: the value that a peer's prefixes share."""

    __slots__ = ("_attributes", "fault", "hop", "next_hops", "path_id", "peer")

    def __init__(
        self,
        peer: Peer | None,
        attributes: Attributes | bytes,
        hop: Hop | None,
        next_hops: NextHops | None,
        fault: str = "",
        path_id: int | None = None,
    ) -> None:
        self.peer = peer
        """None: the route starts here."""
        self._attributes = attributes
        """Octets of the usual form until somebody asks what is in them: nobody may, and an object takes time and room
        that the octets do not."""
        self.hop = hop
        """None for our own routes only."""
        self.next_hops = next_hops
        """What the FIB gets where this path is chosen alone."""
        self.fault = fault
        """Why the path may never be chosen, whatever its next hop; empty where it may."""
        self.path_id = path_id
        """The identifier that the peer gave it, which tells its paths to one prefix apart (RFC 7911); None without."""

    @property
    def attributes(self) -> Attributes:
        found = self._attributes
        if isinstance(found, bytes):
            found = self._attributes = read(found)
        return found

    @property
    def raw(self) -> bytes:
        """The octets of the attributes."""
        found = self._attributes
        return found if isinstance(found, bytes) else found.raw

    @property
    def scope(self) -> int:
        """The communities that limit where the path may go."""
        found = self._attributes
        return 0 if isinstance(found, bytes) and found.find(SCOPED) < 0 else self.attributes.scope

    @property
    def eligible(self) -> bool:
        """The path takes part in the decision: not faulty, and its next hop can be reached (RFC 4271 section 9.1.2)."""
        return not self.fault and (self.hop is None or self.hop.resolution is not None)

    @property
    def silent(self) -> bool:
        """Its next hop can be reached, but no gateway on the way answers."""
        return self.hop is not None and self.hop.resolution is not None and not self.hop.resolution.answers

    @property
    def local_pref(self) -> int:
        """Degree of preference (RFC 4271 section 9.1.1)."""
        value = self.attributes.local_pref
        return DEFAULT_LOCAL_PREF if value is None else value

    @property
    def ineligible(self) -> str:
        """Why the path does not take part in the decision; empty where it does."""
        if self.fault or self.eligible:
            return self.fault
        return "next hop cannot be reached"
