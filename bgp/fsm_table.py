"""The table of the BGP finite state machine: section 8.2.2 of RFC 4271, row by row.

The actions are the phrases of that section. ``bgp.fsm`` carries them out; where the table departs from the letter:

* A NOTIFICATION is never answered with one (section 6: the sender has closed already), not even in OpenSent.
* A message header error in Established is reported as such (section 6.1), not as an FSM error.
* A TCP failure counts in ConnectRetryCounter in Connect and OpenSent too: the wait before the next attempt begins short
  and grows with the counter up to ConnectRetryTime, in Active (where the RFC waits that long at once) as in Idle.
* DampPeerOscillations is on for a connection that is started with event 6: it has that wait in Idle.
* A second OPEN on one connection is an FSM error; collisions (section 6.8) are between connections.
"""

from __future__ import annotations

from enum import Enum, IntEnum, auto
from typing import NamedTuple


class State(Enum):
    """RFC 4271 section 8.2.2."""

    IDLE = "Idle"
    CONNECT = "Connect"
    ACTIVE = "Active"
    OPEN_SENT = "OpenSent"
    OPEN_CONFIRM = "OpenConfirm"
    ESTABLISHED = "Established"


class Event(IntEnum):
    """RFC 4271 section 8.1, spelled and numbered as there."""

    ManualStart = 1
    ManualStop = 2
    AutomaticStart = 3
    ManualStart_with_PassiveTcpEstablishment = 4
    AutomaticStart_with_PassiveTcpEstablishment = 5
    AutomaticStart_with_DampPeerOscillations = 6
    AutomaticStart_with_DampPeerOscillations_and_PassiveTcpEstablishment = 7
    AutomaticStop = 8
    ConnectRetryTimer_Expires = 9
    HoldTimer_Expires = 10
    KeepaliveTimer_Expires = 11
    DelayOpenTimer_Expires = 12
    IdleHoldTimer_Expires = 13
    TcpConnection_Valid = 14
    Tcp_CR_Invalid = 15
    Tcp_CR_Acked = 16
    TcpConnectionConfirmed = 17
    TcpConnectionFails = 18
    BGPOpen = 19
    BGPOpen_with_DelayOpenTimer_running = 20
    BGPHeaderErr = 21
    BGPOpenMsgErr = 22
    OpenCollisionDump = 23
    NotifMsgVerErr = 24
    NotifMsg = 25
    KeepAliveMsg = 26
    UpdateMsg = 27
    UpdateMsgErr = 28
    SendHoldTimer_Expires = 29
    """RFC 9687 section 3.2."""
    RouteRefreshMsg = 30
    """RFC 2918 gives ROUTE-REFRESH no event; the number is ours."""


class Do(Enum):
    """The actions of section 8.2.2.

    In Connect and Active a NOTIFICATION goes out only where OPEN is delayed and SendNOTIFICATIONwithoutOPEN is set.
    """

    COUNTER_ZERO = auto()  # sets the ConnectRetryCounter to zero
    COUNTER_UP = auto()  # increments the ConnectRetryCounter by 1
    RETRY_START = auto()  # (re)starts the ConnectRetryTimer with its initial value
    RETRY_SOON = auto()  # the same with a time that grows with the ConnectRetryCounter
    RETRY_STOP = auto()
    DELAY_START = auto()  # sets the DelayOpenTimer to its initial value
    DELAY_STOP = auto()
    IDLE_HOLD = auto()  # waits in Idle before the next attempt
    DIAL = auto()  # initiates a TCP connection to the peer
    REFUSE = auto()  # closes a connection that is not wanted
    OPEN = auto()  # sends an OPEN and sets the HoldTimer to a large value
    CONFIRM = auto()  # sends a KEEPALIVE, sets KeepaliveTimer and HoldTimer to the negotiated values
    HOLD_RESTART = auto()
    KEEPALIVE = auto()  # sends a KEEPALIVE and restarts the KeepaliveTimer
    UP = auto()
    CEASE = auto()  # sends the NOTIFICATION that came with the stop event, if any
    COLLISION = auto()  # sends a NOTIFICATION with Cease/Connection Collision Resolution
    ERROR = auto()  # sends the NOTIFICATION of the error that the event reports
    HOLD_EXPIRED = auto()  # sends a NOTIFICATION with Hold Timer Expired
    FSM_ERROR = auto()  # sends a NOTIFICATION with Finite State Machine Error (subcodes of RFC 6608)
    RELEASE = auto()  # stops all timers, drops the TCP connection, releases all BGP resources


class If(Enum):
    """Conditions of section 8.2.2 under which a row holds."""

    ALWAYS = auto()
    PASSIVE = auto()
    DELAY_OPEN = auto()
    DELAY_OPEN_RUNNING = auto()


class Row(NamedTuple):
    """When one of ``events`` happens (and ``condition`` holds), do ``actions`` and change the state to ``next``."""

    events: frozenset[Event]
    actions: tuple[Do, ...]
    next: State
    condition: If = If.ALWAYS


def _on(*events: Event) -> frozenset[Event]:
    return frozenset(events)


_E, _S = Event, State
_STARTS = _on(
    _E.ManualStart,
    _E.AutomaticStart,
    _E.ManualStart_with_PassiveTcpEstablishment,
    _E.AutomaticStart_with_PassiveTcpEstablishment,
    _E.AutomaticStart_with_DampPeerOscillations,
    _E.AutomaticStart_with_DampPeerOscillations_and_PassiveTcpEstablishment,
)
_SECOND_CONNECTION = _on(_E.TcpConnection_Valid, _E.Tcp_CR_Invalid, _E.Tcp_CR_Acked, _E.TcpConnectionConfirmed)
_REST = frozenset(Event)

_FAIL = (Do.RELEASE, Do.COUNTER_UP)
_FSM_ERROR = (Do.FSM_ERROR, *_FAIL)

# Rows are tried in order; the first whose events and condition fit is taken. _REST stands for "any other event".
TABLE: dict[State, tuple[Row, ...]] = {
    _S.IDLE: (
        Row(_on(_E.ManualStart, _E.AutomaticStart), (Do.COUNTER_ZERO, Do.RETRY_START, Do.DIAL), _S.CONNECT),
        Row(
            _on(_E.ManualStart_with_PassiveTcpEstablishment, _E.AutomaticStart_with_PassiveTcpEstablishment),
            (Do.COUNTER_ZERO, Do.RETRY_START),
            _S.ACTIVE,
        ),
        Row(
            _on(
                _E.AutomaticStart_with_DampPeerOscillations,
                _E.AutomaticStart_with_DampPeerOscillations_and_PassiveTcpEstablishment,
            ),
            (Do.IDLE_HOLD,),
            _S.IDLE,
        ),
        Row(_on(_E.IdleHoldTimer_Expires), (Do.RETRY_START,), _S.ACTIVE, If.PASSIVE),
        Row(_on(_E.IdleHoldTimer_Expires), (Do.RETRY_START, Do.DIAL), _S.CONNECT),
        # Ignored as to the state, but a wait that was begun here ends.
        Row(_on(_E.ManualStop, _E.AutomaticStop), (Do.RELEASE,), _S.IDLE),
        Row(_SECOND_CONNECTION, (Do.REFUSE,), _S.IDLE),
        Row(_REST, (), _S.IDLE),
    ),
    _S.CONNECT: (
        Row(_STARTS | _on(_E.TcpConnection_Valid, _E.Tcp_CR_Invalid), (), _S.CONNECT),
        Row(_on(_E.ManualStop), (Do.RELEASE, Do.COUNTER_ZERO), _S.IDLE),
        Row(
            _on(_E.ConnectRetryTimer_Expires),
            (Do.RELEASE, Do.RETRY_START, Do.DIAL),
            _S.CONNECT,
        ),
        Row(_on(_E.DelayOpenTimer_Expires), (Do.OPEN,), _S.OPEN_SENT),
        Row(
            _on(_E.Tcp_CR_Acked, _E.TcpConnectionConfirmed),
            (Do.RETRY_STOP, Do.DELAY_START),
            _S.CONNECT,
            If.DELAY_OPEN,
        ),
        Row(_on(_E.Tcp_CR_Acked, _E.TcpConnectionConfirmed), (Do.RETRY_STOP, Do.OPEN), _S.OPEN_SENT),
        Row(_on(_E.TcpConnectionFails), (*_FAIL, Do.RETRY_SOON), _S.ACTIVE, If.DELAY_OPEN_RUNNING),
        Row(_on(_E.TcpConnectionFails), _FAIL, _S.IDLE),
        Row(
            _on(_E.BGPOpen_with_DelayOpenTimer_running),
            (Do.RETRY_STOP, Do.DELAY_STOP, Do.OPEN, Do.CONFIRM),
            _S.OPEN_CONFIRM,
        ),
        Row(_on(_E.BGPHeaderErr, _E.BGPOpenMsgErr), (Do.ERROR, *_FAIL), _S.IDLE),
        Row(_on(_E.NotifMsgVerErr), (Do.RELEASE,), _S.IDLE, If.DELAY_OPEN_RUNNING),
        Row(_REST, _FAIL, _S.IDLE),
    ),
    _S.ACTIVE: (
        Row(_STARTS | _on(_E.TcpConnection_Valid, _E.Tcp_CR_Invalid), (), _S.ACTIVE),
        Row(_on(_E.ManualStop), (Do.CEASE, Do.RELEASE, Do.COUNTER_ZERO), _S.IDLE, If.DELAY_OPEN_RUNNING),
        Row(_on(_E.ManualStop), (Do.RELEASE, Do.COUNTER_ZERO), _S.IDLE),
        Row(_on(_E.ConnectRetryTimer_Expires), (Do.RETRY_START, Do.DIAL), _S.CONNECT),
        Row(_on(_E.DelayOpenTimer_Expires), (Do.RETRY_STOP, Do.DELAY_STOP, Do.OPEN), _S.OPEN_SENT),
        Row(
            _on(_E.Tcp_CR_Acked, _E.TcpConnectionConfirmed),
            (Do.RETRY_STOP, Do.DELAY_START),
            _S.ACTIVE,
            If.DELAY_OPEN,
        ),
        Row(_on(_E.Tcp_CR_Acked, _E.TcpConnectionConfirmed), (Do.RETRY_STOP, Do.OPEN), _S.OPEN_SENT),
        # The RFC restarts the ConnectRetryTimer here too, whose expiry means nothing in Idle.
        Row(_on(_E.TcpConnectionFails), _FAIL, _S.IDLE),
        Row(
            _on(_E.BGPOpen_with_DelayOpenTimer_running),
            (Do.RETRY_STOP, Do.DELAY_STOP, Do.OPEN, Do.CONFIRM),
            _S.OPEN_CONFIRM,
        ),
        Row(_on(_E.BGPHeaderErr, _E.BGPOpenMsgErr), (Do.ERROR, *_FAIL), _S.IDLE),
        Row(_on(_E.NotifMsgVerErr), (Do.RELEASE,), _S.IDLE, If.DELAY_OPEN_RUNNING),
        Row(_REST, _FAIL, _S.IDLE),
    ),
    _S.OPEN_SENT: (
        Row(_STARTS | _SECOND_CONNECTION, (), _S.OPEN_SENT),
        Row(_on(_E.ManualStop), (Do.CEASE, Do.RELEASE, Do.COUNTER_ZERO), _S.IDLE),
        Row(_on(_E.AutomaticStop), (Do.CEASE, *_FAIL), _S.IDLE),
        Row(_on(_E.HoldTimer_Expires), (Do.HOLD_EXPIRED, *_FAIL), _S.IDLE),
        Row(_on(_E.TcpConnectionFails), (*_FAIL, Do.RETRY_SOON), _S.ACTIVE),
        Row(_on(_E.BGPOpen), (Do.DELAY_STOP, Do.RETRY_STOP, Do.CONFIRM), _S.OPEN_CONFIRM),
        Row(_on(_E.BGPHeaderErr, _E.BGPOpenMsgErr), (Do.ERROR, *_FAIL), _S.IDLE),
        Row(_on(_E.OpenCollisionDump), (Do.COLLISION, *_FAIL), _S.IDLE),
        Row(_on(_E.NotifMsgVerErr), (Do.RELEASE,), _S.IDLE),
        Row(_on(_E.NotifMsg), _FAIL, _S.IDLE),
        Row(_REST, _FSM_ERROR, _S.IDLE),
    ),
    _S.OPEN_CONFIRM: (
        Row(_STARTS | _SECOND_CONNECTION, (), _S.OPEN_CONFIRM),
        Row(_on(_E.ManualStop), (Do.CEASE, Do.RELEASE, Do.COUNTER_ZERO), _S.IDLE),
        Row(_on(_E.AutomaticStop), (Do.CEASE, *_FAIL), _S.IDLE),
        Row(_on(_E.HoldTimer_Expires), (Do.HOLD_EXPIRED, *_FAIL), _S.IDLE),
        Row(_on(_E.KeepaliveTimer_Expires), (Do.KEEPALIVE,), _S.OPEN_CONFIRM),
        Row(_on(_E.TcpConnectionFails, _E.NotifMsg), _FAIL, _S.IDLE),
        Row(_on(_E.NotifMsgVerErr), (Do.RELEASE,), _S.IDLE),
        Row(_on(_E.BGPHeaderErr, _E.BGPOpenMsgErr), (Do.ERROR, *_FAIL), _S.IDLE),
        Row(_on(_E.OpenCollisionDump), (Do.COLLISION, *_FAIL), _S.IDLE),
        Row(_on(_E.KeepAliveMsg), (Do.HOLD_RESTART, Do.UP), _S.ESTABLISHED),
        Row(_REST, _FSM_ERROR, _S.IDLE),
    ),
    _S.ESTABLISHED: (
        Row(_STARTS | _SECOND_CONNECTION, (), _S.ESTABLISHED),
        Row(_on(_E.ManualStop), (Do.CEASE, Do.RELEASE, Do.COUNTER_ZERO), _S.IDLE),
        Row(_on(_E.AutomaticStop), (Do.CEASE, *_FAIL), _S.IDLE),
        Row(_on(_E.HoldTimer_Expires), (Do.HOLD_EXPIRED, *_FAIL), _S.IDLE),
        Row(_on(_E.KeepaliveTimer_Expires), (Do.KEEPALIVE,), _S.ESTABLISHED),
        Row(_on(_E.OpenCollisionDump), (Do.COLLISION, *_FAIL), _S.IDLE),
        # RFC 9687 section 3.3: a NOTIFICATION could not be sent either.
        Row(_on(_E.TcpConnectionFails, _E.NotifMsgVerErr, _E.NotifMsg, _E.SendHoldTimer_Expires), _FAIL, _S.IDLE),
        Row(_on(_E.KeepAliveMsg, _E.UpdateMsg), (Do.HOLD_RESTART,), _S.ESTABLISHED),
        Row(_on(_E.RouteRefreshMsg), (), _S.ESTABLISHED),
        Row(_on(_E.UpdateMsgErr, _E.BGPHeaderErr), (Do.ERROR, *_FAIL), _S.IDLE),
        Row(_REST, _FSM_ERROR, _S.IDLE),
    ),
}
