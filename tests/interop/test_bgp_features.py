"""More features with FRR, BIRD and GoBGP: what an operator meets less often. Run by `make interop` alone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bgp.attributes import CLUSTER_LIST, ORIGINATOR_ID
from bgp.policy import Changes, Match, Policy, Rule
from bgp.settings import AddPath, PeerSettings
from tests.bgp_speakers import Node, peer
from tests.interop.bench import Bench, entry, packed
from tests.interop.routers import NODE4, NODE6, NODE_AS, ROUTER4, ROUTER6, ROUTER_AS, Setup

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif("INTEROP_PAGE" not in os.environ, reason="part of `make interop`"),
]

SHARED = ("203.0.113.0/24", "2001:db8:77::/48")
OWN4, OWN6 = "10.64.0.64/26", "fd00:64::40/122"
FEEDERS = (("10.1.1.21", "fd00:1::21"), ("10.1.1.22", "fd00:1::22"))
FEEDER_AS = 65021
ANY = Match(sources=frozenset(("learned", "block", "static")))
ALL = Policy((Rule("all", True, ANY),))
NO_EXPORT, GRACEFUL_SHUTDOWN = "65535:65281", "65535:0"
LONG = 400
"""Large communities; more octets than a message of the usual length has."""


def marked(changes: Changes) -> Policy:
    return Policy((Rule("mark", True, ANY, changes),))


def with_many_communities() -> Policy:
    values = (b"".join(n.to_bytes(4, "big") for n in (65021, 1, number)) for number in range(LONG))
    return marked(Changes(large_communities=frozenset(values)))


def to_router(asn: int = ROUTER_AS, **settings: Any) -> PeerSettings:
    options = {"connect_retry": 1, "local_address": NODE4, "export_policy": ALL}
    return peer("tor", ROUTER4, asn, **(options | settings))


@asynccontextmanager
async def feeder(
    bench: Bench, number: int, *, to: str = ROUTER4, to_as: int = ROUTER_AS, asn: int = ROUTER_AS, **settings: Any
) -> AsyncIterator[Node]:
    """Run another speaker beside us that has a session with ``to`` and announces ``SHARED``."""
    four, six = FEEDERS[number]
    options = {"connect_retry": 1, "local_address": four, "export_policy": ALL} | settings
    async with bench.another(four, six, [peer("far", to, to_as, **options)], asn=asn, listen=()) as node:
        for text in SHARED:
            node.speaker.originate(*entry(text), owner="test", source="static")
        yield node


def router_id(number: int) -> str:
    return FEEDERS[number][0]


async def test_the_router_reflects_several_paths_to_us(bench: Bench) -> None:
    """RFC 4456 section 8, RFC 7911: we and two others are clients of the router; both paths of the others arrive."""
    feeders = tuple((four, ROUTER_AS) for four, _ in FEEDERS)
    await bench.begin(Setup(node_as=ROUTER_AS, feeders=feeders, reflector=True, add_path=True))
    settings = to_router(add_path=AddPath(receive=True))
    async with bench.speaker(settings, asn=ROUTER_AS) as node, feeder(bench, 0), feeder(bench, 1) as second:
        await node.established("tor")
        adj_in = node.speaker.rib.peers["tor"].adj_in

        def both() -> bool:
            return all(len(adj_in.paths(*entry(text))) == 2 for text in SHARED)

        with bench.works("route reflection, podroute as client: ORIGINATOR_ID and CLUSTER_LIST in"):
            await node.until(lambda: all(adj_in.paths(*entry(text)) for text in SHARED), "reflected routes")
            path = adj_in.paths(*entry(SHARED[0]))[0]
            assert path.attributes.value(ORIGINATOR_ID) in {packed(four) for four, _ in FEEDERS}
            assert path.attributes.value(CLUSTER_LIST) == packed("10.0.0.1")
        with bench.works("add-path in, IPv4 and IPv6"):
            await node.until(both, "both paths")
            for text in SHARED:
                paths = adj_in.paths(*entry(text))
                assert len({path.path_id for path in paths}) == 2
                assert {path.attributes.value(ORIGINATOR_ID) for path in paths} == {packed(four) for four, _ in FEEDERS}
            await node.until(lambda: len(node.fib.get(entry(SHARED[0]), ())) == 2, "both next hops")
        with bench.works("add-path in: one of two paths withdrawn"):
            for text in SHARED:
                second.speaker.retract(*entry(text), "test")
            await node.until(lambda: all(len(adj_in.paths(*entry(text))) == 1 for text in SHARED), "one path each")
            assert adj_in.paths(*entry(SHARED[0]))[0].attributes.value(ORIGINATOR_ID) == packed(router_id(0))


async def test_we_reflect_several_paths_to_the_router(bench: Bench) -> None:
    """RFC 4456 section 8, RFC 7911: the router and two others are our clients; it has both paths of the others."""
    await bench.begin(Setup(node_as=ROUTER_AS, add_path=True))
    clients = [
        peer(f"client{number}", four, ROUTER_AS, passive=True, local_address=NODE4, route_reflector_client=True)
        for number, (four, _) in enumerate(FEEDERS)
    ]
    settings = to_router(add_path=AddPath(send=8), route_reflector_client=True)
    async with (
        bench.another(NODE4, NODE6, [settings, *clients], asn=ROUTER_AS) as node,
        feeder(bench, 0, to=NODE4),
        feeder(bench, 1, to=NODE4) as second,
    ):
        await node.established("tor")
        for text in SHARED:
            with bench.works("add-path out, IPv4 and IPv6"):
                found = await bench.ask(lambda: bench.router.paths(text), lambda p: len(p) == 2, "both paths")  # noqa: B023
            with bench.works("route reflection, podroute as reflector: ORIGINATOR_ID and CLUSTER_LIST out"):
                assert {path.originator for path in found} == {four for four, _ in FEEDERS}
                assert [path.clusters for path in found] == [[NODE4]] * 2
                hops = {address for pair in FEEDERS for address in pair}
                assert {path.next_hop for path in found} <= hops
        with bench.works("add-path out: one of two paths withdrawn"):
            for text in SHARED:
                second.speaker.retract(*entry(text), "test")
            for text in SHARED:
                found = await bench.ask(lambda: bench.router.paths(text), lambda p: len(p) == 1, "one path")  # noqa: B023
                assert found[0].originator == router_id(0)
        assert node.status("tor").established_count == 1


async def test_ipv4_with_ipv6_next_hops(bench: Bench) -> None:
    """RFC 8950: both families on a session over IPv6."""
    learned = ("192.0.2.0/24", "2001:db8:1::/48")
    await bench.begin(Setup(six=True, both=True, routes=learned))
    settings = peer("tor", ROUTER6, ROUTER_AS, connect_retry=1, local_address=NODE6, export_policy=ALL)
    async with bench.speaker(settings) as node:
        for text in (OWN4, OWN6):
            node.speaker.originate(*entry(text), owner="test", source="block")
        await node.established("tor")
        with bench.works("IPv4 with IPv6 next hops (RFC 8950), in"):
            await node.until(lambda: {entry(p) for p in learned} <= node.fib.keys(), "the router's prefixes")
            assert node.fib[entry(learned[0])][0].address == packed(ROUTER6)
        with bench.works("IPv4 with IPv6 next hops (RFC 8950), out"):
            assert (await bench.path(OWN4)).next_hop == NODE6
            assert (await bench.path(OWN6)).next_hop == NODE6


async def test_messages_longer_than_usual(bench: Bench) -> None:
    """RFC 8654: attributes of more than 4,096 octets, from us to the router, and through it from another to us."""
    await bench.begin(Setup(feeders=((FEEDERS[0][0], FEEDER_AS),)))
    far = feeder(bench, 0, asn=FEEDER_AS, export_policy=with_many_communities())
    async with bench.speaker(to_router(export_policy=with_many_communities())) as node, far:
        node.speaker.originate(*entry(OWN4), owner="test", source="block")
        status = await node.established("tor")
        if "extended message" not in status.capabilities:
            for way in ("in", "out"):
                bench.matrix.lacks(bench.kind, f"extended messages (RFC 8654), {way}", "not offered")
            return
        with bench.works("extended messages (RFC 8654), out"):
            found = (await bench.path(OWN4)).large_communities
            assert found == [f"65021:1:{number}" for number in range(LONG)][: len(found)]
            assert len(found) == LONG or bench.kind == "BIRD", "BIRD prints the first of them only"
        with bench.works("extended messages (RFC 8654), in"):
            await node.until(lambda: entry(SHARED[0]) in node.fib, "the long route")
            (route,) = node.speaker.rib.explain(*entry(SHARED[0])).routes
            assert len(route.large_communities) == LONG


async def test_well_known_communities(bench: Bench) -> None:
    """RFC 1997 and RFC 8326, in both directions; a route with NO_EXPORT goes to no third AS, here and there."""
    learned = "192.0.2.0/24"
    feeders = tuple((four, FEEDER_AS + number) for number, (four, _) in enumerate(FEEDERS))
    await bench.begin(Setup(routes=(learned,), community=NO_EXPORT, feeders=feeders[:1]))
    values = frozenset(bytes.fromhex(text) for text in ("ffffff01", "ffff0000"))
    third = peer("third", feeders[1][0], feeders[1][1], passive=True, local_address=NODE4, export_policy=ALL)
    ours = to_router(export_policy=marked(Changes(communities=values)))
    async with (
        bench.another(NODE4, NODE6, [ours, third], asn=NODE_AS) as node,
        feeder(bench, 0, asn=feeders[0][1]) as behind,
        feeder(bench, 1, asn=feeders[1][1], to=NODE4, to_as=NODE_AS) as outside,
    ):
        for text in (OWN4, OWN6):
            node.speaker.originate(*entry(text), owner="test", source="block")
        with bench.works("well-known communities out"):
            assert set((await bench.path(OWN4)).communities) == {NO_EXPORT, GRACEFUL_SHUTDOWN}
        honoured = "NO_EXPORT honoured by the router"
        if bench.kind == "GoBGP":
            bench.matrix.lacks(bench.kind, honoured, "passes the route on")
        else:
            with bench.works(honoured):
                await behind.until(lambda: behind.status("far").families[4].end_of_rib == "received", "its table")
                assert entry(OWN4) not in behind.fib
        with bench.works("NO_EXPORT honoured by podroute"):
            await node.until(lambda: entry(learned) in node.fib, "the router's prefix")
            (route,) = node.speaker.rib.explain(*entry(learned)).routes
            assert "no-export" in route.communities
            await outside.until(lambda: outside.status("far").families[4].end_of_rib == "received", "our table")
            assert entry(learned) not in outside.fib


async def test_extended_optional_parameters(bench: Bench) -> None:
    """RFC 9072: an OPEN whose parameters take more than 255 octets, for the length of our name."""
    feature = "OPEN with extended optional parameters (RFC 9072)"
    await bench.begin(Setup(passive=True))
    name = ".".join(["n" * 60] * 4)
    async with bench.speaker(to_router(), listen=(), hostname=name) as node:
        node.speaker.originate(*entry(OWN4), owner="test", source="block")
        await node.until(
            lambda: node.status("tor").state == "Established" or node.status("tor").last_received, "a word"
        )
        refusal = node.status("tor").last_received
        if refusal is not None:
            bench.matrix.lacks(bench.kind, feature, f"refused: {refusal.text}")
            return
        with bench.works(feature):
            await bench.path(OWN4)


async def test_both_ends_connect(bench: Bench) -> None:
    """RFC 4271 section 6.8: whoever begins, there is one session in the end, with both families."""
    await bench.begin(Setup())
    async with bench.speaker(to_router()) as node:
        for text in (OWN4, OWN6):
            node.speaker.originate(*entry(text), owner="test", source="block")
        with bench.works("both ends connect at once"):
            await bench.path(OWN4)
            await bench.path(OWN6)
            await asyncio.to_thread(bench.router.established)
            assert node.status("tor").established_count == 1
