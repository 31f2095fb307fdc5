"""Timers, back-off, and whole conversations between two machines (RFC 4271 sections 4.4, 6.5, 8 and 10)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.fsm import Change, Dial, Down, Fsm, FsmSettings, SendKeepalive, SendNotification, Timer, Up
from bgp.fsm_table import Event, State
from bgp.messages import Notification
from tests.unit.bgp_pair import PeerPair, negotiated


def established(hold_time: int = 9, random: float = 1.0) -> Fsm:
    fsm = Fsm(FsmSettings(), random=lambda: random)
    fsm.handle(Event.ManualStart, 0.0)
    fsm.handle(Event.Tcp_CR_Acked, 0.0)
    fsm.handle(Event.BGPOpen, 0.0, negotiated=negotiated(hold_time=hold_time))
    fsm.handle(Event.KeepAliveMsg, 0.0)
    assert fsm.state is State.ESTABLISHED
    return fsm


def test_two_machines_come_up_and_stay_up() -> None:
    pair = PeerPair()
    pair.established()
    pair.run_until(3600)
    assert (pair.a.state, pair.b.state) == (State.ESTABLISHED, State.ESTABLISHED)
    assert sum(isinstance(output, SendKeepalive) for output in pair.a.log) == pytest.approx(1200, abs=5)


def test_a_mute_peer_is_given_up_when_the_hold_timer_expires() -> None:
    pair = PeerPair()
    pair.established()
    pair.a.deaf = True
    pair.run_until(8.99)
    assert pair.a.state is State.ESTABLISHED
    pair.run_until(9.01)
    assert SendNotification(Notification(4, 0)) in pair.a.log
    assert Down("hold timer expired: nothing received for 9 s") in pair.a.log
    assert (pair.a.state, pair.b.state) == (State.IDLE, State.IDLE)


def test_hold_time_zero_runs_neither_timer() -> None:
    """Section 4.2: with a hold time of zero no KEEPALIVEs are sent and silence is no failure."""
    pair = PeerPair(hold_time=0)
    pair.established()
    keepalives = sum(isinstance(output, SendKeepalive) for output in pair.a.log)
    assert pair.a.fsm.next_deadline() is None
    pair.run_until(100_000)
    assert pair.a.state is State.ESTABLISHED
    assert keepalives == sum(isinstance(output, SendKeepalive) for output in pair.a.log) == 1


def test_open_is_awaited_for_four_minutes() -> None:
    fsm = Fsm(FsmSettings(), random=lambda: 1.0)
    fsm.handle(Event.ManualStart, 0.0)
    fsm.handle(Event.Tcp_CR_Acked, 1.0)
    assert fsm.next_deadline() == 241.0
    assert SendNotification(Notification(4, 0)) in fsm.tick(241.0)


@pytest.mark.parametrize(("random", "interval"), [(0.0, 2.25), (0.5, 2.625), (1.0, 3.0)])
def test_keepalives_are_jittered_between_three_quarters_and_the_whole_of_a_third_of_the_hold_time(
    random: float, interval: float
) -> None:
    assert established(random=random).next_deadline() == interval


def test_keepalives_are_never_more_frequent_than_one_a_second() -> None:
    """Section 4.4, with the shortest hold time there is and the strongest jitter."""
    assert established(hold_time=3, random=0.0).next_deadline() == 1.0


def test_an_update_counts_as_keepalive_both_ways() -> None:
    fsm = established()
    fsm.update_sent(2.0)
    assert fsm.next_deadline() == 5.0
    fsm.handle(Event.UpdateMsg, 4.0)
    fsm.tick(5.0)
    fsm.tick(8.0)
    fsm.tick(11.0)
    assert fsm.next_deadline() == 13.0
    fsm.tick(13.0)
    assert fsm.state is State.IDLE


def test_a_late_tick_serves_every_timer_that_is_due_once() -> None:
    fsm = established()
    outputs = fsm.tick(100.0)
    assert [type(output) for output in outputs[:2]] == [SendKeepalive, SendNotification]
    assert fsm.state is State.IDLE
    assert fsm.tick(100.0) == []


def retries(fsm: Fsm, event: Event, notification: Notification | None, count: int) -> list[float]:
    """Fail ``count`` attempts one after the other and return how long each following wait in Idle is."""
    waits, now = [], 0.0
    fsm.handle(Event.AutomaticStart, now)
    for _ in range(count):
        fsm.handle(Event.Tcp_CR_Acked, now) if notification else None
        fsm.handle(event, now, notification=notification)
        assert fsm.state is State.IDLE
        fsm.handle(Event.AutomaticStart_with_DampPeerOscillations, now)
        deadline = fsm.next_deadline()
        assert deadline is not None
        waits.append(deadline - now)
        now = deadline
        assert Dial() in fsm.tick(now)
    return waits


def test_an_unreachable_peer_is_dialled_less_and_less_often_up_to_connect_retry() -> None:
    fsm = Fsm(FsmSettings(connect_retry=5), random=lambda: 1.0)
    assert retries(fsm, Event.TcpConnectionFails, None, 6) == [1, 2, 4, 5, 5, 5]


def test_a_peer_that_hangs_up_is_dialled_again_soon_and_then_less_often() -> None:
    """OpenSent, TcpConnectionFails: on in Active until the ConnectRetryTimer expires."""
    fsm, waits = Fsm(FsmSettings(connect_retry=5), random=lambda: 1.0), []
    fsm.handle(Event.ManualStart, 0.0)
    for _ in range(5):
        fsm.handle(Event.Tcp_CR_Acked, 0.0)
        fsm.handle(Event.TcpConnectionFails, 0.0)
        assert fsm.state is State.ACTIVE
        deadline = fsm.next_deadline()
        waits.append(deadline)
        assert Dial() in fsm.tick(deadline or 0.0)
    assert waits == [1, 2, 4, 5, 5]


def test_a_peer_that_is_told_off_or_tells_us_off_is_damped_longer() -> None:
    fsm = Fsm(FsmSettings(connect_retry=5), random=lambda: 1.0)
    assert retries(fsm, Event.BGPOpenMsgErr, Notification(2, 2), 8) == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_lost_collision_is_not_damped() -> None:
    fsm = Fsm(FsmSettings(connect_retry=5), random=lambda: 1.0)
    assert retries(fsm, Event.NotifMsg, Notification(6, 7), 5) == [1, 2, 4, 5, 5]


def test_a_session_that_lasted_starts_over_with_short_waits() -> None:
    for lasted, counter in ((29.0, 8), (30.0, 1)):
        fsm = established(hold_time=0)
        fsm.connect_retry_counter = 7
        fsm.handle(Event.TcpConnectionFails, lasted)
        assert fsm.connect_retry_counter == counter


class TestSendHold:
    """RFC 9687: a peer whose receive window stays shut is given up."""

    def test_it_runs_from_the_last_progress(self) -> None:
        fsm = established(hold_time=300)
        fsm.send_progress(1.0)
        for now in range(100, 601, 100):
            fsm.handle(Event.KeepAliveMsg, now)
            fsm.tick(now)
        outputs = fsm.tick(601.0)
        assert isinstance(outputs[-1], Change)
        assert outputs[-1].event is Event.SendHoldTimer_Expires
        assert not any(isinstance(output, SendNotification) for output in outputs)

    @pytest.mark.parametrize(("hold_time", "send_hold"), [(9, 480), (240, 480), (241, 482)])
    def test_its_length(self, hold_time: int, send_hold: float) -> None:
        fsm = established(hold_time=hold_time)
        assert fsm._timers[Timer.SEND_HOLD] == send_hold

    def test_hold_time_zero_has_none(self) -> None:
        fsm = established(hold_time=0)
        fsm.send_progress(0.0)
        assert not fsm.running(Timer.SEND_HOLD)


def test_up_and_down_come_in_pairs_with_the_reason() -> None:
    pair = PeerPair()
    pair.established()
    text = Notification(6, 2, b"\x04work")
    pair.a.feed(Event.ManualStop, pair.now, text)
    pair.settle()
    assert [type(output) for output in pair.b.log if isinstance(output, Up | Down)] == [Up, Down]
    assert Down("stopped") in pair.a.log
    assert Down("NOTIFICATION received") in pair.b.log


STEPS = st.lists(
    st.tuples(
        st.sampled_from([*Event, None]),
        st.floats(0, 500, allow_nan=False),
        st.sampled_from([None, Notification(6, 2), Notification(2, 1), Notification(6, 7)]),
    ),
    max_size=60,
)
SETTINGS = st.builds(
    FsmSettings, passive=st.booleans(), delay_open=st.sampled_from([0.0, 3.0]), notify_without_open=st.booleans()
)


@given(steps=STEPS, settings=SETTINGS, hold_time=st.sampled_from([0, 3, 90]), random=st.floats(0, 0.999))
def test_no_sequence_of_events_leaves_the_table(
    steps: list[tuple[Event | None, float, Notification | None]], settings: FsmSettings, hold_time: int, random: float
) -> None:
    fsm, now, up = Fsm(settings, random=lambda: random), 0.0, False
    for event, pause, notification in steps:
        now += pause
        if event is None:
            outputs = fsm.tick(now)
        else:
            offered = negotiated(hold_time=hold_time) if event in (19, 20) else None
            outputs = fsm.handle(event, now, negotiated=offered, notification=notification)
        for output in outputs:
            if isinstance(output, Up | Down):
                assert up is isinstance(output, Down)
                up = isinstance(output, Up)
            if isinstance(output, Change):
                assert output.reason
        assert up is (fsm.state is State.ESTABLISHED)
        assert (fsm.negotiated is not None) is (fsm.state in (State.OPEN_CONFIRM, State.ESTABLISHED))
        deadline = fsm.next_deadline()
        assert deadline is None or deadline > now or event is not None
        if fsm.state is State.ESTABLISHED:
            assert fsm.running(Timer.HOLD) is fsm.running(Timer.KEEPALIVE) is (hold_time > 0)
        if fsm.state is State.OPEN_SENT:
            assert fsm.running(Timer.HOLD)
