"""What the speaker tells the agent: plain data, texts ready for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bgp.messages import ADD_PATH_TEXT, Open
from config.prefix import NAMES, Family


class SpeakerError(Exception):
    """The speaker cannot do what it was told; the text is one line for the operator."""


@dataclass(frozen=True, slots=True)
class SessionChange:
    """A session came up or went down."""

    peer: str
    up: bool
    reason: str
    """Why it went down; empty for one that came up."""
    families: frozenset[Family] = frozenset()
    """The families that were negotiated."""
    retained: frozenset[Family] = frozenset()
    """The families whose paths stay because the peer restarts gracefully; a second change without any ends that."""


@dataclass(frozen=True, slots=True)
class NotificationRecord:
    """A NOTIFICATION that ended, or kept from beginning, a session."""

    code: int
    subcode: int
    text: str
    """Names and what the data say: ``Cease/Administrative Shutdown: maintenance``."""
    at: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class FamilyStatus:
    """One address family of a peer."""

    negotiated: bool
    next_hop: str | None
    """Our own next hop in what we advertise; None: nothing is advertised, ``problem`` says why."""
    problem: str | None
    end_of_rib: str
    """``received``, ``waiting``, ``timed out``, or ``-`` where the family is not negotiated."""
    received: int = 0
    """Prefixes in Adj-RIB-In; paths where they have identifiers (RFC 7911)."""
    accepted: int = 0
    """Of those, the ones that import policy lets into the decision."""
    advertised: int = 0
    """Prefixes in Adj-RIB-Out."""
    refused: int = 0
    """Received prefixes that are our own, or more specifics of them."""
    stale: int = 0
    """Received prefixes of an earlier session that the peer has not announced again (RFC 4724 section 4.2)."""
    add_path: int = 0
    """What was agreed on of RFC 7911: see ``bgp.messages.Negotiated.add_path``."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One peer as an operator looks at it."""

    name: str
    address: str
    port: int
    local_address: str | None
    """Of the connection; else as configured."""
    external: bool
    passive: bool
    listen_range: str | None
    """The prefix that a dynamic neighbour was made for; None: a configured peer."""
    state: str
    """As RFC 4271 names them."""
    since: float
    """When the session came up or was lost (or the peer was configured), seconds since the epoch."""
    uptime: float | None
    """Seconds since the session came up."""
    reason: str
    """Why there is no session; empty for an established one."""
    local_as: int
    expected_as: int | None
    """None: that of a dynamic neighbour which has not told it yet."""
    received_as: int | None
    """From the last OPEN, also one that was refused."""
    identifier: str | None
    hold_time: int
    """Negotiated, else as configured; seconds."""
    keepalive: float
    last_sent: NotificationRecord | None
    last_received: NotificationRecord | None
    established_count: int
    incoming: bool
    """The present connection was initiated by the peer."""
    messages_in: int
    """On the present connection."""
    messages_out: int
    capabilities: tuple[str, ...]
    """What the peer offered in its last OPEN, for people."""
    hostname: str
    software: str
    families: Mapping[Family, FamilyStatus] = field(default_factory=dict)
    received: Mapping[str, int] = field(default_factory=dict)
    """Messages of all connections by type, such as ``UPDATE``."""
    sent: Mapping[str, int] = field(default_factory=dict)
    faults: int = 0
    """UPDATEs with a fault short of a session reset (RFC 7606), or with prefixes that are our own."""
    losses: Mapping[str, int] = field(default_factory=dict)
    """Sessions that ended, by what ended them (``bgp.tally.LOSSES``)."""


@dataclass(frozen=True, slots=True)
class RangeStatus:
    """A listen range as an operator looks at it."""

    name: str
    prefix: str
    remote_as: str
    limit: int
    peers: int
    """Dynamic neighbours there are now, established or not."""
    refused: int
    """Connections turned away because there were as many as there may be."""


@dataclass(frozen=True, slots=True)
class Convergence:
    """Whether the speaker has learned and told all that it can; else what it waits for, a line each."""

    ok: bool
    waiting_for: tuple[str, ...]


def capability_names(peer: Open) -> tuple[str, ...]:
    """Return what an OPEN offers, for people."""
    names = [f"multiprotocol {NAMES[family]}" for family in sorted(peer.families) if peer.multiprotocol]
    flags = {
        "4-octet AS": peer.four_octet_as,
        "route refresh": peer.route_refresh,
        "enhanced route refresh": peer.enhanced_refresh,
        "extended message": peer.extended_message,
    }
    names += [name for name, offered in flags.items() if offered]
    names += [f"extended next hop {NAMES[p]} via {NAMES[n]}" for p, n in sorted(peer.extended_next_hop)]
    if peer.graceful_restart is not None:
        kept = ", ".join(NAMES[family] for family in sorted(peer.graceful_restart.forwarding)) or "helper only"
        names.append(f"graceful restart {peer.graceful_restart.restart_time} s ({kept})")
    names += [f"add-path {NAMES[family]} ({ADD_PATH_TEXT[mode]})" for family, mode in sorted(peer.add_path.items())]
    return (*names, *(f"code {code}" for code in peer.other))
