"""The short way through an attribute section says what the walk says, or nothing."""

from __future__ import annotations

from struct import pack

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bgp.attribute_encoding import ExportKind, exported
from bgp.attribute_parser import AttributeParser
from bgp.attributes import Attributes, pack_attribute
from bgp.messages import BgpError
from bgp.policy import NO_CHANGES
from bgp.usual_attributes import passed_on, read

LOCAL_AS, PEER_AS = 65001, 65002


def parser(*, ibgp: bool) -> AttributeParser:
    return AttributeParser(local_as=LOCAL_AS, ibgp=ibgp, four_octet_as=True, first_as=PEER_AS)


def sequence(*asns: int) -> bytes:
    return pack("!BB", 2, len(asns)) + pack(f"!{len(asns)}I", *asns)


_FIELDS = ("local_pref", "med", "neighbor_as", "origin", "originator", "path_length", "raw", "scope", "weight")


def same(a: Attributes, b: Attributes) -> bool:
    return all(getattr(a, name) == getattr(b, name) for name in _FIELDS)


ORIGIN = pack_attribute(0x40, 1, b"\0")
PATH = pack_attribute(0x40, 2, sequence(PEER_AS, 64999, 4200000000))
EXTENDED_PATH = b"\x50\x02\0\x06" + sequence(PEER_AS)  # as FRR writes it
NEXT_HOP = pack_attribute(0x40, 3, bytes((192, 0, 2, 2)))
MED = pack_attribute(0x80, 4, bytes(4))
LOCAL_PREF = pack_attribute(0x40, 5, pack("!I", 200))
AGGREGATE = pack_attribute(0x40, 6, b"") + pack_attribute(0xC0, 7, pack("!II", 64999, 1))
COMMUNITIES = pack_attribute(0xC0, 8, b"\xff\xff\xff\x01\0\1\0\2")
REFLECTED = pack_attribute(0x80, 9, b"\n\0\0\1") + pack_attribute(0x80, 10, b"\n\0\0\2\n\0\0\3")
EXTENDED = pack_attribute(0xC0, 16, bytes(16))
LARGE = pack_attribute(0xE0, 32, bytes(24))


@pytest.mark.parametrize(
    ("raw", "ibgp"),
    [
        (ORIGIN + PATH + NEXT_HOP, False),
        (ORIGIN + EXTENDED_PATH + NEXT_HOP + MED, False),
        (ORIGIN + PATH + NEXT_HOP + MED + AGGREGATE + COMMUNITIES + EXTENDED + LARGE, False),
        (ORIGIN + PATH + MED, False),  # beside MP_REACH_NLRI
        (ORIGIN + pack_attribute(0x40, 2, b"") + NEXT_HOP + LOCAL_PREF, True),
        (ORIGIN + PATH + NEXT_HOP + MED + LOCAL_PREF + AGGREGATE + COMMUNITIES + REFLECTED + LARGE, True),
        (ORIGIN + pack_attribute(0x40, 2, sequence(*range(1, 64))) + NEXT_HOP + LOCAL_PREF, True),
    ],
)
def test_what_speakers_write_is_judged_without_a_walk(raw: bytes, ibgp: bool) -> None:
    next_hop = parser(ibgp=ibgp).judge_usual(raw)
    parsed = parser(ibgp=ibgp).parse(raw)
    assert not parsed.faults
    assert next_hop == (parsed.next_hop or b"")
    assert same(read(raw), parsed.attributes)


@pytest.mark.parametrize(
    ("raw", "ibgp"),
    [
        (b"", True),
        (ORIGIN, True),
        (ORIGIN + pack_attribute(0x40, 2, sequence(64999)) + NEXT_HOP, False),  # not the peer's AS first
        (ORIGIN + pack_attribute(0x40, 2, sequence(PEER_AS, 0)) + NEXT_HOP, False),  # RFC 7607
        (ORIGIN + pack_attribute(0x40, 2, sequence(PEER_AS, LOCAL_AS)) + NEXT_HOP, False),  # a loop
        (ORIGIN + PATH + NEXT_HOP + LOCAL_PREF, False),  # RFC 7606 section 7.5
        (ORIGIN + PATH + NEXT_HOP + REFLECTED, False),
        (ORIGIN + PATH + NEXT_HOP + pack_attribute(0xC0, 8, b"\xff\xff\0\0"), False),  # RFC 8326
        (ORIGIN + PATH + NEXT_HOP + pack_attribute(0xC0, 7, bytes(8)), False),  # AGGREGATOR of AS 0
        (ORIGIN + PATH + NEXT_HOP + b"\xc0\x08\0", False),  # empty COMMUNITIES
        (ORIGIN + ORIGIN + PATH + NEXT_HOP, False),
        (ORIGIN + PATH + NEXT_HOP + b"\0", False),
    ],
)
def test_what_needs_a_judgement_is_left_to_the_walk(raw: bytes, ibgp: bool) -> None:
    assert parser(ibgp=ibgp).judge_usual(raw) is None


def test_two_octet_as_numbers_are_left_to_the_walk() -> None:
    old = AttributeParser(local_as=LOCAL_AS, ibgp=False, four_octet_as=False, first_as=PEER_AS)
    assert old.judge_usual(ORIGIN + PATH + NEXT_HOP) is None


PARTS = [ORIGIN, PATH, EXTENDED_PATH, NEXT_HOP, MED, LOCAL_PREF, AGGREGATE, COMMUNITIES, REFLECTED, EXTENDED, LARGE]


@st.composite
def sections(draw: st.DrawFn) -> bytes:
    """Attributes in ascending order, most of them, with some octets changed, added or taken away."""
    raw = bytearray(b"".join(part for part in PARTS if draw(st.integers(0, 4))))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        octets = draw(st.binary(max_size=2))
        raw[at : at + draw(st.integers(0, 2))] = octets
    return bytes(raw)


@given(sections(), st.booleans())
@example(ORIGIN + PATH + NEXT_HOP, False)
def test_the_short_way_says_what_the_walk_says(raw: bytes, ibgp: bool) -> None:
    next_hop = parser(ibgp=ibgp).judge_usual(raw)
    if next_hop is None:
        return
    try:
        parsed = parser(ibgp=ibgp).parse(raw)
    except BgpError as error:
        raise AssertionError("the walk resets the session") from error
    assert not parsed.faults
    assert not parsed.own_as_count
    assert same(read(raw), parsed.attributes)
    assert next_hop == (parsed.next_hop or b"")
    assert parsed.mp_reach is None
    assert parsed.mp_unreach is None


EXTERNAL = ExportKind(LOCAL_AS, ibgp=False, four_octet_as=True)


def test_what_is_passed_on_is_what_is_put_together_from_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = ORIGIN + pack_attribute(0x40, 2, sequence(*range(1, 64))) + NEXT_HOP
    empty = ORIGIN + pack_attribute(0x40, 2, b"") + NEXT_HOP + LOCAL_PREF
    everything = ORIGIN + PATH + NEXT_HOP + MED + LOCAL_PREF + AGGREGATE + COMMUNITIES + REFLECTED + LARGE
    received = [Attributes(raw) for raw in (longest, empty, everything, ORIGIN + EXTENDED_PATH + NEXT_HOP)]
    short = [passed_on(attributes.raw, LOCAL_AS) for attributes in received]
    monkeypatch.setattr("bgp.attribute_encoding.passed_on", lambda raw, local_as: None)
    assert short == [exported(attributes, EXTERNAL, NO_CHANGES) for attributes in received]


def test_what_is_not_of_the_usual_form_cannot_be_read_so() -> None:
    with pytest.raises(ValueError, match="not of the usual form: 00"):
        read(b"\0")


def test_extended_communities_are_looked_at_before_they_are_passed_on() -> None:
    assert passed_on(ORIGIN + PATH + NEXT_HOP + EXTENDED, LOCAL_AS) is None
