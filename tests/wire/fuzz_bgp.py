"""``python -m tests.wire.fuzz_bgp SECONDS``: mutated messages at everything that reads a peer's octets.

Seeds are the public corpora and captures where they are at hand, and good messages of our own. A failure is shrunk and
printed by hypothesis; the process ends with status 1.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from struct import pack

import pytest
from hypothesis import HealthCheck, Verbosity, given, seed, settings
from hypothesis import strategies as st

from bgp import codec
from bgp.attributes import pack_attribute
from bgp.framing import Framer, frame
from bgp.messages import BgpError, GracefulRestart, MessageType, Notification, Open, RouteRefresh
from config.prefix import Family
from tests import corpora
from tests.bgp_ribs import BOTH, Node
from tests.wire.receivers import drain, frames, receivers, refusing, take

_INTERESTING = (0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 19, 23, 24, 25, 32, 33, 64, 65, 69, 127, 128, 129, 254, 255)


@cache
def seeds() -> tuple[bytes, ...]:
    """Return whole messages of every type."""
    messages = list(_own())
    try:
        messages += [data for _, data in corpora.archive("fuzz/bgp-messages.tar.gz")]
        for name in corpora.names("pcap"):
            messages += corpora.messages(corpora.read(name))
    except pytest.skip.Exception as absent:
        print(f"without public corpora: {absent}", file=sys.stderr)
    return tuple(dict.fromkeys(messages))


def _own() -> list[bytes]:
    families: dict[Family, int] = {4: 3, 6: 3}
    opening = Open(
        asn=4200000001,
        hold_time=90,
        identifier=b"\x0a\0\0\1",
        families=BOTH,
        enhanced_refresh=True,
        extended_message=True,
        extended_next_hop=frozenset(((4, 6),)),
        graceful_restart=GracefulRestart(restart_time=120, forwarding={4: True, 6: False}),
        add_path=families,
        hostname="node",
        software="podroute",
    )
    good = pack_attribute(0x40, 1, b"\0") + pack_attribute(0x40, 2, b"\2\2" + pack("!II", 65002, 65003))
    native = good + pack_attribute(0x40, 3, b"\xc0\0\2\2") + pack_attribute(0xC0, 8, bytes(8))
    reach = pack_attribute(0x80, 14, pack("!HBB", 2, 1, 16) + b"\xfd" + bytes(15) + b"\0" + b"\x40\x20\1\x0d\xb8" * 2)
    section = reach + good
    return [
        codec.encode_open(opening),
        codec.KEEPALIVE,
        codec.encode_notification(Notification(6, 2, b"\4text")),
        codec.encode_route_refresh(RouteRefresh(6)),
        codec.encode_end_of_rib(6),
        frame(MessageType.UPDATE, pack("!HH", 0, len(native)) + native + b"\x18\x0a\1\2\x10\x0a\2"),
        frame(MessageType.UPDATE, pack("!HH", 0, len(section)) + section),
        frame(MessageType.UPDATE, b"\0\4\x18\x0a\1\2\0\0"),
    ]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A seed with some of its octets replaced, removed, repeated or put in behind its header."""
    message = bytearray(draw(st.sampled_from(seeds())))
    for _ in range(draw(st.integers(0, 8))):
        at = draw(st.integers(min(16, len(message)), len(message)))
        match draw(st.integers(0, 4)):
            case 0 if at < len(message):
                message[at] = draw(st.sampled_from(_INTERESTING) | st.integers(0, 255))
            case 1:
                del message[at : at + draw(st.integers(1, 8))]
            case 2:
                message[at:at] = draw(st.binary(max_size=8))
            case 3:
                message[at:at] = message[at : at + draw(st.integers(1, 40))]
            case _:
                other = draw(st.sampled_from(seeds()))
                message[at:] = other[draw(st.integers(0, len(other))) :]
    if draw(st.booleans()) and len(message) >= 19:  # a true length, so that what is behind the header is reached
        message[:18] = b"\xff" * 16 + pack("!H", len(message) & 0xFFFF)
    return bytes(message)


def check_framing(data: bytes, cuts: list[int]) -> None:
    """A stream gives the same messages and the same end however it is cut."""
    whole, pieces = _framed([data]), []
    for cut in cuts:
        pieces.append(data[:cut])
        data = data[cut:]
    assert _framed([*pieces, data]) == whole
    assert whole[1] is None or whole[1][0] == 1


def _framed(parts: list[bytes]) -> tuple[list[tuple[int, bytes]], tuple[int, int, bytes] | None]:
    framer, found = Framer(), []
    try:
        for part in parts:
            for kind, body in framer.feed(part):
                found.append((int(kind), bytes(body)))
    except BgpError as error:
        return found, (error.code, error.subcode, error.data)
    return found, None


def check_messages(nodes: list[Node], message: bytes) -> None:
    """Whatever framing lets through, and the octets behind the header as a body of each type."""
    for kind, body in frames(message):
        take(nodes, kind, body)
    for kind in (MessageType.OPEN, MessageType.UPDATE, MessageType.NOTIFICATION, MessageType.ROUTE_REFRESH):
        take(nodes, kind, message[19:])
    _open(message[19:])
    drain(nodes)


def _open(body: bytes) -> None:
    """An OPEN that is accepted can be negotiated with, or refused as section 6.2 says."""
    with refusing(2, Counter()):
        opening = codec.decode_open(body)
        assert codec.decode_open(codec.encode_open(opening)[19:]).asn == opening.asn
        codec.negotiate(Open(65001, 90, b"\x0a\0\0\1", families=BOTH), opening, opening.asn)


def targets(examples: int) -> list[Callable[[], None]]:
    """Return the two fuzz targets, each of which runs so many examples."""
    nodes = receivers()
    options = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )

    @options
    @given(st.lists(mutated(), min_size=1, max_size=4), st.lists(st.integers(0, 200), max_size=8))
    def framing(messages: list[bytes], cuts: list[int]) -> None:
        check_framing(b"".join(messages), cuts)

    @options
    @given(mutated())
    def messages(message: bytes) -> None:
        check_messages(nodes, message)

    return [framing, messages]


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    end, rounds = time.monotonic() + seconds, Counter[str]()
    start = time.time_ns()
    print(f"{len(seeds())} seeds, {seconds:g} s, first seed {start}")
    while time.monotonic() < end:
        for target in targets(500):
            seed(start + rounds.total())(target)()
            rounds[target.__name__] += 1
    print(", ".join(f"{name}: {count * 500:,} examples" for name, count in rounds.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
