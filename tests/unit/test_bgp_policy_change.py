"""Policies that change while a session is up, and the policy of a node that is about to go (RFC 8326)."""

from __future__ import annotations

from bgp.attributes import COMMUNITIES, LOCAL_PREF, Attributes
from bgp.policy import ACCEPT, REJECT, Changes, Match, Policy, Rule, shutting_down
from config.prefix import parse
from config.prefix_range import PrefixRange
from tests.bgp_ribs import Node, join, settle

A4, B4 = "10.64.0.0/26", "10.64.1.0/26"
ONLY_A = Policy((Rule("a", True, Match((PrefixRange.parse(A4),))),))
GSHUT = b"\xff\xff\x00\x00"


def pair(b_as: int = 65002) -> tuple[Node, Node]:
    a, b = Node("a", 65001, 1), Node("b", b_as, 2)
    join(a, b)
    a.originate(A4, B4)
    settle(a, b)
    return a, b


def sent(a: Node, b: Node) -> int:
    before = len(a.messages["b"])
    settle(a, b)
    return len(a.messages["b"]) - before


def attribute(b: Node, code: int) -> bytes | None:
    path = b.rib.peers["a"].adj_in.tables[4][parse(A4)[1]]
    return Attributes(path.attributes.raw).value(code)


def test_an_import_policy_is_replaced_without_asking_the_peer() -> None:
    a, b = pair()
    b.rib.set_policies("a", ONLY_A, ACCEPT)
    assert sent(a, b) == 0
    assert list(b.fib[4]) == [A4]
    assert b.rib.counts("a")[4].accepted == 1
    b.rib.set_policies("a", ACCEPT, ACCEPT)
    assert sent(a, b) == 0
    assert sorted(b.fib[4]) == [A4, B4]


def test_an_export_policy_is_replaced_and_only_the_difference_is_sent() -> None:
    a, b = pair()
    a.rib.set_policies("b", ACCEPT, ONLY_A)
    assert sent(a, b) == 1
    assert list(b.fib[4]) == [A4]
    a.rib.set_policies("b", ACCEPT, ACCEPT)
    sent(a, b)
    assert sorted(b.fib[4]) == [A4, B4]


def test_the_same_policies_change_nothing() -> None:
    a, b = pair()
    a.rib.set_policies("b", ACCEPT, ACCEPT)
    assert sent(a, b) == 0


def test_a_policy_for_a_peer_without_a_session_holds_from_its_start() -> None:
    a, b = pair()
    a.rib.peer_down("b")
    b.rib.peer_down("a")
    settle(b)
    b.rib.set_policies("a", REJECT, ACCEPT)
    settle(b)
    assert b.fib[4] == {}


def test_a_node_that_goes_tells_so_and_is_avoided() -> None:
    """RFC 8326 sections 4.1 and 4.2: the community, and the least local preference at an external receiver."""
    a, b = pair()
    a.rib.set_policies("b", ACCEPT, shutting_down(ACCEPT))
    settle(a, b)
    assert attribute(b, COMMUNITIES) == GSHUT
    assert b.rib.explain(*parse(A4)).routes[0].local_pref == 0
    a.rib.set_policies("b", ACCEPT, REJECT)
    settle(a, b)
    assert b.fib[4] == {}


def test_inside_an_as_the_local_preference_goes_along() -> None:
    a, b = pair(65001)
    a.rib.set_policies("b", ACCEPT, shutting_down(ACCEPT))
    settle(a, b)
    assert attribute(b, LOCAL_PREF) == bytes(4)


def test_rules_keep_what_they_pass_and_what_they_set() -> None:
    exports = Policy((Rule("a", True, Match((PrefixRange.parse(A4),)), Changes(communities=frozenset((b"abcd",)))),))
    a, b = pair()
    a.rib.set_policies("b", ACCEPT, shutting_down(exports))
    settle(a, b)
    assert list(b.fib[4]) == [A4]
    assert attribute(b, COMMUNITIES) == b"abcd" + GSHUT
