"""One configured peer: its connections (one that we initiate, those that it does), and what an operator wants to know.

The connections are machines of their own (``bgp.session``); here it is decided which of them lives, when to dial again,
and what the RIB and the agent are told.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from struct import pack

from bgp import codec, graceful_restart
from bgp.collision import Collision
from bgp.connection import READ_SIZE
from bgp.fsm import COLLISION, Change, FsmSettings, Timer
from bgp.fsm_table import Event, State
from bgp.graceful_restart import Restart
from bgp.inspection import Counts
from bgp.messages import BORR, Negotiated, Notification, Open, RouteRefresh
from bgp.opening import AFI, UNICAST
from bgp.quiet import Quiet
from bgp.rib import Rib
from bgp.session import Session
from bgp.settings import PeerSettings, PrefixLimit
from bgp.sockets import Endpoint, OpenSocket, dialling
from bgp.status import FamilyStatus, NotificationRecord, PeerStatus, SessionChange, capability_names
from config.nexthop import NextHopResolver
from config.prefix import NAMES, Family, address_text

log = logging.getLogger("podroute.bgp")

CONFIGURATION_CHANGE = Notification(6, 6)
"""Cease/Other Configuration Change (RFC 4486 section 4)."""

_QUIET = 10.0
"""Seconds between two log lines about faults in a peer's UPDATEs."""
_SETTLED = 3.0
"""Seconds after which a new connection of an established peer is no late one of the same start, but a restart."""
_RANK = list(State)
_UNDER_WAY = (State.OPEN_SENT, State.OPEN_CONFIRM, State.ESTABLISHED)


@dataclass(slots=True)
class Local:
    """What the peers of one speaker share."""

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
    readers: deque[Session] = field(default_factory=deque)
    """Sessions with octets to process; the one whose turn it is comes first."""
    read_buffer: bytearray = field(default_factory=lambda: bytearray(READ_SIZE))


class Peer:
    """One peer; ``bgp.session.Owner`` of its sessions."""

    def __init__(self, settings: PeerSettings, local: Local) -> None:
        self.settings = settings
        self.endpoint = settings.endpoint
        self.read_buffer = local.read_buffer
        self._local = local
        self._options = settings.tcp_options(local.asn)
        self._outgoing = None if settings.passive else self._session(incoming=False)
        self._incoming: list[Session] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = True
        self._held = ""
        """Why there is to be no session for now; empty: there is to be one."""
        self._release_timer: asyncio.TimerHandle | None = None
        self._warned: set[Family] = set()
        self._since = time.time()
        self._reason = "waiting for the peer to connect" if settings.passive else "not connected yet"
        self._established: Session | None = None
        self._negotiated: Negotiated | None = None
        """Of the established session, or the last that was."""
        self._farewell: Notification | None = None
        """The NOTIFICATION, sent or received, that ends the established session."""
        self._stale_timer: asyncio.TimerHandle | None = None
        self._established_count = 0
        self._last_open: Open | None = None
        self._last_sent: NotificationRecord | None = None
        self._last_received: NotificationRecord | None = None
        self._faults = Quiet(_QUIET)
        self._next_hops: dict[Family, bytes] = {}
        self._end_of_rib: dict[Family, str] = {}
        self._end_of_rib_timer: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def established(self) -> Session | None:
        return self._established

    @property
    def sessions(self) -> list[Session]:
        return ([self._outgoing] if self._outgoing else []) + self._incoming

    def start(self) -> None:
        self._stopped = False
        if self._outgoing is not None:
            self._outgoing.handle(Event.AutomaticStart)

    async def stop(self, notification: Notification | None) -> None:
        """End all connections: with a NOTIFICATION, or (None) without a word."""
        self._stopped = True
        self._cancel_stale_timer()
        self._cancel_release()
        for session in self.sessions:
            agreed = self._negotiated if session is self._established else None
            session.handle(Event.ManualStop, notification=graceful_restart.final(agreed, notification))
        if self._outgoing is not None:
            await self._outgoing.closed()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def hold(self, reason: str, notification: Notification, *, seconds: float | None = None) -> None:
        """End the session, if there is one, and have none before ``release``, or for some seconds."""
        self._cancel_release()
        self._held = reason
        for session in self.sessions:
            agreed = self._negotiated if session is self._established else None
            session.handle(Event.ManualStop, reason=reason, notification=graceful_restart.final(agreed, notification))
        self._reason = reason
        if seconds is not None:
            self._release_timer = asyncio.get_running_loop().call_later(seconds, self.release)
        log.warning("peer held: %s", reason, extra=self._fields(address=str(self.endpoint)))
        self._local.notify()

    def release(self) -> None:
        """Have sessions again after ``hold``."""
        self._cancel_release()
        if self._held and not self._stopped:
            self._held = ""
            self._reason = "not connected yet"
            log.info("peer started", extra=self._fields(address=str(self.endpoint)))
            self.start()
            self._local.notify()

    def accept(self, sock: socket.socket) -> bool:
        """Take a connection that the peer initiated; False: not wanted."""
        if self._stopped:
            return False
        if self._held:
            sock.close()
            return True
        for session in [s for s in self._incoming if s.state in (State.ACTIVE, State.OPEN_SENT)]:
            # It dialled again: what it began before is dead on its side.
            session.handle(Event.OpenCollisionDump)
        session = self._session(incoming=True)
        self._incoming.append(session)
        session.handle(Event.AutomaticStart_with_PassiveTcpEstablishment)
        self._start(self._take(session, sock))
        return True

    def flush(self, budget: int) -> bool:
        """Write UPDATEs of about ``budget`` octets, if the connection takes any; True: there is more to write now."""
        session, rib = self._established, self._local.rib
        if session is None or not session.can_write or not rib.has_outgoing(self.name):
            return False
        session.write_updates(rib.outgoing(self.name, budget))
        return session.can_write and rib.has_outgoing(self.name)

    def ask_refresh(self) -> bool:
        """Ask the peer to announce everything once more (RFC 2918); False: no session, or it cannot."""
        session, agreed = self._established, self._negotiated
        if session is None or agreed is None or not agreed.peer.route_refresh:
            return False
        session.write_updates([codec.encode_route_refresh(RouteRefresh(f)) for f in sorted(agreed.families)])
        return True

    def waiting_for(self) -> str | None:
        """Return what keeps this peer from having converged, None where nothing does."""
        session = self._established
        if session is None or session.connection is None:
            return f"session with {self.name}: {self._reason}"
        waiting = [NAMES[f] for f, state in sorted(self._end_of_rib.items()) if state == "waiting"]
        if waiting:
            return f"End-of-RIB of {self.name} ({', '.join(waiting)})"
        if self._local.rib.has_outgoing(self.name):
            return f"prefixes to be advertised to {self.name}"
        return None

    def has_told(self, family: Family, prefix: bytes) -> bool:
        """Whether the peer's TCP has acknowledged the announcement of a prefix on the present session."""
        rib = self._local.rib
        told = self._established is not None and rib.announces(self.name, family, prefix)
        return told and not rib.has_outgoing(self.name) and not self.unacknowledged

    @property
    def unacknowledged(self) -> int:
        """Octets written to the established session that the peer's TCP has not acknowledged."""
        session = self._established
        return session.connection.unacknowledged if session and session.connection else 0

    def next_hops_changed(self) -> None:
        """The node's own addresses may have changed: look our next hops up again."""
        session = self._established
        if session is None or session.negotiated is None or session.connection is None:
            return
        found = self._own_next_hops(session, session.negotiated)
        gone = self._next_hops.keys() - found.keys()
        if gone:
            reason = ", ".join(self._no_next_hop(family) for family in sorted(gone))
            notification = graceful_restart.final(session.negotiated, CONFIGURATION_CHANGE)
            session.handle(Event.AutomaticStop, reason=reason, notification=notification)
        elif found != self._next_hops:
            self._next_hops = found
            local = session.connection.local.packed
            self._local.rib.local_next_hops(self.name, session.negotiated, local_address=local, next_hops=found)
            self._local.wake()

    # What a session asks (bgp.session.Owner).

    def local_open(self) -> Open:
        return Open(
            asn=self._local.asn,
            hold_time=self.settings.hold_time,
            identifier=self._local.router_id,
            families=self.settings.families,
            enhanced_refresh=True,
            extended_message=True,
            extended_next_hop=self.settings.extended_next_hop,
            graceful_restart=self._local.restart.capability(
                self.settings.families, established_before=self._established_count > 0
            ),
            hostname=self._local.hostname,
        )

    def dialling_socket(self) -> socket.socket:
        return dialling(self.settings.local_endpoint, self.endpoint, self._options, self._local.opener)

    def destination(self) -> tuple[Endpoint, int]:
        return self.endpoint, self.settings.port

    def negotiate(self, session: Session, peer: Open) -> Negotiated:
        self._last_open = peer
        return codec.negotiate(self.local_open(), peer, self.settings.asn)

    def survives(self, session: Session, peer: Open) -> bool:
        established = self._established
        if session.incoming and established is not None and self._is_restart(session, established):
            established.handle(Event.TcpConnectionFails, reason="the peer has restarted: it opened another connection")
        collision = Collision((self._local.router_id, self._local.asn), (peer.identifier, peer.asn))
        losers = collision.losers(session, [other for other in self.sessions if other is not session])
        if session in losers:
            return False
        for loser in losers:
            loser.handle(Event.OpenCollisionDump)
        return True

    # What a session tells (bgp.session.Owner).

    def update(self, session: Session, body: bytes) -> None:
        received = self._local.rib.receive(self.name, body)
        if received.faults:
            count = self._faults.admit(time.monotonic())
            if count:
                log.warning("UPDATE with a fault: %s", "; ".join(received.faults[:3]), extra=self._fields(count=count))
        if received.announced is not None and self.settings.prefix_limit is not None:
            for announced in received.announced:
                self._check_limit(announced, self.settings.prefix_limit)
        family = received.end_of_rib
        if family is not None and self._end_of_rib.get(family) == "waiting":
            self._end_of_rib[family] = "received"
            self._local.restart.complete(self.name, family)
            log.info("End-of-RIB received", extra=self._fields(family=NAMES[family]))
        self._local.wake()

    def refresh(self, session: Session, request: RouteRefresh) -> None:
        agreed, family, rib = session.negotiated, request.family, self._local.rib
        if agreed is None or family not in agreed.families:
            return
        if request.subtype == 0:
            rib.refresh(self.name, family)
        elif not agreed.enhanced_refresh:
            return  # RFC 7313 section 5: such a message is ignored
        elif request.subtype == BORR:
            rib.refresh_begins(self.name, family)
            self._await_stale(self._local.restart.settings.stale_time, "no end of its route refresh")
        else:
            count = rib.refresh_ends(self.name, family)
            log.info("route refresh received", extra=self._fields(family=NAMES[family], removed=count))
        self._local.wake()

    def sent(self, session: Session, notification: Notification) -> None:
        if session is self._established:
            self._farewell = notification
        if notification != COLLISION:
            self._last_sent = self._record("NOTIFICATION sent", notification)

    def received(self, session: Session, notification: Notification) -> None:
        if session is self._established:
            self._farewell = notification
        if notification != COLLISION or not self._another_under_way(session):
            self._last_received = self._record("NOTIFICATION received", notification)

    def up(self, session: Session, negotiated: Negotiated) -> None:
        connection = session.connection
        assert connection is not None
        self._established, self._negotiated, self._farewell = session, negotiated, None
        self._established_count += 1
        self._since, self._reason = time.time(), ""
        for other in [s for s in self.sessions if s is not session]:
            other.handle(Event.AutomaticStop if other.state is State.IDLE else Event.OpenCollisionDump)
        self._next_hops = self._own_next_hops(session, negotiated)
        self._warned.clear()
        self._end_of_rib = dict.fromkeys(negotiated.families, "waiting")
        restart = negotiated.peer.graceful_restart
        patience = self._local.end_of_rib_wait
        if restart is not None and restart.restarting:  # it waits for others' tables before it sends its own
            patience = max(patience, self._local.restart.settings.stale_time)
        loop = asyncio.get_running_loop()
        self._end_of_rib_timer = loop.call_later(patience, self._end_of_rib_timed_out, patience)
        self._local.rib.peer_up(
            self.name,
            negotiated,
            peer_address=connection.remote.packed,
            local_address=connection.local.packed,
            device=connection.remote.device,
            next_hops=self._next_hops,
            keep=graceful_restart.confirmed(negotiated),
        )
        self._await_stale(self._local.restart.settings.stale_time, "no End-of-RIB after its restart")
        self._local.restart.established(self.name, negotiated)
        families = ",".join(NAMES[family] for family in sorted(negotiated.families))
        log.info(
            "session established",
            extra=self._fields(address=str(self.endpoint), families=families, hold_time=negotiated.hold_time),
        )
        for family in sorted(negotiated.families - self._next_hops.keys()):
            log.warning("nothing advertised: %s", self._no_next_hop(family), extra=self._fields(family=NAMES[family]))
            session.write_updates([codec.encode_end_of_rib(family)])  # so that the peer does not wait for it
        self._local.on_session(SessionChange(self.name, True, "", negotiated.families))
        self._local.wake()

    def down(self, session: Session, reason: str) -> None:
        families = frozenset(self._end_of_rib)
        retained: frozenset[Family] = frozenset()
        if not self._stopped and self._negotiated is not None:
            retained = graceful_restart.retained(self._negotiated, self._farewell)
        self._established = None
        self._local.on_session(SessionChange(self.name, False, reason, families, retained))
        self._since, self._reason = time.time(), reason
        if self._end_of_rib_timer is not None:
            self._end_of_rib_timer.cancel()
        self._next_hops, self._end_of_rib = {}, {}
        self._local.rib.peer_down(self.name, retained)
        self._local.restart.lost(self.name)
        kept = {"kept": ",".join(NAMES[family] for family in sorted(retained))} if retained else {}
        log.warning("session lost: %s", reason, extra=self._fields(address=str(self.endpoint), **kept))
        self._await_restart()
        self._local.wake()

    def changed(self, session: Session, change: Change) -> None:
        if change.new in (State.IDLE, State.ACTIVE) and change.old is not State.IDLE:
            if change.old is not State.ESTABLISHED and not self._another_under_way(session):
                self._note_failure(change.reason)
            if session.incoming:
                self._incoming.remove(session)
                self._start(session.closed())
            self._dial_later()
        self._local.notify()

    def unanswered(self, session: Session) -> None:
        hint = " (a TCP-MD5 password is set: the peer may have another one)" if self.settings.password else ""
        self._note_failure(f"connect to {self.endpoint.with_port(self.settings.port)}: no answer{hint}")

    def arrived(self, session: Session) -> None:
        self._local.readers.append(session)
        self._local.unread()

    def writable(self, session: Session) -> None:
        self._local.wake()

    # Within.

    def _session(self, *, incoming: bool) -> Session:
        settings = FsmSettings(
            passive=incoming, connect_retry=self.settings.connect_retry, delay_open=self.settings.delay_open
        )
        return Session(self, settings, self._local.random, incoming=incoming)

    async def _take(self, session: Session, sock: socket.socket) -> None:
        try:
            self._options.apply(sock)
            await session.accept(sock)
        except OSError as error:
            sock.close()
            session.handle(Event.TcpConnectionFails, reason=f"connection of the peer: {error.strerror or error}")
        if session not in self._incoming:  # given up while it was being taken
            await session.closed()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _dial_later(self) -> None:
        """Begin the wait for the next attempt of our own, unless there is a session or the wait runs already."""
        session = self._outgoing
        if session is None or self._stopped or self._established or session.state is not State.IDLE:
            return
        if not self._held and not session.fsm.running(Timer.IDLE_HOLD):
            session.handle(Event.AutomaticStart_with_DampPeerOscillations)

    def _another_under_way(self, session: Session) -> bool:
        return any(other.state in _UNDER_WAY for other in self.sessions if other is not session)

    def _note_failure(self, reason: str) -> None:
        """Remember why there is no session; logged when it changes, not at every attempt."""
        if self._stopped or self._held or self._established or reason == self._reason:
            return
        self._reason = reason
        log.warning("no session: %s", reason, extra=self._fields(address=str(self.endpoint)))
        self._local.notify()

    def _check_limit(self, family: Family, limit: PrefixLimit) -> None:
        """Hold a peer that announces too much, and warn before."""
        count = self._local.rib.received(self.name, family)
        if count > limit.maximum:
            data = pack("!HBI", AFI[family], UNICAST, limit.maximum)
            reason = f"{count} {NAMES[family]} prefixes received, the maximum is {limit.maximum}"
            self.hold(reason, Notification(6, 1, data), seconds=limit.restart_after)
        elif count >= limit.maximum * limit.warning and family not in self._warned:
            self._warned.add(family)
            fields = self._fields(family=NAMES[family], count=count, maximum=limit.maximum)
            log.warning("prefixes near the maximum", extra=fields)

    def _cancel_release(self) -> None:
        if self._release_timer is not None:
            self._release_timer.cancel()
            self._release_timer = None

    def _record(self, what: str, notification: Notification) -> NotificationRecord:
        text = codec.describe(notification)
        log.info("%s: %s", what, text, extra=self._fields())
        return NotificationRecord(notification.code, notification.subcode, text, time.time())

    def _own_next_hops(self, session: Session, negotiated: Negotiated) -> dict[Family, bytes]:
        assert session.connection is not None
        local = session.connection.local.packed
        of_session: Family = 4 if len(local) == 4 else 6
        found = {
            family: self._local.resolver.local(local, of_session if negotiated.extended(family) else family)
            for family in negotiated.families
        }
        return {family: next_hop for family, next_hop in found.items() if next_hop is not None}

    def _is_restart(self, session: Session, established: Session) -> bool:
        """A peer that restarts may be back before its old connection is known to be dead (RFC 4724 section 5)."""
        agreed = self._negotiated
        if agreed is None or session is established or not graceful_restart.retained(agreed, None):
            return False
        return asyncio.get_running_loop().time() - established.fsm.since >= _SETTLED

    def _await_restart(self) -> None:
        """Give a lost peer the time that it asked for, at most ours (RFC 4724 section 4.2)."""
        restart = self._negotiated.peer.graceful_restart if self._negotiated else None
        limit = self._local.restart.settings.stale_time
        self._await_stale(min(restart.restart_time, limit) if restart else 0.0, "it did not come back in time")

    def _await_stale(self, seconds: float, why: str) -> None:
        self._cancel_stale_timer()
        if any(self._local.rib.stale(self.name, family) for family in NAMES):
            self._stale_timer = asyncio.get_running_loop().call_later(seconds, self._stale_timed_out, why)

    def _cancel_stale_timer(self) -> None:
        if self._stale_timer is not None:
            self._stale_timer.cancel()
            self._stale_timer = None

    def _stale_timed_out(self, why: str) -> None:
        self._stale_timer = None
        count = self._local.rib.drop_stale(self.name)
        if count:
            log.warning("stale paths removed: %s", why, extra=self._fields(count=count))
        if self._established is None:
            self._local.on_session(SessionChange(self.name, False, self._reason))
        self._local.wake()

    def _end_of_rib_timed_out(self, patience: float) -> None:
        for family, state in self._end_of_rib.items():
            if state == "waiting":
                self._end_of_rib[family] = "timed out"
                self._local.restart.complete(self.name, family)
                log.warning(
                    "no End-of-RIB within %g s: taken as complete",
                    patience,
                    extra=self._fields(family=NAMES[family]),
                )
        self._local.notify()

    def _fields(self, **more: object) -> dict[str, object]:
        return {"fields": {"peer": self.name, **more}}

    # Status.

    def status(self) -> PeerStatus:
        best = max(self.sessions, key=lambda s: _RANK.index(s.state), default=None)
        session = self._established or best
        negotiated = session.negotiated if session else None
        connection = session.connection if session else None
        offer = self._last_open
        state = session.state if session else State.ACTIVE
        counts = self._local.rib.counts(self.name)
        return PeerStatus(
            name=self.name,
            address=str(self.endpoint),
            port=self.settings.port,
            local_address=str(connection.local) if connection else self.settings.local_address,
            external=self.settings.asn != self._local.asn,
            passive=self.settings.passive,
            state=state.value if not self._stopped else State.IDLE.value,
            since=self._since,
            uptime=time.time() - self._since if self._established else None,
            reason=self._reason,
            local_as=self._local.asn,
            expected_as=self.settings.asn,
            received_as=offer.asn if offer else None,
            identifier=address_text(offer.identifier) if offer else None,
            hold_time=negotiated.hold_time if negotiated else self.settings.hold_time,
            keepalive=negotiated.keepalive if negotiated else self.settings.hold_time / 3,
            last_sent=self._last_sent,
            last_received=self._last_received,
            established_count=self._established_count,
            incoming=session.incoming if session else False,
            messages_in=session.messages_in if session else 0,
            messages_out=session.messages_out if session else 0,
            capabilities=capability_names(offer) if offer else (),
            hostname=offer.hostname if offer else "",
            software=offer.software if offer else "",
            families={family: self._family(family, counts.get(family)) for family in sorted(self.settings.families)},
        )

    def _family(self, family: Family, counts: Counts | None) -> FamilyStatus:
        next_hop = self._next_hops.get(family)
        return FamilyStatus(
            negotiated=family in self._end_of_rib,
            next_hop=_next_hop_text(next_hop) if next_hop else None,
            problem=self._problem(family),
            end_of_rib=self._end_of_rib.get(family, "-"),
            received=counts.received if counts else 0,
            accepted=counts.accepted if counts else 0,
            advertised=counts.advertised if counts else 0,
            refused=counts.refused if counts else 0,
            stale=self._local.rib.stale(self.name, family),
        )

    def _problem(self, family: Family) -> str | None:
        name = NAMES[family]
        if self._established is None:
            return None
        if family not in self._end_of_rib:
            return f"{name} not negotiated: the peer does not offer it"
        return None if family in self._next_hops else self._no_next_hop(family)

    @staticmethod
    def _no_next_hop(family: Family) -> str:
        return f"{NAMES[family]} not advertised: no {'IPv4' if family == 4 else 'IPv6'} address on the link"


def _next_hop_text(next_hop: bytes) -> str:
    """A global IPv6 next hop may have a link-local one behind it (RFC 2545 section 3)."""
    return " ".join(address_text(part) for part in (next_hop[:16], next_hop[16:]) if part)
