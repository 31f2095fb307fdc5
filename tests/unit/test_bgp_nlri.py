from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.nlri import chunks, decode
from config.prefix import Family, make, network, parse

BITS: dict[Family, int] = {4: 32, 6: 128}


@st.composite
def wire_prefixes(draw: st.DrawFn, family: Family) -> bytes:
    """A prefix as a sloppy peer might write it, host bits and all."""
    length = draw(st.integers(0, BITS[family]))
    size = (length + 7) // 8
    return bytes((length,)) + draw(st.binary(min_size=size, max_size=size))


@given(st.lists(wire_prefixes(4), max_size=30))
def test_decode_masks_host_bits_and_keeps_order(prefixes: list[bytes]) -> None:
    expected = [make(4, int.from_bytes(p[1:].ljust(4, b"\0")), p[0]) for p in prefixes]
    assert decode(b"".join(prefixes), 32) == expected


@given(st.integers(0, 128), st.integers(1, 40), st.randoms(use_true_random=False))
def test_runs_of_one_length_decode_like_any_other(length: int, count: int, random: object) -> None:
    size = (length + 7) // 8
    prefixes = [make(6, n << (128 - 8 * size) if size else 0, length) for n in range(count)]
    assert decode(b"".join(prefixes), 128) == prefixes


@given(st.binary(max_size=80), st.sampled_from((32, 128)))
def test_decode_of_anything_returns_valid_prefixes_or_raises(data: bytes, bits: int) -> None:
    try:
        prefixes = decode(data, bits)
    except ValueError:
        return
    assert sum(map(len, prefixes)) == len(data)
    for prefix in prefixes:
        network(4 if bits == 32 else 6, prefix)


@pytest.mark.parametrize(
    ("data", "bits"),
    [
        pytest.param("21" + "0a000000", 32, id="/33"),
        pytest.param("18" + "0a00", 32, id="cut short"),
        pytest.param("180a0000" + "18", 32, id="length octet alone"),
        pytest.param("81" + "00" * 17, 128, id="/129"),
        pytest.param("ff", 128, id="/255"),
        pytest.param("28" + "0a000000ff" + "28" + "0a000000ff", 32, id="a run of /40"),
    ],
)
def test_malformed(data: str, bits: int) -> None:
    with pytest.raises(ValueError):
        decode(bytes.fromhex(data), bits)


def test_mixed_lengths() -> None:
    texts = ["10.0.0.0/8", "0.0.0.0/0", "192.0.2.128/25", "192.0.2.1/32", "10.1.0.0/16"]
    wire = [parse(t)[1] for t in texts]
    assert [str(network(4, p)) for p in decode(b"".join(wire), 32)] == texts
    assert ip_network(texts[0]) == network(4, wire[0])


@given(st.lists(wire_prefixes(6), max_size=60), st.integers(17, 200))
def test_chunks_hold_everything_in_order_and_fit(prefixes: list[bytes], room: int) -> None:
    found = list(chunks(prefixes, room))
    assert b"".join(found) == b"".join(prefixes)
    assert all(0 < len(c) <= room for c in found)
