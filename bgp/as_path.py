"""The value of AS_PATH (RFC 4271 section 4.3), with four octets per AS number and the two of an old peer (RFC 6793)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import NamedTuple

SET, SEQUENCE, CONFED_SEQUENCE, CONFED_SET = 1, 2, 3, 4
"""Segment types of RFC 4271 section 4.3 and RFC 5065 section 3."""

AS_TRANS = 23456
"""What stands for an AS number that does not fit into two octets (RFC 6793 section 9)."""

Segment = tuple[int, tuple[int, ...]]
"""Segment type and AS numbers."""

_LONGEST_SEGMENT = 255
_NUMBERS = {width: tuple(Struct(f"!{n}{letter}") for n in range(256)) for width, letter in ((2, "H"), (4, "I"))}
"""By octets per AS number and their count: the packed AS numbers of one segment."""


class Summary(NamedTuple):
    """What best-path selection wants to know of an AS_PATH."""

    length: int
    """As RFC 4271 section 9.1.2.2 (a) counts it: a set is one."""
    first: int
    """The neighbouring AS: the first of a path that starts with a sequence, else 0."""
    own: int
    """How often the receiver's AS occurs."""


def examine(value: bytes, width: int, local_as: int) -> Summary | str:
    """Judge a received AS_PATH; return what it says, or a text that tells why it is malformed.

    RFC 7606 section 7.2, with RFC 7607 for AS 0 and RFC 5065 section 5 for confederation segments, which no peer may
    send that is not in our confederation.
    """
    numbers = _NUMBERS[width]
    length = first = own = at = 0
    end = len(value)
    while at < end:
        if end - at < 2:
            return "a segment is cut short"
        kind, count = value[at], value[at + 1]
        stop = at + 2 + count * width
        if not count:
            return "a segment is empty"
        if stop > end:
            return "a segment overruns the attribute"
        if kind != SEQUENCE and kind != SET:
            return f"segment type {kind}"
        asns = numbers[count].unpack_from(value, at + 2)
        if 0 in asns:
            return "AS 0"
        if kind == SET:
            length += 1
        else:
            length += count
            if not at:
                first = asns[0]
        own += asns.count(local_as)
        at = stop
    return Summary(length, first, own)


def unpack_sequence(data: bytes, at: int) -> tuple[int, ...]:
    """Return the four-octet AS numbers of the segment that starts at a position."""
    return _NUMBERS[4][data[at + 1]].unpack_from(data, at + 2)


def examine_as4_path(value: bytes) -> list[Segment] | str:
    """Judge a received AS4_PATH; return its segments, or a text that tells why it is malformed (RFC 6793 section 6).

    Confederation segments do not belong into it and are left out.
    """
    found: list[Segment] = []
    at, end = 0, len(value)
    while at < end:
        if end - at < 2:
            return "a segment is cut short"
        kind, count = value[at], value[at + 1]
        stop = at + 2 + count * 4
        if not count:
            return "a segment is empty"
        if stop > end:
            return "a segment overruns the attribute"
        if not SET <= kind <= CONFED_SET:
            return f"segment type {kind}"
        asns = _NUMBERS[4][count].unpack_from(value, at + 2)
        if 0 in asns:
            return "AS 0"
        if kind <= SEQUENCE:
            found.append((kind, asns))
        at = stop
    return found


def segments(value: bytes, width: int = 4) -> Iterator[Segment]:
    """Iterate over the segments of a valid AS_PATH."""
    at = 0
    while at < len(value):
        count = value[at + 1]
        yield value[at], _NUMBERS[width][count].unpack_from(value, at + 2)
        at += 2 + width * count


def pack(path: Iterable[Segment], width: int = 4) -> bytes:
    """Return the value of an AS_PATH; with ``width`` 2, AS_TRANS stands for numbers that do not fit."""
    parts = []
    for kind, asns in path:
        if width == 2:
            asns = tuple(n if n < 0x10000 else AS_TRANS for n in asns)
        parts.append(bytes((kind, len(asns))) + _NUMBERS[width][len(asns)].pack(*asns))
    return b"".join(parts)


def prepend(value: bytes, asn: int, count: int) -> bytes:
    """Return a 4-octet AS_PATH with ``asn`` put before it ``count`` times (RFC 4271 section 5.1.2 (b))."""
    return pack(_join([(SEQUENCE, (asn,) * count)], segments(value))) if count else value


def merge(value: bytes, as4_path: list[Segment] | None) -> bytes:
    """Return the 4-octet AS_PATH that a 2-octet one and its AS4_PATH stand for (RFC 6793 section 4.2.3)."""
    path = list(segments(value, 2))
    surplus = _length(path) - _length(as4_path) if as4_path else -1
    if as4_path is None or surplus < 0:
        return pack(path)
    lead: list[Segment] = []
    for kind, asns in path:
        if not surplus:
            break
        if kind == SEQUENCE:
            asns = asns[:surplus]
            surplus -= len(asns)
        else:
            surplus -= 1
        lead.append((kind, asns))
    return pack(_join(lead, as4_path))


def narrow(value: bytes) -> tuple[bytes, bytes | None]:
    """Return AS_PATH and AS4_PATH for a 2-octet peer; no AS4_PATH where every number fits (RFC 6793 section 4.2.2)."""
    path = list(segments(value))
    fits = all(n < 0x10000 for _, asns in path for n in asns)
    return pack(path, 2), None if fits else value


def text(value: bytes, width: int = 4) -> str:
    """Return the usual text of a valid AS_PATH: ``65001 65002 {65003,65004}``."""
    return " ".join(
        "{" + ",".join(map(str, asns)) + "}" if kind == SET else " ".join(map(str, asns))
        for kind, asns in segments(value, width)
    )


def _length(path: Iterable[Segment]) -> int:
    return sum(len(asns) if kind == SEQUENCE else 1 for kind, asns in path)


def _join(first: list[Segment], second: Iterable[Segment]) -> list[Segment]:
    """Concatenate two paths; a sequence that continues a sequence becomes one segment where it fits."""
    joined = list(first)
    for kind, asns in second:
        if joined and kind == joined[-1][0] == SEQUENCE and len(joined[-1][1]) + len(asns) <= _LONGEST_SEGMENT:
            joined[-1] = kind, joined[-1][1] + asns
        else:
            joined.append((kind, asns))
    return joined
