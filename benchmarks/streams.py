"""Input for BGP benchmarks: streams of framed UPDATEs, synthetic ones and a genuine table."""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from pathlib import Path
from struct import pack

from bgp import as_path
from bgp.attributes import AS_PATH, NEXT_HOP, ORIGIN, WELL_KNOWN, Attributes, pack_attribute
from bgp.framing import EXTENDED_LIMIT, Framer, frame
from bgp.messages import MessageType
from bgp.nlri import decode
from bgp.update import encode_end_of_rib, split

REAL = Path("internet/fulltable-2015-as4.updates.bin.gz")
"""A table transfer as raw messages, under $PODROUTE_DATA; recorded inside REAL_AS."""
REAL_AS = 3856


@dataclass(frozen=True, slots=True)
class Stream:
    """Messages to send, and what they come to."""

    name: str
    asn: int
    """AS number of who sends them."""
    local_as: int
    """AS number of who receives them: the real table is sent inside one AS."""
    data: bytes
    messages: int
    prefixes: int


def attributes(asn: int, next_hop: bytes, number: int | None = None) -> bytes:
    """Return an attribute section; with a ``number``, one of its own."""
    path = [asn] if number is None else [asn, 100_000 + number, 64_999]
    return b"".join(
        (
            pack_attribute(WELL_KNOWN, ORIGIN, b"\0"),
            pack_attribute(WELL_KNOWN, AS_PATH, as_path.pack([(as_path.SEQUENCE, tuple(path))])),
            pack_attribute(WELL_KNOWN, NEXT_HOP, next_hop),
        )
    )


def update(section: bytes, nlri: bytes, withdrawn: bytes = b"") -> bytes:
    body = pack("!H", len(withdrawn)) + withdrawn + pack("!H", len(section)) + section + nlri
    return frame(MessageType.UPDATE, body)


def synthetic(count: int, per_update: int, next_hop: bytes, *, asn: int, local_as: int, first: int = 1 << 16) -> Stream:
    """Return ``count`` /24 prefixes, from 1.0.0.0/24 on; each UPDATE has attributes of its own."""
    messages = []
    for start in range(0, count, per_update):
        stop = min(count, start + per_update)
        nlri = b"".join(b"\x18" + (first + n).to_bytes(3, "big") for n in range(start, stop))
        messages.append(update(attributes(asn, next_hop, start), nlri))
    messages.append(encode_end_of_rib(4))
    return Stream(f"{count} x /24, {per_update} per update", asn, local_as, b"".join(messages), len(messages), count)


def real(next_hop: bytes) -> Stream | None:
    """Return the real table with another next hop, None where the file is not there."""
    directory = os.environ.get("PODROUTE_DATA")
    path = Path(directory) / REAL if directory else None
    if path is None or not path.exists():
        return None
    prefixes: set[bytes] = set()
    messages = []
    for _, body in Framer(EXTENDED_LIMIT).feed(gzip.decompress(path.read_bytes())):
        withdrawn, section, nlri = split(body)
        prefixes.update(decode(nlri, 32))
        changed = b"".join(
            pack_attribute(flags, code, next_hop if code == NEXT_HOP else value)
            for flags, code, value in Attributes(section)
        )
        messages.append(update(changed, nlri, withdrawn))
    messages.append(encode_end_of_rib(4))
    name = f"real table of {len(prefixes)} prefixes"
    return Stream(name, REAL_AS, REAL_AS, b"".join(messages), len(messages), len(prefixes))
