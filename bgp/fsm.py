"""The finite state machine of one BGP connection (RFC 4271 section 8), without I/O and without a clock.

Events go in with the time at which they happen; what is to be done about them comes out as a list. ``bgp.fsm_table``
says which actions an event has in which state; here is what each action does. Two connections of one peer are two
machines; which of them lives is decided above (``bgp.collision``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from bgp.fsm_table import TABLE, Do, Event, If, Row, State
from bgp.messages import MessageType, Negotiated, Notification


class Timer(Enum):
    """The timers of section 8.1.3 and RFC 9687, by the event of their expiry."""

    CONNECT_RETRY = Event.ConnectRetryTimer_Expires
    HOLD = Event.HoldTimer_Expires
    KEEPALIVE = Event.KeepaliveTimer_Expires
    DELAY_OPEN = Event.DelayOpenTimer_Expires
    IDLE_HOLD = Event.IdleHoldTimer_Expires
    SEND_HOLD = Event.SendHoldTimer_Expires


@dataclass(frozen=True, slots=True)
class FsmSettings:
    """Session attributes of section 8; all times in seconds."""

    passive: bool = False
    connect_retry: float = 5.0
    """ConnectRetryTime; also the longest wait in Idle after a failure to connect."""
    idle_hold_limit: float = 60.0
    """The longest wait in Idle after a failure that involved a NOTIFICATION (peer oscillation damping)."""
    delay_open: float = 0.0
    """DelayOpenTime; 0 is the attribute DelayOpen false."""
    open_hold: float = 240.0
    """The "large value" of the hold timer while OPEN is awaited."""
    send_hold: float = 480.0
    """RFC 9687 section 3.1: the least SendHoldTime; twice the hold time where that is longer."""
    notify_without_open: bool = True
    """SendNOTIFICATIONwithoutOPEN."""


@dataclass(frozen=True, slots=True)
class Dial:
    """Initiate a TCP connection to the peer."""


@dataclass(frozen=True, slots=True)
class SendOpen:
    """Send our OPEN."""


@dataclass(frozen=True, slots=True)
class SendKeepalive:
    """Send a KEEPALIVE."""


@dataclass(frozen=True, slots=True)
class SendNotification:
    """Send this NOTIFICATION; ``Drop`` follows."""

    notification: Notification


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the TCP connection, or give up the attempt at one, if there is any."""


@dataclass(frozen=True, slots=True)
class Up:
    """The session is established."""

    negotiated: Negotiated


@dataclass(frozen=True, slots=True)
class Down:
    """The session is no longer established: the peer's routes go."""

    reason: str


@dataclass(frozen=True, slots=True)
class Change:
    """A transition, for logs and status."""

    old: State
    new: State
    event: Event
    reason: str


Output = Dial | SendOpen | SendKeepalive | SendNotification | Drop | Up | Down | Change


_MESSAGE_OF = {
    Event.BGPOpen: MessageType.OPEN,
    Event.BGPOpen_with_DelayOpenTimer_running: MessageType.OPEN,
    Event.BGPOpenMsgErr: MessageType.OPEN,
    Event.UpdateMsg: MessageType.UPDATE,
    Event.UpdateMsgErr: MessageType.UPDATE,
    Event.KeepAliveMsg: MessageType.KEEPALIVE,
    Event.RouteRefreshMsg: MessageType.ROUTE_REFRESH,
}
HOLD_TIMER_EXPIRED = Notification(4, 0)
COLLISION = Notification(6, 7)
_FSM_SUBCODE = {State.OPEN_SENT: 1, State.OPEN_CONFIRM: 2, State.ESTABLISHED: 3}
_ERROR_CODE = {Event.BGPHeaderErr: 1, Event.BGPOpenMsgErr: 2, Event.UpdateMsgErr: 3}
_STABLE = 30.0
"""Seconds in Established after which earlier failures are forgotten."""


class Fsm:
    """One connection's state machine.

    ``random`` returns floats in [0, 1); timers are jittered to 0.75 to 1.0 of their value (section 10). All times are
    seconds of one monotonic clock, which the caller reads.
    """

    def __init__(self, settings: FsmSettings, random: Callable[[], float], now: float = 0.0) -> None:
        self.settings = settings
        self.state = State.IDLE
        self.since = now
        """When the present state was entered."""
        self.reason = "not started"
        """Why the present state was entered."""
        self.connect_retry_counter = 0
        self.negotiated: Negotiated | None = None
        self._random = random
        self._timers: dict[Timer, float] = {}
        self._damped = False
        self._out: list[Output] = []

    def handle(
        self,
        event: Event,
        now: float,
        *,
        reason: str = "",
        negotiated: Negotiated | None = None,
        notification: Notification | None = None,
    ) -> list[Output]:
        """Take one event and return what is to be done, in order.

        ``negotiated`` comes with BGPOpen. ``notification`` is what to send with a stop event (None: say nothing) and
        with an error event, and what was received with NotifMsg. ``reason`` replaces the usual text for people.
        """
        event = self._specific(event, notification)
        row = self._row(event)
        old, why = self.state, reason or self._why(event)
        if notification is not None:
            self._remember(notification)
        if negotiated is not None and row.next is State.OPEN_CONFIRM:
            self.negotiated = negotiated
        if old is State.ESTABLISHED and row.next is not old and now - self.since >= _STABLE:
            self.connect_retry_counter = 0
        for action in row.actions:
            self._act(action, event, notification, now)
        if row.next is not old:
            self.state, self.since, self.reason = row.next, now, why
            if old is State.ESTABLISHED:
                self._out.append(Down(why))
            if row.next in (State.IDLE, State.ACTIVE):
                self.negotiated = None
            self._out.append(Change(old, row.next, event, why))
        out, self._out = self._out, []
        return out

    def tick(self, now: float) -> list[Output]:
        """Let the timers expire whose time has come, the earliest first."""
        out: list[Output] = []
        for timer, deadline in sorted(self._timers.items(), key=lambda item: item[1]):
            if deadline <= now and self._timers.get(timer) == deadline:
                del self._timers[timer]
                out += self.handle(timer.value, now)
        return out

    def next_deadline(self) -> float | None:
        """Return when ``tick`` is due next, None where no timer runs."""
        return min(self._timers.values(), default=None)

    def running(self, timer: Timer) -> bool:
        return timer in self._timers

    def update_sent(self, now: float) -> None:
        """An UPDATE was sent: restart the KeepaliveTimer (section 8.2.2, Established)."""
        if Timer.KEEPALIVE in self._timers:
            self._keepalive(now)

    def send_progress(self, now: float) -> None:
        """TCP took what we had to send: restart the SendHoldTimer (RFC 9687 section 3.3)."""
        if Timer.SEND_HOLD in self._timers:
            self._send_hold(now)

    def _specific(self, event: Event, notification: Notification | None) -> Event:
        """Tell apart the events that the RFC distinguishes by circumstances."""
        if event is Event.BGPOpen and Timer.DELAY_OPEN in self._timers:
            return Event.BGPOpen_with_DelayOpenTimer_running
        if event is Event.NotifMsg and notification and (notification.code, notification.subcode) == (2, 1):
            return Event.NotifMsgVerErr
        return event

    def _row(self, event: Event) -> Row:
        holds = {
            If.ALWAYS: True,
            If.PASSIVE: self.settings.passive,
            If.DELAY_OPEN: self.settings.delay_open > 0,
            If.DELAY_OPEN_RUNNING: Timer.DELAY_OPEN in self._timers,
        }
        return next(row for row in TABLE[self.state] if event in row.events and holds[row.condition])

    def _act(self, action: Do, event: Event, notification: Notification | None, now: float) -> None:
        match action:
            case Do.COUNTER_ZERO:
                self.connect_retry_counter = 0
            case Do.COUNTER_UP:
                self.connect_retry_counter += 1
            case Do.RETRY_START:
                if not self.settings.passive:
                    self._timers[Timer.CONNECT_RETRY] = now + self._jitter(self.settings.connect_retry)
            case Do.RETRY_SOON:
                if not self.settings.passive:
                    self._timers[Timer.CONNECT_RETRY] = now + self._back_off()
            case Do.RETRY_STOP:
                self._timers.pop(Timer.CONNECT_RETRY, None)
            case Do.DELAY_START:
                self._timers[Timer.DELAY_OPEN] = now + self.settings.delay_open
            case Do.DELAY_STOP:
                self._timers.pop(Timer.DELAY_OPEN, None)
            case Do.IDLE_HOLD:
                self._timers[Timer.IDLE_HOLD] = now + self._back_off()
            case Do.DIAL:
                self._damped = False
                self._out.append(Dial())
            case Do.OPEN:
                self._out.append(SendOpen())
                self._timers[Timer.HOLD] = now + self.settings.open_hold
            case Do.CONFIRM:
                self._confirm(now)
            case Do.HOLD_RESTART:
                self._hold(now)
            case Do.KEEPALIVE:
                self._out.append(SendKeepalive())
                self._keepalive(now)
            case Do.UP:
                self._up(now)
            case Do.REFUSE:
                self._out.append(Drop())
            case Do.RELEASE:
                self._timers.clear()
                self._out.append(Drop())
            case _:
                self._notify(action, event, notification)

    def _notify(self, action: Do, event: Event, given: Notification | None) -> None:
        if self.state in (State.CONNECT, State.ACTIVE) and not (
            self.settings.notify_without_open and Timer.DELAY_OPEN in self._timers
        ):
            return
        match action:
            case Do.CEASE:
                notification = given
            case Do.COLLISION:
                notification = COLLISION
            case Do.HOLD_EXPIRED:
                notification = HOLD_TIMER_EXPIRED
            case Do.FSM_ERROR:
                notification = self._fsm_error(event)
            case _:
                notification = given or Notification(_ERROR_CODE[event], 0)
        if notification is not None:
            self._remember(notification)
            self._out.append(SendNotification(notification))

    def _remember(self, notification: Notification) -> None:
        """A failure that either end explained with a NOTIFICATION is damped longer; a collision is no failure."""
        self._damped = notification != COLLISION

    def _fsm_error(self, event: Event) -> Notification:
        """RFC 6608 section 3: which message was not expected in which state."""
        message = _MESSAGE_OF.get(event)
        if message is None:
            return Notification(5, 0)
        return Notification(5, _FSM_SUBCODE[self.state], bytes((message,)))

    def _confirm(self, now: float) -> None:
        self._out.append(SendKeepalive())
        self._timers.pop(Timer.HOLD, None)
        self._hold(now)
        if self.negotiated and self.negotiated.hold_time:
            self._keepalive(now)

    def _up(self, now: float) -> None:
        assert self.negotiated is not None
        self._timers.pop(Timer.DELAY_OPEN, None)
        self._send_hold(now)
        self._out.append(Up(self.negotiated))

    def _hold(self, now: float) -> None:
        if self.negotiated and self.negotiated.hold_time:
            self._timers[Timer.HOLD] = now + self.negotiated.hold_time

    def _send_hold(self, now: float) -> None:
        if self.negotiated and self.negotiated.hold_time:
            self._timers[Timer.SEND_HOLD] = now + max(self.settings.send_hold, 2 * self.negotiated.hold_time)

    def _keepalive(self, now: float) -> None:
        if self.negotiated:
            # Jitter may not make it more than one a second (section 4.4).
            self._timers[Timer.KEEPALIVE] = now + max(1.0, self._jitter(self.negotiated.keepalive))

    def _back_off(self) -> float:
        """Return the wait before the next attempt: a second after the first failure, then twice as long each time."""
        limit = self.settings.connect_retry
        if self._damped:
            limit = max(limit, self.settings.idle_hold_limit)
        doublings = min(max(self.connect_retry_counter - 1, 0), 16)
        return self._jitter(min(float(2**doublings), limit))

    def _jitter(self, seconds: float) -> float:
        return seconds * (0.75 + 0.25 * self._random())

    def _why(self, event: Event) -> str:
        if event is Event.HoldTimer_Expires:
            held = self.negotiated.hold_time if self.negotiated else self.settings.open_hold
            return f"hold timer expired: nothing received for {held:g} s"
        message = _MESSAGE_OF.get(event)
        if message is not None and self.state in _FSM_SUBCODE and Do.FSM_ERROR in self._row(event).actions:
            return f"unexpected {message.name.replace('_', '-')} in {self.state.value}"
        return _REASONS.get(event, event.name)


_REASONS = {
    Event.ManualStart: "started",
    Event.AutomaticStart: "started",
    Event.ManualStart_with_PassiveTcpEstablishment: "waiting for the peer to connect",
    Event.AutomaticStart_with_PassiveTcpEstablishment: "waiting for the peer to connect",
    Event.ManualStop: "stopped",
    Event.AutomaticStop: "stopped",
    Event.ConnectRetryTimer_Expires: "connect retry timer expired",
    Event.DelayOpenTimer_Expires: "delay open timer expired",
    Event.IdleHoldTimer_Expires: "idle hold timer expired",
    Event.Tcp_CR_Acked: "TCP connection established by us",
    Event.TcpConnectionConfirmed: "TCP connection established by the peer",
    Event.TcpConnectionFails: "TCP connection failed",
    Event.BGPOpen: "OPEN received",
    Event.BGPOpen_with_DelayOpenTimer_running: "OPEN received",
    Event.BGPHeaderErr: "message header error",
    Event.BGPOpenMsgErr: "OPEN message error",
    Event.OpenCollisionDump: "connection collision: the other connection is kept",
    Event.NotifMsgVerErr: "the peer does not speak BGP version 4",
    Event.NotifMsg: "NOTIFICATION received",
    Event.KeepAliveMsg: "OPEN accepted by both ends",
    Event.UpdateMsgErr: "UPDATE message error",
    Event.SendHoldTimer_Expires: "send hold timer expired: the peer does not read what we send",
}
