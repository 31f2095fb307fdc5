"""The fuzz targets of `make fuzz`, for a moment; and crafted OPENs on which exabgp raises something of its own."""

from __future__ import annotations

from collections import Counter
from struct import pack

import pytest

from bgp import codec
from tests.wire import fuzz_bgp
from tests.wire.receivers import refusing


@pytest.mark.parametrize("number", [0, 1], ids=["framing", "messages"])
def test_fuzz_targets(number: int) -> None:
    fuzz_bgp.targets(150)[number]()


FIXED = pack("!BHH4s", 4, 65002, 90, b"\x0a\0\0\2")


def parameters(octets: bytes, length: int | None = None) -> bytes:
    return FIXED + bytes((len(octets) if length is None else length,)) + octets


def capability(code: int, value: bytes) -> bytes:
    octets = bytes((code, len(value))) + value
    return parameters(bytes((2, len(octets))) + octets)


CRAFTED = {
    "a lone octet 255": parameters(b"\xff"),
    "255 as the length": FIXED + b"\xff",
    "extended length cut short": parameters(b"\xff\xff"),
    "extended length without parameters": parameters(b"\xff\xff\0\7", 255),
    "parameter without length": parameters(b"\2"),
    "nothing behind the fixed part": FIXED,
    **{
        f"capability {code} of {size} octets": capability(code, bytes(range(1, size + 1)))
        for code in (1, 5, 6, 64, 65, 69, 70, 71, 73, 75)
        for size in (1, 2, 3, 5, 7, 9, 11)
    },
}


@pytest.mark.parametrize("body", CRAFTED.values(), ids=CRAFTED.keys())
def test_crafted_opens_end_in_the_rfcs_error_or_are_taken(body: bytes) -> None:
    """IndexError and struct.error inside exabgp become 2/0 (RFC 4271 section 6.2)."""
    with refusing(2, Counter()):
        codec.decode_open(body)
