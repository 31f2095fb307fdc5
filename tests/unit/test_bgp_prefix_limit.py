"""What counts towards the maximum number of prefixes (RFC 4486 section 4)."""

from __future__ import annotations

from struct import pack

from bgp.codec import negotiate
from bgp.prefix_limit import LimitWatch
from bgp.settings import PrefixLimit
from config.prefix import Family
from tests.bgp_ribs import Node, add_peer, session

SECTION = bytes.fromhex("4001010040020602010000fdea400304c0000202")


def announced(first: int, last: int) -> bytes:
    return pack("!HH", 0, len(SECTION)) + SECTION + b"".join(b"\x18\x0a\x00" + bytes((n,)) for n in range(first, last))


def test_what_a_peer_announced_before_its_restart_and_not_since_does_not_count() -> None:
    node, peer = Node("n", 65001, 1), Node("p", 65002, 2)
    add_peer(node, peer)
    add_peer(peer, node)
    session(node, peer)
    watch = LimitWatch("p", PrefixLimit(100), node.rib)
    node.rib.receive("p", announced(0, 80))
    assert watch.exceeded() is None
    kept: frozenset[Family] = frozenset((4,))
    node.rib.peer_down("p", kept)
    address = node.address(4)
    node.rib.peer_up(
        "p",
        negotiate(node.open(), peer.open(), 65002),
        peer_address=peer.address(4),
        local_address=address,
        device="eth0",
        next_hops={4: address},
        keep=kept,
    )
    watch.start()
    node.rib.receive("p", announced(100, 180))
    assert (node.rib.received("p", 4), node.rib.stale("p", 4)) == (160, 80)
    assert watch.exceeded() is None
    node.rib.receive("p", announced(0, 21))  # some of the stale ones are back
    exceeded = watch.exceeded()
    assert exceeded is not None
    assert exceeded[0] == "101 ipv4 prefixes received, the maximum is 100"
