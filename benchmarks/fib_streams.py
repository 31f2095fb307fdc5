"""UPDATE streams, made before the clock runs: the same octets go to every daemon (RFC 4271 section 4.3, RFC 4760)."""

from __future__ import annotations

import gzip
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from config.prefix import Family

_MARKER = b"\xff" * 16
END_OF_RIB: dict[Family, bytes] = {
    4: _MARKER + struct.pack("!HBHH", 23, 2, 0, 0),
    6: _MARKER + struct.pack("!HBHH", 29, 2, 0, 6) + bytes((0x80, 15, 3, 0, 2, 1)),
}
SAMPLE = 2000
"""Prefixes, drawn by lot, that are asked for one by one; when all are there, all but some hundred others are."""


@dataclass(frozen=True)
class Stream:
    """What one peer says. ``sample`` are prefixes (wire bytes) whose own entry answers for their first address."""

    family: Family
    data: bytes
    withdrawals: bytes
    prefixes: Sequence[bytes]
    sample: Sequence[bytes]


def made(family: Family, count: int, per_update: int, next_hop: bytes, first_as: int, *, offset: int = 0) -> Stream:
    """Return ``count`` /24s from 11.0.0.0 or /64s from 2a00::, ``per_update`` in an UPDATE, each with an AS path of
    its own."""
    if family == 4:
        prefixes = [struct.pack("!BI", 24, (11 << 24) + (i << 8))[:4] for i in range(offset, offset + count)]
    else:
        prefixes = [struct.pack("!BII", 64, 0x2A000000, i) for i in range(offset, offset + count)]
    messages, gone = [], []
    for number, start in enumerate(range(0, count, per_update)):
        nlri = b"".join(prefixes[start : start + per_update])
        messages.append(update(family, nlri, next_hop, (first_as, 64500, 100_000 + offset + number)))
        gone.append(_withdrawal(family, nlri))
    sample = random.Random(1).sample(prefixes, min(SAMPLE, count))
    return Stream(family, b"".join(messages) + END_OF_RIB[family], b"".join(gone), prefixes, sample)


def update(family: Family, nlri: bytes, next_hop: bytes, path: Sequence[int]) -> bytes:
    """Frame one announcement."""
    as_path = struct.pack("!BB", 2, len(path)) + b"".join(struct.pack("!I", number) for number in path)
    attributes = bytes((0x40, 1, 1, 0)) + bytes((0x40, 2, len(as_path))) + as_path
    if family == 4:
        attributes += bytes((0x40, 3, 4)) + next_hop
    else:
        reach = struct.pack("!HBB", 2, 1, len(next_hop)) + next_hop + b"\0" + nlri
        attributes = struct.pack("!BBH", 0x90, 14, len(reach)) + reach + attributes
        nlri = b""
    return _frame(struct.pack("!HH", 0, len(attributes)) + attributes + nlri)


def internet(path: Path, next_hop: bytes) -> Stream:
    """Return a recorded full table, its next hops replaced."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    prefixes: dict[bytes, None] = {}
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at + 16 : at + 18], "big")
        if data[at + 18] == 2:
            place = at + 21 + int.from_bytes(data[at + 19 : at + 21], "big")
            end = place + 2 + int.from_bytes(data[place : place + 2], "big")
            place += 2
            while place < end:
                long = data[place] & 0x10
                length = int.from_bytes(data[place + 2 : place + (4 if long else 3)], "big")
                value = place + (4 if long else 3)
                if data[place + 1] == 3:
                    data[value : value + 4] = next_hop
                place = value + length
            while end < at + size:
                step = 1 + (data[end] + 7 >> 3)
                prefixes[bytes(data[end : end + step])] = None
                end += step
        at += size
    longest: dict[int, bytes] = {}
    for prefix in prefixes:
        first = int.from_bytes(prefix[1:].ljust(4, b"\0"), "big")
        if first not in longest or longest[first][0] < prefix[0]:
            longest[first] = prefix
    usual = [prefix for first, prefix in longest.items() if 1 << 24 <= first < 100 << 24 and first >> 24 != 10]
    return Stream(4, bytes(data) + END_OF_RIB[4], b"", list(prefixes), random.Random(1).sample(usual, SAMPLE))


def open_message(asn: int, identifier: bytes, family: Family) -> bytes:
    """Frame an OPEN without hold time, with four-octet AS and one family."""
    capabilities = struct.pack("!BBHBB", 1, 4, 1 if family == 4 else 2, 0, 1) + struct.pack("!BBI", 65, 4, asn)
    options = struct.pack("!BB", 2, len(capabilities)) + capabilities
    return _frame(struct.pack("!BHH", 4, asn, 0) + identifier + bytes((len(options),)) + options, kind=1)


KEEPALIVE = _MARKER + struct.pack("!HB", 19, 4)


def _withdrawal(family: Family, nlri: bytes) -> bytes:
    if family == 4:
        return _frame(struct.pack("!H", len(nlri)) + nlri + b"\0\0")
    value = struct.pack("!HB", 2, 1) + nlri
    return _frame(struct.pack("!HHBBH", 0, len(value) + 4, 0x90, 15, len(value)) + value)


def _frame(body: bytes, kind: int = 2) -> bytes:
    return _MARKER + struct.pack("!HB", 19 + len(body), kind) + body
