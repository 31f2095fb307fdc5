"""UPDATE messages (RFC 4271 section 4.3, RFC 4760): taking one apart, and packing many routes into few."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from struct import pack, unpack_from
from typing import NamedTuple

from bgp import nlri
from bgp.attributes import EXTENDED_LENGTH, MP_REACH, MP_UNREACH, NEXT_HOP, OPTIONAL, WELL_KNOWN, pack_attribute
from bgp.framing import HEADER_SIZE, frame
from bgp.messages import BgpError, MessageType
from bgp.opening import AFI, FAMILY_OF_AFI, UNICAST
from config.prefix import BITS, Family

_EMPTY = bytes(4)
"""Body of an UPDATE without routes and attributes."""

_LENGTHS = 4
"""Octets of Withdrawn Routes Length and Total Path Attribute Length."""

_MP_HEADER = 4
"""Octets of flags, code and two-octet length."""


class MpReach(NamedTuple):
    """A judged MP_REACH_NLRI."""

    family: Family
    next_hop: bytes
    """Network address of next hop: 4, 16, or 32 octets with a link-local address behind the global one (RFC 2545)."""
    prefixes: list[bytes]
    """With a path identifier before each where those were negotiated (RFC 7911)."""


def split(body: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the fields of an UPDATE: Withdrawn Routes, path attributes and NLRI, each unjudged.

    Raises BgpError 3/1 where their lengths contradict the message's (RFC 7606 section 3 (b)).
    """
    size = len(body)
    start = 4 + (body[0] << 8 | body[1]) if size > 1 else 4
    if start > size:
        raise BgpError(3, 1, reason=f"withdrawn routes length {start - 4} overruns a body of {size} octets")
    end = start + (body[start - 2] << 8 | body[start - 1])
    if end > size:
        raise BgpError(3, 1, reason=f"path attribute length {end - start} overruns a body of {size} octets")
    return body[2 : start - 2], body[start:end], body[end:]


def decode_mp_reach(
    value: bytes, families: Collection[Family], ipv4_over_ipv6: bool, numbered: Collection[Family] = ()
) -> MpReach | None:
    """Return what an MP_REACH_NLRI announces, None for a family that is not among the negotiated ``families``.

    ``ipv4_over_ipv6``: IPv4 prefixes may have an IPv6 next hop (RFC 8950). ``numbered``: families with path identifiers
    (RFC 7911). Raises BgpError 3/9: where the length of the next hop is wrong the NLRI cannot be found
    (RFC 7606 section 7.11, RFC 4760 section 7).
    """
    if len(value) < 5:
        raise _mp_error(MP_REACH, value, f"length {len(value)}, expected at least 5")
    family = _family(value)
    size = value[3]
    if family is None or family not in families:
        return None
    valid = (16, 32) if family == 6 else (4, 16, 32) if ipv4_over_ipv6 else (4,)
    if size not in valid or 5 + size > len(value):
        raise _mp_error(MP_REACH, value, f"next hop of {size} octets, expected {' or '.join(map(str, valid))}")
    return MpReach(family, value[4 : 4 + size], _mp_nlri(MP_REACH, value, family, 5 + size, numbered))


def decode_mp_unreach(
    value: bytes, families: Collection[Family], numbered: Collection[Family] = ()
) -> tuple[Family, list[bytes]] | None:
    """Return the family and prefixes of an MP_UNREACH_NLRI, None for a family that is not among ``families``.

    ``numbered``: families with path identifiers (RFC 7911). Raises BgpError 3/9 (RFC 4760 section 7).
    """
    if len(value) < 3:
        raise _mp_error(MP_UNREACH, value, f"length {len(value)}, expected at least 3")
    family = _family(value)
    if family is None or family not in families:
        return None
    return family, _mp_nlri(MP_UNREACH, value, family, 3, numbered)


def end_of_rib(body: bytes) -> Family | None:
    """Return the family whose End-of-RIB marker ``body`` is, None for anything else (RFC 4724 section 2).

    Only an empty UPDATE and one that holds nothing but an MP_UNREACH_NLRI without NLRI are markers.
    """
    if body == _EMPTY:
        return 4
    if len(body) not in (10, 11):
        return None
    withdrawn, size, flags, code = unpack_from("!HHBB", body)
    if withdrawn or size != len(body) - _LENGTHS or code != MP_UNREACH:
        return None
    expected = b"\0\3" if flags == OPTIONAL | EXTENDED_LENGTH else b"\3" if flags == OPTIONAL else None
    return _family(body[-3:]) if body[6:-3] == expected else None


def encode_end_of_rib(family: Family) -> bytes:
    """Return the framed End-of-RIB marker of a family (RFC 4724 section 2)."""
    if family == 4:
        return frame(MessageType.UPDATE, _EMPTY)
    attribute = pack_attribute(OPTIONAL, MP_UNREACH, pack("!HB", AFI[family], UNICAST))
    return frame(MessageType.UPDATE, pack("!HH", 0, len(attribute)) + attribute)


def withdrawals(family: Family, prefixes: Iterable[bytes], limit: int) -> list[bytes]:
    """Return framed messages of at most ``limit`` octets that withdraw ``prefixes``."""
    room = limit - HEADER_SIZE - _LENGTHS
    if family == 4:
        return [
            frame(MessageType.UPDATE, pack("!H", len(part)) + part + b"\0\0") for part in nlri.chunks(prefixes, room)
        ]
    head = pack("!HB", AFI[family], UNICAST)
    messages = []
    for part in nlri.chunks(prefixes, room - _MP_HEADER - len(head)):
        size = len(head) + len(part)
        lengths = pack("!HHBBH", 0, _MP_HEADER + size, OPTIONAL | EXTENDED_LENGTH, MP_UNREACH, size)
        messages.append(frame(MessageType.UPDATE, lengths + head + part))
    return messages


def encode_refresh_marker(family: Family, subtype: int) -> bytes:
    """Return a framed ROUTE-REFRESH that begins (1, BoRR) or ends (2, EoRR) what answers one (RFC 7313 section 3.2)."""
    return frame(MessageType.ROUTE_REFRESH, pack("!HBB", AFI[family], subtype, UNICAST))


class Announcement(NamedTuple):
    """Prefixes that share everything but the next hop, cut to fit: what sessions of one kind have in common."""

    before: bytes
    """Attribute section before NEXT_HOP."""
    after: bytes
    next_hop: bytes | None
    """Packed; None: the session's own."""
    parts: tuple[bytes, ...]
    """NLRI fields, one message each."""


def room(family: Family, next_hop_size: int, attributes_size: int, limit: int) -> int:
    """Return how many octets of NLRI fit beside attributes of a size."""
    overhead = HEADER_SIZE + _LENGTHS + attributes_size
    if family == 4 and next_hop_size == 4:
        return limit - overhead - 3 - next_hop_size
    return limit - overhead - _MP_HEADER - 5 - next_hop_size


def fits(family: Family, next_hop_size: int, attributes_size: int, limit: int, *, numbered: bool = False) -> bool:
    """Tell whether one prefix of any length, ``numbered``: with a path identifier, fits beside attributes of a size."""
    return room(family, next_hop_size, attributes_size, limit) >= nlri.longest(numbered)


def announcements(family: Family, announcement: Announcement, next_hop: bytes) -> list[bytes]:
    """Return the framed messages of an announcement on a session whose own next hop is ``next_hop``.

    IPv4 with an IPv4 next hop goes into the native fields, everything else into MP_REACH_NLRI, which comes first
    (RFC 7606 section 5.1).
    """
    before, after, parts = announcement.before, announcement.after, announcement.parts
    next_hop = announcement.next_hop or next_hop
    if family == 4 and len(next_hop) == 4:
        attributes = before + pack_attribute(WELL_KNOWN, NEXT_HOP, next_hop) + after
        head = pack("!HH", 0, len(attributes)) + attributes
        return [frame(MessageType.UPDATE, head + part) for part in parts]
    attributes = before + after
    head = pack("!HBB", AFI[family], UNICAST, len(next_hop)) + next_hop + b"\0"
    messages = []
    for part in parts:
        size = len(head) + len(part)
        lengths = pack("!HHBBH", 0, _MP_HEADER + size + len(attributes), OPTIONAL | EXTENDED_LENGTH, MP_REACH, size)
        messages.append(frame(MessageType.UPDATE, lengths + head + part + attributes))
    return messages


def _family(value: bytes) -> Family | None:
    return FAMILY_OF_AFI.get(int.from_bytes(value[:2], "big")) if value[2] == UNICAST else None


def _mp_nlri(code: int, value: bytes, family: Family, start: int, numbered: Collection[Family]) -> list[bytes]:
    try:
        return nlri.decode(value[start:], BITS[family], family in numbered)
    except ValueError as error:
        raise _mp_error(code, value, str(error)) from error


def _mp_error(code: int, value: bytes, reason: str) -> BgpError:
    name = "MP_REACH_NLRI" if code == MP_REACH else "MP_UNREACH_NLRI"
    return BgpError(3, 9, pack_attribute(OPTIONAL, code, value), f"{name}: {reason}")
