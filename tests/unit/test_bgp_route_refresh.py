"""Enhanced route refresh (RFC 7313) between RIBs."""

from __future__ import annotations

from bgp import codec
from bgp.framing import Framer
from bgp.messages import MessageType, RouteRefresh
from bgp.policy import ACCEPT, REJECT
from bgp.update import end_of_rib
from config.prefix import parse
from tests.bgp_ribs import Node, add_peer, session, settle

A4, B4 = "10.64.0.0/26", "10.64.1.0/26"


def pair(*, enhanced: bool = True) -> tuple[Node, Node]:
    a, b = Node("a", 65001, 1), Node("b", 65002, 2)
    add_peer(a, b)
    add_peer(b, a)
    session(a, b, opens=(a.open(enhanced_refresh=True), b.open(enhanced_refresh=enhanced)))
    a.originate(A4, B4)
    return a, b


def drain(a: Node) -> list[str]:
    """What ``a`` sends now, a word for each message."""
    while a.rib.run(100):
        pass
    words = []
    while a.rib.has_outgoing("b"):
        for message in a.rib.outgoing("b", 1 << 20):
            ((kind, body),) = Framer().feed(message)
            if kind == MessageType.ROUTE_REFRESH:
                refresh = codec.decode_route_refresh(body)
                assert refresh is not None
                words.append(("ask", "BoRR", "EoRR")[refresh.subtype])
            else:
                words.append("End-of-RIB" if end_of_rib(body) else "UPDATE")
    return words


def test_the_answer_stands_between_its_markers() -> None:
    """Section 4: BoRR, every route, EoRR."""
    a, _ = pair()
    drain(a)
    a.rib.refresh("b", 4)
    assert drain(a) == ["BoRR", "UPDATE", "EoRR"]
    assert not a.rib.has_outgoing("b")


def test_without_the_capability_there_are_no_markers() -> None:
    a, _ = pair(enhanced=False)
    drain(a)
    a.rib.refresh("b", 4)
    assert drain(a) == ["UPDATE"]


def test_the_initial_table_and_its_end_come_first() -> None:
    """Section 4: no BoRR before the End-of-RIB of that family."""
    a, _ = pair()
    a.rib.refresh("b", 4)
    words = drain(a)
    assert words.index("BoRR") > words.index("End-of-RIB")
    assert words.count("BoRR") == words.count("EoRR") == 1


def test_an_empty_table_has_its_markers_too() -> None:
    a, _ = pair()
    a.retract(A4, B4)
    drain(a)
    a.rib.refresh("b", 4)
    assert drain(a) == ["BoRR", "EoRR"]


def test_a_refresh_survives_a_change_of_policy() -> None:
    a, _ = pair()
    drain(a)
    a.rib.refresh("b", 4)
    a.rib.set_policies("b", ACCEPT, REJECT)
    words = drain(a)
    assert [word for word in words if word != "UPDATE"] == ["BoRR", "EoRR"]


def test_what_is_not_repeated_goes_at_the_end() -> None:
    """Section 4: stale from BoRR on, removed at EoRR."""
    a, b = pair()
    settle(a, b)
    b.rib.refresh_begins("a", 4)
    assert b.rib.stale("a", 4) == 2
    settle(b)
    assert sorted(b.fib[4]) == [A4, B4], "until then it is used"
    (update,) = (m for m in a.messages["b"] if parse(A4)[1] in m)
    ((_, body),) = Framer().feed(update)
    b.rib.receive("a", body)
    assert b.rib.stale("a", 4) == 0
    assert b.rib.refresh_ends("a", 4) == 0
    b.rib.refresh_begins("a", 4)
    assert b.rib.refresh_ends("a", 4) == 2
    settle(b)
    assert b.fib[4] == {}


def test_markers_are_as_the_codec_has_them() -> None:
    """Section 3.2: the subtype where RFC 2918 had a reserved octet."""
    a, _ = pair()
    drain(a)
    a.rib.refresh("b", 6)
    first, *_ = a.rib.outgoing("b", 1 << 20)
    assert first == codec.encode_route_refresh(RouteRefresh(6, 1))
