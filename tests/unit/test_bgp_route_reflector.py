"""Route reflection (RFC 4456), by three and four speakers of one AS joined in memory."""

from __future__ import annotations

import pytest

from bgp.adj_rib_in import RibPeer
from bgp.attributes import CLUSTER_LIST, ORIGINATOR_ID, Attributes
from bgp.policy import ACCEPT, Match, Policy, Rule
from config.prefix import parse
from tests.bgp_ribs import Node, session, settle

AS = 65001
A4 = "10.64.0.0/26"
ALL = Policy((Rule("all", True, Match(sources=frozenset(("learned", "block")))),))


def peering(node: Node, other: Node, *, client: bool = False) -> None:
    node.rib.add_peer(RibPeer(other.name, other.asn, ACCEPT, ALL, reflector_client=client))


def star(
    *clients: str, asns: tuple[int, int, int] = (AS, AS, AS), cluster_id: bytes | None = None
) -> tuple[Node, Node, Node]:
    """a - r - b, where ``r`` reflects to those of ``clients``."""
    a, b = Node("a", asns[0], 1), Node("b", asns[1], 2)
    r = Node("r", asns[2], 9, cluster_id=cluster_id)
    for other in (a, b):
        peering(r, other, client=other.name in clients)
        peering(other, r)
        session(r, other)
    a.originate(A4)
    settle(a, b, r)
    return a, b, r


def attributes(node: Node, peer: str) -> Attributes:
    path = node.rib.peers[peer].adj_in.tables[4][parse(A4)[1]]
    return Attributes(path.attributes.raw)


@pytest.mark.parametrize(("clients", "reflected"), [((), False), (("a",), True), (("b",), True), (("a", "b"), True)])
def test_who_gets_a_route_of_an_internal_peer(clients: tuple[str, ...], reflected: bool) -> None:
    """Section 6: from a client to all, from a non-client to clients only."""
    _, b, _ = star(*clients)
    assert (A4 in b.fib[4]) is reflected


def test_a_reflected_route_says_where_it_comes_from_and_through_what() -> None:
    """Section 8: ORIGINATOR_ID and CLUSTER_LIST; section 10: the next hop stays."""
    a, b, r = star("b")
    got = attributes(b, "r")
    assert got.value(ORIGINATOR_ID) == a.router_id
    assert got.value(CLUSTER_LIST) == r.router_id
    assert [hop.address for hop in b.fib[4][A4]] == [a.address(4)]


def test_the_cluster_id_can_be_set() -> None:
    """Section 7: reflectors of one cluster share it."""
    _, b, _ = star("b", cluster_id=b"\x0a\x00\x00\xfe")
    assert attributes(b, "r").value(CLUSTER_LIST) == b"\x0a\x00\x00\xfe"


def test_a_second_reflector_adds_its_cluster_and_keeps_the_originator() -> None:
    a, b, r = star("b")
    c = Node("c", AS, 3)
    peering(b, c, client=True)
    peering(c, b)
    session(b, c)
    settle(a, b, c, r)
    got = attributes(c, "b")
    assert got.value(ORIGINATOR_ID) == a.router_id
    assert got.value(CLUSTER_LIST) == b.router_id + r.router_id


def test_nobody_takes_its_own_route_back() -> None:
    """Section 8: a route with our identifier as its originator is ignored, so it goes when it is withdrawn."""
    a, b, r = star("a", "b")
    peering(b, a, client=True)
    peering(a, b)
    session(a, b)
    settle(a, b, r)
    a.retract(A4)
    settle(a, b, r)
    assert not a.fib[4]
    assert not b.fib[4]


def test_two_reflectors_of_one_cluster_do_not_take_each_others_routes() -> None:
    """Section 8: CLUSTER_LIST with our own cluster."""
    cluster = b"\x0a\x00\x00\xfe"
    a, _, r = star("a", cluster_id=cluster)
    s = Node("s", AS, 8, cluster_id=cluster)
    peering(r, s)
    peering(s, r)
    session(r, s)
    settle(a, r, s)
    (route,) = s.rib.explain(*parse(A4)).routes
    assert route.ineligible == "CLUSTER_LIST holds our own cluster"


def test_another_as_sees_nothing_of_it() -> None:
    """Section 8: both attributes are non-transitive."""
    _, b, _ = star("a", asns=(AS, 65002, AS))
    got = attributes(b, "r")
    assert (got.value(ORIGINATOR_ID), got.value(CLUSTER_LIST)) == (None, None)
