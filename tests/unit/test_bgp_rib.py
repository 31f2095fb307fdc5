"""What a speaker's RIBs do with each other: two or more of them joined in memory."""

from __future__ import annotations

from struct import pack

import pytest

from bgp.attributes import pack_attribute
from bgp.codec import negotiate
from bgp.framing import Framer
from bgp.messages import BgpError, Open
from bgp.nlri import decode
from bgp.policy import ACCEPT, REJECT, Changes, Match, Policy, Rule
from bgp.update import end_of_rib, split
from config.nexthop import Gateway, NextHops, Resolution
from config.prefix import parse, text
from config.prefix_range import PrefixRange
from tests.bgp_ribs import BOTH, Node, add_peer, down, flat, join, session, settle, up

TRANSIT = Policy(rules=(Rule("transit", True, Match(sources=frozenset(("learned", "block", "static")))),))

A4, A6 = "10.64.0.0/26", "fd00:64::/122"


def exporting(changes: Changes) -> Policy:
    return Policy(rules=(Rule("all", True, Match(sources=frozenset(("learned", "block"))), changes),))


def pair(a_as: int = 65001, b_as: int = 65002) -> tuple[Node, Node]:
    a, b = Node("a", a_as, 1), Node("b", b_as, 2)
    join(a, b)
    return a, b


def bodies(messages: list[bytes]) -> list[bytes]:
    return [body for message in messages for _, body in Framer(65535).feed(message)]


def advertised(node: Node, peer: str, prefix: str) -> dict[int, bytes]:
    """Attributes of a prefix as ``node`` tells ``peer``, next hop included, by code."""
    family, wire = parse(prefix)
    group = node.rib.peers[peer].groups[family]
    route = group.table[wire]
    found: dict[int, bytes] = {}
    raw, at = route.before + route.after, 0
    while at < len(raw):
        size = raw[at + 2]
        found[raw[at + 1]] = raw[at + 3 : at + 3 + size]
        at += 3 + size
    return found | {3: route.next_hop or group.members[peer].next_hop}


def chain(middle_exports: Policy, *numbers: int) -> tuple[Node, Node, Node]:
    """a - b - c, where b passes on what ``middle_exports`` lets it."""
    a, b, c = (Node(name, asn, n + 1) for n, (name, asn) in enumerate(zip("abc", numbers, strict=True)))
    add_peer(a, b)
    add_peer(b, a, exports=middle_exports)
    add_peer(b, c, exports=middle_exports)
    add_peer(c, b)
    session(a, b)
    session(b, c)
    return a, b, c


# From one speaker to another


def test_own_prefixes_arrive_and_go() -> None:
    a, b = pair()
    a.originate(A4, A6)
    settle(a, b)
    assert {f: list(t) for f, t in b.fib.items()} == {4: [A4], 6: [A6]}
    [hop] = b.fib[4][A4]
    assert (hop.peer, hop.address, hop.device) == ("a", a.address(4), "")
    assert b.fib[6][A6][0].address == a.address(6)
    assert a.fib == {4: {}, 6: {}}, "our own routes are not the FIB's business"
    a.retract(A4)
    settle(a, b)
    assert list(b.fib[4]) == []
    assert list(b.fib[6]) == [A6]
    assert a.faults == b.faults == []


def test_routes_go_with_their_session() -> None:
    a, b = pair()
    a.originate(A4, A6)
    settle(a, b)
    down(a, b)
    settle(b)
    assert b.fib == {4: {}, 6: {}}
    assert b.rib.counts("a") == {}
    session(a, b)
    settle(a, b)
    assert list(b.fib[4]) == [A4]


def test_removed_peer_takes_its_routes_along() -> None:
    a, b = pair()
    a.originate(A4)
    settle(a, b)
    b.rib.remove_peer("a")
    settle(b)
    assert b.fib[4] == {}
    assert not b.rib.busy
    with pytest.raises(KeyError):
        b.rib.counts("a")


def test_peer_names_are_unique() -> None:
    a, b = pair()
    with pytest.raises(ValueError, match="peer b exists"):
        add_peer(a, b)


def test_several_owners_of_one_prefix() -> None:
    a, b = pair()
    a.originate(A4, owner="block", source="block")
    a.originate(A4, owner="config", source="static")
    settle(a, b)
    a.retract(A4, owner="block")
    a.retract(A4, owner="nobody")
    settle(a, b)
    assert list(b.fib[4]) == [A4]
    a.retract(A4, owner="config")
    settle(a, b)
    assert list(b.fib[4]) == []


def test_work_is_done_in_slices() -> None:
    a, b = pair()
    a.originate(*[f"10.{n >> 8}.{n & 255}.0/24" for n in range(1000)])
    while a.rib.run(100):
        pass
    for body in bodies(a.rib.outgoing("b", 1 << 20)):
        b.rib.receive("a", body)
    batches: list[int] = []
    b.rib._on_fib = lambda family, changes: batches.append(sum(len(p) for p, _ in changes))
    while b.rib.run(100):
        pass
    assert batches == [100] * 10


def test_a_busy_peer_does_not_keep_others_from_being_served() -> None:
    hub, leaves = star(2)
    leaves[0].originate(*[f"10.1.{n}.0/24" for n in range(200)])
    leaves[1].originate(A4, A6)
    for leaf in leaves:
        while leaf.rib.run(1000):
            pass
        for body in bodies(leaf.rib.outgoing("hub", 1 << 20)):
            hub.rib.receive(leaf.name, body)
    for _ in range(4):
        hub.rib.run(2)
    assert hub.via(4, A4) == hub.via(6, A6) == ["leaf1"]


# End-of-RIB


def test_end_of_rib_follows_the_initial_table_of_its_family() -> None:
    """RFC 4724 section 2."""
    a, b = Node("a", 65001, 1), Node("b", 65002, 2)
    a.originate(A4, A6)
    join(a, b)
    settle(a, b)
    sent = bodies(a.messages["b"])
    assert [end_of_rib(body) for body in sent] == [None, 4, None, 6]
    assert b.rib.end_of_rib_received("a") == {4, 6}
    assert a.rib.end_of_rib_received("b") == {4, 6}, "also without a route"
    down(a, b)
    assert b.rib.end_of_rib_received("a") == set()


def test_end_of_rib_waits_for_the_whole_table() -> None:
    a, b, c = Node("a", 65001, 1), Node("b", 65002, 2), Node("c", 65003, 3)
    join(a, b)
    a.originate(*[f"10.1.{n}.0/24" for n in range(200)])
    settle(a, b)
    add_peer(b, c, exports=TRANSIT)
    add_peer(c, b)
    session(b, c)
    b.rib.run(50)
    first = [end_of_rib(body) for body in bodies(b.rib.outgoing("c", 1 << 20))]
    while b.rib.run(50):
        pass
    second = [end_of_rib(body) for body in bodies(b.rib.outgoing("c", 1 << 20))]
    assert 4 not in first
    assert [family for family in second if family != 6] == [None, 4]
    assert sorted(filter(None, first + second)) == [4, 6]
    assert not b.rib.has_outgoing("c")


def test_end_of_rib_of_a_family_that_was_not_negotiated() -> None:
    a, b = Node("a", 65001, 1), Node("b", 65002, 2)
    add_peer(a, b)
    add_peer(b, a)
    session(a, b, opens=(a.open(families=frozenset((6,))), b.open()))
    received = a.rib.receive("b", bytes(4))
    assert received.end_of_rib is None
    assert "not negotiated" in received.faults[0]


def test_routes_of_a_family_that_was_not_negotiated_are_left_alone() -> None:
    a, b = Node("a", 65001, 1), Node("b", 65002, 2)
    add_peer(a, b)
    add_peer(b, a)
    session(a, b, opens=(a.open(families=frozenset((4,))), b.open()))
    a.originate(A4, A6)
    settle(a, b)
    assert b.fib == {4: b.fib[4], 6: {}}
    assert list(b.fib[4]) == [A4]
    section = pack_attribute(0x40, 1, b"\0")
    body = pack("!HH", 0, len(section)) + section + b"\x08\x0b"
    session(a, b, opens=(a.open(families=frozenset((6,))), b.open()))
    assert "not negotiated" in a.rib.receive("b", body).faults[0]


def test_family_without_a_next_hop_of_our_own_is_not_advertised() -> None:
    a, b = Node("a", 65001, 1), Node("b", 65002, 2)
    add_peer(a, b)
    add_peer(b, a)
    up(a, b, negotiate(a.open(), b.open(), b.asn), families=(4,))
    up(b, a, negotiate(b.open(), a.open(), a.asn))
    a.originate(A4, A6)
    settle(a, b)
    assert b.fib[6] == {}
    assert list(b.fib[4]) == [A4]


# Export rules


def test_external_session_gets_next_hop_self_and_no_internal_attributes() -> None:
    """RFC 4271 sections 5.1.2 to 5.1.5."""
    a, b, _ = nodes = chain(TRANSIT, 65001, 65002, 65003)
    a.rib.remove_peer("b")
    add_peer(a, b, exports=exporting(Changes(med=50, communities=frozenset((b"\xfd\xe9\0\7",)))))
    session(a, b)
    a.originate(A4)
    settle(*nodes)
    first = advertised(a, "b", A4)
    assert first[4] == pack("!I", 50)
    second = advertised(b, "c", A4)
    assert second[2] == bytes((2, 2)) + pack("!II", 65002, 65001)
    assert second[3] == b.address(4)
    assert 4 not in second, "a MED goes no further than the neighbouring AS"
    assert 5 not in second
    assert second[8] == b"\xfd\xe9\0\7"


def test_internal_session_keeps_the_next_hop_and_carries_local_pref() -> None:
    """RFC 4271 sections 5.1.3 and 5.1.5."""
    a, b, c = chain(TRANSIT, 65001, 65002, 65002)
    a.originate(A4)
    b.originate("10.64.1.0/26")
    settle(a, b, c)
    found = advertised(b, "c", A4)
    assert found[2] == bytes((2, 1)) + pack("!I", 65001), "no AS is added inside an AS"
    assert found[3] == a.address(4)
    assert found[5] == pack("!I", 100)
    assert c.fib[4][A4][0].address == a.address(4)
    own = advertised(b, "c", "10.64.1.0/26")
    assert own[2] == b""
    assert own[3] == b.address(4)


def test_next_hop_self_on_an_internal_session() -> None:
    a, b, c = chain(exporting(Changes(next_hop_self=True)), 65001, 65002, 65002)
    a.originate(A4)
    settle(a, b, c)
    assert c.fib[4][A4][0].address == b.address(4)


def test_internal_routes_do_not_go_to_internal_peers() -> None:
    """RFC 4271 section 9.2."""
    a, b, c = chain(TRANSIT, 65001, 65001, 65001)
    a.originate(A4)
    settle(a, b, c)
    assert list(b.fib[4]) == [A4]
    assert c.fib[4] == {}
    [export] = [e for e in b.rib.explain(*parse(A4)).exports if e.peer == "c"]
    assert "internal peer" in export.reason


def test_peer_does_not_get_its_own_route_back() -> None:
    a, b, c = chain(TRANSIT, 65001, 65002, 65003)
    a.originate(A4)
    settle(a, b, c)
    assert b.rib.counts("a")[4].advertised == 0
    assert b.rib.counts("c")[4].advertised == 1
    assert all(split(body)[2] == b"" for body in bodies(b.messages["a"]))


def test_best_path_that_moves_to_a_member_of_the_group_is_withdrawn_from_it() -> None:
    """a and d announce one prefix to b; a hears d's path from b until its own is the better one."""
    a, b, d = Node("a", 65001, 1), Node("b", 65002, 2), Node("d", 65004, 4)
    for node in (a, d):
        add_peer(node, b, exports=exporting(Changes(prepend=0 if node is a else 1)))
        add_peer(b, node, exports=TRANSIT)
        session(node, b)
    d.originate(A4)
    settle(a, b, d)
    assert a.via(4, A4) == ["b"]
    a.originate(A4)
    settle(a, b, d)
    assert a.via(4, A4) == []
    assert b.via(4, A4) == ["a"]
    assert b.rib.counts("a")[4].advertised == 0
    assert parse(A4)[1] not in a.rib.peers["b"].adj_in.tables[4]


@pytest.mark.parametrize(
    ("community", "ebgp", "ibgp"),
    [
        pytest.param(0xFFFFFF01, False, True, id="no-export"),
        pytest.param(0xFFFFFF02, False, False, id="no-advertise"),
        pytest.param(0xFFFFFF03, False, True, id="no-export-subconfed"),
        pytest.param(0xFDE90001, True, True, id="65001:1"),
    ],
)
def test_well_known_communities(community: int, ebgp: bool, ibgp: bool) -> None:
    """RFC 1997."""
    for asn, passed in ((65003, ebgp), (65002, ibgp)):
        a, b, c = chain(TRANSIT, 65001, 65002, asn)
        a.rib.remove_peer("b")
        add_peer(a, b, exports=exporting(Changes(communities=frozenset((pack("!I", community),)))))
        session(a, b)
        a.originate(A4)
        settle(a, b, c)
        assert list(b.fib[4]) == [A4]
        assert list(c.fib[4]) == ([A4] if passed else [])


def test_prepend() -> None:
    a, b = Node("a", 65001, 1), Node("b", 65002, 2)
    add_peer(a, b, exports=exporting(Changes(prepend=2)))
    add_peer(b, a)
    session(a, b)
    a.originate(A4)
    settle(a, b)
    assert flat(b.rib.inspection.loc_rib(4))[0].as_path == "65001 65001 65001"


def test_two_octet_peer() -> None:
    """RFC 6793 section 4.2: AS_TRANS and AS4_PATH out, put together again behind it."""
    a, b, c = Node("a", 4200000001, 1), Node("b", 65002, 2), Node("c", 4200000003, 3)
    add_peer(a, b)
    add_peer(b, a, enforce_first_as=False)
    add_peer(b, c, exports=TRANSIT)
    add_peer(c, b)
    opens = a.open(), Open(asn=65002, hold_time=90, identifier=b.router_id, families=BOTH, four_octet_as=False)
    session(a, b, opens=opens)
    session(b, c)
    a.originate(A4)
    settle(a, b, c)
    found = advertised(a, "b", A4)
    assert found[2] == bytes((2, 1)) + pack("!H", 23456)
    assert found[17] == bytes((2, 1)) + pack("!I", 4200000001)
    assert flat(b.rib.inspection.loc_rib(4))[0].as_path == "4200000001"
    assert flat(c.rib.inspection.loc_rib(4))[0].as_path == "65002 4200000001"


def test_unknown_transitive_attribute_is_passed_on_as_partial() -> None:
    """RFC 4271 section 5."""
    a, b, c = chain(TRANSIT, 65001, 65002, 65003)
    section = b"".join(
        (
            pack_attribute(0x40, 1, b"\0"),
            pack_attribute(0x40, 2, bytes((2, 1)) + pack("!I", 65001)),
            pack_attribute(0x40, 3, a.address(4)),
            pack_attribute(0xC0, 99, b"kept"),
            pack_attribute(0x80, 98, b"dropped"),
            pack_attribute(0xC0, 16, b"\x00\x02" + bytes(6) + b"\x40\x04" + bytes(6)),
        )
    )
    b.rib.receive("a", pack("!HH", 0, len(section)) + section + parse(A4)[1])
    settle(b, c)
    path = c.rib.loc[4].paths(parse(A4)[1])[0]
    found = {code: (flags, value) for flags, code, value in path.attributes}
    assert found[99] == (0xE0, b"kept")
    assert 98 not in found
    assert found[16][1] == b"\x00\x02" + bytes(6), "RFC 4360 section 6: non-transitive ones stay in the AS"


def test_attributes_too_long_for_the_session_are_not_announced() -> None:
    """RFC 8654 section 4: a route that came in an extended message may not fit into a standard one."""
    a, b, c = chain(TRANSIT, 65001, 65002, 65003)
    extended = a.open(extended_message=True), b.open(extended_message=True)
    session(a, b, opens=extended)
    section = b"".join(
        (
            pack_attribute(0x40, 1, b"\0"),
            pack_attribute(0x40, 2, bytes((2, 1)) + pack("!I", 65001)),
            pack_attribute(0x40, 3, a.address(4)),
            pack_attribute(0xC0, 32, bytes(12 * 400)),
        )
    )
    b.rib.receive("a", pack("!HH", 0, len(section)) + section + parse(A4)[1])
    settle(b, c)
    assert list(b.fib[4]) == [A4]
    assert c.fib[4] == {}
    [export] = [e for e in b.rib.explain(*parse(A4)).exports if e.peer == "c"]
    assert "do not fit" in export.reason


def test_nothing_is_exported_without_a_policy() -> None:
    """RFC 8212."""
    a, b = Node("a", 65001, 1), Node("b", 65002, 2)
    add_peer(a, b, exports=REJECT)
    add_peer(b, a)
    session(a, b)
    a.originate(A4)
    settle(a, b)
    assert b.fib[4] == {}
    assert a.rib.explain(*parse(A4)).exports[0].reason == "default reject"


def test_withdrawal_goes_to_those_who_were_told_only() -> None:
    a, b = pair()
    settle(a, b)
    a.messages.clear()
    a.originate(A4)
    a.rib.run(100)
    a.retract(A4)
    settle(a, b)
    assert a.messages == {}, "it came and went before anything was written"


def test_late_peer_of_a_group_gets_the_table_once() -> None:
    a, b, c = Node("a", 65001, 1), Node("b", 65002, 2), Node("c", 65003, 3)
    join(a, b)
    a.originate(A4, "10.64.1.0/26")
    settle(a, b)
    join(a, c)
    a.retract(A4)
    a.originate("10.64.2.0/26")
    settle(a, b, c)
    assert sorted(c.fib[4]) == ["10.64.1.0/26", "10.64.2.0/26"] == sorted(b.fib[4])
    assert len(a.rib._groups) == 2, "one per family"


def test_group_members_at_one_place_share_packed_messages() -> None:
    hub = Node("hub", 65001, 1)
    leaves = [Node(f"leaf{n}", 65002 + n, 2 + n) for n in range(5)]
    for leaf in leaves:
        join(hub, leaf)
    settle(hub, *leaves)
    hub.originate(*[f"10.64.{n}.0/26" for n in range(100)])
    while hub.rib.run(10):
        pass
    sent = [hub.rib.outgoing(leaf.name, 1 << 20) for leaf in leaves]
    assert all(len(messages) == 1 for messages in sent)
    assert len({id(messages[0]) for messages in sent}) == 1


def test_route_refresh_announces_everything_again() -> None:
    """RFC 2918."""
    a, b = pair()
    a.originate(A4, A6)
    settle(a, b)
    a.messages.clear()
    a.rib.refresh("b", 4)
    a.retract(A6)
    settle(a, b)
    assert list(b.fib[4]) == [A4]
    assert len(a.messages["b"]) == 2
    a.rib.refresh("b", 4)
    a.retract(A4)
    settle(a, b)
    assert b.fib[4] == {}


@pytest.mark.parametrize("delivered", [True, False], ids=["all told", "changes pending"])
def test_other_next_hops_of_our_own_in_the_middle_of_a_session(delivered: bool) -> None:
    """Everything is announced anew, and what the peer holds and is gone by now is withdrawn."""
    a, b = Node("a", 65001, 1), Node("b", 65002, 2)
    add_peer(a, b)
    add_peer(b, a)
    negotiated = negotiate(a.open(), b.open(), b.asn)
    up(b, a, negotiate(b.open(), a.open(), a.asn))
    up(a, b, negotiated)
    a.originate(A4, "10.64.1.0/26", A6)
    settle(a, b)
    a.messages.clear()
    if delivered:
        a.retract("10.64.1.0/26")
        settle(a, b)
    else:
        a.retract("10.64.1.0/26")
        a.originate("10.64.2.0/26")
        a.rib.run(100)
    another = bytes((192, 0, 2, 77))
    a.rib.local_next_hops("b", negotiated, local_address=a.address(4), next_hops={4: another, 6: a.address(6)})
    settle(a, b)
    assert sorted(b.fib[4]) == ([A4] if delivered else [A4, "10.64.2.0/26"])
    assert {hops[0].address for hops in b.fib[4].values()} == {another}
    assert all(end_of_rib(body) is None for body in bodies(a.messages["b"]))
    assert list(b.fib[6]) == [A6]


def test_member_that_lags_far_behind_catches_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgp.adj_rib_out._LOG_LIMIT", 10)
    monkeypatch.setattr("bgp.telling.SLICE", 4)
    monkeypatch.setattr("bgp.adj_rib_out.SLICE", 4)
    a, b, c = Node("a", 65001, 1), Node("b", 65002, 2), Node("c", 65003, 3)
    join(a, b)
    join(a, c)
    settle(a, b, c)
    for n in range(60):
        a.originate(f"10.64.{n}.0/26")
        if n >= 5 and n % 3:
            a.retract(f"10.64.{n - 5}.0/26")
        settle(a, b)  # c's session is stuck
    expected = sorted(b.fib[4])
    settle(a, b, c)
    assert sorted(c.fib[4]) == expected
    assert c.faults == []
    told: set[bytes] = set()
    for body in bodies(a.messages["c"]):
        withdrawn, _, reach = split(body)
        assert told.issuperset(decode(withdrawn, 32)), "only what c was told before is withdrawn from it"
        told = told.difference(decode(withdrawn, 32)).union(decode(reach, 32))
    assert len(told) == len(expected)


# Import


def test_as_loop_is_kept_visible_and_unused() -> None:
    """RFC 4271 section 9.1.2."""
    a, b, c = chain(TRANSIT, 65001, 65002, 65001)
    a.originate(A4)
    settle(a, b, c)
    assert c.fib[4] == {}
    [route] = flat(c.rib.inspection.received("b", 4))
    assert route.ineligible == "AS_PATH holds our own AS 65001"
    assert not route.best


def test_allow_own_as() -> None:
    a, b, c = chain(TRANSIT, 65001, 65002, 65001)
    c.rib.remove_peer("b")
    add_peer(c, b, allow_own_as=1)
    session(b, c)
    a.originate(A4)
    settle(a, b, c)
    assert list(c.fib[4]) == [A4]


def test_import_policy_changes_attributes_and_says_which_rule() -> None:
    a, b = Node("a", 65001, 1), Node("b", 65002, 2)
    changes = Changes(local_pref=300, med=7, prepend=2, communities=frozenset((b"\xfd\xea\0\1",)))
    policy = Policy(
        rules=(
            Rule("no hosts", False, Match(prefixes=(PrefixRange.parse("0.0.0.0/0 ge 32"),))),
            Rule("blocks", True, Match(prefixes=(PrefixRange.parse("10.64.0.0/16 le 26"),)), changes),
        )
    )
    add_peer(a, b)
    add_peer(b, a, imports=policy)
    session(a, b)
    a.originate(A4, "10.64.0.1/32", "172.16.0.0/24", source="static")
    settle(a, b)
    assert list(b.fib[4]) == [A4]
    [route] = flat(b.rib.inspection.loc_rib(4))
    assert (route.local_pref, route.med, route.as_path) == (300, 7, "65001 65001 65001")
    assert (route.communities, route.rule) == (("65002:1",), "blocks")
    reasons = {r.prefix: r.ineligible for r in flat(b.rib.inspection.received("a", 4))}
    assert reasons == {
        A4: "",
        "10.64.0.1/32": "import policy: no hosts",
        "172.16.0.0/24": "import policy: default reject",
    }
    counts = b.rib.counts("a")[4]
    assert (counts.received, counts.accepted) == (3, 1)


@pytest.mark.parametrize(
    ("prefix", "refused"),
    [(A4, True), ("10.64.0.0/27", True), ("10.64.0.5/32", True), ("10.64.0.0/25", False), ("10.64.0.64/26", False)],
)
def test_own_block_is_not_taken_over(prefix: str, refused: bool) -> None:
    a, b = Node("a", 65001, 1), Node("b", 65002, 2)
    join(a, b)
    b.originate(A4)
    a.originate(prefix)
    settle(a, b)
    assert (prefix in b.fib[4]) is not refused
    assert b.rib.counts("a")[4].refused == refused
    assert b.faults == ([f"refused {prefix}: {A4} is our own"] if refused else [])
    if refused:
        explained = b.rib.explain(*parse(prefix))
        assert [r.ineligible for r in explained.routes if r.peer == "a"] == [f"refused: {A4} is our own"]


def test_our_own_announcement_that_comes_back_is_refused_without_a_word() -> None:
    """Some routers send everything to everybody; what is worth a line in the log is somebody else's announcement."""
    a, b, c = chain(TRANSIT, 65001, 65002, 65001)
    c.originate(A4)
    a.originate(A4)
    settle(a, b, c)
    assert c.rib.counts("b")[4].refused == 1
    assert c.faults == []
    b.originate(A4)
    settle(a, b, c)
    assert c.faults == [f"refused {A4}: {A4} is our own"]


def test_guard_follows_the_blocks() -> None:
    """A block that comes evicts what a peer has announced before; one that goes lets it in again."""
    a, b = pair()
    a.originate("10.64.0.0/27")
    settle(a, b)
    assert b.via(4, "10.64.0.0/27") == ["a"]
    b.originate(A4)
    settle(a, b)
    assert b.via(4, "10.64.0.0/27") == []
    b.retract(A4)
    settle(a, b)
    assert b.via(4, "10.64.0.0/27") == ["a"]
    assert b.rib.counts("a")[4].refused == 0


def test_what_is_on_loan_may_be_announced_by_its_user() -> None:
    """An address out of our block comes in while it is lent, and goes with the loan; nothing else of the block does."""
    a, b = pair()
    b.originate(A4)
    for address in ("10.64.0.5/32", "10.64.0.6/32"):
        a.originate(address)
    settle(a, b)
    assert b.via(4, "10.64.0.5/32") == []
    b.rib.lend(4, [parse("10.64.0.5/32")[1]])
    settle(a, b)
    assert b.via(4, "10.64.0.5/32") == ["a"]
    assert b.via(4, "10.64.0.6/32") == []
    b.rib.lend(4, [])
    settle(a, b)
    assert b.via(4, "10.64.0.5/32") == []


def test_configured_prefix_may_be_announced_by_others_too() -> None:
    """Anycast: ours is used here, the others' path stays in reserve."""
    a, b = pair()
    for node in (a, b):
        node.originate("192.0.2.1/32", source="static")
    settle(a, b)
    assert b.fib[4] == {}
    assert b.faults == []
    b.retract("192.0.2.1/32")
    settle(a, b)
    assert b.via(4, "192.0.2.1/32") == ["a"]


# Several paths


def star(leaves: int, **options: int | bool) -> tuple[Node, list[Node]]:
    hub = Node("hub", 65001, 1, **options)
    nodes = [Node(f"leaf{n}", 65002 + n, 2 + n) for n in range(leaves)]
    for leaf in nodes:
        join(leaf, hub)
    return hub, nodes


def test_equal_paths_share_the_traffic_and_are_one_object() -> None:
    hub, leaves = star(3)
    for leaf in leaves:
        leaf.originate(A4, "10.64.1.0/26", source="static")
    settle(hub, *leaves)
    assert hub.via(4, A4) == ["leaf0", "leaf1", "leaf2"]
    assert hub.fib[4][A4] is hub.fib[4]["10.64.1.0/26"]
    down(hub, leaves[1])
    settle(hub, *leaves)
    assert hub.via(4, A4) == ["leaf0", "leaf2"]
    leaves[0].retract(A4)
    settle(hub, *leaves)
    assert hub.via(4, A4) == ["leaf2"]


def test_max_paths() -> None:
    hub, leaves = star(5, max_paths=2)
    for leaf in leaves:
        leaf.originate(A4, source="static")
    settle(hub, *leaves)
    assert hub.via(4, A4) == ["leaf0", "leaf1"]


def test_unreachable_next_hop() -> None:
    """RFC 4271 section 9.1.2: such a path is not considered, and is again when its next hop resolves."""
    hub, leaves = star(2)
    for leaf in leaves:
        leaf.originate(A4, source="static")
    leaves[0].originate("10.64.9.0/26")
    hub.resolver.answers[leaves[0].address(4)] = None
    settle(hub, *leaves)
    assert hub.via(4, A4) == ["leaf1"]
    assert hub.via(4, "10.64.9.0/26") == []
    assert hub.rib.explain(*parse("10.64.9.0/26")).routes[0].ineligible == "next hop cannot be reached"
    del hub.resolver.answers[leaves[0].address(4)]
    hub.rib.next_hops_changed([(leaves[0].address(4), ""), (b"\x01\x02\x03\x04", "")])
    settle(hub, *leaves)
    assert hub.via(4, A4) == ["leaf0", "leaf1"]
    assert hub.via(4, "10.64.9.0/26") == ["leaf0"]
    hub.resolver.answers[leaves[1].address(4)] = Resolution((Gateway(leaves[1].address(4), "eth1"),), 20)
    hub.rib.next_hops_changed([(leaves[1].address(4), "")])
    settle(hub, *leaves)
    assert hub.via(4, A4) == ["leaf0"], "(e): the nearer next hop"


def test_unchanged_resolution_causes_no_work() -> None:
    hub, leaves = star(1)
    leaves[0].originate(A4)
    settle(hub, *leaves)
    hub.rib.next_hops_changed([(leaves[0].address(4), "")])
    assert not hub.rib.busy


def test_explain_tells_winner_losers_and_exports() -> None:
    hub, leaves = star(3)
    for leaf in leaves:
        leaf.originate(A4, source="static")
    hub.rib.remove_peer("leaf2")
    add_peer(hub, leaves[2], imports=exporting_local_pref(50), exports=TRANSIT)
    session(hub, leaves[2])
    settle(hub, *leaves)
    explained = hub.rib.explain(*parse(A4))
    assert [(r.peer, r.best, r.multipath, r.lost) for r in explained.routes] == [
        ("leaf0", True, True, ""),
        ("leaf1", False, True, ""),
        ("leaf2", False, False, "local pref"),
    ]
    assert explained.decided == "identifier"
    assert {e.peer: (e.advertised, e.reason) for e in explained.exports} == {
        "leaf0": (False, "learned from this peer"),
        "leaf1": (False, "default reject"),
        "leaf2": (True, "transit"),
    }
    assert hub.rib.explain(*parse("10.0.0.0/8")).routes == ()


def exporting_local_pref(value: int) -> Policy:
    return Policy(rules=(Rule("low", True, changes=Changes(local_pref=value)),))


# Next hops of IPv6


def receive6(node: Node, peer: str, next_hop: bytes) -> NextHops:
    value = pack("!HBB", 2, 1, len(next_hop)) + next_hop + b"\0" + parse(A6)[1]
    section = b"".join(
        (
            pack_attribute(0x80, 14, value),
            pack_attribute(0x40, 1, b"\0"),
            pack_attribute(0x40, 2, bytes((2, 1)) + pack("!I", 65001)),
        )
    )
    for _ in range(2):  # the second time, the section is known
        assert node.rib.receive(peer, pack("!HH", 0, len(section)) + section).faults == ()
    while node.rib.run(10):
        pass
    return node.fib[6][A6]


GLOBAL, LINK_LOCAL = parse("2001:db8::9")[1][1:], parse("fe80::9")[1][1:]


@pytest.mark.parametrize(
    ("next_hop", "address", "device"),
    [
        pytest.param(GLOBAL, GLOBAL, "", id="global"),
        pytest.param(GLOBAL + LINK_LOCAL, GLOBAL, "", id="RFC 2545 section 3: global and link-local"),
        pytest.param(LINK_LOCAL, LINK_LOCAL, "eth0", id="link-local"),
        pytest.param(LINK_LOCAL + LINK_LOCAL, LINK_LOCAL, "eth0", id="link-local twice, as BIRD sends it"),
        pytest.param(bytes(16) + LINK_LOCAL, LINK_LOCAL, "eth0", id="unspecified and link-local"),
    ],
)
def test_ipv6_next_hops(next_hop: bytes, address: bytes, device: str) -> None:
    _, b = pair()
    [hop] = receive6(b, "a", next_hop)
    assert (hop.address, hop.device) == (address, device)


def test_ipv4_over_an_ipv6_next_hop() -> None:
    """RFC 8950: only where both sides have said so."""
    for pairs in (frozenset(), frozenset(((4, 6),))):
        a, b = Node("a", 65001, 1), Node("b", 65002, 2)
        add_peer(a, b)
        add_peer(b, a)
        first, second = a.open(extended_next_hop=pairs), b.open(extended_next_hop=pairs)
        for node, other, negotiated in (
            (a, b, negotiate(first, second, b.asn)),
            (b, a, negotiate(second, first, a.asn)),
        ):
            node.rib.peer_up(
                other.name,
                negotiated,
                peer_address=other.address(6),
                local_address=node.address(6),
                device="eth0",
                next_hops={4: node.address(6), 6: node.address(6)},
            )
        a.originate(A4)
        settle(a, b)
        assert [hop.address for hop in b.fib[4].get(A4, ())] == ([a.address(6)] if pairs else [])


# Receiving


def test_withdrawn_and_announced_in_one_update_is_announced() -> None:
    """RFC 4271 section 4.3."""
    a, b = pair()
    a.originate(A4)
    settle(a, b)
    [body] = [body for body in bodies(a.messages["b"]) if split(body)[2]]
    _, section, reach = split(body)
    b.rib.receive("a", pack("!H", len(reach)) + reach + pack("!H", len(section)) + section + reach)
    settle(b)
    assert list(b.fib[4]) == [A4]


def test_nothing_is_taken_in_from_an_update_that_resets() -> None:
    a, b = pair()
    a.originate(A4)
    settle(a, b)
    [body] = [body for body in bodies(a.messages["b"]) if split(body)[2]]
    reach = split(body)[2]
    with pytest.raises(BgpError):
        b.rib.receive("a", pack("!H", len(reach)) + reach + body[2:] + b"\x21")
    assert parse(A4)[1] in b.rib.peers["a"].adj_in.tables[4]


def test_paths_are_shared_and_forgotten() -> None:
    """Memory: one path per distinct attributes, none after the session has gone."""
    a, b = pair()
    a.originate(*[f"10.64.{n}.0/26" for n in range(50)])
    settle(a, b)
    adj_in = b.rib.peers["a"].adj_in
    assert len(set(map(id, adj_in.tables[4].values()))) == 1
    assert len(adj_in._native) == 1
    down(a, b)
    settle(b)
    assert len(adj_in._native) == 0
    assert len(b.rib._hops) == 0


def test_inspection_of_a_table_that_changes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgp.inspection._SLICE", 1)
    a, b = pair()
    a.originate(*[f"10.64.{n}.0/26" for n in range(5)])
    settle(a, b)
    slices = b.rib.inspection.loc_rib(4)
    [first] = next(some for some in slices if some)
    a.retract("10.64.1.0/26", "10.64.3.0/26")
    settle(a, b)
    assert [first.prefix, *(r.prefix for r in flat(slices))] == ["10.64.0.0/26", "10.64.2.0/26", "10.64.4.0/26"]
    told = flat(a.rib.inspection.advertised("b", 4))
    assert (told[0].prefix, told[0].next_hop, told[0].as_path) == ("10.64.0.0/26", "192.0.2.1", "65001")
    assert [text(*parse(t.prefix)) for t in told] == ["10.64.0.0/26", "10.64.2.0/26", "10.64.4.0/26"]


def test_inspection_comes_in_slices() -> None:
    a, b = pair()
    a.originate(*[f"10.{n >> 8}.{n & 255}.0/26" for n in range(3000)])
    settle(a, b)
    for slices in (
        b.rib.inspection.loc_rib(4),
        b.rib.inspection.received("a", 4),
        a.rib.inspection.advertised("b", 4),
    ):
        sizes = [len(some) for some in slices]
        assert sum(sizes) == 3000
        assert max(sizes) <= 128


def test_accept_policies_are_one_object_for_all_peers() -> None:
    assert Policy(accept=True) == ACCEPT
    assert hash(Policy(accept=True)) == hash(ACCEPT)
