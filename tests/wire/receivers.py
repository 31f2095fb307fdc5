"""Everything that reads a peer's octets, for captures, corpora and fuzzing: never a crash, only BgpError."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from bgp import codec
from bgp.framing import Framer
from bgp.messages import BgpError, MessageType, Open
from config.prefix import FAMILIES
from tests.bgp_ribs import BOTH, Node, add_peer, flat, session


def receivers() -> list[Node]:
    """One receiver per kind of session: external and internal, AS numbers of four octets and of two; the last one
    takes path identifiers (RFC 7911)."""
    found = []
    for asn in (65001, 65002):
        for four_octet in (True, False):
            node, peer = Node("node", 65001, 1), Node("peer", asn, 2)
            add_peer(node, peer, enforce_first_as=False)
            add_peer(peer, node)
            far = Open(asn=asn, hold_time=90, identifier=peer.router_id, families=BOTH, four_octet_as=four_octet)
            session(node, peer, opens=(node.open(), far))
            found.append(node)
    node, peer = Node("node", 65001, 1), Node("peer", 65002, 2)
    add_peer(node, peer, enforce_first_as=False)
    add_peer(peer, node)
    modes = dict.fromkeys(FAMILIES, 3)
    session(node, peer, opens=(node.open(add_path=modes), peer.open(add_path=modes)))
    return [*found, node]


def take(nodes: list[Node], kind: int, body: bytes) -> Counter[str]:
    """Decode a message every way there is; return what came of it."""
    found: Counter[str] = Counter()
    if kind == MessageType.UPDATE:
        for node in nodes:
            with refusing(3, found):
                received = node.rib.receive("peer", body)
                found["fault" if received.faults else "fine"] += 1
        return found
    with refusing({MessageType.OPEN: 2, MessageType.ROUTE_REFRESH: 7}.get(MessageType(kind), 0), found):
        if kind == MessageType.OPEN:
            codec.decode_open(body)
        elif kind == MessageType.NOTIFICATION:
            assert codec.describe(codec.decode_notification(body))
        elif kind == MessageType.ROUTE_REFRESH:
            codec.decode_route_refresh(body)
        found["fine"] += 1
    return found


@contextmanager
def refusing(code: int, found: Counter[str]) -> Iterator[None]:
    """Expect nothing but a BgpError of this code, and count it."""
    refused: int | None = None
    try:
        yield
    except BgpError as error:
        refused = error.code
    assert refused in (None, code)
    found["refused"] += refused is not None


def frames(message: bytes) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    with refusing(1, Counter()):
        found.extend(Framer(65535).feed(message))
    return found


def drain(nodes: list[Node]) -> None:
    """Decide over what has arrived, and let every route be shown."""
    for node in nodes:
        while node.rib.run(1000):
            pass
        for family in BOTH:
            for route in flat(node.rib.inspection.received("peer", family)):
                assert route.prefix
