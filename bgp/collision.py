"""Connection collision detection (RFC 4271 section 6.8, RFC 6286 section 2.3).

Both connections of a peer are kept until an OPEN is received on one of them: only that tells the BGP identifiers
whose comparison decides. Connections in OpenSent are examined along with those in OpenConfirm, as section 6.8 allows
where the identifier is known by other means: the peer's address is one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from bgp.fsm_table import State


class Contender(Protocol):
    """One TCP connection with the peer."""

    @property
    def incoming(self) -> bool:
        """Tell whether the peer initiated it."""

    @property
    def state(self) -> State: ...


C = TypeVar("C", bound=Contender)


@dataclass(frozen=True, slots=True)
class Collision:
    """Decides between the connections of one peer.

    Identifiers are four octets; the higher one wins, of equal ones that of the higher AS.
    """

    local: tuple[bytes, int]
    """Our BGP identifier and AS."""
    peer: tuple[bytes, int]
    """The peer's, as in the OPEN just received."""

    @property
    def keep_incoming(self) -> bool:
        """Tell whether the connection that the peer initiated is the one to keep."""
        return self.peer > self.local

    def losers(self, new: C, others: Iterable[C]) -> list[C]:
        """Return the connections to close with Cease/Connection Collision Resolution.

        ``new`` has just received its OPEN; ``others`` are the peer's other connections. Where the result contains
        ``new`` it contains nothing else.
        """
        lost: list[C] = []
        for other in others:
            if other.state is State.ESTABLISHED:
                return [new]
            if other.state is State.OPEN_CONFIRM and other.incoming == new.incoming:
                # Both were initiated by one end: section 6.8 as it stands, on the existing and the new connection.
                if not self.keep_incoming:
                    return [new]
                lost.append(other)
            elif other.state in (State.OPEN_SENT, State.OPEN_CONFIRM) and other.incoming != new.incoming:
                if new.incoming != self.keep_incoming:
                    return [new]
                lost.append(other)
        return lost
