"""Two state machines joined in memory: what one sends, the other receives, at times that the test states."""

from __future__ import annotations

from collections import deque

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
from bgp.messages import Negotiated, Notification, Open

A = Open(asn=65001, hold_time=9, identifier=bytes((10, 0, 0, 1)))
B = Open(asn=65002, hold_time=9, identifier=bytes((10, 0, 0, 2)))


def negotiated(local: Open = A, peer: Open = B, hold_time: int | None = None) -> Negotiated:
    hold = min(local.hold_time, peer.hold_time) if hold_time is None else hold_time
    return Negotiated(local, peer, hold, frozenset((4,)), True, 4096, 4096)


class End:
    """One end: its machine, and all that came out of it."""

    def __init__(self, local: Open, peer: Open, settings: FsmSettings) -> None:
        self.fsm = Fsm(settings, random=lambda: 1.0)
        self.agreed = negotiated(local, peer)
        self.log: list[Output] = []
        self.inbox: deque[tuple[Event, Notification | None]] = deque()
        self.other: End = self
        self.deaf = False
        """Messages to this end are lost."""

    @property
    def state(self) -> State:
        return self.fsm.state

    def feed(self, event: Event, now: float, notification: Notification | None = None) -> None:
        offered = self.agreed if event is Event.BGPOpen else None
        self._carry_out(self.fsm.handle(event, now, negotiated=offered, notification=notification))

    def tick(self, now: float) -> None:
        self._carry_out(self.fsm.tick(now))

    def _carry_out(self, outputs: list[Output]) -> None:
        self.log += outputs
        for output in outputs:
            match output:
                case Dial():
                    self.inbox.append((Event.Tcp_CR_Acked, None))
                    self._tell(Event.TcpConnectionConfirmed)
                case SendOpen():
                    self._tell(Event.BGPOpen)
                case SendKeepalive():
                    self._tell(Event.KeepAliveMsg)
                case SendNotification(sent):
                    self._tell(Event.NotifMsg, sent)
                case Drop():
                    self.inbox.clear()
                    self._tell(Event.TcpConnectionFails)
                case Up() | Down() | Change():
                    pass

    def _tell(self, event: Event, notification: Notification | None = None) -> None:
        if not self.other.deaf:
            self.other.inbox.append((event, notification))


class PeerPair:
    """``a`` connects to ``b``, which is passive."""

    def __init__(self, a: FsmSettings | None = None, b: FsmSettings | None = None, hold_time: int = 9) -> None:
        self.now = 0.0
        self.a = End(A, B, a or FsmSettings())
        self.b = End(B, A, b or FsmSettings(passive=True))
        for end in (self.a, self.b):
            end.agreed = negotiated(end.agreed.local, end.agreed.peer, hold_time)
        self.a.other, self.b.other = self.b, self.a

    def start(self) -> None:
        self.b.feed(Event.ManualStart_with_PassiveTcpEstablishment, self.now)
        self.a.feed(Event.ManualStart, self.now)

    def settle(self) -> None:
        """Deliver messages until none is under way."""
        while self.a.inbox or self.b.inbox:
            for end in (self.a, self.b):
                if end.inbox:
                    event, notification = end.inbox.popleft()
                    end.feed(event, self.now, notification)

    def established(self) -> None:
        self.start()
        self.settle()
        assert (self.a.state, self.b.state) == (State.ESTABLISHED, State.ESTABLISHED)

    def run_until(self, end: float) -> None:
        """Let time pass: timers fire when they are due, messages arrive at once."""
        while True:
            deadlines = [d for d in (self.a.fsm.next_deadline(), self.b.fsm.next_deadline()) if d is not None]
            due = min(deadlines, default=end)
            if due >= end:
                break
            self.now = max(self.now, due)
            for one in (self.a, self.b):
                one.fsm.send_progress(self.now)  # what was sent before has arrived
                one.tick(self.now)
            self.settle()
        self.now = end
