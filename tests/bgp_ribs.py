"""Speakers joined in memory: what one RIB sends the other receives, with framing between them and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import TypeVar

from bgp.adj_rib_in import RibPeer
from bgp.codec import negotiate
from bgp.framing import Framer
from bgp.messages import Negotiated, Open
from bgp.policy import ACCEPT, Policy, Source
from bgp.rib import Rib
from config.nexthop import Gateway, NextHops, Resolution
from config.prefix import FAMILIES, Family, parse, text

T = TypeVar("T")

BOTH: frozenset[Family] = frozenset(FAMILIES)


class Resolver:
    """Every next hop is on-link at cost 0, but for what a test puts into ``answers``."""

    def __init__(self) -> None:
        self.answers: dict[bytes, Resolution | None] = {}

    def lookup(self, address: bytes, device: str = "") -> Resolution | None:
        return self.answers.get(address, Resolution((Gateway(address, device or "eth0"),), 0))

    def local(self, session_address: bytes, family: Family) -> bytes | None:
        return session_address


class Node:
    """A speaker without sessions: a RIB, the FIB it asks for, and a log of what went wrong."""

    def __init__(self, name: str, asn: int, number: int, **options: int | bool | bytes | None) -> None:
        self.name = name
        self.asn = asn
        self.number = number
        self.router_id = bytes((10, 0, 0, number))
        self.resolver = Resolver()
        self.fib: dict[Family, dict[str, NextHops]] = {4: {}, 6: {}}
        self.faults: list[str] = []
        self.messages: dict[str, list[bytes]] = {}
        """Everything sent, by receiver."""
        self.rib = Rib(
            local_as=asn,
            router_id=self.router_id,
            resolver=self.resolver,
            on_fib=self.on_fib,
            on_refused=self.on_refused,
            **options,  # type: ignore[arg-type]
        )

    def address(self, family: Family) -> bytes:
        return ip_address(f"192.0.2.{self.number}" if family == 4 else f"2001:db8::{self.number}").packed

    def on_fib(self, family: Family, changes: list[tuple[Sequence[bytes], NextHops | None]]) -> None:
        for prefix, next_hops in ((p, hops) for prefixes, hops in changes for p in prefixes):
            if next_hops is None:
                self.fib[family].pop(text(family, prefix), None)
            else:
                self.fib[family][text(family, prefix)] = next_hops

    def on_refused(self, name: str, family: Family, prefix: bytes, own: bytes) -> None:
        self.faults.append(f"refused {text(family, prefix)}: {text(family, own)} is our own")

    def originate(self, *prefixes: str, source: Source = "block", owner: str = "test") -> None:
        for prefix in prefixes:
            self.rib.originate(*parse(prefix), owner=owner, source=source)

    def retract(self, *prefixes: str, owner: str = "test") -> None:
        for prefix in prefixes:
            self.rib.retract(*parse(prefix), owner)

    def via(self, family: Family, prefix: str) -> list[str]:
        """Names of the peers that the FIB sends a prefix to."""
        return [hop.peer for hop in self.fib[family].get(prefix, ())]

    def open(self, **fields: object) -> Open:
        fields.setdefault("families", BOTH)
        return Open(asn=self.asn, hold_time=90, identifier=self.router_id, **fields)  # type: ignore[arg-type]


def flat(slices: Iterable[list[T]]) -> list[T]:
    """Return a whole table of ``Rib.inspection``."""
    return [row for some in slices for row in some]


def add_peer(
    node: Node,
    other: Node,
    *,
    imports: Policy = ACCEPT,
    exports: Policy = ACCEPT,
    allow_own_as: int = 0,
    enforce_first_as: bool = True,
    client: bool = False,
    send_paths: int = 0,
) -> None:
    """Configure ``other`` as a peer of ``node``."""
    settings = RibPeer(other.name, other.asn, imports, exports, allow_own_as, enforce_first_as, client, send_paths)
    node.rib.add_peer(settings)


def session(a: Node, b: Node, *, opens: tuple[Open, Open] | None = None, mtu: int = 0) -> None:
    """Bring up the session between two nodes that have each other as peers."""
    first, second = opens or (a.open(), b.open())
    up(a, b, negotiate(first, second, b.asn))
    up(b, a, negotiate(second, first, a.asn))


def up(node: Node, other: Node, negotiated: Negotiated, families: Iterable[Family] = FAMILIES) -> None:
    """Tell one RIB that its session with ``other`` is established."""
    node.rib.peer_up(
        other.name,
        negotiated,
        peer_address=other.address(4),
        local_address=node.address(4),
        device="eth0",
        next_hops={f: node.address(f) for f in families},
    )


def down(a: Node, b: Node) -> None:
    a.rib.peer_down(b.name)
    b.rib.peer_down(a.name)


def join(a: Node, b: Node) -> None:
    """Make two nodes peers that accept everything, and bring up their session."""
    add_peer(a, b)
    add_peer(b, a)
    session(a, b)


def settle(*nodes: Node) -> None:
    """Decide and deliver until nothing is left to do."""
    by_name = {node.name: node for node in nodes}
    framers: dict[tuple[str, str], Framer] = {}
    active = True
    while active:
        active = False
        for node in nodes:
            while node.rib.run(100):
                pass
            for name in [*node.rib.peers]:
                if name not in by_name:
                    continue
                active |= node.rib.has_outgoing(name)
                for message in node.rib.outgoing(name, 1 << 20):
                    node.messages.setdefault(name, []).append(message)
                    framer = framers.setdefault((node.name, name), Framer(65535))
                    for _, body in framer.feed(message):
                        by_name[name].faults += by_name[name].rib.receive(node.name, body).faults
