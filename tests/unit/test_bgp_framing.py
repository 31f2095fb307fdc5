from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.framing import HEADER_SIZE, MARKER, Framer, frame
from bgp.messages import BgpError, MessageType

KEEPALIVE = frame(MessageType.KEEPALIVE, b"")


def header(length: int, kind: int, marker: bytes = MARKER) -> bytes:
    return marker + length.to_bytes(2, "big") + bytes((kind,))


def test_frame() -> None:
    assert KEEPALIVE == b"\xff" * 16 + b"\x00\x13\x04"


@given(
    st.lists(st.tuples(st.just(2), st.binary(min_size=4, max_size=300)), max_size=8),
    st.lists(st.integers(1, 400), max_size=20),
)
def test_messages_come_out_whole_however_the_stream_is_cut(messages: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(frame(kind, body) for kind, body in messages)
    framer = Framer()
    found: list[tuple[int, bytes]] = []
    for size in [*cuts, len(stream)]:
        found += framer.feed(stream[:size])
        stream = stream[size:]
    assert found == messages
    assert framer.pending == 0


def test_what_is_not_asked_for_stays() -> None:
    framer = Framer()
    assert next(framer.feed(KEEPALIVE * 3)) == (4, b"")
    assert framer.pending == 2 * HEADER_SIZE
    assert list(framer.feed(b"")) == [(4, b"")] * 2


def test_limit_may_be_raised_between_messages() -> None:
    """RFC 8654 section 4: the longer limit holds once the OPENs have been exchanged."""
    framer = Framer()
    opening = frame(MessageType.OPEN, bytes(10))
    messages = framer.feed(opening + frame(MessageType.UPDATE, bytes(60000)))
    assert next(messages)[0] == MessageType.OPEN
    framer.limit = 65535
    assert len(next(messages)[1]) == 60000


@pytest.mark.parametrize(
    ("data", "subcode", "error_data"),
    [
        pytest.param(header(19, 4, b"\xff" * 15 + b"\xfe"), 1, b"", id="marker"),
        pytest.param(header(18, 4), 2, b"\x00\x12", id="shorter than a header"),
        pytest.param(header(0, 4), 2, b"\x00\x00", id="length 0"),
        pytest.param(header(4097, 2), 2, b"\x10\x01", id="longer than 4096"),
        pytest.param(header(28, 1), 2, b"\x00\x1c", id="OPEN shorter than 29"),
        pytest.param(header(22, 2), 2, b"\x00\x16", id="UPDATE shorter than 23"),
        pytest.param(header(20, 3), 2, b"\x00\x14", id="NOTIFICATION shorter than 21"),
        pytest.param(header(20, 4), 2, b"\x00\x14", id="KEEPALIVE longer than 19"),
        pytest.param(header(19, 0), 3, b"\x00", id="type 0"),
        pytest.param(header(19, 6), 3, b"\x06", id="type 6"),
    ],
)
def test_header_errors_of_rfc4271_section_6_1(data: bytes, subcode: int, error_data: bytes) -> None:
    with pytest.raises(BgpError) as caught:
        list(Framer().feed(data))
    assert (caught.value.code, caught.value.subcode, caught.value.data) == (1, subcode, error_data)


def test_messages_before_the_fault_come_out_first() -> None:
    messages = Framer().feed(KEEPALIVE + header(19, 9))
    assert next(messages) == (4, b"")
    with pytest.raises(BgpError):
        next(messages)


def test_open_stays_short_with_extended_messages() -> None:
    """RFC 8654 section 4."""
    with pytest.raises(BgpError) as caught:
        list(Framer(65535).feed(header(5000, 1)))
    assert (caught.value.code, caught.value.subcode) == (1, 2)
