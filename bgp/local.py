"""What the peers of one speaker share: who we are, the RIB, and whom to tell."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bgp.connection import READ_SIZE
from bgp.graceful_restart import Restart
from bgp.rib import Rib
from bgp.sockets import OpenSocket
from bgp.status import SessionChange
from config.nexthop import NextHopResolver

if TYPE_CHECKING:
    from bgp.session import Session


@dataclass(slots=True)
class Local:
    """The speaker as its peers see it."""

    asn: int
    router_id: bytes
    hostname: str
    rib: Rib
    resolver: NextHopResolver
    opener: OpenSocket
    random: Callable[[], float]
    end_of_rib_wait: float
    """Seconds after which a family counts as complete though the peer sent no End-of-RIB."""
    restart: Restart
    on_session: Callable[[SessionChange], None]
    wake: Callable[[], None]
    """There is work for the RIB, or something to send."""
    unread: Callable[[], None]
    """``readers`` is not empty."""
    notify: Callable[[], None]
    """Something changed that ``converged`` looks at."""
    gone: Callable[[str], None]
    """The dynamic neighbour of this name has neither a connection nor paths any more."""
    readers: deque[Session]
    """Sessions with octets to process."""
    read_buffer: bytearray = field(default_factory=lambda: bytearray(READ_SIZE))
