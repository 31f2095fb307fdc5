"""Next hops as they pass between the speaker and the kernel's side (RFC 4271 section 9.1.2.1).

``bgp`` asks a resolver whether a next hop can be reached and how far it is; ``routes`` implements it; the agent hands
the one to the other, so that neither room imports the other.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from config.prefix import Family


class NextHop(NamedTuple):
    """One path's next hop, and the peer that announced it: the unit that a lost session takes away."""

    peer: str
    address: bytes
    """Packed, 4 or 16 octets; an IPv6 next hop may carry IPv4 prefixes (RFC 8950)."""
    device: str = ""
    """Interface of a link-local next hop, else empty."""


NextHops = tuple[NextHop, ...]
"""All next hops of a prefix, sorted; one object per distinct set, so that tables share it."""


class Gateway(NamedTuple):
    """Where the kernel sends packets for a resolved next hop."""

    address: bytes
    """Packed address on the link of ``device``."""
    device: str
    onlink: bool = False
    """The kernel is to take it as on the link though no subnet of the link holds it (RTNH_F_ONLINK)."""


class Resolution(NamedTuple):
    gateways: tuple[Gateway, ...]
    metric: int
    """Interior cost of RFC 4271 section 9.1.2.2 (e): 0 on-link, else the metric of the route that leads there."""
    answers: bool = True
    """False where neighbours are checked and none of the gateways answers: the way to take where there is no other."""


class NextHopResolver(Protocol):
    """What the decision process reads of the kernel."""

    def lookup(self, address: bytes, device: str = "") -> Resolution | None:
        """Return how a next hop is reached, None where it is not: its paths are ineligible."""

    def local(self, session_address: bytes, family: Family) -> bytes | None:
        """Return our own next hop for ``family`` on the session whose local address is ``session_address``.

        None: there is none on that link, and the family is not advertised on this session.
        """
