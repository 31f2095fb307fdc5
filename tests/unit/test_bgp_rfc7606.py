"""Revised error handling of UPDATE messages, attribute by attribute (RFC 7606).

Each row sends an announcement that was fine once more with one thing wrong, on an external or an internal session, and
looks at what becomes of the route: kept with the attribute (ACCEPT), kept without it (DISCARD), withdrawn (WITHDRAW),
or the session reset with a NOTIFICATION (code, subcode).
"""

from __future__ import annotations

from struct import pack
from typing import Literal

import pytest

from bgp.attributes import pack_attribute
from bgp.codec import negotiate
from bgp.messages import BgpError
from config.prefix import parse
from tests.bgp_ribs import Node, add_peer, up

Outcome = Literal["ACCEPT", "DISCARD", "WITHDRAW"] | tuple[int, int]
ACCEPT: Outcome = "ACCEPT"
DISCARD: Outcome = "DISCARD"
WITHDRAW: Outcome = "WITHDRAW"

PREFIX = parse("198.51.100.0/24")[1]
PREFIX6 = parse("2001:db8:1::/48")[1]
EBGP, IBGP = "ebgp", "ibgp"


def asns(*numbers: int, kind: int = 2) -> bytes:
    return bytes((kind, len(numbers))) + b"".join(pack("!I", n) for n in numbers)


def base(session: str) -> dict[int, bytes]:
    """The attributes of a good route."""
    good = {
        1: pack_attribute(0x40, 1, b"\0"),
        2: pack_attribute(0x40, 2, asns(65002)),
        3: pack_attribute(0x40, 3, bytes((192, 0, 2, 2))),
    }
    if session == IBGP:
        good[2] = pack_attribute(0x40, 2, b"")
        good[5] = pack_attribute(0x40, 5, pack("!I", 100))
    return good


def update(section: bytes, nlri: bytes = PREFIX) -> bytes:
    return pack("!HH", 0, len(section)) + section + nlri


class Fixture:
    def __init__(self, session: str) -> None:
        self.node = Node("n1", 65001, 1)
        peer = Node("n2", 65002 if session == EBGP else 65001, 2)
        add_peer(self.node, peer)
        up(self.node, peer, negotiate(self.node.open(), peer.open(), peer.asn))
        self.session = session
        self.tables = self.node.rib.peers["n2"].adj_in.tables
        self.send(update(b"".join(base(session).values())))
        assert PREFIX in self.tables[4]
        self.faults: tuple[str, ...] = ()

    def send(self, body: bytes) -> None:
        self.faults = self.node.rib.receive("n2", body).faults


def outcome(fixture: Fixture, section: bytes, code: int, nlri: bytes = PREFIX) -> Outcome:
    try:
        fixture.send(update(section, nlri))
    except BgpError as error:
        return error.code, error.subcode
    path = fixture.tables[4].get(PREFIX)
    if path is None:
        assert fixture.faults, "a fault goes into the log"
        return WITHDRAW
    if any(found == code for _, found, _ in path.attributes):
        return ACCEPT
    return DISCARD


def row(section: str, code: int, flags: int, value: bytes, ebgp: Outcome, ibgp: Outcome, id: str) -> object:
    return pytest.param(code, flags, value, {EBGP: ebgp, IBGP: ibgp}, id=f"{section} {id}")


ROWS = [
    row("7.1", 1, 0x40, b"\1", ACCEPT, ACCEPT, "ORIGIN EGP"),
    row("7.1", 1, 0x40, b"\3", WITHDRAW, WITHDRAW, "ORIGIN of undefined value"),
    row("7.1", 1, 0x40, b"", WITHDRAW, WITHDRAW, "ORIGIN of length 0"),
    row("7.1", 1, 0x40, b"\0\0", WITHDRAW, WITHDRAW, "ORIGIN of length 2"),
    row("3c", 1, 0xC0, b"\0", WITHDRAW, WITHDRAW, "ORIGIN optional"),
    row("3c", 1, 0x00, b"\0", WITHDRAW, WITHDRAW, "ORIGIN not transitive"),
    row("3c", 1, 0x60, b"\0", ACCEPT, ACCEPT, "ORIGIN partial: that bit is not judged"),
    row("7.2", 2, 0x40, asns(65002, 65003), ACCEPT, ACCEPT, "AS_PATH of two"),
    row("7.2", 2, 0x40, asns(65002) + asns(7, 8, kind=1), ACCEPT, ACCEPT, "AS_PATH with a set"),
    row("7.2", 2, 0x40, b"", WITHDRAW, ACCEPT, "AS_PATH empty; from an external peer its AS is missing"),
    row("7.2", 2, 0x40, b"\2\0", WITHDRAW, WITHDRAW, "AS_PATH with an empty segment"),
    row("7.2", 2, 0x40, asns(65002) + b"\2\0", WITHDRAW, WITHDRAW, "AS_PATH with an empty last segment"),
    row("7.2", 2, 0x40, asns(65002) + b"\2", WITHDRAW, WITHDRAW, "AS_PATH with half a segment header"),
    row("7.2", 2, 0x40, b"\2\2" + pack("!I", 65002), WITHDRAW, WITHDRAW, "AS_PATH segment overruns"),
    row("7.2", 2, 0x40, asns(65002) + b"\0\0", WITHDRAW, WITHDRAW, "AS_PATH segment underruns"),
    row("7.2", 2, 0x40, asns(65002, kind=7), WITHDRAW, WITHDRAW, "AS_PATH segment type 7"),
    row("7.2", 2, 0x40, asns(65002, kind=3), WITHDRAW, WITHDRAW, "AS_CONFED_SEQUENCE (RFC 5065 section 5)"),
    row("7.2", 2, 0x40, asns(65002) + asns(0), WITHDRAW, WITHDRAW, "AS 0 (RFC 7607)"),
    row("7.2", 2, 0x40, asns(65009, 65002), WITHDRAW, ACCEPT, "AS_PATH starts with another AS (RFC 4271 section 6.3)"),
    row("3c", 2, 0x80, asns(65002), WITHDRAW, WITHDRAW, "AS_PATH optional and not transitive"),
    row("7.3", 3, 0x40, bytes(5), WITHDRAW, WITHDRAW, "NEXT_HOP of length 5"),
    row("7.3", 3, 0x40, b"", WITHDRAW, WITHDRAW, "NEXT_HOP of length 0"),
    row("7.3", 3, 0x40, bytes(range(16)), WITHDRAW, WITHDRAW, "NEXT_HOP of length 16"),
    row("3c", 3, 0xC0, bytes((192, 0, 2, 2)), WITHDRAW, WITHDRAW, "NEXT_HOP optional"),
    row("7.4", 4, 0x80, pack("!I", 7), ACCEPT, ACCEPT, "MED"),
    row("7.4", 4, 0x80, bytes(3), WITHDRAW, WITHDRAW, "MED of length 3"),
    row("7.4", 4, 0x80, b"", WITHDRAW, WITHDRAW, "MED of length 0"),
    row("3c", 4, 0xC0, bytes(4), WITHDRAW, WITHDRAW, "MED transitive"),
    row("3c", 4, 0x00, bytes(4), WITHDRAW, WITHDRAW, "MED well-known"),
    row("7.5", 5, 0x40, pack("!I", 7), DISCARD, ACCEPT, "LOCAL_PREF"),
    row("7.5", 5, 0x40, bytes(3), DISCARD, WITHDRAW, "LOCAL_PREF of length 3"),
    row("7.5", 5, 0x40, b"", DISCARD, WITHDRAW, "LOCAL_PREF of length 0"),
    row("3c", 5, 0xC0, bytes(4), DISCARD, WITHDRAW, "LOCAL_PREF optional"),
    row("7.6", 6, 0x40, b"", ACCEPT, ACCEPT, "ATOMIC_AGGREGATE"),
    row("7.6", 6, 0x40, b"\0", DISCARD, DISCARD, "ATOMIC_AGGREGATE of length 1"),
    row("3c", 6, 0xC0, b"", WITHDRAW, WITHDRAW, "ATOMIC_AGGREGATE optional"),
    row("7.7", 7, 0xC0, pack("!I", 65009) + bytes(4), ACCEPT, ACCEPT, "AGGREGATOR"),
    row("7.7", 7, 0xE0, pack("!I", 65009) + bytes(4), ACCEPT, ACCEPT, "AGGREGATOR partial"),
    row("7.7", 7, 0xC0, bytes(6), DISCARD, DISCARD, "AGGREGATOR of length 6 on a 4-octet AS session"),
    row("7.7", 7, 0xC0, b"", DISCARD, DISCARD, "AGGREGATOR of length 0"),
    row("7.7", 7, 0xC0, bytes(4) + bytes((1, 1, 1, 1)), DISCARD, DISCARD, "AGGREGATOR of AS 0 (RFC 7607)"),
    row("3c", 7, 0x40, bytes(8), WITHDRAW, WITHDRAW, "AGGREGATOR well-known"),
    row("7.8", 8, 0xC0, pack("!HH", 65002, 7), ACCEPT, ACCEPT, "COMMUNITIES"),
    row("7.8", 8, 0xC0, bytes(5), WITHDRAW, WITHDRAW, "COMMUNITIES of length 5"),
    row("7.8", 8, 0xC0, b"", WITHDRAW, WITHDRAW, "COMMUNITIES of length 0"),
    row("3c", 8, 0x80, bytes(4), WITHDRAW, WITHDRAW, "COMMUNITIES not transitive"),
    row("7.9", 9, 0x80, bytes((9, 9, 9, 9)), DISCARD, ACCEPT, "ORIGINATOR_ID"),
    row("7.9", 9, 0x80, bytes(3), DISCARD, WITHDRAW, "ORIGINATOR_ID of length 3"),
    row("3c", 9, 0x40, bytes(4), DISCARD, WITHDRAW, "ORIGINATOR_ID well-known"),
    row("7.10", 10, 0x80, bytes(8), DISCARD, ACCEPT, "CLUSTER_LIST"),
    row("7.10", 10, 0x80, bytes(5), DISCARD, WITHDRAW, "CLUSTER_LIST of length 5"),
    row("7.10", 10, 0x80, b"", DISCARD, WITHDRAW, "CLUSTER_LIST of length 0"),
    row("3c", 10, 0xC0, bytes(4), DISCARD, WITHDRAW, "CLUSTER_LIST transitive"),
    row("7.14", 16, 0xC0, bytes(8), ACCEPT, ACCEPT, "EXTENDED_COMMUNITIES"),
    row("7.14", 16, 0xC0, bytes(7), WITHDRAW, WITHDRAW, "EXTENDED_COMMUNITIES of length 7"),
    row("7.14", 16, 0xC0, b"", WITHDRAW, WITHDRAW, "EXTENDED_COMMUNITIES of length 0"),
    row("3c", 16, 0x40, bytes(8), WITHDRAW, WITHDRAW, "EXTENDED_COMMUNITIES well-known"),
    row("7.15", 25, 0xC0, bytes(20), ACCEPT, ACCEPT, "IPV6_EXTENDED_COMMUNITIES"),
    row("7.15", 25, 0xC0, bytes(21), WITHDRAW, WITHDRAW, "IPV6_EXTENDED_COMMUNITIES of length 21"),
    row("RFC 8092 6", 32, 0xC0, bytes(24), ACCEPT, ACCEPT, "LARGE_COMMUNITIES"),
    row("RFC 8092 6", 32, 0xC0, bytes(13), WITHDRAW, WITHDRAW, "LARGE_COMMUNITIES of length 13"),
    row("RFC 8092 6", 32, 0xC0, b"", WITHDRAW, WITHDRAW, "LARGE_COMMUNITIES of length 0"),
    row("RFC 6793 4.1", 17, 0xC0, asns(65002), DISCARD, DISCARD, "AS4_PATH on a 4-octet AS session"),
    row("RFC 6793 4.1", 18, 0xC0, bytes(8), DISCARD, DISCARD, "AS4_AGGREGATOR on a 4-octet AS session"),
    row("RFC 4271 5", 99, 0xC0, b"x", ACCEPT, ACCEPT, "unknown, optional transitive"),
    row("RFC 4271 5", 99, 0x80, b"x", DISCARD, DISCARD, "unknown, optional not transitive"),
    row("RFC 4271 6.3", 99, 0x40, b"x", (3, 2), (3, 2), "unknown, well-known"),
    row("RFC 4271 4.3", 8, 0xD0, bytes(4), ACCEPT, ACCEPT, "two-octet length that is not needed"),
]


@pytest.mark.parametrize("session", [EBGP, IBGP])
@pytest.mark.parametrize(("code", "flags", "value", "expected"), ROWS)
def test_one_attribute(session: str, code: int, flags: int, value: bytes, expected: dict[str, Outcome]) -> None:
    attributes = base(session)
    raw = bytes((flags, code, len(value))) + value
    if flags & 0x10:
        raw = bytes((flags, code)) + pack("!H", len(value)) + value
    attributes[code] = raw
    section = b"".join(attributes[c] for c in sorted(attributes))
    assert outcome(Fixture(session), section, code) == expected[session]


@pytest.mark.parametrize("session", [EBGP, IBGP])
@pytest.mark.parametrize("code", [1, 2, 3])
def test_missing_well_known_mandatory_attribute(session: str, code: int) -> None:
    """Section 3 (d)."""
    attributes = base(session)
    del attributes[code]
    fixture = Fixture(session)
    assert outcome(fixture, b"".join(attributes.values()), code) == WITHDRAW
    assert "is missing" in fixture.faults[-1]


def test_announcement_without_any_attribute() -> None:
    """Section 3 (d)."""
    assert outcome(Fixture(EBGP), b"", 1) == WITHDRAW


@pytest.mark.parametrize("code", [1, 2, 3, 4, 8])
def test_repeated_attribute_counts_once(code: int) -> None:
    """Section 3 (g): all but the first are discarded, also where the others are malformed."""
    attributes = base(EBGP)
    attributes[4] = pack_attribute(0x80, 4, pack("!I", 5))
    attributes[8] = pack_attribute(0xC0, 8, pack("!HH", 65002, 7))
    fixture = Fixture(EBGP)
    section = b"".join(attributes[c] for c in sorted(attributes))
    assert outcome(fixture, section + pack_attribute(attributes[code][0], code, b"zzzzz"), code) == ACCEPT
    path = fixture.tables[4][PREFIX]
    assert path.attributes.med == 5
    assert [c for _, c, _ in path.attributes].count(code) == 1
    assert "occurs twice" in fixture.faults[0]


def mp_reach(next_hop: bytes = bytes.fromhex("20010db8000000000000000000000002"), nlri: bytes = PREFIX6) -> bytes:
    return pack_attribute(0x80, 14, pack("!HBB", 2, 1, len(next_hop)) + next_hop + b"\0" + nlri)


def mp_unreach(nlri: bytes = PREFIX6) -> bytes:
    return pack_attribute(0x80, 15, pack("!HB", 2, 1) + nlri)


@pytest.mark.parametrize("attribute", [mp_reach(), mp_unreach()], ids=["MP_REACH_NLRI", "MP_UNREACH_NLRI"])
def test_repeated_multiprotocol_attribute_resets(attribute: bytes) -> None:
    """Section 3 (g)."""
    section = attribute + attribute + b"".join(base(EBGP).values())
    assert outcome(Fixture(EBGP), section, 1) == (3, 1)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(pack("!HH", 9, 0) + bytes(4), (3, 1), id="3b withdrawn routes length overruns"),
        pytest.param(pack("!HH", 0, 9) + bytes(4), (3, 1), id="3b path attribute length overruns"),
        pytest.param(pack("!H", 1) + b"\x21" + pack("!H", 0), (3, 10), id="3i withdrawn /33"),
        pytest.param(pack("!H", 2) + b"\x18\x0a" + pack("!H", 0), (3, 10), id="3i withdrawn prefix cut short"),
    ],
)
def test_fields_that_reset(body: bytes, expected: tuple[int, int]) -> None:
    with pytest.raises(BgpError) as caught:
        Fixture(EBGP).send(body)
    assert (caught.value.code, caught.value.subcode) == expected


@pytest.mark.parametrize("nlri", [b"\x21\x0a\0\0\0\0", b"\x18\x0a\0"], ids=["/33", "cut short"])
def test_bad_nlri_resets(nlri: bytes) -> None:
    """Sections 3 (j) and 5.3."""
    assert outcome(Fixture(EBGP), b"".join(base(EBGP).values()), 1, nlri) == (3, 10)


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(b"\xc0", id="one stray octet"),
        pytest.param(b"\xc0\x08", id="two stray octets"),
        pytest.param(b"\xc0\x08\x08\0\0\0\0", id="value overruns"),
        pytest.param(b"\xd0\x08\x00", id="half a two-octet length"),
    ],
)
def test_attribute_that_overruns_the_section(tail: bytes) -> None:
    """Section 4: treat-as-withdraw; where the NLRI starts is known from the total length."""
    assert outcome(Fixture(EBGP), b"".join(base(EBGP).values()) + tail, 1) == WITHDRAW


def test_strongest_of_several_faults_decides() -> None:
    """Section 3 (h)."""
    attributes = base(EBGP) | {6: pack_attribute(0x40, 6, b"x"), 4: pack_attribute(0x80, 4, b"")}
    assert outcome(Fixture(EBGP), b"".join(attributes.values()), 1) == WITHDRAW


def test_fault_without_routes_resets() -> None:
    """Section 5.2: who knows which routes were meant."""
    section = pack_attribute(0x40, 1, b"\7")
    with pytest.raises(BgpError, match="no routes"):
        Fixture(EBGP).send(update(section, b""))


def test_attribute_discard_without_routes_is_harmless() -> None:
    """Section 5.2."""
    fixture = Fixture(EBGP)
    fixture.send(update(pack_attribute(0x40, 6, b"x"), b""))
    assert PREFIX in fixture.tables[4]


def test_attributes_without_routes_change_nothing() -> None:
    fixture = Fixture(EBGP)
    fixture.send(update(b"".join(base(EBGP).values()), b""))
    assert list(fixture.tables[4]) == [PREFIX]


def send_mp(fixture: Fixture, *attributes: bytes, nlri: bytes = b"") -> bool:
    """Send multiprotocol attributes beside good ones; return whether the IPv6 prefix is there afterwards."""
    good = {c: a for c, a in base(fixture.session).items() if c != 3 or nlri}
    fixture.send(update(b"".join(attributes) + b"".join(good.values()), nlri))
    return PREFIX6 in fixture.tables[6]


def test_mp_reach_and_mp_unreach() -> None:
    fixture = Fixture(EBGP)
    assert send_mp(fixture, mp_reach())
    assert not send_mp(fixture, mp_unreach())


def test_mp_reach_withdraws_with_a_bad_attribute() -> None:
    fixture = Fixture(EBGP)
    assert send_mp(fixture, mp_reach())
    fixture.send(update(mp_reach() + pack_attribute(0x40, 1, b"\7") + base(EBGP)[2], b""))
    assert PREFIX6 not in fixture.tables[6]


def test_mp_reach_with_wrong_flags_withdraws() -> None:
    """Section 3 (c)."""
    fixture = Fixture(EBGP)
    assert send_mp(fixture, mp_reach())
    assert not send_mp(fixture, b"\xc0" + mp_reach()[1:])


def test_one_fault_withdraws_both_families() -> None:
    fixture = Fixture(EBGP)
    assert send_mp(fixture, mp_reach(), nlri=PREFIX)
    attributes = base(EBGP) | {4: pack_attribute(0x80, 4, b"")}
    fixture.send(update(mp_reach() + b"".join(attributes.values())))
    assert not fixture.tables[4]
    assert not fixture.tables[6]


def test_mp_reach_of_another_family_is_ignored() -> None:
    """RFC 4760 section 7 allows it, and a peer of many families needs it."""
    fixture = Fixture(EBGP)
    value = pack("!HBB", 25, 70, 4) + bytes(4) + b"\0" + b"\1\2\3"
    send_mp(fixture, pack_attribute(0x80, 14, value))
    assert "not negotiated" in fixture.faults[0]


def test_mp_reach_without_nlri_is_harmless() -> None:
    fixture = Fixture(EBGP)
    assert not send_mp(fixture, mp_reach(nlri=b""))
    assert not fixture.faults


@pytest.mark.parametrize(
    "attribute",
    [
        pytest.param(mp_reach(bytes(5)), id="7.11 next hop of length 5"),
        pytest.param(mp_reach(bytes(4)), id="7.11 next hop of length 4"),
        pytest.param(mp_reach(b""), id="7.11 next hop of length 0"),
        pytest.param(pack_attribute(0x80, 14, pack("!HBB", 2, 1, 16) + bytes(8)), id="7.11 next hop overruns"),
        pytest.param(pack_attribute(0x80, 14, b"\0\2\1"), id="7.11 too short for its fields"),
        pytest.param(pack_attribute(0x80, 14, b""), id="7.11 empty"),
        pytest.param(pack_attribute(0x80, 15, b"\0\2"), id="7.12 too short for its fields"),
        pytest.param(mp_reach(nlri=b"\x81" + bytes(17)), id="5.3 /129"),
        pytest.param(mp_reach(nlri=b"\x40\x20"), id="5.3 prefix cut short"),
        pytest.param(mp_unreach(b"\x40\x20"), id="5.3 withdrawn prefix cut short"),
    ],
)
def test_multiprotocol_attribute_that_resets(attribute: bytes) -> None:
    with pytest.raises(BgpError) as caught:
        send_mp(Fixture(EBGP), attribute)
    assert (caught.value.code, caught.value.subcode) == (3, 9)
    assert caught.value.data == attribute


@pytest.mark.parametrize(
    "next_hop",
    ["0.0.0.0", "127.0.0.1", "224.0.0.5", "255.255.255.255", "192.0.2.1"],
    ids=["unspecified", "loopback", "multicast", "broadcast", "our own"],
)
def test_next_hop_that_makes_no_sense_keeps_the_route_unused(next_hop: str) -> None:
    """RFC 4271 section 6.3: the route is not used, the session stays."""
    fixture = Fixture(EBGP)
    attributes = base(EBGP) | {3: pack_attribute(0x40, 3, parse(next_hop)[1][1:])}
    fixture.send(update(b"".join(attributes.values())))
    assert next_hop in fixture.tables[4][PREFIX].ineligible
