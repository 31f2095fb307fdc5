"""Every state and every event of RFC 4271 section 8.2.2, spelled out a second time and independently of the table.

Each line of the tables below is one sentence of that section: event numbers, then the next state, the NOTIFICATION
that is sent ("-": none), and what becomes of ConnectRetryCounter ("+1", "0" or "=").
"""

from __future__ import annotations

import pytest

from bgp.fsm import Dial, Drop, Fsm, FsmSettings, SendKeepalive, SendNotification, SendOpen, Timer
from bgp.fsm_table import TABLE, Event, State
from bgp.messages import Notification
from tests.unit.bgp_pair import negotiated

STARTS = (1, 3, 4, 5, 6, 7)
GIVEN = Notification(6, 2, b"\x03bye")
ERROR = {21: Notification(1, 2, b"\0\x12"), 22: Notification(2, 6), 28: Notification(3, 1)}
FSM_ERROR = {"OpenSent": 1, "OpenConfirm": 2, "Established": 3}
MESSAGE_TYPES = {19: 1, 20: 1, 22: 1, 27: 2, 28: 2, 26: 4, 30: 5}

# events: (next state, NOTIFICATION, counter)
Expected = dict[tuple[int, ...], tuple[str, str, str]]

IDLE: Expected = {
    (1, 3): ("Connect", "-", "0"),
    (4, 5): ("Active", "-", "0"),
    (6, 7): ("Idle", "-", "="),
    (2, 8): ("Idle", "-", "="),
    (13,): ("Connect", "-", "="),
    (9, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30): ("Idle", "-", "="),
}
CONNECT: Expected = {
    STARTS: ("Connect", "-", "="),
    (2,): ("Idle", "-", "0"),
    (9,): ("Connect", "-", "="),
    (12,): ("OpenSent", "-", "="),
    (14, 15): ("Connect", "-", "="),
    (16, 17): ("OpenSent", "-", "="),
    (18,): ("Idle", "-", "+1"),
    (20,): ("OpenConfirm", "-", "="),
    (21, 22, 24): ("Idle", "-", "+1"),
    (8, 10, 11, 13, 19, 23, 25, 26, 27, 28, 29, 30): ("Idle", "-", "+1"),
}
ACTIVE: Expected = {
    STARTS: ("Active", "-", "="),
    (2,): ("Idle", "-", "0"),
    (9,): ("Connect", "-", "="),
    (12,): ("OpenSent", "-", "="),
    (14, 15): ("Active", "-", "="),
    (16, 17): ("OpenSent", "-", "="),
    (18,): ("Idle", "-", "+1"),
    (20,): ("OpenConfirm", "-", "="),
    (21, 22, 24): ("Idle", "-", "+1"),
    (8, 10, 11, 13, 19, 23, 25, 26, 27, 28, 29, 30): ("Idle", "-", "+1"),
}
OPEN_SENT: Expected = {
    STARTS: ("OpenSent", "-", "="),
    (2,): ("Idle", "given", "0"),
    (8,): ("Idle", "given", "+1"),
    (10,): ("Idle", "4/0", "+1"),
    (14, 15, 16, 17): ("OpenSent", "-", "="),
    (18,): ("Active", "-", "+1"),
    (19,): ("OpenConfirm", "-", "="),
    (21, 22): ("Idle", "error", "+1"),
    (23,): ("Idle", "6/7", "+1"),
    (24,): ("Idle", "-", "="),
    (25,): ("Idle", "-", "+1"),
    (9, 11, 12, 13, 20, 26, 27, 28, 29, 30): ("Idle", "fsm", "+1"),
}
OPEN_CONFIRM: Expected = {
    STARTS: ("OpenConfirm", "-", "="),
    (2,): ("Idle", "given", "0"),
    (8,): ("Idle", "given", "+1"),
    (10,): ("Idle", "4/0", "+1"),
    (11,): ("OpenConfirm", "-", "="),
    (14, 15, 16, 17): ("OpenConfirm", "-", "="),
    (18, 25): ("Idle", "-", "+1"),
    (24,): ("Idle", "-", "="),
    (21, 22): ("Idle", "error", "+1"),
    (23,): ("Idle", "6/7", "+1"),
    (26,): ("Established", "-", "="),
    (9, 12, 13, 19, 20, 27, 28, 29, 30): ("Idle", "fsm", "+1"),
}
ESTABLISHED: Expected = {
    STARTS: ("Established", "-", "="),
    (2,): ("Idle", "given", "0"),
    (8,): ("Idle", "given", "+1"),
    (10,): ("Idle", "4/0", "+1"),
    (11,): ("Established", "-", "="),
    (14, 15, 16, 17): ("Established", "-", "="),
    (23,): ("Idle", "6/7", "+1"),
    (18, 24, 25): ("Idle", "-", "+1"),
    (26, 27, 30): ("Established", "-", "="),
    (21, 28): ("Idle", "error", "+1"),
    (29,): ("Idle", "-", "+1"),
    (9, 12, 13, 19, 20, 22): ("Idle", "fsm", "+1"),
}
SECTION_8_2_2 = {
    State.IDLE: IDLE,
    State.CONNECT: CONNECT,
    State.ACTIVE: ACTIVE,
    State.OPEN_SENT: OPEN_SENT,
    State.OPEN_CONFIRM: OPEN_CONFIRM,
    State.ESTABLISHED: ESTABLISHED,
}
PATH_TO = {
    State.IDLE: [],
    State.CONNECT: [1],
    State.ACTIVE: [1, 16, 18],
    State.OPEN_SENT: [1, 16],
    State.OPEN_CONFIRM: [1, 16, 19],
    State.ESTABLISHED: [1, 16, 19, 26],
}
CASES = [
    pytest.param(state, Event(number), expected, id=f"{state.value}-{number}-{Event(number).name}")
    for state, table in SECTION_8_2_2.items()
    for numbers, expected in table.items()
    for number in numbers
]


def in_state(state: State, settings: FsmSettings | None = None) -> Fsm:
    fsm = Fsm(settings or FsmSettings(), random=lambda: 1.0)
    for number in PATH_TO[state]:
        fsm.handle(Event(number), 0.0, negotiated=negotiated() if number == 19 else None)
    assert fsm.state is state
    fsm.connect_retry_counter = 3
    return fsm


def sent(fsm: Fsm, event: Event) -> list[object]:
    offered = negotiated() if event in (19, 20) else None
    note = GIVEN if event in (2, 8, 25) else Notification(2, 1, b"\0\4") if event == 24 else ERROR.get(event)
    return list(fsm.handle(event, 1.0, negotiated=offered, notification=note))


@pytest.mark.parametrize(("state", "event", "expected"), CASES)
def test_section_8_2_2(state: State, event: Event, expected: tuple[str, str, str]) -> None:
    fsm = in_state(state)
    outputs = sent(fsm, event)
    next_state, notification, counter = expected
    assert fsm.state.value == next_state
    assert fsm.connect_retry_counter == {"+1": 4, "0": 0, "=": 3}[counter]
    notes = [output.notification for output in outputs if isinstance(output, SendNotification)]
    message = MESSAGE_TYPES.get(event)
    wanted = {
        "-": [],
        "given": [GIVEN],
        "error": [ERROR.get(event)],
        "4/0": [Notification(4, 0)],
        "6/7": [Notification(6, 7)],
        "fsm": [Notification(5, FSM_ERROR.get(state.value, 0), bytes((message,))) if message else Notification(5, 0)],
    }
    assert notes == wanted[notification]
    assert fsm.reason


@pytest.mark.parametrize("state", list(State))
def test_every_event_is_named_once_in_each_state(state: State) -> None:
    numbers = [number for numbers in SECTION_8_2_2[state] for number in numbers]
    assert sorted(numbers) == sorted(Event)


@pytest.mark.parametrize("state", list(State))
def test_the_table_has_no_row_that_is_never_reached(state: State) -> None:
    left = {(event, condition) for event in Event for condition in ("met", "not met")}
    for row in TABLE[state]:
        covered = {
            (event, condition)
            for event in row.events
            for condition in (("met",) if row.condition.name != "ALWAYS" else ("met", "not met"))
        }
        assert covered & left, row
        left -= covered
    assert not left


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (state, Event(number))
        for state, table in SECTION_8_2_2.items()
        for numbers, (next_state, _, _) in table.items()
        for number in numbers
        if next_state == "Idle" and state is not State.IDLE
    ],
)
def test_going_idle_drops_the_connection_and_stops_all_timers(state: State, event: Event) -> None:
    fsm = in_state(state)
    assert Drop() in sent(fsm, event)
    assert fsm.next_deadline() is None
    assert fsm.negotiated is None


DELAYED = FsmSettings(delay_open=10.0)


@pytest.mark.parametrize("state", [State.CONNECT, State.ACTIVE])
class TestDelayOpen:
    """DelayOpen set: the connection is up, OPEN is held back (8.2.2, Connect and Active)."""

    def delayed(self, state: State, settings: FsmSettings = DELAYED) -> Fsm:
        fsm = Fsm(settings, random=lambda: 1.0)
        fsm.handle(Event(1) if state is State.CONNECT else Event(4), 0.0)
        assert not any(isinstance(output, SendOpen) for output in fsm.handle(Event(17), 0.0))
        assert fsm.state is state
        assert fsm.running(Timer.DELAY_OPEN)
        assert not fsm.running(Timer.CONNECT_RETRY)
        return fsm

    def test_the_timer_sends_open(self, state: State) -> None:
        fsm = self.delayed(state)
        assert fsm.next_deadline() == 10.0
        assert SendOpen() in fsm.tick(10.0)
        assert fsm.state is State.OPEN_SENT
        assert fsm.running(Timer.HOLD)
        assert not fsm.running(Timer.DELAY_OPEN)

    def test_an_open_that_comes_first_is_answered_at_once(self, state: State) -> None:
        fsm = self.delayed(state)
        outputs = fsm.handle(Event.BGPOpen, 1.0, negotiated=negotiated())
        assert outputs[:2] == [SendOpen(), SendKeepalive()]
        assert fsm.state is State.OPEN_CONFIRM
        assert not fsm.running(Timer.DELAY_OPEN)

    def test_a_bad_open_is_told_before_our_own_where_that_is_allowed(self, state: State) -> None:
        note = Notification(2, 2)
        assert SendNotification(note) in self.delayed(state).handle(Event.BGPOpenMsgErr, 1.0, notification=note)
        quiet = self.delayed(state, FsmSettings(delay_open=10.0, notify_without_open=False))
        assert SendNotification(note) not in quiet.handle(Event.BGPOpenMsgErr, 1.0, notification=note)
        assert quiet.state is State.IDLE

    def test_a_version_error_does_not_count(self, state: State) -> None:
        fsm = self.delayed(state)
        fsm.handle(Event.NotifMsg, 1.0, notification=Notification(2, 1, b"\0\3"))
        assert (fsm.state, fsm.connect_retry_counter) == (State.IDLE, 0)


def test_a_failed_connection_while_open_is_delayed() -> None:
    """In Connect it goes on in Active with the ConnectRetryTimer, in Active it ends in Idle."""
    fsm = TestDelayOpen().delayed(State.CONNECT)
    fsm.handle(Event.TcpConnectionFails, 1.0)
    assert fsm.state is State.ACTIVE
    assert fsm.running(Timer.CONNECT_RETRY)
    fsm = TestDelayOpen().delayed(State.ACTIVE)
    fsm.handle(Event.TcpConnectionFails, 1.0)
    assert fsm.state is State.IDLE


def test_manual_stop_in_active_sends_cease_only_while_open_is_delayed() -> None:
    fsm = TestDelayOpen().delayed(State.ACTIVE)
    assert SendNotification(GIVEN) in fsm.handle(Event.ManualStop, 1.0, notification=GIVEN)


def test_a_stop_without_notification_closes_silently() -> None:
    fsm = in_state(State.ESTABLISHED)
    outputs = fsm.handle(Event.ManualStop, 1.0)
    assert Drop() in outputs
    assert not any(isinstance(output, SendNotification) for output in outputs)


def test_idle_refuses_connections_and_goes_on_waiting() -> None:
    fsm = in_state(State.IDLE)
    fsm.handle(Event.AutomaticStart_with_DampPeerOscillations, 1.0)
    assert fsm.handle(Event.TcpConnectionConfirmed, 1.0) == [Drop()]
    assert fsm.running(Timer.IDLE_HOLD)
    fsm.handle(Event.AutomaticStop, 1.0)
    assert not fsm.running(Timer.IDLE_HOLD)


def test_the_connect_retry_timer_dials_again() -> None:
    fsm = in_state(State.CONNECT)
    deadline = fsm.next_deadline()
    assert deadline == 5.0
    assert fsm.tick(deadline) == [Drop(), Dial()]
    assert fsm.next_deadline() == 10.0


def test_passive_never_dials() -> None:
    fsm = Fsm(FsmSettings(passive=True), random=lambda: 1.0)
    fsm.handle(Event.AutomaticStart_with_DampPeerOscillations_and_PassiveTcpEstablishment, 0.0)
    fsm.tick(1.0)
    assert fsm.state is State.ACTIVE
    assert fsm.next_deadline() is None
