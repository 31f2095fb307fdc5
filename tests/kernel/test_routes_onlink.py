"""Next hops outside every subnet: unresolved, or on-link where the configuration says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from config.prefix import Family, parse
from routes.messages import RouteEvent
from routes.state import State
from tests.kernel.routes_lab import Node, gateways, nexthops, packed, routes, running, uplinks, via, witness
from tests.netns import Netns

pytestmark = pytest.mark.root

Maker = Callable[[], Netns]
both = pytest.mark.parametrize("objects", [True, False], ids=["objects", "fallback"])


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "fib.json"


def onlink(**devices: str) -> dict[tuple[Family, bytes], str]:
    """``onlink(up0="10.9.0.0/24 10.9.2.0/24")``."""
    return {parse(prefix): device for device, prefixes in devices.items() for prefix in prefixes.split()}


def flags(ns: Netns, prefix: str) -> list[bool]:
    """Whether each way of a learned route is on-link by its flag, in the order of gateways."""
    family, encoded = parse(prefix)
    route = next(r for r in routes(ns, family).values() if r.prefix == encoded)
    objects = nexthops(ns)
    if route.nexthop:
        members = [objects[member] for member, _ in objects[route.nexthop].members]
        return [member.onlink for member in sorted(members, key=lambda member: member.gateway)]
    return [path.onlink for path in sorted(route.paths)]


async def changed(node: Node, address: str) -> str:
    """Wait until another resolution of an address is reported, and return how it is reached now."""
    async with asyncio.timeout(30):
        while not any((packed(address), "") in some for some in node.changed):
            node.told.clear()
            await node.told.wait()
    node.changed.clear()
    return node.resolver.explain(packed(address))


@both
async def test_routes_over_next_hops_outside_every_subnet(netns: Maker, state: Path, objects: bool) -> None:
    ns, fabric = uplinks(netns)
    for address in ("10.9.0.2/32", "fd99::2/128", "203.0.113.1/32", "2001:db8::1/128"):
        fabric.run("ip", "address", "add", address, "dev", "down0", *(["nodad"] if ":" in address else []))
    configured = onlink(up0="10.9.0.0/24 fd99::/64")
    async with running(ns, state, objects=objects, onlink=configured, keep=True) as node:
        node.learn("203.0.113.0/24", via("a=10.9.0.2"))
        node.learn("198.51.100.0/24", via("a=10.9.0.2", "b=10.0.1.2"))
        node.learn("2001:db8::/32", via("a=fd99::2"))
        node.learn("2001:db8:1::/48", via("a=fd99::2", "b=fd00:1::2"))
        node.learn("192.0.2.0/24", via("a=fd99::2"))  # RFC 8950
        node.learn("100.64.0.0/24", via("a=10.9.1.2"))
        await node.until(State.UNRESOLVED, "100.64.0.0/24")
        await node.drained()
        assert gateways(ns, "203.0.113.0/24") == {"10.9.0.2 up0"}
        assert gateways(ns, "198.51.100.0/24") == {"10.9.0.2 up0", "10.0.1.2 up1"}
        assert flags(ns, "198.51.100.0/24") == [False, True]
        assert gateways(ns, "2001:db8::/32") == gateways(ns, "192.0.2.0/24") == {"fd99::2 up0"}
        assert flags(ns, "2001:db8:1::/48") == [False, True]
        assert flags(ns, "203.0.113.0/24") == flags(ns, "2001:db8::/32") == flags(ns, "192.0.2.0/24") == [True]
        ns.run("ping", "-c", "1", "-W", "5", "203.0.113.1")
        ns.run("ping", "-c", "1", "-W", "5", "2001:db8::1")
        (shown,) = node.fib.route(4, parse("203.0.113.0/24")[1])
        assert shown.desired == ("10.9.0.2 dev up0 onlink peer a",)
        with ns.entered():
            (there,) = await node.fib.view.prefix(4, shown.prefix)
        assert there.ways == shown.ways == ("10.9.0.2 dev up0 onlink",)
        node.fib.resync("a test")
        await node.drained()
        assert not any("repaired" in cause for cause in node.fib.counters)
    before = routes(ns, 4) | routes(ns, 6)
    async with witness(ns) as seen, running(ns, state, objects=objects, onlink=configured) as node:
        node.learn("203.0.113.0/24", via("a=10.9.0.2"))
        node.learn("198.51.100.0/24", via("a=10.9.0.2", "b=10.0.1.2"))
        node.learn("2001:db8::/32", via("a=fd99::2"))
        node.learn("2001:db8:1::/48", via("a=fd99::2", "b=fd00:1::2"))
        node.learn("192.0.2.0/24", via("a=fd99::2"))
        await node.drained()
        assert routes(ns, 4) | routes(ns, 6) == before
        assert [e for e in seen.events if isinstance(e, RouteEvent)] == []  # what the earlier run left is as desired
        node.fib.peer_lost("a")
        await node.drained()
        assert gateways(ns, "198.51.100.0/24") == {"10.0.1.2 up1"}
        assert gateways(ns, "203.0.113.0/24") == gateways(ns, "2001:db8::/32") == set()


@both
async def test_a_subnet_and_another_configuration_come_later(netns: Maker, state: Path, objects: bool) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, objects=objects) as node:
        node.learn("203.0.113.0/24", via("a=10.9.0.2"))
        await node.until(State.UNRESOLVED, "203.0.113.0/24")
        node.resolver.set_onlink(onlink(up0="10.0.0.0/8"))
        await node.until(State.INSTALLED, "203.0.113.0/24")
        assert (gateways(ns, "203.0.113.0/24"), flags(ns, "203.0.113.0/24")) == ({"10.9.0.2 up0"}, [True])
        node.changed.clear()
        ns.run("ip", "address", "add", "10.9.0.1/24", "dev", "up1")
        assert (await changed(node, "10.9.0.2")).startswith("on-link at up1, by route 10.9.0.0/24")
        await node.drained()
        assert (gateways(ns, "203.0.113.0/24"), flags(ns, "203.0.113.0/24")) == ({"10.9.0.2 up1"}, [False])
        node.resolver.set_onlink({})
        node.changed.clear()
        ns.run("ip", "address", "del", "10.9.0.1/24", "dev", "up1")
        assert await changed(node, "10.9.0.2") == "no route leads there"
        await node.drained()
        assert gateways(ns, "203.0.113.0/24") == set()
        assert node.state("203.0.113.0/24") is State.UNRESOLVED


async def test_what_is_taken_as_on_link_and_where(netns: Maker, state: Path) -> None:
    ns, fabric = uplinks(netns)
    for route in ("default via 10.0.0.2", "172.16.0.0/24 via 10.0.1.2", "unreachable 172.17.0.0/24"):
        ns.run("ip", "route", "add", *route.split())
    configured = onlink(up0="0.0.0.0/0", up1="192.0.2.0/24", nosuch="198.51.100.0/24")
    async with running(ns, state, onlink=configured) as node:

        def reached(address: str) -> str:
            return node.resolver.explain(packed(address))

        assert reached("8.8.8.8") == "on-link at up0, by routes.onlink 0.0.0.0/0"
        assert reached("192.0.2.9") == "on-link at up1, by routes.onlink 192.0.2.0/24"  # the longest match
        assert reached("10.0.1.9") == "on-link at up1, by route 10.0.1.0/24 (protocol 2, metric 0)"
        assert reached("172.16.0.1") == "via 10.0.1.2 dev up1, by route 172.16.0.0/24 (protocol 3, metric 0)"
        assert reached("172.17.0.1") == "route 172.17.0.0/24 (protocol 3, metric 0) rejects it"
        assert reached("10.0.0.1") == "it is this node's own address"
        assert reached("224.0.0.5") == "it is not the address of a host"
        assert reached("2001:db8::1") == "no route leads there"
        assert reached("198.51.100.9") == "on-link at up0, by routes.onlink 0.0.0.0/0"
        node.resolver.lookup(packed("192.0.2.9"))
        fabric.run("ip", "link", "set", "down1", "down")
        assert await changed(node, "192.0.2.9") == "on-link at up0, by routes.onlink 0.0.0.0/0"
        node.resolver.set_onlink(onlink(up1="192.0.2.0/24", nosuch="192.0.2.128/25"))
        why = "no route leads there, and the default route does not count"
        assert await changed(node, "192.0.2.9") == f"{why}; routes.onlink 192.0.2.0/24: interface up1 is down"
        assert "routes.onlink 192.0.2.128/25: interface nosuch does not exist" in reached("192.0.2.129")
        fabric.run("ip", "link", "set", "down1", "up")
        assert await changed(node, "192.0.2.9") == "on-link at up1, by routes.onlink 192.0.2.0/24"


@both
async def test_a_static_route_over_an_on_link_gateway(netns: Maker, state: Path, objects: bool) -> None:
    ns, _ = uplinks(netns)
    for command in (
        "route add 172.16.0.0/24 via 10.9.0.2 dev up0 onlink",
        "route add 172.16.1.0/24 nexthop via 10.9.0.2 dev up0 onlink nexthop via 10.0.1.2",
        "nexthop add id 5 via 10.9.0.3 dev up1 onlink",
        "route add 172.16.2.0/24 nhid 5",
        "-6 route add fd77::/64 via fd99::2 dev up0 onlink",
    ):
        ns.run("ip", *command.split())
    async with running(ns, state, objects=objects) as node:
        node.learn("192.0.2.0/24", via("a=172.16.0.1"))
        node.learn("198.51.100.0/24", via("a=172.16.1.1"))
        node.learn("203.0.113.0/24", via("a=172.16.2.1"))
        node.learn("2001:db8::/32", via("a=fd77::1"))
        await node.drained()
        assert (gateways(ns, "192.0.2.0/24"), flags(ns, "192.0.2.0/24")) == ({"10.9.0.2 up0"}, [True])
        assert gateways(ns, "198.51.100.0/24") == {"10.9.0.2 up0", "10.0.1.2 up1"}
        assert flags(ns, "198.51.100.0/24") == [False, True]
        assert (gateways(ns, "203.0.113.0/24"), flags(ns, "203.0.113.0/24")) == ({"10.9.0.3 up1"}, [True])
        assert (gateways(ns, "2001:db8::/32"), flags(ns, "2001:db8::/32")) == ({"fd99::2 up0"}, [True])
        assert node.results == []
