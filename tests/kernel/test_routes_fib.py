"""Desired routes reach the kernel, and nothing else does."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from config.nexthop import Gateway, Resolution
from config.prefix import make
from routes.messages import RouteEvent
from routes.state import State
from tests.kernel.routes_lab import gateways, nexthops, packed, routes, running, uplinks, via, wire, witness
from tests.netns import WITHOUT_CAPABILITIES, Netns, link

pytestmark = pytest.mark.root

Maker = Callable[[], Netns]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "fib.json"


both = pytest.mark.parametrize("objects", [True, False], ids=["objects", "fallback"])


@both
async def test_learned_and_withdrawn(netns: Maker, state: Path, objects: bool) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, objects=objects) as node:
        assert node.fib.uses_objects is objects
        node.learn("192.0.2.0/24", via("a=10.0.0.2"))
        node.learn("0.0.0.0/0", via("a=10.0.0.2"))
        node.learn("203.0.113.7/32", via("a=10.0.0.2"))
        node.learn("2001:db8::/32", via("a=fd00:0::2"))
        node.learn("::/0", via("a=fd00:0::2"))
        await node.drained()
        assert set(routes(ns, 4)) == {"192.0.2.0/24 metric 20", "0.0.0.0/0 metric 20", "203.0.113.7/32 metric 20"}
        assert set(routes(ns, 6)) == {"2001:db8::/32 metric 20", "::/0 metric 20"}
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0"}
        assert gateways(ns, "2001:db8::/32") == {"fd00::2 up0"}
        assert bool(nexthops(ns)) is objects
        for prefix in ("192.0.2.0/24", "0.0.0.0/0", "203.0.113.7/32", "2001:db8::/32", "::/0"):
            node.learn(prefix, None)
        await node.drained()
        assert routes(ns, 4) == routes(ns, 6) == {}
        assert nexthops(ns) == {}  # nothing names the objects any more
        assert node.results == []


@both
async def test_groups_of_two_and_three(netns: Maker, state: Path, objects: bool) -> None:
    ns, _ = uplinks(netns, 3)
    async with running(ns, state, objects=objects) as node:
        node.learn("192.0.2.0/24", via("a=10.0.0.2", "b=10.0.1.2"))
        node.learn("198.51.100.0/24", via("a=10.0.0.2", "b=10.0.1.2", "c=10.0.2.2"))
        node.learn("2001:db8::/32", via("a=fd00:0::2", "b=fd00:1::2"))
        node.learn("2001:db8:1::/48", via("a=fd00:0::2", "b=fd00:1::2", "c=fd00:2::2"))
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1"}
        assert gateways(ns, "198.51.100.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1", "10.0.2.2 up2"}
        assert gateways(ns, "2001:db8::/32") == {"fd00::2 up0", "fd00:1::2 up1"}
        assert gateways(ns, "2001:db8:1::/48") == {"fd00::2 up0", "fd00:1::2 up1", "fd00:2::2 up2"}
        node.learn("198.51.100.0/24", via("c=10.0.2.2"))
        node.learn("2001:db8:1::/48", via("b=fd00:1::2", "c=fd00:2::2"))
        await node.drained()
        assert gateways(ns, "198.51.100.0/24") == {"10.0.2.2 up2"}
        assert gateways(ns, "2001:db8:1::/48") == {"fd00:1::2 up1", "fd00:2::2 up2"}
        assert len(routes(ns, 4)) == len(routes(ns, 6)) == 2


@both
async def test_ipv4_over_ipv6_next_hops(netns: Maker, state: Path, objects: bool) -> None:
    ns, fabric = uplinks(netns)
    fabric_lla = (
        fabric.run("ip", "-o", "-6", "address", "show", "dev", "down1", "scope", "link").split()[3].split("/")[0]
    )
    async with running(ns, state, objects=objects) as node:
        node.learn("192.0.2.0/24", via("a=fd00:0::2"))
        node.learn("198.51.100.0/24", via("a=fd00:0::2", f"b={fabric_lla}%up1"))
        node.learn("203.0.113.0/24", via("a=10.0.0.2", "b=fd00:1::2"))
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"fd00::2 up0"}
        assert gateways(ns, "198.51.100.0/24") == {"fd00::2 up0", f"{fabric_lla} up1"}
        assert gateways(ns, "203.0.113.0/24") == {"10.0.0.2 up0", "fd00:1::2 up1"}


@both
async def test_peer_lost(netns: Maker, state: Path, objects: bool) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, objects=objects) as node, witness(ns) as seen:
        node.learn("192.0.2.0/24", via("a=10.0.0.2", "b=10.0.1.2"))
        node.learn("198.51.100.0/24", via("a=10.0.0.2"))
        node.learn("203.0.113.0/24", via("b=10.0.1.2"))
        node.learn("2001:db8::/32", via("a=fd00:0::2"))
        # Two route reflectors announce the same gateway: the loss of one must not hurt.
        node.learn("10.9.0.0/16", via("a=10.0.1.2", "b=10.0.1.2"))
        await node.drained()
        before = routes(ns, 4)
        seen.events.clear()
        node.fib.peer_lost("a")
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.1.2 up1"}
        assert gateways(ns, "10.9.0.0/16") == {"10.0.1.2 up1"}
        assert set(routes(ns, 4)) == set(before) - {"198.51.100.0/24 metric 20"}
        assert routes(ns, 6) == {}
        if objects:  # no route was written
            assert routes(ns, 4)["192.0.2.0/24 metric 20"].nexthop == before["192.0.2.0/24 metric 20"].nexthop
        # What the speaker then says agrees, and the peer's return is as if it were new.
        node.learn("192.0.2.0/24", via("b=10.0.1.2"))
        node.learn("198.51.100.0/24", None)
        node.learn("2001:db8::/32", None)
        await node.drained()
        node.learn("192.0.2.0/24", via("a=10.0.0.2", "b=10.0.1.2"))
        node.learn("198.51.100.0/24", via("a=10.0.0.2"))
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1"}
        assert gateways(ns, "198.51.100.0/24") == {"10.0.0.2 up0"}


@both
async def test_peer_lost_and_back_before_the_speaker_noticed(netns: Maker, state: Path, objects: bool) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, objects=objects) as node:
        node.learn("192.0.2.0/24", via("a=10.0.0.2", "b=10.0.1.2"))
        node.learn("198.51.100.0/24", via("a=10.0.0.2"))
        await node.drained()
        node.fib.peer_lost("a")
        await node.drained()
        assert gateways(ns, "198.51.100.0/24") == set()
        node.fib.end_of_rib("a", 4)
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1"}
        assert gateways(ns, "198.51.100.0/24") == {"10.0.0.2 up0"}


async def test_peer_lost_while_its_routes_are_loaded(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state) as node, witness(ns) as seen:
        prefixes = [make(4, (20 << 24) + (number << 8), 24) for number in range(20_000)]
        node.fib.update(4, [(prefixes, via("a=10.0.0.2"))])
        await seen.nexthop(lambda e: bool(e.nexthop.members))
        node.fib.peer_lost("a")
        node.fib.update(4, [(prefixes[:10_000], None)])
        node.fib.update(4, [(prefixes[10_000:], via("b=10.0.1.2"))])
        await node.drained()
        assert len(routes(ns, 4)) == 10_000
        assert gateways(ns, "20.39.16.0/24") == {"10.0.1.2 up1"}
        assert len(nexthops(ns)) == 2


async def test_weights_count_gateways_not_peers(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state) as node:
        node.learn("192.0.2.0/24", via("a=10.0.0.2", "b=10.0.0.2", "c=10.0.1.2"))
        await node.drained()
        objects = nexthops(ns)
        group = objects[routes(ns, 4)["192.0.2.0/24 metric 20"].nexthop]
        weights: dict[bytes, int] = {}
        for member, weight in group.members:
            weights[objects[member].gateway] = weights.get(objects[member].gateway, 0) + weight
        assert weights == {packed("10.0.0.2"): 2, packed("10.0.1.2"): 2}


@both
async def test_foreign_route_in_the_way(netns: Maker, state: Path, objects: bool) -> None:
    ns, _ = uplinks(netns)
    ns.run("ip", "route", "add", "192.0.2.0/24", "via", "10.0.1.2", "metric", "20", "proto", "static")
    ns.run("ip", "-6", "route", "add", "2001:db8::/32", "via", "fd00:1::2", "metric", "20", "proto", "static")
    ns.run("ip", "route", "add", "198.51.100.0/24", "via", "10.0.1.2", "metric", "10", "proto", "static")
    foreign = ns.run("ip", "route", "show", "proto", "static") + ns.run("ip", "-6", "route", "show", "proto", "static")
    async with running(ns, state, objects=objects) as node, witness(ns) as seen:
        node.learn("192.0.2.0/24", via("a=10.0.0.2"))
        node.learn("2001:db8::/32", via("a=fd00:0::2"))
        node.learn("198.51.100.0/24", via("a=10.0.0.2"))  # another metric: beside it
        await node.drained()
        conflict = State.CONFLICT, errno.EEXIST, "a route of protocol static with metric 20 is in the way"
        assert [(r.prefix, r.state, r.errno, r.text) for r in sorted(node.results)] == [
            (wire("192.0.2.0/24"), *conflict),
            (wire("198.51.100.0/24"), State.SHADOWED, 0, "by a route of protocol static with metric 10"),
            (wire("2001:db8::/32"), *conflict),
        ]
        assert set(routes(ns, 4)) == {"198.51.100.0/24 metric 20"}
        assert routes(ns, 6) == {}
        node.learn("192.0.2.0/24", via("b=10.0.1.2"))
        node.fib.peer_lost("a")
        await node.drained()
        node.learn("2001:db8::/32", None)
        await node.drained()
        still = ns.run("ip", "route", "show", "proto", "static") + ns.run(
            "ip", "-6", "route", "show", "proto", "static"
        )
        assert still == foreign
        # It goes, and ours comes without anybody's asking.
        ns.run("ip", "route", "del", "192.0.2.0/24", "metric", "20", "proto", "static")
        await seen.route("192.0.2.0/24")
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.1.2 up1"}
        assert node.results[-1].state is State.INSTALLED
        assert node.state("192.0.2.0/24") is State.INSTALLED


async def test_covers(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state) as node:
        for prefix in ("10.64.0.0/26", "10.64.9.9/32"):
            node.fib.add_cover(4, wire(prefix))
        for prefix in ("fd64::/122", "fd64::1:1/128"):
            node.fib.add_cover(6, wire(prefix))
        # Somebody announces our own block: the cover wins.
        node.learn("10.64.0.0/26", via("a=10.0.0.2"))
        await node.drained()
        assert set(routes(ns, 4)) == {"10.64.0.0/26 metric 1", "10.64.0.0/26 metric 20"}
        assert set(routes(ns, 6)) == {"fd64::/122 metric 1"}
        assert ns.run("ip", "-4", "route", "show", "type", "unreachable").startswith(
            "unreachable 10.64.0.0/26 proto 201"
        )
        assert "unreachable fd64::/122" in ns.run("ip", "-6", "route", "show", "type", "unreachable")
        assert "RTNETLINK answers: No route to host" in ns.run("sh", "-c", "ip route get 10.64.0.5 2>&1", check=False)
        node.fib.remove_cover(4, wire("10.64.0.0/26"))
        node.fib.remove_cover(4, wire("10.64.9.9/32"))
        node.fib.remove_cover(6, wire("fd64::/122"))
        await node.drained()
        assert set(routes(ns, 4)) == {"10.64.0.0/26 metric 20"}
        assert routes(ns, 6) == {}


async def test_unresolvable_next_hops(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    ns.run("ip", "route", "add", "default", "via", "10.0.0.2")
    async with running(ns, state) as node, witness(ns) as seen:
        node.learn("192.0.2.0/24", via("a=172.16.0.1"))  # outside every subnet
        node.learn("198.51.100.0/24", via("a=10.0.0.1"))  # the node itself
        node.learn("203.0.113.0/24", via("a=172.16.0.1", "b=10.0.1.2"))  # one of two will do
        await node.drained()
        assert {(r.prefix, r.state) for r in node.results} == {
            (wire("192.0.2.0/24"), State.UNRESOLVED),
            (wire("198.51.100.0/24"), State.UNRESOLVED),
        }
        assert {r.text for r in node.results} == {"no next hop can be reached"}
        assert set(routes(ns, 4)) == {"203.0.113.0/24 metric 20"}
        assert gateways(ns, "203.0.113.0/24") == {"10.0.1.2 up1"}
        group = routes(ns, 4)["203.0.113.0/24 metric 20"].nexthop
        # A static route leads there: all follows from that event alone.
        ns.run("ip", "route", "add", "172.16.0.0/24", "via", "10.0.0.2")
        await seen.route("192.0.2.0/24")
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0"}
        assert gateways(ns, "203.0.113.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1"}
        assert routes(ns, 4)["203.0.113.0/24 metric 20"].nexthop == group  # moved by its group
        assert node.results[-1].state is State.INSTALLED
        ns.run("ip", "route", "del", "172.16.0.0/24")
        await seen.nexthop(lambda e: e.gone)
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == set()
        assert gateways(ns, "203.0.113.0/24") == {"10.0.1.2 up1"}
        assert node.state("192.0.2.0/24") is State.UNRESOLVED


class Liar:
    """A resolver that takes any next hop to be on the link of up0."""

    def lookup(self, address: bytes, device: str = "") -> Resolution | None:
        return Resolution((Gateway(address, device or "up0"),), 0)

    def local(self, session_address: bytes, family: int) -> bytes | None:
        return None


@both
async def test_refused_by_the_kernel(netns: Maker, state: Path, objects: bool) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, objects=objects, resolver=Liar()) as node:
        node.learn("192.0.2.0/24", via("a=172.16.0.1"))
        node.learn("198.51.100.0/24", via("a=172.16.0.1", "b=10.0.0.2"))
        node.learn("203.0.113.0/24", via("b=10.0.0.2"))
        await node.drained()
        assert gateways(ns, "203.0.113.0/24") == {"10.0.0.2 up0"}
        refused = {r.prefix: r.errno for r in node.results}
        assert refused[wire("192.0.2.0/24")] == errno.ENETUNREACH
        assert node.fib.route(4, wire("192.0.2.0/24"))[0].errno == errno.ENETUNREACH
        assert node.fib.route(4, wire("192.0.2.0/24"))[0].text == "Nexthop has invalid gateway"
        if objects:  # the other member does what it can
            assert gateways(ns, "198.51.100.0/24") == {"10.0.0.2 up0"}
        else:
            assert refused[wire("198.51.100.0/24")] == errno.ENETUNREACH
        # An address appears that makes the gateway good.
        async with witness(ns) as seen:
            ns.run("ip", "address", "add", "172.16.0.9/24", "dev", "up0")
            await seen.route("192.0.2.0/24")
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"172.16.0.1 up0"}
        assert gateways(ns, "198.51.100.0/24") == {"10.0.0.2 up0", "172.16.0.1 up0"}
        assert {r.state for r in node.results[-2:]} >= {State.INSTALLED}


async def test_ipv6_prefix_over_ipv4_next_hop_is_a_result(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state) as node:
        node.learn("2001:db8::/32", via("a=10.0.0.2"))
        node.learn("192.0.2.0/24", via("a=10.0.0.2"))
        await node.drained()
        assert [(r.prefix, r.state, r.errno) for r in node.results] == [
            (wire("2001:db8::/32"), State.FAILED, errno.EINVAL)
        ]
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0"}


async def test_pods(netns: Maker, state: Path) -> None:
    ns, pod = netns(), netns()
    link(ns, "pod0", pod, "eth0")
    ns.run("ip", "route", "add", "10.64.0.5/32", "dev", "pod0", "scope", "link", "proto", "201")
    ns.run("ip", "-6", "route", "add", "fd64::5/128", "dev", "pod0", "proto", "201", "metric", "1")
    async with running(ns, state) as node, witness(ns) as seen:
        node.fib.expect_pod(4, wire("10.64.0.5/32"), "pod0")
        node.fib.expect_pod(6, wire("fd64::5/128"), "pod0")
        node.fib.expectations_complete()
        await node.drained()
        assert seen.deletions() == []
        assert set(routes(ns, 4)) == {"10.64.0.5/32 metric 0"}
        assert set(routes(ns, 6)) == {"fd64::5/128 metric 1"}
        assert node.fib.counters["requests"] == 0  # taken over as they were
        ns.run("ip", "route", "del", "10.64.0.5/32")
        await seen.route("10.64.0.5/32", gone=True)
        assert (await seen.route("10.64.0.5/32")).metric == 0
        ns.run("ip", "link", "set", "pod0", "down")  # the kernel drops its routes, the IPv4 one without a word
        ns.run("ip", "link", "set", "pod0", "up")
        await seen.route("10.64.0.5/32")
        await node.drained()
        assert len(routes(ns, 4)) == len(routes(ns, 6)) == 1
        # A pod whose route the plugin writes while we run, before and after we hear of it.
        ns.run("ip", "route", "add", "10.64.0.6/32", "dev", "pod0", "scope", "link", "proto", "201")
        node.fib.expect_pod(4, wire("10.64.0.6/32"), "pod0")
        node.fib.expect_pod(4, wire("10.64.0.7/32"), "pod0")
        await node.drained()
        assert len(routes(ns, 4)) == 3
        assert node.results == []
        node.fib.forget_pod(4, wire("10.64.0.5/32"))
        node.fib.forget_pod(6, wire("fd64::5/128"))
        await node.drained()
        assert len(routes(ns, 4)) == 2
        assert routes(ns, 6) == {}
        node.fib.expect_pod(4, wire("10.64.0.8/32"), "pod9")
        await node.drained()
        assert (node.results[-1].state, node.results[-1].errno) == (State.UNRESOLVED, errno.ENODEV)
        assert node.results[-1].text == "no interface pod9"


async def test_flapping_ends_as_desired(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    first, second, two = via("a=10.0.0.2"), via("b=10.0.1.2"), via("a=10.0.0.2", "b=10.0.1.2")
    prefixes = [make(4, (20 << 24) + (number << 8), 24) for number in range(2000)]
    async with running(ns, state) as node, witness(ns) as seen:
        for turn in range(30):
            seen.events.clear()
            hops = (first, second, two, None)[turn % 4]
            node.fib.update(4, [(prefixes[turn % 3 :: 3], hops)])
            if turn % 5 == 0:
                await seen.until(lambda e: isinstance(e, RouteEvent))
        node.fib.update(4, [(prefixes[:1000], two)])
        node.fib.update(4, [(prefixes[1000:], None)])
        await node.drained()
        held = routes(ns, 4)
        assert len(held) == 1000
        assert len({route.nexthop for route in held.values()}) == 1
        assert len(nexthops(ns)) == 3
        assert node.results == []


async def test_other_table_and_metric(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, table=1000, metric=0) as node:
        node.learn("192.0.2.0/24", via("a=10.0.0.2"))
        node.learn("2001:db8::/32", via("a=fd00:0::2"))
        await node.drained()
        assert set(routes(ns, 4, table=1000)) == {"192.0.2.0/24 metric 0"}
        assert set(routes(ns, 6, table=1000)) == {"2001:db8::/32 metric 1024"}
        assert routes(ns, 4) == routes(ns, 6) == {}
        node.learn("192.0.2.0/24", None)
        node.learn("2001:db8::/32", None)
        await node.drained()
        assert routes(ns, 4, table=1000) == routes(ns, 6, table=1000) == {}


def test_without_privileges(tmp_path: Path) -> None:
    code = """
import asyncio, pathlib, sys
from routes.fib import Fib, FibError
from routes.monitor import Monitor
from routes.resolver import Resolver
async def main():
    monitor = Monitor()
    await monitor.start()
    resolver = Resolver(monitor, on_changed=print)
    await resolver.start()
    fib = Fib(monitor=monitor, resolver=resolver, state_file=pathlib.Path("unused"), on_results=print)
    try:
        await fib.start()
    except FibError as error:
        print(error)
    await fib.stop(keep=True)
    await resolver.stop()
    monitor.stop()
asyncio.run(main())
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    argv = [*WITHOUT_CAPABILITIES, sys.executable, "-c", code]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == (
        "cannot write routes: permission denied; run podroute as root or with CAP_NET_ADMIN"
    ), done.stderr
