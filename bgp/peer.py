"""One peer: its connections (one that we initiate, those that it does), and which of them lives (RFC 4271 section 8).

The connections are machines of their own (``bgp.session``); here it is decided when to dial again, and what the RIB and
the agent are told. What the peer announced and may keep is in ``bgp.receiving``, its past in ``bgp.history``.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import replace

from bgp import codec, graceful_restart
from bgp.adj_rib_in import Received
from bgp.collision import Collision
from bgp.fsm import COLLISION, Change, FsmSettings, Timer
from bgp.fsm_table import Event, State
from bgp.history import History
from bgp.local import Local
from bgp.messages import BORR, BgpError, Negotiated, Notification, Open, RouteRefresh
from bgp.prefix_limit import LimitWatch
from bgp.quiet import Quiet
from bgp.receiving import Receiving
from bgp.report import no_next_hop, report
from bgp.session import Session
from bgp.settings import PeerSettings
from bgp.sockets import Endpoint, dialling
from bgp.status import PeerStatus, SessionChange
from bgp.tally import Tally
from config.prefix import NAMES, Family, text

log = logging.getLogger("podroute.bgp")

CONFIGURATION_CHANGE = Notification(6, 6)
"""Cease/Other Configuration Change (RFC 4486 section 4)."""

LITTLE = 1024
"""Octets of UPDATEs that are no table: a peer that says so little need not wait for others that say more."""
_QUIET = 10.0
"""Seconds between two log lines about faults in a peer's UPDATEs."""
_SETTLED = 3.0
"""Seconds after which a new connection of an established peer is no late one of the same start, but a restart."""
_RANK = list(State)
_UNDER_WAY = (State.OPEN_SENT, State.OPEN_CONFIRM, State.ESTABLISHED)


class Peer:
    """One peer; ``bgp.session.Owner`` of its sessions. ``quiet`` thins out what is logged of failed attempts."""

    def __init__(self, settings: PeerSettings, local: Local, quiet: Quiet | None = None) -> None:
        self.settings = settings
        self.endpoint = settings.endpoint
        self.read_buffer = local.read_buffer
        self.tally = Tally()
        self._local = local
        self._options = settings.tcp_options(local.asn)
        self._outgoing = None if settings.passive else self._session(incoming=False)
        self._incoming: list[Session] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = True
        self._held = ""
        """Why there is to be no session for now; empty: there is to be one."""
        self._release_timer: asyncio.TimerHandle | None = None
        self._limit = LimitWatch(settings.name, limit, local.rib) if (limit := settings.prefix_limit) else None
        self._established: Session | None = None
        self._faults = Quiet(_QUIET)
        self._next_hops: dict[Family, bytes] = {}
        waiting = "waiting for the peer to connect" if settings.passive else "not connected yet"
        self._history = History(settings.name, settings.address, waiting, quiet)
        self._receiving = Receiving(settings.name, local, self._not_back)

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
        """End all connections, with a NOTIFICATION or (None) without a word, and wait until they are closed."""
        self.end(notification)
        await self.closed()

    def end(self, notification: Notification | None) -> None:
        """Begin to ``stop``: the session is over when this returns."""
        self._stopped = True
        self._receiving.stop()
        self._cancel_release()
        for session in self.sessions:
            session.handle(Event.ManualStop, notification=self._final(session, notification))

    async def closed(self) -> None:
        """Wait until no connection is left."""
        if self._outgoing is not None:
            await self._outgoing.closed()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def hold(self, reason: str, notification: Notification, *, seconds: float | None = None) -> None:
        """End the session, if there is one, and have none before ``release``, or for some seconds."""
        self._cancel_release()
        self._held = reason
        for session in self.sessions:
            session.handle(Event.ManualStop, reason=reason, notification=self._final(session, notification))
        self._history.reason = reason
        if seconds is not None:
            self._release_timer = asyncio.get_running_loop().call_later(seconds, self.release)
        log.warning("peer held: %s", reason, extra=self._fields(address=str(self.endpoint)))
        self._local.notify()

    def release(self) -> None:
        """Have sessions again after ``hold``."""
        self._cancel_release()
        if self._held and not self._stopped:
            self._held = ""
            self._history.reason = "not connected yet"
            log.info("peer started", extra=self._fields(address=str(self.endpoint)))
            self.start()
            self._local.notify()
            self._vanish()

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
        session = self._established
        agreed = session.negotiated if session else None
        if session is None or agreed is None or not agreed.peer.route_refresh:
            return False
        session.write_updates([codec.encode_route_refresh(RouteRefresh(f)) for f in sorted(agreed.families)])
        return True

    def waiting_for(self) -> str | None:
        """Return what keeps this peer from having converged, None where nothing does."""
        session = self._established
        if session is None or session.connection is None:
            return None if self.settings.listen_range else f"session with {self.name}: {self._history.reason}"
        if self._receiving.waiting:
            return f"End-of-RIB of {self.name} ({', '.join(self._receiving.waiting)})"
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
        """Octets of the established session, up to its last UPDATE, that the peer's TCP has not acknowledged."""
        session = self._established
        return session.unacknowledged if session else 0

    def next_hops_changed(self) -> None:
        """The node's own addresses may have changed: look our next hops up again."""
        session = self._established
        if session is None or session.negotiated is None or session.connection is None:
            return
        found = self._own_next_hops(session, session.negotiated)
        gone = self._next_hops.keys() - found.keys()
        if gone:
            reason = ", ".join(no_next_hop(family) for family in sorted(gone))
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
                self.settings.families, established_before=self._history.established_count > 0
            ),
            add_path=dict.fromkeys(self.settings.families, mode) if (mode := self.settings.add_path.mode) else {},
            hostname=self._local.hostname,
        )

    def dialling_socket(self) -> socket.socket:
        return dialling(self.settings.local_endpoint, self.endpoint, self._options, self._local.opener)

    def destination(self) -> tuple[Endpoint, int]:
        return self.endpoint, self.settings.port

    def negotiate(self, session: Session, peer: Open) -> Negotiated:
        self._history.offer = peer
        made, expected = self.settings.listen_range, self.settings.asn
        if made is not None:
            if not made.remote_as.admits(peer.asn, self._local.asn):
                raise BgpError(2, 2, reason=f"expected AS {made.remote_as}, received AS {peer.asn}")
            expected = peer.asn
        return codec.negotiate(self.local_open(), peer, expected)

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

    def updates(self, session: Session, bodies: Sequence[bytes]) -> None:
        limit, octets = self._limit, sum(map(len, bodies))
        little = octets <= LITTLE
        if limit is None or limit.out_of_reach(octets):
            self._take_in(bodies, little=little)
        else:
            for body in bodies:
                self._take_in((body,), little=little)
                if excess := limit.exceeded():
                    self.hold(*excess, seconds=limit.restart_after)
                    return
        self._local.wake()

    def _take_in(self, bodies: Iterable[bytes], *, little: bool) -> None:
        self._local.rib.receive_all(self.name, bodies, self._note, little=little)

    def _note(self, received: Received) -> None:
        if received.faults:
            self._note_fault("; ".join(received.faults[:3]))
        if received.end_of_rib is not None:
            self._receiving.complete(received.end_of_rib)

    def refused(self, family: Family, prefix: bytes, own: bytes) -> None:
        """The peer announces a prefix that is one of our own, or a part of it."""
        self._note_fault(f"refused {text(family, prefix)}: {text(family, own)} is our own")

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
            self._receiving.await_refresh()
        else:
            count = rib.refresh_ends(self.name, family)
            log.info("route refresh received", extra=self._fields(family=NAMES[family], removed=count))
        self._local.wake()

    def sent(self, session: Session, notification: Notification) -> None:
        if session is self._established:
            self._receiving.farewell(notification)
        if notification != COLLISION:
            self._history.notification_sent(notification)

    def received(self, session: Session, notification: Notification) -> None:
        if session is self._established:
            self._receiving.farewell(notification)
        if notification != COLLISION or not self._another_under_way(session):
            self._history.notification_received(notification)

    def up(self, session: Session, negotiated: Negotiated) -> None:
        connection = session.connection
        assert connection is not None
        if negotiated.peer.asn != self.settings.asn:  # of a dynamic neighbour it is known only now
            self.settings = replace(self.settings, asn=negotiated.peer.asn)
            self._local.rib.set_asn(self.name, negotiated.peer.asn)
        self._established = session
        self._history.up()
        for other in [s for s in self.sessions if s is not session]:
            other.handle(Event.AutomaticStop if other.state is State.IDLE else Event.OpenCollisionDump)
        self._next_hops = self._own_next_hops(session, negotiated)
        if self._limit is not None:
            self._limit.start()
        self._receiving.up(negotiated)
        self._local.rib.peer_up(
            self.name,
            negotiated,
            peer_address=connection.remote.packed,
            local_address=connection.local.packed,
            device=connection.remote.device,
            next_hops=self._next_hops,
            keep=graceful_restart.confirmed(negotiated),
        )
        self._receiving.await_end_of_rib()
        self._local.restart.established(self.name, negotiated)
        families = ",".join(NAMES[family] for family in sorted(negotiated.families))
        log.info(
            "session established",
            extra=self._fields(address=str(self.endpoint), families=families, hold_time=negotiated.hold_time),
        )
        for family in sorted(negotiated.families - self._next_hops.keys()):
            log.warning("nothing advertised: %s", no_next_hop(family), extra=self._fields(family=NAMES[family]))
            session.write_updates([codec.encode_end_of_rib(family)])  # so that the peer does not wait for it
        self._local.on_session(SessionChange(self.name, True, "", negotiated.families))
        self._local.wake()

    def down(self, session: Session, reason: str) -> None:
        families = frozenset(self._receiving.end_of_rib)
        retained = self._receiving.down()
        if self._stopped:
            retained = frozenset()
        self._established = None
        self._local.on_session(SessionChange(self.name, False, reason, families, retained))
        self._history.down(reason)
        self._next_hops = {}
        self._local.rib.peer_down(self.name, retained)
        self._local.restart.lost(self.name)
        kept = {"kept": ",".join(NAMES[family] for family in sorted(retained))} if retained else {}
        log.warning("session lost: %s", reason, extra=self._fields(address=str(self.endpoint), **kept))
        self._receiving.await_restart()
        self._local.wake()

    def changed(self, session: Session, change: Change) -> None:
        if change.old is State.ESTABLISHED:
            self.tally.lost(change.event)
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
            passive=incoming,
            connect_retry=self.settings.connect_retry,
            delay_open=self.settings.delay_open,
            open_hold=self.settings.open_hold,
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
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._vanish()

    def _vanish(self) -> None:
        """A dynamic neighbour goes when it has no connection left, no paths, and no operator holds it back."""
        if self.settings.listen_range is None or self._stopped:
            return
        if not (self._tasks or self._incoming or self._held or self._receiving.holding):
            self._stopped = True
            self._local.gone(self.name)

    def _not_back(self) -> None:
        """The peer has not restarted in time."""
        self._local.on_session(SessionChange(self.name, False, self._history.reason))
        self._vanish()

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
        if not (self._stopped or self._held or self._established) and self._history.failed(reason):
            self._local.notify()

    def _note_fault(self, fault: str) -> None:
        self.tally.faults += 1
        count = self._faults.admit(time.monotonic())
        if count:
            log.warning("UPDATE with a fault: %s", fault, extra=self._fields(count=count))

    def _cancel_release(self) -> None:
        if self._release_timer is not None:
            self._release_timer.cancel()
            self._release_timer = None

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
        agreed = established.negotiated
        if agreed is None or session is established or not graceful_restart.retained(agreed, None):
            return False
        return asyncio.get_running_loop().time() - established.fsm.since >= _SETTLED

    def _final(self, session: Session, notification: Notification | None) -> Notification | None:
        """Return what tells the peer for good that it is over."""
        return graceful_restart.final(session.negotiated if session is self._established else None, notification)

    def _fields(self, **more: object) -> dict[str, object]:
        return {"fields": {"peer": self.name, **more}}

    def status(self) -> PeerStatus:
        best = max(self.sessions, key=lambda s: _RANK.index(s.state), default=None)
        return report(
            self.settings,
            self._local,
            self._history,
            self.tally,
            self._established or best,
            stopped=self._stopped or bool(self._held),
            end_of_rib=self._receiving.end_of_rib,
            next_hops=self._next_hops,
        )
