"""First paths, which are taken as they arrive, come to the same as those that the decision process takes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgp.adj_rib_in import Received
from bgp.policy import ACCEPT, REJECT, Policy
from config.prefix import Family
from tests.bgp_ribs import down, session, up
from tests.unit.test_bgp_runs import Fixture, announcement, prefix

FOUR: frozenset[Family] = frozenset((4,))
OURS = "10.1.0.0/20"
"""Many of the prefixes announced are more specifics of it."""


class Either(Fixture):
    """``room``: how many prefixes may be taken as first paths between two stretches of decisions.

    ``deferred``: nothing is selected before the action ``select``, as after a restart of ours.
    """

    def __init__(self, room: int, *, deferred: bool = False) -> None:
        super().__init__()
        self.room = room
        self.deferred = deferred
        self.work()
        if deferred:
            self.node.rib.defer([4])

    def work(self) -> object:
        found = super().work(), [self.node.rib.told(name, 4) for name in ("a", "b")]
        self.node.rib.run(self.room)
        return found

    def apply(self, action: str, number: int, path: int, first: int, count: int) -> None:
        rib, peer = self.node.rib, self.peers[number]
        established = rib.peers[peer.name].adj_in.negotiated
        match action:
            case "announce" | "scatter" | "withdraw" if established:
                step = 1 if action == "announce" else 3
                prefixes = [prefix(n) for n in range(first, first + count * step, step)]
                self.receive(number, None if action == "withdraw" else path, prefixes)
            case "End-of-RIB" if established:
                rib.receive(peer.name, bytes(4))
            case "down" if established:
                down(self.node, peer)
            case "restart" if established:
                rib.peer_down(peer.name, FOUR)
                up(self.node, peer, established)
            case "up" if not established:
                session(self.node, peer)
            case "refresh" if established:
                rib.refresh_begins(peer.name, 4)
            case "refreshed" if established:
                rib.refresh_ends(peer.name, 4)
            case "ours":
                self.node.originate(OURS)
            case "not ours":
                self.node.retract(OURS)
            case "unreachable":
                self.node.resolver.answers[peer.address(4)] = None
                rib.next_hops_changed([(peer.address(4), "")])
            case "reachable":
                self.node.resolver.answers.clear()
                rib.next_hops_changed([(other.address(4), "") for other in self.peers])
            case "policy":
                rib.set_policies(peer.name, (ACCEPT, REJECT, Policy())[path], Policy())
            case "select" if self.deferred:
                self.deferred = False
                rib.select(4)
                rib.complete(4)


ACTIONS = (
    *("announce", "scatter", "withdraw", "End-of-RIB", "down", "restart", "up", "refresh", "refreshed"),
    *("ours", "not ours", "unreachable", "reachable", "policy", "select"),
)
actions = st.tuples(
    st.sampled_from(ACTIONS) | st.sampled_from(("announce", "scatter", "withdraw")),
    st.integers(0, 1),
    st.integers(0, 2),
    st.integers(0, 40),
    st.integers(1, 40),
)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from((1, 50, 10_000)), st.booleans(), st.lists(st.tuples(actions, st.booleans()), max_size=16))
def test_with_a_decision_or_without(
    room: int, deferred: bool, steps: list[tuple[tuple[str, int, int, int, int], bool]]
) -> None:
    direct, decided = Either(room, deferred=deferred), Either(0, deferred=deferred)
    for action, settled in steps:
        for fixture in (direct, decided):
            fixture.apply(*action)
        if settled:
            assert direct.work() == decided.work()
    for fixture in (direct, decided):
        fixture.apply("select", 0, 0, 0, 0)
    assert direct.work() == decided.work()


@pytest.fixture
def node() -> Either:
    return Either(1000)


def test_a_first_path_is_in_the_loc_rib_at_once_and_in_the_fib_with_the_next_run(node: Either) -> None:
    rib, few = node.node.rib, [prefix(n) for n in range(5)]
    node.receive(0, 1, few)
    assert all(each in rib.loc[4].table for each in few)
    assert rib.waiting == 0
    assert rib.busy
    assert not node.node.fib[4]
    rib.run(1)
    assert len(node.node.fib[4]) == len(few)


def test_there_is_something_to_decide_about_the_second(node: Either) -> None:
    rib, few = node.node.rib, [prefix(n) for n in range(5)]
    node.receive(0, 1, few)
    node.receive(1, 1, [*few, prefix(9)])
    assert rib.waiting == len(few)
    assert len(rib.loc[4].table) == 1 + len(few) + 1  # one is ours


def test_no_more_than_the_last_run_decided_over(node: Either) -> None:
    rib = node.node.rib
    rib.run(7)
    for first in range(0, 50, 5):
        node.receive(0, 1, [prefix(n) for n in range(first, first + 5)])
    assert rib.waiting == 45
    assert len(rib.loc[4].table) == 1 + 5


def test_the_guard_of_our_own_prefixes_looks_at_first_paths_too(node: Either) -> None:
    node.node.originate(OURS)
    node.work()
    node.receive(0, 1, [prefix(n) for n in range(20, 30)])
    assert node.node.rib.waiting == 10
    node.work()
    assert len(node.node.fib[4]) == 4
    assert len(node.node.faults) == 6


def test_first_paths_count_as_received_and_accepted(node: Either) -> None:
    node.receive(0, 1, [prefix(n) for n in range(10)])
    counts = node.node.rib.counts("a")[4]
    assert (counts.received, counts.accepted) == (10, 10)
    assert node.node.rib.told("a", 4) == 10


def test_who_announces_little_does_not_wait_for_first_paths(node: Either) -> None:
    rib, batches = node.node.rib, list[int]()
    rib._on_fib = lambda family, changes: batches.append(sum(len(prefixes) for prefixes, _ in changes))
    node.receive(0, 1, [prefix(n) for n in range(300)])
    few = announcement(node.peers[1].asn, 1, [prefix(n) for n in (298, 299, 300)], node.peers[1].address(4))
    told: list[Received] = []
    rib.receive_all("b", [few], told.append, little=True)
    assert not told
    rib.run(100)
    assert batches == [300, 3]
