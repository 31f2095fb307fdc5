"""Prefixes that arrive together and lie together come to the same as each alone (RFC 4271 section 9)."""

from __future__ import annotations

from struct import pack

from hypothesis import given, settings
from hypothesis import strategies as st

from bgp.containers import Neighbours
from bgp.nlri import decode
from bgp.policy import ACCEPT
from config.prefix import LEAD
from tests.bgp_ribs import Node, add_peer, session

FIRST = 0x0A0100 - 24
"""The last /24s of one /16 and the first of the next are 24 and more."""


def prefix(number: int) -> bytes:
    return b"\x18" + (FIRST + number).to_bytes(3, "big")


def announcement(asn: int, path: int, prefixes: list[bytes], next_hop: bytes) -> bytes:
    section = bytes.fromhex("400101004002 0a 02 02".replace(" ", "")) + pack("!II", asn, 64000 + path)
    section += b"\x40\x03\x04" + next_hop
    return pack("!HH", 0, len(section)) + section + b"".join(prefixes)


def withdrawal(prefixes: list[bytes]) -> bytes:
    field = b"".join(prefixes)
    return pack("!H", len(field)) + field + pack("!H", 0)


class Fixture:
    def __init__(self) -> None:
        self.node = Node("n", 65001, 1)
        self.peers = [Node("a", 65002, 2), Node("b", 65003, 3)]
        self.sink = Node("sink", 65004, 4)
        for other in (*self.peers, self.sink):
            add_peer(self.node, other)
            add_peer(other, self.node, exports=ACCEPT)
            session(self.node, other)
        self.node.originate("192.0.2.0/24")

    def receive(self, number: int, path: int | None, prefixes: list[bytes]) -> None:
        peer = self.peers[number]
        body = withdrawal(prefixes) if path is None else announcement(peer.asn, path, prefixes, peer.address(4))
        self.node.rib.receive(peer.name, body)

    def work(self) -> object:
        while self.node.rib.run(37):
            pass
        told = self.node.rib.peers["sink"].groups[4].table
        names = ("a", "b")
        return (
            self.node.fib,
            {
                p: [(path.peer.name if path.peer else "") for path in self.node.rib.loc[4].paths(p)]
                for p in self.node.rib.loc[4].table
            },
            set(told),
            [self.node.rib.counts(name) for name in names],
        )


step = st.tuples(
    st.integers(0, 1),
    st.none() | st.integers(0, 2),
    st.integers(0, 40),
    st.integers(1, 60),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(step, st.booleans()), max_size=12))
def test_together_or_alone(steps: list[tuple[tuple[int, int | None, int, int], bool]]) -> None:
    together, alone = Fixture(), Fixture()
    for (peer, path, first, count), settled in steps:
        prefixes = [prefix(n) for n in range(first, first + count)]
        together.receive(peer, path, prefixes)
        for each in prefixes:
            alone.receive(peer, path, [each])
        if settled:
            assert together.work() == alone.work()
    assert together.work() == alone.work()


def test_a_run_ends_where_the_neighbourhood_does() -> None:
    prefixes = [prefix(n) for n in range(80)]
    found = decode(b"".join(prefixes), 32)
    assert found == prefixes
    assert isinstance(found, Neighbours)
    assert [len(run) for run in found.runs] == [24, 56]
    assert [p for run in found.runs for p in run] == prefixes
    assert all(len({p[: LEAD[4]] for p in run}) == 1 for run in found.runs)


def test_what_is_scattered_or_doubled_is_no_run() -> None:
    scattered = [bytes((24, 10, n, 0)) for n in range(100)]
    assert not isinstance(decode(b"".join(scattered), 32), Neighbours)
    doubled = [prefix(n % 50) for n in range(100)]
    assert not isinstance(decode(b"".join(doubled), 32), Neighbours)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.sampled_from((64, 60, 128)))
def test_runs_of_ipv6(bits: list[int], length: int) -> None:
    size = (length + 7) // 8
    prefixes = [
        bytes((length, 0x2A, 0, 0, 0, 0, 0, bit >> 1, n & 0xF0))[: size + 1].ljust(size + 1, b"\0")
        for n, bit in enumerate(bits)
    ]
    found = decode(b"".join(prefixes), 128)
    assert found == prefixes
    if isinstance(found, Neighbours):
        assert [p for run in found.runs for p in run] == prefixes
        assert all(len({p[: LEAD[6]] for p in run}) == 1 for run in found.runs)
