"""The speaker with FRR, BIRD 2 and GoBGP: every feature that both ends have, seen from both ends."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest

from bgp.messages import Notification
from bgp.notifications import shutdown_text
from bgp.policy import Changes, Match, Policy, Rule
from bgp.settings import PeerSettings
from config import prefix
from config.prefix import Family
from tests.bgp_speakers import PATIENCE, Node, peer
from tests.interop.bench import Bench, entry, packed
from tests.interop.routers import (
    AS_TRANS,
    COMMUNITY,
    LARGE,
    MED,
    NODE4,
    NODE6,
    NODE_AS,
    ROUTER4,
    ROUTER6,
    ROUTER_AS,
    Setup,
)

pytestmark = pytest.mark.root

LEARNED = ("192.0.2.0/24", "198.51.100.128/25", "2001:db8:1::/48")
OWN4, OWN6 = "10.64.0.64/26", "fd00:64::40/122"
MANY = 3000
OUR_COMMUNITY, OUR_LARGE, OUR_MED = "65001:77", "65001:7:8", 33

EXPORT = Policy(
    (
        Rule(
            "mark",
            True,
            Match(),
            Changes(
                med=OUR_MED,
                communities=frozenset((bytes.fromhex("fde9004d"),)),
                large_communities=frozenset((bytes.fromhex("0000fde90000000700000008"),)),
                prepend=1,
            ),
        ),
    )
)


def over4(**settings: Any) -> PeerSettings:
    options = {"connect_retry": 1, "local_address": NODE4, "export_policy": EXPORT}
    return peer("tor", ROUTER4, ROUTER_AS, **(options | settings))


def over6(**settings: Any) -> PeerSettings:
    options = {"connect_retry": 1, "local_address": NODE6, "families": frozenset((6,)), "export_policy": EXPORT}
    return peer("tor", ROUTER6, ROUTER_AS, **(options | settings))


async def test_a_session_that_we_begin(bench: Bench) -> None:
    """Both families over IPv4: attributes, withdrawal, refresh and a table of some size, in both directions."""
    await bench.begin(Setup(passive=True, routes=LEARNED))
    async with bench.speaker(over4(), listen=()) as node:
        for text in (OWN4, OWN6):
            node.speaker.originate(*entry(text), owner="test", source="block")
        with bench.works("podroute connects"):
            await node.established("tor")
            assert not node.status("tor").incoming
        await _learn(bench, node)
        await _advertise(bench)
        await _refresh(bench, node)
        await _much(bench, node)
        with bench.works("withdrawal, both ways"):
            for text in (OWN4, OWN6):
                node.speaker.retract(*entry(text), "test")
                await bench.ask(partial(bench.router.paths, text), lambda paths: not paths, f"{text} is still there")
            await asyncio.to_thread(bench.router.withdraw)
            await node.until(lambda: not node.fib.keys() & {entry(p) for p in LEARNED}, "withdrawal by the router")
        assert len(node.sessions) == 1


async def _learn(bench: Bench, node: Node) -> None:
    with bench.works("IPv4 and IPv6 unicast in, over IPv4"):
        await node.until(lambda: {entry(p) for p in LEARNED} <= node.fib.keys(), "the router's prefixes")
        assert node.fib[entry(LEARNED[0])][0].address == packed(ROUTER4)
        assert node.fib[entry(LEARNED[2])][0].address == packed(ROUTER6)
    with bench.works("End-of-RIB received"):
        await node.until(
            lambda: all(f.end_of_rib == "received" for f in node.status("tor").families.values()), "End-of-RIB"
        )
    with bench.works("MED, communities and large communities in"):
        route = node.speaker.rib.explain(*entry(LEARNED[0])).routes[0]
        assert (route.as_path, route.med) == (str(ROUTER_AS), MED)
        assert COMMUNITY in str(route)
        assert LARGE in str(route)


async def _advertise(bench: Bench) -> None:
    with bench.works("IPv4 and IPv6 unicast out, over IPv4"):
        assert (await bench.path(OWN4)).next_hop == NODE4
        assert (await bench.path(OWN6)).next_hop == NODE6
    with bench.works("4-octet AS path, prepended"):
        assert (await bench.path(OWN4)).as_path == [NODE_AS, NODE_AS]
    with bench.works("MED, communities and large communities out"):
        for text in (OWN4, OWN6):
            path = await bench.path(text)
            assert (path.med, path.communities, path.large_communities) == (OUR_MED, [OUR_COMMUNITY], [OUR_LARGE])


async def _refresh(bench: Bench, node: Node) -> None:
    if bench.kind == "GoBGP":
        bench.matrix.lacks(bench.kind, "route refresh", "keeps its Adj-RIB-In, never asks")
        return
    asked: list[Family] = []
    refresh = node.speaker.rib.refresh

    def spy(name: str, family: Family) -> None:
        asked.append(family)
        refresh(name, family)

    node.speaker.rib.refresh = spy  # type: ignore[method-assign]
    with bench.works("route refresh"):
        await asyncio.to_thread(bench.router.ask_again)
        async with asyncio.timeout(PATIENCE):
            while 4 not in asked:
                await node.speaker.changed()
        assert (await bench.path(OWN4)).as_path == [NODE_AS, NODE_AS]


async def _much(bench: Bench, node: Node) -> None:
    """3,000 prefixes out and gone again."""
    wires = [prefix.make(4, (10 << 24) + (128 << 16) + (n << 8), 24) for n in range(MANY)]
    with bench.works(f"{MANY:,} prefixes out"):
        for wire in wires:
            node.speaker.originate(4, wire, owner="test", source="static")
        await bench.ask(bench.router.count, lambda count: count == MANY + 1, "not all prefixes")
        for wire in wires:
            node.speaker.retract(4, wire, "test")
        await bench.ask(bench.router.count, lambda count: count == 1, "prefixes that were withdrawn")


async def test_a_session_that_the_router_begins(bench: Bench) -> None:
    """IPv6 over IPv6 with a password and the shortest hold time, ended by the router with a text."""
    await bench.begin(Setup(six=True, password="s3cret", hold_time=3, routes=LEARNED[2:]))
    async with bench.speaker(over6(passive=True, password=b"s3cret")) as node:
        node.speaker.originate(*entry(OWN6), owner="test", source="block")
        with bench.works("the router connects, TCP-MD5"):
            assert (await node.established("tor")).incoming
        with bench.works("hold time 3 s"):
            assert node.status("tor").hold_time == 3
        with bench.works("IPv6 unicast over IPv6, both ways"):
            assert (await bench.path(OWN6)).next_hop == NODE6
            await node.until(lambda: entry(LEARNED[2]) in node.fib, "the router's prefix")
            assert node.fib[entry(LEARNED[2])][0].address == packed(ROUTER6)
        with bench.works("shutdown text in"):
            await asyncio.to_thread(bench.router.shut, "until nine")
            # FRR wraps it into a Hard Reset (RFC 8538 section 3.1) where both ends speak graceful restart.
            told = 'Cease/Administrative Shutdown: "until nine"'
            await node.until(lambda: node.status("tor").reason.endswith(told), "the text")


async def test_a_session_without_hold_time(bench: Bench) -> None:
    """Hold time 0; it is ended by us with a text."""
    hold_time = 0 if bench.kind != "GoBGP" else 9
    if hold_time:
        bench.matrix.lacks(bench.kind, "hold time 0", "agrees and closes the session")
    await bench.begin(Setup(hold_time=hold_time))
    text = "draining this node"
    settings = over4(hold_time=hold_time)
    async with bench.speaker(settings, farewell=Notification(6, 2, shutdown_text(text))) as node:
        node.speaker.originate(*entry(OWN4), owner="test", source="block")
        with bench.works("hold time 0") if not hold_time else nullcontext():
            await node.established("tor")
            assert node.status("tor").hold_time == hold_time
            await bench.path(OWN4)
    with bench.works("shutdown text out"):
        await bench.ask(bench.router.last_error, lambda said: text in said, "the text is not shown")


async def test_a_router_with_two_octet_as_numbers(bench: Bench) -> None:
    """RFC 6793. BIRD without 4-octet AS refuses a neighbour that has a true AS of four octets."""
    feature = "2-octet AS router"
    if bench.kind == "GoBGP":
        bench.matrix.lacks(bench.kind, feature, "always 4-octet")
        return
    asn = NODE_AS if bench.kind == "FRR" else 65001
    await bench.begin(Setup(old=True, routes=LEARNED[:1], node_as=asn))
    async with bench.speaker(over4(families=frozenset((4,))), asn=asn) as node:
        node.speaker.originate(*entry(OWN4), owner="test", source="block")
        with bench.works(feature):
            await node.established("tor")
            assert node.status("tor").capabilities.count("4-octet AS") == 0
            found = set((await bench.path(OWN4)).as_path)
            assert found <= {AS_TRANS, NODE_AS} if bench.kind == "FRR" else found == {asn}
            await node.until(lambda: entry(LEARNED[0]) in node.fib, "the router's prefix")


async def test_a_restart_of_ours_that_the_router_helps(bench: Bench) -> None:
    """RFC 4724: we go without a word and come back; the router keeps our route in between."""
    await bench.begin(Setup(passive=True, hold_time=90))
    own = entry(OWN4)
    async with bench.speaker(over4(), listen=(), farewell=None) as node:
        node.speaker.originate(*own, owner="test", source="block")
        await node.established("tor")
        await bench.path(OWN4)
        await bench.ask(bench.router.established, bool, "the session")
    with bench.works("graceful restart of podroute"):
        await bench.ask(bench.router.established, lambda up: not up, "the end of the session")
        assert await asyncio.to_thread(bench.router.paths, OWN4), "the router did not keep our route"
        async with bench.speaker(over4(), listen=(), retained=frozenset((4, 6))) as node:
            node.speaker.originate(*own, owner="test", source="block")
            await node.established("tor")
            try:
                async with asyncio.timeout(PATIENCE):
                    await node.speaker.wait_advertised(*own)
            except TimeoutError:
                raise AssertionError(f"{node.speaker.peers()}; {bench.router.last_error()}") from None
            assert (await bench.path(OWN4)).next_hop == NODE4
