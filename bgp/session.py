"""One connection of a peer: carries out what its state machine says, and tells it what happens.

Every entry point (octets, a timer, a command from above) ends in the machine's outputs being carried out and its one
timer being set, so the machine never waits for anything but its next event.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Protocol

from bgp import codec
from bgp.connection import CLOSED, CLOSINGS, READ_SIZE, Connection
from bgp.framing import Framer
from bgp.fsm import (
    Change,
    Dial,
    Down,
    Drop,
    Fsm,
    FsmSettings,
    Output,
    SendKeepalive,
    SendNotification,
    SendOpen,
    Up,
)
from bgp.fsm_table import Event, State
from bgp.messages import BgpError, MessageType, Negotiated, Notification, Open, RouteRefresh
from bgp.sockets import Endpoint
from bgp.tally import Tally

log = logging.getLogger("podroute.bgp")

TURNED_AWAY = f"{CLOSED} without an OPEN: it may not expect this node, or not from this address"


class Owner(Protocol):
    """What a session needs of its peer; ``session`` is the one that calls."""

    read_buffer: bytearray
    tally: Tally

    def local_open(self) -> Open:
        """Return the OPEN to send."""

    def dialling_socket(self) -> socket.socket:
        """Return a socket to connect with. Raises OSError."""

    def destination(self) -> tuple[Endpoint, int]:
        """Return the peer's address and port."""

    def negotiate(self, session: Session, peer: Open) -> Negotiated:
        """Judge the peer's OPEN. Raises BgpError."""

    def survives(self, session: Session, peer: Open) -> bool:
        """Settle collisions now that an OPEN is here; False: this session is the one to close."""

    def updates(self, session: Session, bodies: Sequence[bytes]) -> None:
        """Take UPDATEs of the established session, in order. Raises BgpError where one ends the session."""

    def refresh(self, session: Session, request: RouteRefresh) -> None:
        """Take a ROUTE-REFRESH of the established session."""

    def sent(self, session: Session, notification: Notification) -> None:
        """A NOTIFICATION went out."""

    def received(self, session: Session, notification: Notification) -> None:
        """A NOTIFICATION came in."""

    def up(self, session: Session, negotiated: Negotiated) -> None:
        """The session is established."""

    def down(self, session: Session, reason: str) -> None:
        """The session was established and is not any more."""

    def changed(self, session: Session, change: Change) -> None:
        """The state of the session changed. Comes after ``up`` and ``down``."""

    def unanswered(self, session: Session) -> None:
        """An attempt to connect was given up without an answer; the next one has begun."""

    def arrived(self, session: Session) -> None:
        """Octets of the established session wait for ``read``."""

    def writable(self, session: Session) -> None:
        """The connection takes more data again."""


class Session:
    """A state machine with its connection. ``incoming``: the peer initiated the connection."""

    def __init__(self, owner: Owner, settings: FsmSettings, random: Callable[[], float], *, incoming: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self.incoming = incoming
        self.fsm = Fsm(settings, random, self._loop.time())
        self.messages_in = 0
        self.messages_out = 0
        self._owner = owner
        self._connection: Connection | None = None
        self._told = 0
        """How much had been written with the last UPDATE."""
        self._framer = Framer()
        self._unread = False
        """Octets wait, and the owner knows."""
        self._more = False
        """The last stretch of messages ended with the budget for it."""
        self._timer: asyncio.TimerHandle | None = None
        self._dialler: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> State:
        return self.fsm.state

    @property
    def negotiated(self) -> Negotiated | None:
        return self.fsm.negotiated

    @property
    def connection(self) -> Connection | None:
        return self._connection

    @property
    def can_write(self) -> bool:
        """Whether UPDATEs may be written now."""
        return self.state is State.ESTABLISHED and self._connection is not None and self._connection.can_write

    def handle(self, event: Event, *, reason: str = "", notification: Notification | None = None) -> None:
        """Give the machine an event from above (start, stop, collision)."""
        self._carry_out(self.fsm.handle(event, self._loop.time(), reason=reason, notification=notification))

    async def accept(self, sock: socket.socket) -> None:
        """Take over a connection that the peer initiated. Raises OSError."""
        await self._attach(sock, Event.TcpConnectionConfirmed)

    def write_updates(self, messages: list[bytes]) -> None:
        """Send framed messages of the established session."""
        if self._connection is None or not messages:
            return
        self._connection.write(b"".join(messages))
        self._told = self._connection.written
        self.messages_out += len(messages)
        self._owner.tally.wrote(messages)
        self.fsm.update_sent(self._loop.time())
        self._note_progress()

    @property
    def unacknowledged(self) -> int:
        """Octets up to the last UPDATE that the peer's TCP has not acknowledged; KEEPALIVEs after it do not count."""
        connection = self._connection
        return 0 if connection is None else max(0, connection.unacknowledged - (connection.written - self._told))

    @property
    def unread(self) -> int:
        """Octets that have arrived and wait for ``read``."""
        return self._framer.pending

    def read(self, budget: int) -> bool:
        """Process messages of up to about ``budget`` octets of those that have arrived; True: there are more."""
        self._process(budget)
        self._unread = self._more
        if self._connection is not None and self._framer.pending < READ_SIZE:
            self._connection.reading(True)
        return self._unread

    async def closed(self) -> None:
        """Wait until no connection and no attempt at one is left."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    # The machine's outputs.

    def _carry_out(self, outputs: list[Output]) -> None:
        try:
            for output in outputs:
                self._do(output)
        finally:
            self._arm()

    def _do(self, output: Output) -> None:
        match output:
            case Dial():
                self._dialler = self._start(self._dial())
            case SendOpen():
                self._send(codec.encode_open(self._owner.local_open()))
            case SendKeepalive():
                self._send(codec.KEEPALIVE)
            case SendNotification(notification):
                self._send(codec.encode_notification(notification))
                self._owner.sent(self, notification)
            case Drop():
                self._drop()
            case Up(negotiated):
                self._owner.up(self, negotiated)
            case Down(reason):
                self._owner.down(self, reason)
            case Change():
                self._owner.changed(self, output)

    def _send(self, message: bytes) -> None:
        if self._connection is not None:
            self._connection.write(message)
            self.messages_out += 1
            self._owner.tally.wrote((message,))
            self._note_progress()

    def _note_progress(self) -> None:
        if self._connection is not None and not self._connection.unsent:
            self.fsm.send_progress(self._loop.time())

    def _drop(self) -> None:
        if self._dialler is not None:
            self._dialler.cancel()
            self._dialler = None
        connection, self._connection = self._connection, None
        self._framer, self._unread = Framer(), False
        if connection is not None:
            connection.finish()
            self._start(connection.finished())

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _arm(self) -> None:
        """Set the timer for the machine's next deadline. One that would fire too early stays: it re-arms itself."""
        deadline = self.fsm.next_deadline()
        if self._timer is not None and (deadline is None or deadline < self._timer.when()):
            self._timer.cancel()
            self._timer = None
        if self._timer is None and deadline is not None:
            self._timer = self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        attempt = self._dialler
        if self._unread:  # what has arrived counts, though we have not come to it
            self.read(READ_SIZE)
        self._carry_out(self.fsm.tick(self._loop.time()))
        if attempt is not None and self._dialler not in (None, attempt):
            self._owner.unanswered(self)

    # The connection.

    async def _dial(self) -> None:
        endpoint, port = self._owner.destination()
        try:
            sock = self._owner.dialling_socket()
            try:
                await self._loop.sock_connect(sock, endpoint.sockaddr(sock, port))
            except BaseException:
                sock.close()
                raise
            await self._attach(sock, Event.Tcp_CR_Acked)
        except OSError as error:
            self._failed(f"connect to {endpoint.with_port(port)}: {_cause(error)}")

    async def _attach(self, sock: socket.socket, event: Event) -> None:
        connection = Connection(
            sock, self._owner.read_buffer, received=self._octets, lost=self._failed, writable=self._resume
        )
        await connection.open()
        self._connection, self._framer, self._dialler = connection, Framer(), None
        self._unread = False
        self.messages_in = self.messages_out = self._told = 0
        self.handle(event)

    def _failed(self, reason: str) -> None:
        self._dialler = None
        if self._unread:
            self.read(2 * READ_SIZE)
            if self._connection is None:
                return
        if self.state is State.OPEN_SENT:
            reason = TURNED_AWAY if reason in CLOSINGS else f"{reason} without an OPEN"
        self.handle(Event.TcpConnectionFails, reason=reason)

    def _resume(self) -> None:
        self.fsm.send_progress(self._loop.time())
        self._arm()
        self._owner.writable(self)

    # Messages.

    def _octets(self, data: bytes) -> None:
        self._framer.feed(data)
        if self.state is not State.ESTABLISHED:
            self._process(READ_SIZE)
        if self._connection is not None and self.state is State.ESTABLISHED and self._framer.pending:
            if self._framer.pending >= READ_SIZE:
                self._connection.reading(False)
            if not self._unread:
                self._unread = True
                self._owner.arrived(self)

    def _process(self, budget: int) -> None:
        """Process messages of up to about ``budget`` octets; UPDATEs of the established session together."""
        connection, framer, fsm = self._connection, self._framer, self.fsm
        updates = False
        self._more = False
        try:
            while budget > 0:
                before = framer.pending
                if fsm.state is State.ESTABLISHED and (bodies := framer.updates(budget)):
                    self.messages_in += len(bodies)
                    self._owner.tally.received[MessageType.UPDATE] += len(bodies)
                    self._owner.updates(self, bodies)
                    updates = True
                elif message := next(framer.messages(), None):
                    self.messages_in += 1
                    self._owner.tally.received[message[0]] += 1
                    self._message(*message)
                else:
                    break
                if self._connection is not connection:
                    return
                budget -= before - framer.pending
            else:
                self._more = framer.ready
        except BgpError as error:
            self._fault(error)
        except Exception:
            log.exception("message of a peer could not be processed")
            self._fault(BgpError(6, 0, reason="internal error, see the log"))
        else:
            if updates:
                self._carry_out(self.fsm.handle(Event.UpdateMsg, self._loop.time()))

    def _fault(self, error: BgpError) -> None:
        event = {1: Event.BGPHeaderErr, 2: Event.BGPOpenMsgErr, 6: Event.AutomaticStop}.get(
            error.code, Event.UpdateMsgErr
        )
        self.handle(
            event, reason=error.reason or str(error), notification=Notification(error.code, error.subcode, error.data)
        )

    def _message(self, kind: int, body: bytes) -> None:
        match kind:
            case MessageType.OPEN:
                self._open(body)
            case MessageType.KEEPALIVE:
                self.handle(Event.KeepAliveMsg)
            case MessageType.UPDATE:
                self.handle(Event.UpdateMsg)
            case MessageType.NOTIFICATION:
                notification = codec.decode_notification(body)
                self._owner.received(self, notification)
                self.handle(
                    Event.NotifMsg, reason=f"received {codec.describe(notification)}", notification=notification
                )
            case _:
                self._route_refresh(body)

    def _open(self, body: bytes) -> None:
        negotiated = None
        if self.state in (State.CONNECT, State.ACTIVE, State.OPEN_SENT):
            peer = codec.decode_open(body)
            negotiated = self._owner.negotiate(self, peer)
            if not self._owner.survives(self, peer):
                self.handle(Event.OpenCollisionDump)
                return
            self._framer.limit = negotiated.receive_limit
        self._carry_out(self.fsm.handle(Event.BGPOpen, self._loop.time(), negotiated=negotiated))

    def _route_refresh(self, body: bytes) -> None:
        if self.state is State.ESTABLISHED:
            request = codec.decode_route_refresh(body)
            if request is not None:
                self._owner.refresh(self, request)
        self.handle(Event.RouteRefreshMsg)


def _cause(error: OSError) -> str:
    if error.errno and (not error.strerror or error.strerror.startswith("Connect call failed")):
        return os.strerror(error.errno)
    return error.strerror or str(error)
