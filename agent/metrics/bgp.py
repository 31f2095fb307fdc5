"""BGP: peers, their sessions and what they announce."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent.metrics.catalogue import Reading, counter, gauge, info
from agent.node import Node
from bgp.fsm_table import State
from bgp.status import PeerStatus, RangeStatus
from config.prefix import FAMILIES, NAMES, Family

PEER = info(
    "bgp_peer", "A peer: its address and AS, and the listen range it was made for.", "peer", "address", "as", "range"
)
ESTABLISHED = gauge("bgp_session_established", "Whether the session is established (1) or not (0).", "peer")
STATE = gauge(
    "bgp_session_state", "1 for the state that the session is in (RFC 4271), 0 for the others.", "peer", "state"
)
SINCE = gauge(
    "bgp_session_since_timestamp_seconds",
    "When the session came up or was lost, or the peer was configured, whichever was last.",
    "peer",
)
SESSIONS = counter("bgp_sessions_established", "Sessions that came up.", "peer")
LOST = counter("bgp_sessions_lost", "Established sessions that ended, by what ended them.", "peer", "reason")
MESSAGES = counter("bgp_messages", "BGP messages, all connections together.", "peer", "direction", "type")
FAULTS = counter(
    "bgp_update_errors",
    "UPDATEs with an error that ends no session (RFC 7606), and announcements of this node's own prefixes.",
    "peer",
)
NOTIFICATION = gauge(
    "bgp_last_notification_timestamp_seconds",
    "When the last NOTIFICATION was sent or received, by its error code and subcode.",
    "peer",
    "direction",
    "code",
    "subcode",
)
NEGOTIATED = gauge("bgp_family_negotiated", "Whether the present session carries the family.", "peer", "family")
RECEIVED = gauge("bgp_prefixes_received", "Prefixes in the Adj-RIB-In.", "peer", "family")
ACCEPTED = gauge("bgp_prefixes_accepted", "Received prefixes that the import policy lets in.", "peer", "family")
ADVERTISED = gauge("bgp_prefixes_advertised", "Prefixes in the Adj-RIB-Out.", "peer", "family")
REFUSED = gauge("bgp_prefixes_refused", "Received prefixes that are this node's own.", "peer", "family")
STALE = gauge("bgp_prefixes_stale", "Received prefixes kept over a graceful restart of the peer.", "peer", "family")
END_OF_RIB = gauge(
    "bgp_end_of_rib_received", "Whether the peer's End-of-RIB has arrived on the present session.", "peer", "family"
)
RANGE_PEERS = gauge("bgp_listen_range_peers", "Dynamic neighbours of a listen range.", "range")
RANGE_LIMIT = gauge("bgp_listen_range_limit", "Dynamic neighbours that a listen range may have.", "range")
RANGE_REFUSED = counter(
    "bgp_listen_range_refused_connections", "Connections refused because a listen range was full.", "range"
)
CONNECTIONS_REFUSED = counter(
    "bgp_refused_connections", "Connections refused, from strangers or because a listen range was full."
)
LOC_RIB = gauge("bgp_loc_rib_prefixes", "Prefixes in the Loc-RIB.", "family")
ORIGINATED = gauge("bgp_originated_prefixes", "Prefixes that this node originates.", "family")
UNDECIDED = gauge("bgp_undecided_prefixes", "Prefixes that were received and wait for the decision process.")

METRICS = (
    PEER,
    ESTABLISHED,
    STATE,
    SINCE,
    SESSIONS,
    LOST,
    MESSAGES,
    FAULTS,
    NOTIFICATION,
    NEGOTIATED,
    RECEIVED,
    ACCEPTED,
    ADVERTISED,
    REFUSED,
    STALE,
    END_OF_RIB,
    RANGE_PEERS,
    RANGE_LIMIT,
    RANGE_REFUSED,
    CONNECTIONS_REFUSED,
    LOC_RIB,
    ORIGINATED,
    UNDECIDED,
)

_PEERS = 64
"""So many are looked at before other work may be done; some milliseconds."""


@dataclass(frozen=True, slots=True)
class BgpFacts:
    peers: Sequence[PeerStatus]
    ranges: Sequence[RangeStatus]
    refused: int
    loc_rib: Mapping[Family, int]
    originated: Mapping[Family, int]
    undecided: int


async def look(node: Node) -> BgpFacts:
    speaker = node.speaker
    peers = []
    for place, name in enumerate(list(speaker.rib.peers)):
        if name in speaker.rib.peers:  # else it is gone by now
            peers.append(speaker.peer(name))
        if place % _PEERS == _PEERS - 1:
            await asyncio.sleep(0)
    return BgpFacts(
        peers,
        speaker.ranges(),
        speaker.refused,
        {family: len(speaker.rib.loc[family].table) for family in FAMILIES},
        {family: len(list(speaker.rib.own[family])) for family in FAMILIES},
        speaker.rib.waiting,
    )


def read(facts: BgpFacts) -> Iterator[Reading]:
    for peer in facts.peers:
        yield from _peer(peer)
        for family, name in NAMES.items():
            if family in peer.families:
                yield from _family(peer, family, name)
    for made in facts.ranges:
        yield RANGE_PEERS.of(made.peers, made.name)
        yield RANGE_LIMIT.of(made.limit, made.name)
        yield RANGE_REFUSED.of(made.refused, made.name)
    yield CONNECTIONS_REFUSED.of(facts.refused)
    for family in FAMILIES:
        yield LOC_RIB.of(facts.loc_rib[family], NAMES[family])
        yield ORIGINATED.of(facts.originated[family], NAMES[family])
    yield UNDECIDED.of(facts.undecided)


def _peer(peer: PeerStatus) -> Iterator[Reading]:
    asn = peer.expected_as if peer.expected_as is not None else peer.received_as
    yield PEER.of(1, peer.name, peer.address, "" if asn is None else str(asn), peer.listen_range or "")
    yield ESTABLISHED.of(peer.uptime is not None, peer.name)
    for state in State:
        yield STATE.of(peer.state == state.value, peer.name, state.value)
    yield SINCE.of(peer.since, peer.name)
    yield SESSIONS.of(peer.established_count, peer.name)
    for reason, count in peer.losses.items():
        yield LOST.of(count, peer.name, reason)
    for direction, messages, last in (
        ("received", peer.received, peer.last_received),
        ("sent", peer.sent, peer.last_sent),
    ):
        for kind, count in messages.items():
            yield MESSAGES.of(count, peer.name, direction, kind)
        if last is not None:
            yield NOTIFICATION.of(last.at, peer.name, direction, str(last.code), str(last.subcode))
    yield FAULTS.of(peer.faults, peer.name)


def _family(peer: PeerStatus, family: Family, name: str) -> Iterator[Reading]:
    status = peer.families[family]
    yield NEGOTIATED.of(status.negotiated, peer.name, name)
    yield RECEIVED.of(status.received, peer.name, name)
    yield ACCEPTED.of(status.accepted, peer.name, name)
    yield ADVERTISED.of(status.advertised, peer.name, name)
    yield REFUSED.of(status.refused, peer.name, name)
    yield STALE.of(status.stale, peer.name, name)
    yield END_OF_RIB.of(status.end_of_rib == "received", peer.name, name)
