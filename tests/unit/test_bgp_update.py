from __future__ import annotations

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp import nlri
from bgp.attributes import pack_attribute
from bgp.framing import Framer
from bgp.messages import BgpError
from bgp.update import (
    Announcement,
    announcements,
    decode_mp_reach,
    decode_mp_unreach,
    encode_end_of_rib,
    end_of_rib,
    fits,
    room,
    split,
    withdrawals,
)
from config.prefix import BITS, FAMILIES, Family, make, parse

FOUR = bytes((192, 0, 2, 1))
SIX = parse("2001:db8::1")[1][1:]
LINK_LOCAL = parse("fe80::1")[1][1:]
BEFORE = pack_attribute(0x40, 1, b"\0") + pack_attribute(0x40, 2, b"\2\1\0\0\xfd\xe9")
AFTER = pack_attribute(0xC0, 8, bytes(4))


def bodies(messages: list[bytes], limit: int = 65535) -> list[bytes]:
    return [body for message in messages for _, body in Framer(limit).feed(message)]


def prefixes(family: Family) -> st.SearchStrategy[list[bytes]]:
    bits = BITS[family]
    one = st.builds(make, st.just(family), st.integers(0, 2**bits - 1), st.integers(0, bits))
    return st.lists(one, max_size=400, unique=True)


def test_split() -> None:
    body = pack("!H", 2) + b"\x08\x0a" + pack("!H", 3) + b"abc" + b"\x00"
    assert split(body) == (b"\x08\x0a", b"abc", b"\x00")
    assert split(bytes(4)) == (b"", b"", b"")


@given(st.binary(min_size=4, max_size=60))
def test_split_takes_all_or_refuses(body: bytes) -> None:
    try:
        withdrawn, attributes, reach = split(body)
    except BgpError:
        return
    assert len(withdrawn) + len(attributes) + len(reach) + 4 == len(body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param("00000000", 4, id="empty UPDATE"),
        pytest.param("0000" + "0006" + "800f03" + "000201", 6, id="one-octet length, as FRR and BIRD send it"),
        pytest.param("0000" + "0007" + "900f0003" + "000201", 6, id="two-octet length"),
        pytest.param("0000" + "0006" + "800f03" + "000101", 4, id="IPv4 in MP_UNREACH_NLRI"),
        pytest.param("0000" + "0006" + "800f03" + "001901", None, id="unknown address family"),
        pytest.param("0000" + "0006" + "800f03" + "000280", None, id="another SAFI"),
        pytest.param("0000" + "0003" + "400200", None, id="an empty AS_PATH only"),
        pytest.param("0000" + "0006" + "800e03" + "000201", None, id="MP_REACH_NLRI"),
        pytest.param("0000" + "0006" + "c06303" + "000201", None, id="an unknown attribute"),
        pytest.param("0000" + "0007" + "800f04" + "00020100", None, id="a default route withdrawn"),
        pytest.param("0003" + "100a00" + "0000" + "000000", None, id="withdrawn routes"),
        pytest.param("0000" + "0000" + "100a00" + "100b00", None, id="NLRI"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_end_of_rib_in_its_exact_forms_only(body: str, expected: Family | None) -> None:
    """RFC 4724 section 2. A mistaken one would end a graceful restart early."""
    assert end_of_rib(bytes.fromhex(body)) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_end_of_rib_round_trip(family: Family) -> None:
    assert end_of_rib(bodies([encode_end_of_rib(family)])[0]) == family


@given(st.data(), st.sampled_from(FAMILIES), st.sampled_from([4096, 200]))
def test_withdrawals_hold_everything_and_fit(data: st.DataObject, family: Family, limit: int) -> None:
    gone = data.draw(prefixes(family))
    found: list[bytes] = []
    for body in bodies(withdrawals(family, gone, limit), limit):
        withdrawn, attributes, reach = split(body)
        assert not reach
        if family == 4:
            assert not attributes
            found += nlri.decode(withdrawn, 32)
        else:
            assert attributes[:2] == b"\x90\x0f"
            result = decode_mp_unreach(attributes[4:], FAMILIES)
            assert result is not None
            found += result[1]
    assert found == gone


@given(
    st.data(),
    st.sampled_from([(4, FOUR), (4, SIX), (6, SIX), (6, SIX + LINK_LOCAL)]),
    st.sampled_from([4096, 65535, 200]),
    st.booleans(),
)
def test_announcements_hold_everything_and_fit(
    data: st.DataObject, kind: tuple[Family, bytes], limit: int, third_party: bool
) -> None:
    family, next_hop = kind
    wanted = data.draw(prefixes(family))
    space = room(family, len(next_hop), len(BEFORE + AFTER), limit)
    parts = tuple(nlri.chunks(wanted, space))
    announcement = Announcement(BEFORE, AFTER, next_hop if third_party else None, parts)
    found: list[bytes] = []
    for body in bodies(announcements(family, announcement, bytes(4) if third_party else next_hop), limit):
        withdrawn, attributes, reach = split(body)
        assert not withdrawn
        if (family, len(next_hop)) == (4, 4):
            assert attributes == BEFORE + pack_attribute(0x40, 3, next_hop) + AFTER
            found += nlri.decode(reach, 32)
        else:
            size = int.from_bytes(attributes[2:4], "big")
            assert attributes[:2] == b"\x90\x0e", "RFC 7606 section 5.1: MP_REACH_NLRI first"
            assert attributes[4 + size :] == BEFORE + AFTER
            result = decode_mp_reach(attributes[4 : 4 + size], FAMILIES, True)
            assert result is not None
            assert (result.family, result.next_hop) == (family, next_hop)
            found += result.prefixes
    assert found == wanted


def test_full_messages_are_full() -> None:
    wanted = [make(4, n << 8, 24) for n in range(3000)]
    parts = tuple(nlri.chunks(wanted, room(4, 4, len(BEFORE + AFTER), 4096)))
    messages = announcements(4, Announcement(BEFORE, AFTER, None, parts), FOUR)
    assert len(messages) == 3
    assert all(4093 <= len(m) <= 4096 for m in messages[:-1])


def test_fits() -> None:
    assert fits(4, 4, 4000, 4096)
    assert not fits(4, 4, 4060, 4096)
    assert fits(6, 16, 4060, 65535)


@pytest.mark.parametrize(
    ("next_hop", "ipv4_over_ipv6", "accepted"),
    [
        (FOUR, False, True),
        (SIX, False, False),
        (SIX, True, True),
        (SIX + LINK_LOCAL, True, True),
        (bytes(8), True, False),
    ],
)
def test_ipv4_in_mp_reach(next_hop: bytes, ipv4_over_ipv6: bool, accepted: bool) -> None:
    """RFC 8950 section 4: an IPv6 next hop only where it was negotiated."""
    value = pack("!HBB", 1, 1, len(next_hop)) + next_hop + b"\0" + b"\x08\x0a"
    if accepted:
        found = decode_mp_reach(value, FAMILIES, ipv4_over_ipv6)
        assert found is not None
        assert (found.family, found.next_hop, found.prefixes) == (4, next_hop, [b"\x08\x0a"])
    else:
        with pytest.raises(BgpError, match="next hop"):
            decode_mp_reach(value, FAMILIES, ipv4_over_ipv6)
