"""A peer as an operator looks at it, out of its session, its history and the RIB."""

from __future__ import annotations

import time
from collections.abc import Mapping

from bgp.fsm_table import State
from bgp.history import History
from bgp.inspection import Counts
from bgp.local import Local
from bgp.session import Session
from bgp.settings import UNKNOWN_AS, PeerSettings
from bgp.status import FamilyStatus, PeerStatus, capability_names
from bgp.tally import LOSSES, Tally, by_type
from config.prefix import NAMES, Family, address_text


def report(
    settings: PeerSettings,
    local: Local,
    history: History,
    tally: Tally,
    session: Session | None,
    *,
    stopped: bool,
    end_of_rib: Mapping[Family, str],
    next_hops: Mapping[Family, bytes],
) -> PeerStatus:
    """Return the status of a peer; ``session`` is the established one, or that which has come farthest.

    ``end_of_rib`` and ``next_hops`` are those of the established session, both empty without one.
    """
    negotiated = session.negotiated if session else None
    connection = session.connection if session else None
    offer, made = history.offer, settings.listen_range
    state = State.IDLE if stopped else session.state if session else State.ACTIVE
    counts = local.rib.counts(settings.name)

    def family_status(family: Family) -> FamilyStatus:
        next_hop, count = next_hops.get(family), counts.get(family) or Counts()
        return FamilyStatus(
            negotiated=family in end_of_rib,
            next_hop=_next_hop_text(next_hop) if next_hop else None,
            problem=_problem(family, end_of_rib, next_hops),
            end_of_rib=end_of_rib.get(family, "-"),
            received=count.received,
            accepted=count.accepted,
            advertised=count.advertised,
            refused=count.refused,
            add_path=negotiated.add_path(family) if negotiated and family in end_of_rib else 0,
            stale=local.rib.stale(settings.name, family),
        )

    return PeerStatus(
        name=settings.name,
        address=settings.address,
        port=settings.port,
        local_address=str(connection.local) if connection else settings.local_address,
        external=settings.asn != local.asn,
        passive=settings.passive,
        listen_range=str(made) if made else None,
        state=state.value,
        since=history.since,
        uptime=time.time() - history.since if end_of_rib else None,
        reason=history.reason,
        local_as=local.asn,
        expected_as=None if settings.asn == UNKNOWN_AS else settings.asn,
        received_as=offer.asn if offer else None,
        identifier=address_text(offer.identifier) if offer else None,
        hold_time=negotiated.hold_time if negotiated else settings.hold_time,
        keepalive=negotiated.keepalive if negotiated else settings.hold_time / 3,
        last_sent=history.sent,
        last_received=history.received,
        established_count=history.established_count,
        incoming=session.incoming if session else False,
        messages_in=session.messages_in if session else 0,
        messages_out=session.messages_out if session else 0,
        capabilities=capability_names(offer) if offer else (),
        hostname=offer.hostname if offer else "",
        software=offer.software if offer else "",
        families={family: family_status(family) for family in sorted(settings.families)},
        received=by_type(tally.received),
        sent=by_type(tally.sent),
        faults=tally.faults,
        losses={loss: tally.losses[loss] for loss in LOSSES},
    )


def no_next_hop(family: Family) -> str:
    """Say why a family is not advertised though the peer would take it."""
    return f"{NAMES[family]} not advertised: no {'IPv4' if family == 4 else 'IPv6'} address on the link"


def _problem(family: Family, end_of_rib: Mapping[Family, str], next_hops: Mapping[Family, bytes]) -> str | None:
    if not end_of_rib:
        return None
    if family not in end_of_rib:
        return f"{NAMES[family]} not negotiated: the peer does not offer it"
    return None if family in next_hops else no_next_hop(family)


def _next_hop_text(next_hop: bytes) -> str:
    """A global IPv6 next hop may have a link-local one behind it (RFC 2545 section 3)."""
    return " ".join(address_text(part) for part in (next_hop[:16], next_hop[16:]) if part)
