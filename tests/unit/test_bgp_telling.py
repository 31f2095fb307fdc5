"""Whatever changes while a peer is being told, and in whatever slices: in the end it knows what it is to know."""

from __future__ import annotations

from dataclasses import replace
from struct import pack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgp.framing import Framer
from bgp.policy import NO_CHANGES, Match, Policy, Rule
from bgp.telling import SLICE
from config.prefix_range import PrefixRange
from tests.bgp_ribs import Node, add_peer, session, settle

LEARNED = Match(sources=frozenset(("learned",)))
EVERYTHING = Policy(rules=(Rule("all", True, LEARNED),))
MARKED = Policy(rules=(Rule("all", True, LEARNED, replace(NO_CHANGES, med=7)),))
HALF = Policy(rules=(Rule("half", True, replace(LEARNED, prefixes=(PrefixRange(4, b"\x10\x0a\x00", 16, 24),))),))
POLICIES = (EVERYTHING, MARKED, HALF, Policy())


def prefix(number: int) -> bytes:
    return b"\x18\x0a" + bytes((number & 1, number))


def update(announced: list[int], withdrawn: list[int], med: int = 0) -> bytes:
    section = bytes.fromhex("4001010040020602010000fdea400304c0000202800404") + pack("!I", med)
    gone = b"".join(map(prefix, withdrawn))
    nlri = b"".join(map(prefix, announced))
    return pack("!H", len(gone)) + gone + (pack("!H", len(section)) + section if nlri else b"\0\0") + nlri


class Trio:
    """A node between a source and a sink; a second sink's group is there already, with a policy of its own."""

    def __init__(self) -> None:
        self.node, self.source = Node("n", 65001, 1), Node("source", 65002, 2)
        self.sink, self.other = Node("sink", 65003, 3), Node("other", 65004, 4)
        add_peer(self.node, self.source, exports=Policy())
        add_peer(self.source, self.node)
        for sink, policy in ((self.sink, EVERYTHING), (self.other, MARKED)):
            add_peer(self.node, sink, exports=policy)
            add_peer(sink, self.node)
        for node in (self.source, self.sink, self.other):
            session(self.node, node)
        self.framer = Framer()

    def send(self, octets: int) -> bool:
        taken = self.node.rib.outgoing("sink", octets)
        for message in taken:
            for kind, body in self.framer.feed(message):
                if kind == 2:
                    self.sink.rib.receive("n", body)
        return bool(taken)

    def settle(self) -> None:
        while self.node.rib.run(100) or self.send(1 << 16) or self.node.rib.has_outgoing("sink"):
            pass

    def known(self) -> dict[bytes, tuple[int | None, int]]:
        table = self.sink.rib.peers["n"].adj_in.tables[4]
        return {prefix: (path.attributes.med, path.attributes.path_length) for prefix, path in table.items()}


numbers = st.lists(st.integers(0, 60), max_size=30)
actions = st.one_of(
    st.tuples(st.just("update"), numbers, numbers, st.integers(0, 1)),
    st.tuples(st.just("policy"), st.sampled_from(POLICIES)),
    st.tuples(st.just("run"), st.integers(1, 40)),
    st.tuples(st.just("send"), st.integers(1, 300)),
    st.tuples(st.just("refresh")),
    st.tuples(st.just("next hop"), st.integers(1, 9)),
)


@given(st.lists(actions, max_size=25))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_order_of_changes(monkeypatch: pytest.MonkeyPatch, drawn: list[tuple[Any, ...]]) -> None:
    for module in ("telling", "adj_rib_out"):
        monkeypatch.setattr(f"bgp.{module}.SLICE", 5)
    monkeypatch.setattr("bgp.adj_rib_out._LOG_LIMIT", 20)
    trio = Trio()
    rib = trio.node.rib
    announced: dict[int, int] = {}
    policy, last = EVERYTHING, b""
    negotiated = rib.peers["sink"].adj_in.negotiated
    assert negotiated is not None
    for what, *arguments in drawn:
        if what == "update":
            reach, gone, med = arguments
            rib.receive("source", update(reach, gone, med))
            for number in gone:
                announced.pop(number, None)
            announced |= dict.fromkeys(reach, med)
        elif what == "policy":
            policy = arguments[0]
            rib.set_policies("sink", rib.peers["sink"].settings.import_policy, policy)
        elif what == "run":
            rib.run(arguments[0])
        elif what == "send":
            trio.send(arguments[0])
        elif what == "refresh":
            rib.refresh("sink", 4)
        else:
            last = bytes((192, 0, 2, 100 + arguments[0]))
            rib.local_next_hops("sink", negotiated, local_address=trio.node.address(4), next_hops={4: last})
    trio.settle()
    # MED of another AS does not go to a third one but where our policy sets it.
    passes = {number for number in announced if policy is not HALF or not number & 1}
    expected = {} if policy == Policy() else {prefix(n): (7 if policy is MARKED else None, 2) for n in passes}
    assert trio.known() == expected
    if last and expected:
        hops = {path.hop.address for path in trio.sink.rib.peers["n"].adj_in.tables[4].values() if path.hop}
        assert hops == {last}
    assert 4 in trio.sink.rib.end_of_rib_received("n")


@pytest.mark.parametrize("policy", [MARKED, EVERYTHING])
def test_a_policy_that_changes_before_the_peer_is_told_anything(policy: Policy) -> None:
    trio = Trio()
    trio.node.rib.peer_down("sink")
    for number in range(50):
        trio.node.rib.receive("source", update([number], []))
    trio.settle()
    session(trio.node, trio.sink)
    trio.framer = Framer()
    trio.node.rib.set_policies("sink", trio.node.rib.peers["sink"].settings.import_policy, HALF)
    trio.node.rib.run(10)
    trio.node.rib.set_policies("sink", trio.node.rib.peers["sink"].settings.import_policy, policy)
    trio.settle()
    assert len(trio.known()) == 50


def test_an_update_is_packed_once_for_all_peers_that_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node("n", 65001, 1)
    sinks = [Node(f"sink{number}", 65100 + number, 10 + number) for number in range(20)]
    for sink in sinks:
        add_peer(node, sink)
        add_peer(sink, node)
        session(node, sink)
    packed = 0
    group = type(node.rib.peers["sink0"].groups[4])
    pack_up = group._pack

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal packed
        packed += 1
        return pack_up(self, *arguments)

    settle(node, *sinks)
    monkeypatch.setattr(group, "_pack", counted)
    node.originate("10.0.0.0/24")
    settle(node, *sinks)
    assert packed == 1
    assert all(len(sink.rib.peers["n"].adj_in.tables[4]) == 1 for sink in sinks)


COUNT = 30_000


def test_a_changed_export_policy_is_worked_off_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    trio = Trio()
    rib = trio.node.rib
    section = bytes.fromhex("4001010040020602010000fdea400304c0000202")
    for first in range(0, COUNT, 1000):
        nlri = b"".join(b"\x18" + (0x010000 + number).to_bytes(3, "big") for number in range(first, first + 1000))
        rib.receive("source", pack("!HH", 0, len(section)) + section + nlri)
    trio.settle()
    assert len(trio.known()) == COUNT
    looked = 0
    group = type(rib.peers["sink"].groups[4])
    plan = group._plan

    def counted(self: Any, stretch: Any, receiver: Any) -> Any:
        nonlocal looked
        looked = max(looked, len(stretch))
        return plan(self, stretch, receiver)

    monkeypatch.setattr(group, "_plan", counted)
    rib.set_policies("sink", rib.peers["sink"].settings.import_policy, MARKED)
    assert not looked  # nothing is looked at before its turn
    trio.settle()
    assert 0 < looked <= SLICE
    assert {med for med, _ in trio.known().values()} == {7}
    rib.set_policies("sink", rib.peers["sink"].settings.import_policy, Policy())
    assert len(rib.peers["sink"].groups[4].table) == 0
    trio.settle()
    assert not trio.known()
