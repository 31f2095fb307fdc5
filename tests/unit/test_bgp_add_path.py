"""Several paths to a prefix on one session (RFC 7911): negotiation, NLRI, Adj-RIB-In and decision."""

from __future__ import annotations

from random import Random
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp import nlri, update
from bgp.add_path_in import MOST_PATHS
from bgp.attributes import pack_attribute
from bgp.codec import decode_open, encode_open, negotiate
from bgp.framing import HEADER_SIZE
from bgp.messages import BgpError, Open
from config.prefix import BITS, FAMILIES, Family, make, parse
from tests.bgp_ribs import BOTH, Node, add_peer, settle, up

A4, B4, A6 = "192.0.2.0/24", "198.51.100.0/24", "2001:db8:1::/48"
Route = tuple[int, str]


def attributes(path: tuple[int, ...] = (65002,), med: int | None = None, next_hop: bytes = b"") -> bytes:
    segments = pack("!BB", 2, len(path)) + b"".join(pack("!I", asn) for asn in path)
    raw = pack_attribute(0x40, 1, b"\0") + pack_attribute(0x40, 2, segments)
    raw += pack_attribute(0x40, 3, next_hop) if next_hop else b""
    return raw + (b"" if med is None else pack_attribute(0x80, 4, pack("!I", med)))


def field(*routes: Route) -> bytes:
    return b"".join(pack("!I", number) + parse(prefix)[1] for number, prefix in routes)


def native(*routes: Route, gone: tuple[Route, ...] = (), hop: int = 2, **more: object) -> bytes:
    raw = attributes(next_hop=bytes((192, 0, 2, hop)), **more) if routes else b""  # type: ignore[arg-type]
    withdrawn = field(*gone)
    return pack("!H", len(withdrawn)) + withdrawn + pack("!H", len(raw)) + raw + field(*routes)


def multiprotocol(*routes: Route, gone: tuple[Route, ...] = ()) -> bytes:
    raw = b""
    if gone:
        raw += pack_attribute(0x80, 15, pack("!HB", 2, 1) + field(*gone))
    if routes:
        raw += pack_attribute(0x80, 14, pack("!HBB", 2, 1, 16) + b"\xfd" + bytes(14) + b"\2\0" + field(*routes))
        raw += attributes()
    return pack("!HH", 0, len(raw)) + raw


def receiver(add_path: int = 2, **options: int) -> tuple[Node, Node]:
    """A node that takes path identifiers from a peer which is in AS 65002."""
    node, peer = Node("node", 65001, 1, **options), Node("peer", 65002, 2)
    add_peer(node, peer)
    connect(node, peer, add_path)
    return node, peer


def connect(node: Node, peer: Node, add_path: int = 2) -> None:
    ours = node.open(add_path=dict.fromkeys(FAMILIES, 3))
    theirs = peer.open(add_path=dict.fromkeys(FAMILIES, add_path) if add_path else {})
    up(node, peer, negotiate(ours, theirs, peer.asn))


def told(node: Node, *bodies: bytes) -> None:
    for body in bodies:
        node.faults += node.rib.receive("peer", body).faults
    settle(node)


def paths(node: Node, prefix: str) -> list[int | None]:
    return [route.path_id for route in node.rib.explain(*parse(prefix)).routes]


# Negotiation


@pytest.mark.parametrize("ours", [0, 1, 2, 3])
@pytest.mark.parametrize("theirs", [0, 1, 2, 3])
def test_each_direction_is_agreed_on_apart(ours: int, theirs: int) -> None:
    """RFC 7911 section 4: identifiers go from an end that can send to one that can receive, by family."""
    a = Open(65001, 90, bytes((10, 0, 0, 1)), families=BOTH, add_path={4: ours} if ours else {})
    b = Open(65002, 90, bytes((10, 0, 0, 2)), families=BOTH, add_path={4: theirs} if theirs else {})
    agreed = negotiate(a, b, 65002)
    assert agreed.receives_paths(4) is (ours in (1, 3) and theirs in (2, 3))
    assert agreed.sends_paths(4) is (ours in (2, 3) and theirs in (1, 3))
    assert agreed.add_path(6) == 0


def test_the_capability_on_the_wire() -> None:
    """RFC 7911 section 4: code 69; AFI, SAFI and mode of each family; modes that are not defined are ignored."""
    body = encode_open(Open(65001, 90, bytes((10, 0, 0, 1)), families=BOTH, add_path={4: 1, 6: 3}))[HEADER_SIZE:]
    capability = bytes.fromhex("45080001010100020103")
    assert capability in body
    assert decode_open(body).add_path == {4: 1, 6: 3}
    for mode in (0, 4, 255):
        damaged = body.replace(capability, capability[:-1] + bytes((mode,)))
        assert decode_open(damaged).add_path == {4: 1}


# NLRI


@st.composite
def routes(draw: st.DrawFn, family: Family) -> list[tuple[int, bytes]]:
    bits = BITS[family]
    numbers = st.integers(0, 2**32 - 1)
    prefixes = st.builds(
        lambda length, value: make(family, value, length), st.integers(0, bits), st.integers(0, 2**bits - 1)
    )
    return draw(st.lists(st.tuples(numbers, prefixes), max_size=40))


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data(), room=st.integers(21, 200))
def test_nlri_round_trip(family: Family, data: st.DataObject, room: int) -> None:
    """RFC 7911 section 3: what is cut into fields comes out of them as it was."""
    written = [pack("!I", number) + prefix for number, prefix in data.draw(routes(family))]
    fields = list(nlri.chunks(written, room))
    assert all(len(part) <= room for part in fields)
    assert [route for part in fields for route in nlri.decode(part, BITS[family], numbered=True)] == written


def test_host_bits_are_masked() -> None:
    assert nlri.decode(bytes.fromhex("00000007 19 c0000281"), 32, numbered=True) == [
        bytes.fromhex("00000007 19 c0000280")
    ]


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        ("00", "path identifier without a prefix"),
        ("00000001", "path identifier without a prefix"),
        ("0000000118c00002 000000", "path identifier without a prefix"),
        ("0000000121c000020000", "prefix length 33 exceeds 32"),
        ("0000000118c000", "prefix of length 24 is cut short"),
        ("18c00002", "path identifier without a prefix"),
    ],
)
def test_malformed_nlri_resets_the_session(octets: str, text: str) -> None:
    """RFC 7606 sections 3 (j) and 5.3: NLRI that cannot be parsed; 3/10 in the native fields, 3/9 in the others."""
    node, _ = receiver()
    bad = bytes.fromhex(octets)
    raw = attributes(next_hop=bytes((192, 0, 2, 2)))
    unreach = pack_attribute(0x80, 15, pack("!HB", 1, 1) + bad)
    reach = pack_attribute(0x80, 14, pack("!HBB", 1, 1, 4) + bytes((192, 0, 2, 2)) + b"\0" + bad) + attributes()
    for subcode, body in (
        (10, pack("!HH", 0, len(raw)) + raw + bad),
        (10, pack("!H", len(bad)) + bad + b"\0\0"),
        (9, pack("!HH", 0, len(unreach)) + unreach),
        (9, pack("!HH", 0, len(reach)) + reach),
    ):
        with pytest.raises(BgpError, match=text) as caught:
            node.rib.receive("peer", body)
        assert (caught.value.code, caught.value.subcode) == (3, subcode)
    assert node.rib.received("peer", 4) == 0


def test_end_of_rib_is_as_ever() -> None:
    """RFC 4724 section 2: the marker has no NLRI, and so no identifier."""
    node, _ = receiver()
    for family in FAMILIES:
        body = update.encode_end_of_rib(family)[HEADER_SIZE:]
        assert node.rib.receive("peer", body).end_of_rib == family


# Adj-RIB-In and decision


def test_paths_of_one_peer_compete() -> None:
    """RFC 7911 section 2: a path is known by prefix and identifier; a new one does not replace another."""
    node, _ = receiver()
    told(node, native((1, A4), med=20, hop=2), native((2, A4), med=10, hop=3), multiprotocol((9, A6), (8, A6)))
    assert paths(node, A4) == [1, 2]
    assert [hop.address[-1] for hop in node.fib[4][A4]] == [3], "the lower MED"
    assert paths(node, A6) == [8, 9]
    assert node.rib.counts("peer")[4].received == 2
    assert node.rib.counts("peer")[4].accepted == 2
    told(node, native((2, A4), med=30, hop=3))
    assert [hop.address[-1] for hop in node.fib[4][A4]] == [2], "the same identifier: the path is replaced"
    told(node, native(gone=((1, A4),)), multiprotocol(gone=((9, A6),)))
    assert paths(node, A4) == [2]
    assert paths(node, A6) == [8]
    told(node, native(gone=((2, A4),)), multiprotocol(gone=((8, A6),)))
    assert node.fib == {4: {}, 6: {}}
    assert (node.rib.counts("peer")[4].received, node.rib.counts("peer")[4].refused) == (0, 0)


def test_equal_paths_of_one_peer_share_the_traffic() -> None:
    node, _ = receiver()
    told(node, native((7, A4), hop=9), native((3, A4), hop=8), native((5, A4), hop=8))
    known = node.rib.explain(*parse(A4))
    assert known.decided == "path id"
    assert [(r.path_id, r.best, r.multipath, r.lost) for r in known.routes] == [
        (3, True, True, ""),
        (5, False, False, "path id"),  # where path 3 leads already
        (7, False, True, ""),
    ]
    assert [hop.address[-1] for hop in node.fib[4][A4]] == [8, 9]


def test_unknown_withdrawals_are_ignored() -> None:
    """RFC 7911 section 2, RFC 4271 section 3.1: a withdrawal names the path; an unknown one is none."""
    node, _ = receiver()
    told(node, native((1, A4)), native(gone=((2, A4), (1, B4))))
    assert paths(node, A4) == [1]


@given(st.permutations([(1, 20, 2), (2, 10, 3), (3, 10, 4), (4, 5, 5), (4, 30, 6)]), st.randoms(use_true_random=False))
def test_the_outcome_does_not_depend_on_the_order_of_arrival(order: list[tuple[int, int, int]], random: Random) -> None:
    """What counts is the last word on each identifier, whenever the others come and whenever it is decided."""
    node, _ = receiver()
    last = {number: (med, hop) for number, med, hop in order}
    for number, med, hop in order:
        node.rib.receive("peer", native((number, A4), med=med, hop=hop))
        if random.random() < 0.5:
            settle(node)
    settle(node)
    lowest = min(med for med, _ in last.values())
    expected = sorted({hop for med, hop in last.values() if med == lowest})
    assert paths(node, A4) == [1, 2, 3, 4]
    assert [hop.address[-1] for hop in node.fib[4][A4]] == expected


def test_too_many_paths_to_one_prefix_end_the_session() -> None:
    """RFC 7911 section 7: memory is bounded; RFC 4486 section 4: Cease, Out of Resources."""
    node, _ = receiver()
    told(node, native(*((number, A4) for number in range(MOST_PATHS))))
    told(node, native((5, A4), (6, B4)))
    with pytest.raises(BgpError) as caught:
        node.rib.receive("peer", native((MOST_PATHS, A4)))
    assert (caught.value.code, caught.value.subcode) == (6, 8)


def test_our_own_prefix_is_refused_with_any_identifier() -> None:
    node, _ = receiver()
    node.originate("10.64.0.0/26")
    told(node, native((1, "10.64.0.0/27"), (2, "10.64.0.0/27")))
    assert node.fib[4] == {}
    assert node.rib.counts("peer")[4].refused == 1
    told(node, native(gone=((1, "10.64.0.0/27"), (2, "10.64.0.0/27"))))
    assert (node.rib.counts("peer")[4].received, node.rib.counts("peer")[4].refused) == (0, 0)


def test_a_next_hop_that_goes_takes_its_paths_out_of_the_decision() -> None:
    node, _ = receiver()
    told(node, native((1, A4), hop=2), native((2, A4), hop=3, med=9))
    node.resolver.answers[bytes((192, 0, 2, 2))] = None
    node.rib.next_hops_changed([(bytes((192, 0, 2, 2)), "")])
    settle(node)
    assert [hop.address[-1] for hop in node.fib[4][A4]] == [3]


# Restart and refresh


def test_stale_paths_are_told_apart_by_identifier() -> None:
    """RFC 4724 section 4.2, per path: what is not announced again goes at End-of-RIB."""
    node, peer = receiver()
    told(node, native((1, A4), (1, B4), hop=2), native((2, A4), hop=3))
    node.rib.peer_down("peer", frozenset((4,)))
    settle(node)
    assert node.rib.stale("peer", 4) == 3
    assert paths(node, A4) == [1, 2]
    up_again(node, peer)
    told(node, native((2, A4), hop=3), native((3, A4), hop=4))
    assert node.rib.stale("peer", 4) == 2
    told(node, update.encode_end_of_rib(4)[HEADER_SIZE:])
    assert node.rib.stale("peer", 4) == 0
    assert paths(node, A4) == [2, 3]
    assert B4 not in node.fib[4]


def test_an_enhanced_refresh_removes_paths_that_are_not_repeated() -> None:
    """RFC 7313 section 4, per path."""
    node, _ = receiver()
    told(node, native((1, A4)), native((2, A4), hop=3))
    node.rib.refresh_begins("peer", 4)
    told(node, native((1, A4)))
    assert node.rib.refresh_ends("peer", 4) == 1
    settle(node)
    assert paths(node, A4) == [1]


@pytest.mark.parametrize("first", [0, 2])
def test_a_session_with_other_terms_begins_anew(first: int) -> None:
    """Stale paths of a session without identifiers cannot be told from those of one with, and the other way round."""
    node, peer = receiver(first)
    plain = pack("!HH", 0, len(raw := attributes(next_hop=bytes((192, 0, 2, 2))))) + raw + parse(B4)[1]
    bodies = {0: plain, 2: native((1, A4), (2, B4))}
    told(node, bodies[first])
    node.rib.peer_down("peer", frozenset((4,)))
    up_again(node, peer, 2 - first)
    told(node, bodies[2 - first])
    assert set(node.fib[4]) == ({A4, B4} if first == 0 else {B4})
    assert paths(node, B4) == [2 if first == 0 else None]
    assert node.rib.stale("peer", 4) == 0
    down_all(node)
    assert node.fib[4] == {}


def up_again(node: Node, peer: Node, add_path: int = 2) -> None:
    agreed = negotiate(
        node.open(add_path=dict.fromkeys(FAMILIES, 3)),
        peer.open(add_path=dict.fromkeys(FAMILIES, add_path) if add_path else {}),
        peer.asn,
    )
    hops = {family: node.address(family) for family in FAMILIES}
    node.rib.peer_up(
        "peer",
        agreed,
        peer_address=peer.address(4),
        local_address=node.address(4),
        device="eth0",
        next_hops=hops,
        keep=frozenset((4,)),
    )


def down_all(node: Node) -> None:
    node.rib.peer_down("peer")
    settle(node)
