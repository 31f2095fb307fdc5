"""RFC 6793 with a speaker of 2-octet AS numbers, written octet by octet, on one side and a new speaker on the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from struct import pack

import pytest

from bgp.inspection import Route
from bgp.policy import Match, Policy, Rule
from config.prefix import parse
from tests.bgp_speakers import Node, TableResolver, peer, running
from tests.conformance.bgp import wire
from tests.kernel.test_bgp_session_tcp import RawPeer
from tests.netns import Netns

pytestmark = pytest.mark.root

OURS, OLD, NEW = "127.0.0.1", "127.0.0.2", "127.0.0.3"
OUR_AS, OLD_AS, NEW_AS = 4200000001, 65002, 4200000003
FAR, FARTHER = 4200000005, 4200000006
PASS_ON = Policy((Rule("all", True, Match(sources=frozenset(("learned", "block")))),))
PREFIX, OWN, BEHIND = "198.51.100.0/24", "10.64.0.0/26", "203.0.113.0/24"


class OldPeer(RawPeer):
    """It has never heard of capability 65."""

    async def establish(self) -> bytes:
        """Bring up the session; return the OPEN received."""
        await self.connect(OURS)
        body = wire.opening(OLD_AS, 90, "10.0.0.2", wire.parameter(wire.multiprotocol(1)))
        await self.send(wire.message(wire.OPEN, body) + wire.message(wire.KEEPALIVE))
        first = await self.read()
        assert first is not None
        assert first[0] == wire.OPEN
        return first[1]

    async def announce(self, path: list[int], *more: bytes) -> None:
        attributes = [
            wire.attribute(0x40, wire.ORIGIN, b"\0"),
            wire.attribute(0x40, wire.AS_PATH, wire.segment(*path, width=2)),
            wire.attribute(0x40, wire.NEXT_HOP, wire.packed("192.0.2.2")),
            *more,
        ]
        await self.send(wire.update(b"".join(attributes), wire.nlri(PREFIX)))

    async def told(self, prefix: str) -> wire.Attributes:
        """Return the attributes with which a prefix is announced, whatever else is said before."""
        while (message := await self.read()) is not None:
            if message[0] == wire.UPDATE and prefix in (update := wire.decode_update(message[1])).announced:
                return update.attributes
        raise AssertionError(f"the session ended before {prefix} came")


class Trio:
    def __init__(self, old: OldPeer, ours: Node, new: Node) -> None:
        self.old, self.ours, self.new = old, ours, new

    async def known(self, node: Node, as_path: str) -> Route:
        """Wait until a node has PREFIX by a path."""

        def found() -> list[Route]:
            return [r for r in node.speaker.rib.explain(*parse(PREFIX)).routes if r.as_path == as_path]

        await node.until(found, as_path)
        return found()[0]


def resolver(own: str) -> TableResolver:
    """Loopback addresses, which the sessions have, are nobody's next hop."""
    return TableResolver(own={4: wire.packed(own)})


@asynccontextmanager
async def trio(ns: Netns) -> AsyncIterator[Trio]:
    peers = [
        peer("old", OLD, OLD_AS, passive=True, local_address=OURS, export_policy=PASS_ON),
        peer("new", NEW, NEW_AS, passive=True, local_address=OURS, export_policy=PASS_ON),
    ]
    ours = [peer("ours", OURS, OUR_AS, connect_retry=0.2, local_address=NEW)]
    old = OldPeer(ns, OLD)
    async with (
        running(ns, OUR_AS, "10.0.0.1", peers, listen=((OURS, 179),), resolver=resolver("192.0.2.1")) as node,
        running(ns, NEW_AS, "10.0.0.3", ours, listen=(), resolver=resolver("192.0.2.3")) as new,
    ):
        try:
            opening = wire.decode_opening(await old.establish())
            assert (opening.asn, opening.true_as) == (wire.AS_TRANS, OUR_AS)
            await node.established("old")
            await new.established("ours")
            yield Trio(old, node, new)
        finally:
            old.close()


def as4_path(*asns: int) -> bytes:
    return wire.attribute(0xC0, wire.AS4_PATH, wire.segment(*asns))


def aggregators(narrow: int, wide: int) -> bytes:
    address = wire.packed("10.9.9.9")
    return wire.attribute(0xC0, wire.AGGREGATOR, pack("!H", narrow) + address) + wire.attribute(
        0xC0, wire.AS4_AGGREGATOR, pack("!I", wide) + address
    )


@pytest.mark.parametrize(
    ("path", "more", "merged"),
    [
        ([OLD_AS, 64999], b"", f"{OLD_AS} 64999"),
        ([OLD_AS, 23456, 23456], as4_path(FAR, FARTHER), f"{OLD_AS} {FAR} {FARTHER}"),
        # Section 4.2.3: a longer AS4_PATH is not looked at, nor one beside an AGGREGATOR that is no AS_TRANS
        ([OLD_AS, 23456], as4_path(OLD_AS, FAR, FARTHER), f"{OLD_AS} 23456"),
        ([OLD_AS, 23456], aggregators(64999, FAR) + as4_path(FAR), f"{OLD_AS} 23456"),
        ([OLD_AS, 23456], aggregators(23456, FAR) + as4_path(FAR), f"{OLD_AS} {FAR}"),
        # Section 6: a malformed one is discarded
        ([OLD_AS, 23456], wire.attribute(0xC0, wire.AS4_PATH, b"\2\2\0\0\0\1"), f"{OLD_AS} 23456"),
    ],
)
async def test_what_an_old_peer_says(netns: Callable[[], Netns], path: list[int], more: bytes, merged: str) -> None:
    async with trio(netns()) as three:
        await three.old.announce(path, more)
        await three.known(three.ours, merged)
        await three.known(three.new, f"{OUR_AS} {merged}")
        (learned,) = three.new.speaker.rib.peers["ours"].adj_in.paths(*parse(PREFIX))
        assert {17, 18}.isdisjoint(code for _, code, _ in learned.attributes), "section 4.1: not between new speakers"
        if wire.AGGREGATOR in more:
            kept = FAR if merged.endswith(str(FAR)) else 64999
            assert learned.attributes.value(wire.AGGREGATOR) == pack("!I", kept) + wire.packed("10.9.9.9")


async def test_what_an_old_peer_is_told(netns: Callable[[], Netns]) -> None:
    """Sections 4.2.1, 4.2.2: AS_TRANS for what does not fit, and the whole path in AS4_PATH beside it."""
    async with trio(netns()) as three, asyncio.timeout(20):
        three.ours.speaker.originate(*parse(OWN), owner="test", source="block")
        attributes = await three.old.told(OWN)
        assert attributes[wire.AS_PATH] == (0x40, wire.segment(23456, width=2))
        assert attributes[wire.AS4_PATH] == (0xC0, wire.segment(OUR_AS))
        three.new.speaker.originate(*parse(BEHIND), owner="test", source="block")
        attributes = await three.old.told(BEHIND)
        assert attributes[wire.AS_PATH] == (0x40, wire.segment(23456, 23456, width=2))
        assert attributes[wire.AS4_PATH] == (0xC0, wire.segment(OUR_AS, NEW_AS))


async def test_an_old_peer_is_told_no_as4_path_where_all_numbers_fit(netns: Callable[[], Netns]) -> None:
    peers = [peer("old", OLD, OLD_AS, passive=True, local_address=OURS)]
    ns = netns()
    old = OldPeer(ns, OLD)
    async with running(ns, 65001, "10.0.0.1", peers, listen=((OURS, 179),)) as node, asyncio.timeout(20):
        node.speaker.originate(*parse(OWN), owner="test", source="block")
        assert wire.decode_opening(await old.establish()).asn == 65001
        attributes = await old.told(OWN)
        assert attributes[wire.AS_PATH] == (0x40, wire.segment(65001, width=2))
        assert wire.AS4_PATH not in attributes
        old.close()
