"""The protocol between plugin and agent: one half is ``cni/plugin.py``, the other ``cni/wire.py``."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import plugin
from cni.wire import HEADER, MAGIC, VERSION, Answer, Message, WireError, decode, encode_answer

LIMIT = 1 << 20
NAMES = st.text("ABCXYZ_", min_size=1).map(lambda name: b"CNI_" + name.encode())
VALUES = st.binary(max_size=40).filter(lambda value: b"\0" not in value)


@given(st.dictionaries(NAMES, VALUES), st.binary(), st.integers(0, 200))
def test_the_agent_reads_what_the_plugin_writes(environment: dict[bytes, bytes], stdin: bytes, errno: int) -> None:
    message = decode(plugin.request(environment, stdin, errno), limit=LIMIT)
    sent = {key.decode(): value.decode("utf-8", "surrogateescape") for key, value in environment.items()}
    assert message == Message(sent, stdin, errno)


def test_both_halves_speak_of_the_same_version() -> None:
    assert (plugin.MAGIC, plugin.VERSION) == (MAGIC, VERSION)


def test_fields_of_a_later_plugin_are_ignored() -> None:
    frame = plugin.request({b"CNI_COMMAND": b"ADD"}, b"{}", 0)
    later = b"\0\0\0\x03new"
    frame = HEADER.pack(MAGIC, VERSION, 4, len(frame) - HEADER.size + len(later)) + frame[HEADER.size :] + later
    assert decode(frame, limit=LIMIT).environment == {"CNI_COMMAND": "ADD"}


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (b"", "shorter than a header"),
        (HEADER.pack(b"HTTP", 1, 3, 0), "not a request"),
        (HEADER.pack(MAGIC, 2, 3, 0), "run `podroute cni install` again"),
        (HEADER.pack(MAGIC, 1, 3, LIMIT + 1), "at most"),
        (HEADER.pack(MAGIC, 1, 3, 9), "promises 9"),
        (HEADER.pack(MAGIC, 1, 3, 0), "cut off"),
        (HEADER.pack(MAGIC, 1, 1, 4) + bytes(4), "1 fields, 3 are needed"),
        (HEADER.pack(MAGIC, 1, 0, 1) + b"x", "behind the last field"),
        (HEADER.pack(MAGIC, 1, 3, 14) + b"\0\0\0\2XY" + bytes(8), "without `=`"),
        (HEADER.pack(MAGIC, 1, 3, 12) + bytes(12), "errno"),
        (HEADER.pack(MAGIC, 1, 3, 13) + bytes(8) + b"\0\0\0\1x", "errno"),
    ],
)
def test_what_is_no_request(frame: bytes, text: str) -> None:
    with pytest.raises(WireError, match=text):
        decode(frame, limit=LIMIT)


@given(st.binary(max_size=60))
def test_no_octets_cause_another_error(body: bytes) -> None:
    for fields in (0, 3, 65535):
        with contextlib.suppress(WireError):
            decode(HEADER.pack(MAGIC, VERSION, fields, len(body)) + body, limit=LIMIT)


def test_answer() -> None:
    frame = encode_answer(Answer(1, b"{}"))
    assert frame == b"PRCN" + b"\0\1" + b"\0\1" + b"\0\0\0\2" + b"{}"
