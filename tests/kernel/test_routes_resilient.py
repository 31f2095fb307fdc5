"""Resilient groups in a real kernel: flows whose next hop stays are not moved, whoever else comes and goes."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from config.prefix import make, parse
from routes import netlink
from routes.messages import Resilience, RouteEvent
from tests.kernel.routes_lab import Node, gateways, nexthops, packed, routes, running, uplinks, via, witness
from tests.netns import Netns

pytestmark = pytest.mark.root

Maker = Callable[[], Netns]
KEEP = Resilience(64, 60000, 0)
"""No bucket is idle for so long in a test: none moves that need not."""
ANYCAST = "203.0.113.0/24"
ALL = via("a=10.0.0.2", "b=10.0.1.2", "c=10.0.2.2")
_IP_PKTINFO = 8
_NEXTHOPS = 32
"""RTNLGRP_NEXTHOP."""
_JIFFIES = 0.025
"""Seconds: to the kernel a bucket is in use if it was used in a later jiffy (1 to 10 ms) than it was moved."""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "fib.json"


def buckets(ns: Netns, prefix: str = ANYCAST) -> list[str]:
    """Return the gateway of each bucket of a route's group, in order."""
    family, encoded = parse(prefix)
    (group,) = {r.nexthop for r in routes(ns, family).values() if r.prefix == encoded}
    objects = nexthops(ns)
    assert objects[group].resilience is not None
    shown = json.loads(ns.run("ip", "-json", "nexthop", "bucket", "show", "id", str(group)))
    found = {entry["bucket"]["index"]: objects[entry["bucket"]["nhid"]].gateway for entry in shown}
    return [socket.inet_ntoa(found[index]) for index in sorted(found)]


class Flows:
    """UDP flows from the node to the anycast address in the fabric, and over which link each arrives."""

    def __init__(self, node: Netns, fabric: Netns, count: int) -> None:
        node.run("ip", "address", "add", "10.99.0.1/32", "dev", "lo")
        node.run("sysctl", "-qw", "net.ipv4.fib_multipath_hash_policy=1")
        fabric.run("ip", "address", "add", "203.0.113.1/32", "dev", "lo")
        fabric.run("ip", "route", "add", "10.99.0.1/32", "via", "10.0.0.1")
        self._names = fabric.call(lambda: dict(socket.if_nameindex()))
        self._sink = fabric.call(self._udp)
        self._sink.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self._sink.bind(("203.0.113.1", 9))
        self._sink.settimeout(10)
        self._sources = [node.call(self._udp) for _ in range(count)]
        for source in self._sources:
            source.bind(("10.99.0.1", 0))

    @staticmethod
    def _udp() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def seen(self) -> dict[int, str]:
        """Send packets of each flow, and return the link over which they came, by flow."""
        first, began = self._once(), time.monotonic()
        while time.monotonic() - began < _JIFFIES:
            assert self._once() == first
        return first

    def _once(self) -> dict[int, str]:
        found = {}
        for flow, source in enumerate(self._sources):
            source.sendto(flow.to_bytes(2, "big"), ("203.0.113.1", 9))
            data, ancillary, _, _ = self._sink.recvmsg(2, 64)
            assert int.from_bytes(data, "big") == flow
            found[flow] = self._names[int.from_bytes(ancillary[0][2][:4], "little")]
        return found

    def close(self) -> None:
        for one in (self._sink, *self._sources):
            one.close()


@asynccontextmanager
async def anycast(
    netns: Maker, state: Path, resilience: Resilience | None = KEEP, *, count: int = 150, **options: Any
) -> AsyncIterator[tuple[Netns, Node, Flows]]:
    """Yield a node with ANYCAST over three links, and ``count`` flows to it."""
    ns, fabric = uplinks(netns, 3)
    flows = Flows(ns, fabric, count)
    try:
        async with running(ns, state, resilience=resilience, **options) as node:
            node.learn(ANYCAST, ALL)
            await node.drained()
            yield ns, node, flows
    finally:
        flows.close()


async def changed(node: Node) -> None:
    """Wait until some next hop has been reported to resolve differently."""
    async with asyncio.timeout(30):
        while not node.changed:
            node.told.clear()
            await node.told.wait()
    node.changed.clear()


async def test_flows_stay_when_a_session_is_lost_and_when_it_returns(netns: Maker, state: Path) -> None:
    async with anycast(netns, state) as (ns, node, flows):
        (group,) = [n for n in nexthops(ns).values() if n.members]
        assert group.resilience == KEEP
        before, spread = flows.seen(), buckets(ns)
        assert {name: list(before.values()).count(name) > 20 for name in set(before.values())} == {
            "down0": True,
            "down1": True,
            "down2": True,
        }
        node.fib.peer_lost("a")
        node.learn(ANYCAST, via("b=10.0.1.2", "c=10.0.2.2"))
        await node.drained()
        after, left = flows.seen(), buckets(ns)
        assert set(after.values()) == {"down1", "down2"}
        assert [one for one in before if before[one] != "down0" and after[one] != before[one]] == []
        assert [i for i, one in enumerate(spread) if one != "10.0.0.2" and left[i] != one] == []
        # It is back, and gets what is idle or new: nothing here.
        node.learn(ANYCAST, ALL)
        await node.drained()
        assert gateways(ns, ANYCAST) == {"10.0.0.2 up0", "10.0.1.2 up1", "10.0.2.2 up2"}
        assert flows.seen() == after
        assert list(nexthops(ns)).count(group.id) == 1
        assert len(nexthops(ns)) == 4


async def test_flows_stay_when_a_peer_withdraws_and_announces(netns: Maker, state: Path) -> None:
    async with anycast(netns, state) as (_, node, flows):
        before = flows.seen()
        node.learn(ANYCAST, via("a=10.0.0.2", "c=10.0.2.2"))
        await node.drained()
        after = flows.seen()
        assert set(after.values()) == {"down0", "down2"}
        assert [one for one in before if before[one] != "down1" and after[one] != before[one]] == []
        node.learn(ANYCAST, ALL)
        await node.drained()
        assert flows.seen() == after


async def test_flows_stay_when_a_link_goes_and_returns(netns: Maker, state: Path) -> None:
    async with anycast(netns, state) as (ns, node, flows):
        before = flows.seen()
        ns.run("ip", "link", "set", "up2", "down")
        await changed(node)
        await node.drained()
        after = flows.seen()
        assert set(after.values()) == {"down0", "down1"}
        assert [one for one in before if before[one] != "down2" and after[one] != before[one]] == []
        ns.run("ip", "link", "set", "up2", "up")
        await changed(node)
        await node.drained()
        assert gateways(ns, ANYCAST) == {"10.0.0.2 up0", "10.0.1.2 up1", "10.0.2.2 up2"}
        assert flows.seen() == after


async def test_idle_buckets_move_to_who_has_too_few(netns: Maker, state: Path) -> None:
    async with anycast(netns, state, Resilience(64, 0, 0)) as (ns, node, _):
        spread = buckets(ns)
        node.fib.peer_lost("b")
        node.learn(ANYCAST, via("a=10.0.0.2", "c=10.0.2.2"))
        await node.drained()
        assert "10.0.1.2" not in buckets(ns)
        node.learn(ANYCAST, ALL)
        await node.drained()
        assert sorted(buckets(ns).count(one) for one in set(spread)) == [21, 21, 22]


async def test_plain_groups_spread_all_flows_anew(netns: Maker, state: Path) -> None:
    """What resilient ones are for: hash thresholds move with the number of members."""
    async with anycast(netns, state, None) as (_, node, flows):
        before = flows.seen()
        node.fib.peer_lost("a")
        node.learn(ANYCAST, via("b=10.0.1.2", "c=10.0.2.2"))
        await node.drained()
        after = flows.seen()
        assert [one for one in before if before[one] != "down0" and after[one] != before[one]] != []


async def test_a_whole_table_keeps_its_group_when_a_session_is_lost(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns, 3)
    prefixes = [make(4, (20 << 24) + (number << 8), 24) for number in range(6000)]
    async with running(ns, state, resilience=KEEP) as node:
        node.fib.update(4, [(prefixes, ALL)])
        await node.drained()
        spread = buckets(ns, "20.0.7.0/24")
        (group,) = {route.nexthop for route in routes(ns, 4).values()}
        async with witness(ns) as seen:
            node.fib.peer_lost("b")
            rest = via("a=10.0.0.2", "c=10.0.2.2")
            for start in range(0, 6000, 1500):  # as the speaker's slices come
                node.fib.update(4, [(prefixes[start : start + 1500], rest)])
                await node.drained()
            left = buckets(ns, "20.0.7.0/24")
            assert [i for i, one in enumerate(spread) if one != "10.0.1.2" and left[i] != one] == []
            assert {route.nexthop for route in routes(ns, 4).values()} == {group}
            assert not [e for e in seen.events if isinstance(e, RouteEvent) and e.gone]
        # Back with half of its table: the two halves have groups of their own.
        node.fib.update(4, [(prefixes[:3000], ALL)])
        await node.drained()
        assert len({route.nexthop for route in routes(ns, 4).values()}) == 2
        assert gateways(ns, "20.0.7.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1", "10.0.2.2 up2"}
        assert gateways(ns, "20.23.0.0/24") == {"10.0.0.2 up0", "10.0.2.2 up2"}
        node.fib.resync("a test")
        await node.drained()
        assert not any("repaired" in cause for cause in node.fib.counters)
        node.fib.update(4, [(prefixes, None)])
        await node.drained()
        assert nexthops(ns) == {}


async def test_a_session_with_routes_of_its_own_goes_with_its_object(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, resilience=KEEP) as node:
        node.learn("192.0.2.0/24", via("a=10.0.0.2"))
        node.learn("2001:db8::/32", via("a=fd00:0::2"))
        node.learn("198.51.100.0/24", via("a=10.0.0.2", "b=10.0.1.2"))
        await node.drained()
        node.fib.peer_lost("a")  # nothing is awaited: the deletions have been sent, and the kernel has done the rest
        assert set(routes(ns, 4)) == {"198.51.100.0/24 metric 20"}
        assert routes(ns, 6) == {}
        assert gateways(ns, "198.51.100.0/24") == {"10.0.1.2 up1"}
        await node.drained()


def teach(node: Node) -> None:
    node.learn("192.0.2.0/24", via("a=10.0.0.2", "b=10.0.1.2"))
    node.learn("198.51.100.0/24", via("a=10.0.0.2"))
    node.learn("2001:db8::/32", via("a=fd00:0::2", "b=fd00:1::2"))


@pytest.mark.parametrize(
    ("former", "now"),
    [(None, KEEP), (KEEP, None), (KEEP, Resilience(32, 60000, 0)), (KEEP, Resilience(64, 100, 500))],
    ids=["on", "off", "buckets", "timers"],
)
async def test_groups_of_an_earlier_run_become_what_they_are_to_be(
    netns: Maker, state: Path, former: Resilience | None, now: Resilience | None
) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, keep=True, resilience=former) as node:
        teach(node)
        await node.drained()
    before = routes(ns, 4) | routes(ns, 6)
    async with witness(ns) as seen, running(ns, state, resilience=now) as node:
        assert (routes(ns, 4) | routes(ns, 6)).keys() == before.keys()
        teach(node)
        for peer in ("a", "b"):
            for family in (4, 6):
                node.fib.end_of_rib(peer, 4 if family == 4 else 6)
        await node.drained()
        objects = nexthops(ns)
        after = routes(ns, 4) | routes(ns, 6)
        assert {objects[route.nexthop].resilience for route in after.values()} == {now}
        assert sum(bool(one.members) for one in objects.values()) == 3
        assert not [e for e in seen.events if isinstance(e, RouteEvent) and e.gone]  # moved, not missed
        same = [before[name].nexthop == after[name].nexthop for name in before]
        assert same == ([True] * 3 if former and now and former.buckets == now.buckets else [False] * 3)
        node.fib.peer_lost("b")
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0"}
        node.fib.resync("a test")
        await node.drained()
        assert not any("repaired" in cause for cause in node.fib.counters)


async def test_a_kernel_that_refuses_them(netns: Maker, state: Path, caplog: pytest.LogCaptureFixture) -> None:
    ns, _ = uplinks(netns)
    caplog.set_level(logging.WARNING, "podroute.routes")
    async with running(ns, state, resilience=Resilience(0, 0, 0)) as node:  # which no kernel takes
        assert node.fib.findings == []
        teach(node)
        await node.drained()
        teach(node)
        node.learn("203.0.113.0/24", via("b=10.0.1.2"))
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1"}
        assert gateways(ns, "198.51.100.0/24") == {"10.0.0.2 up0"}
        assert gateways(ns, "203.0.113.0/24") == {"10.0.1.2 up1"}
        assert {one.resilience for one in nexthops(ns).values()} == {None}
        (finding,) = node.fib.findings
        assert finding == (
            "routes.resilient has no effect, the kernel refuses such groups: Number of buckets needs to be non-0"
        )
        told = [record.message for record in caplog.records]
        assert told == ["the kernel refuses resilient next-hop groups"]
        assert node.results == []


async def test_a_kernel_without_objects(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, resilience=KEEP, objects=False) as node:
        teach(node)
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1"}
        assert [finding.rpartition(": ")[2] for finding in node.fib.findings] == ["it knows no next-hop objects"]


async def test_what_the_kernel_says_of_buckets_is_not_read(netns: Maker, state: Path) -> None:
    """It tells of each that moves some time after the group has changed, of which routes learn nothing."""
    # Of idle buckets that move with the change itself nobody is told: all are in use, and the other timer moves them.
    keep = Resilience(64, 60000, 10)
    async with anycast(netns, state, keep, count=450, monitor_buffer=2048) as (ns, node, flows):
        node.learn(ANYCAST, via("a=10.0.0.2", "b=10.0.1.2"))
        await node.drained()
        flows.seen()
        with ns.entered(), netlink.open_socket(groups=[_NEXTHOPS]) as heard:
            node.learn(ANYCAST, ALL)
            await node.drained()
            heard.settimeout(60)
            moved = 0
            while moved < 12:  # of 21 about; the loop does not run meanwhile, and its socket has room for a few
                moved += sum(m.kind == netlink.RTM_NEWNEXTHOPBUCKET for m in netlink.messages(heard.recv(1 << 16)))
        node.resolver.lookup(packed("10.9.0.2"))
        ns.run("ip", "address", "add", "10.9.0.1/24", "dev", "up0")
        await changed(node)  # by what the kernel said after the buckets
        assert node.monitor.overruns == 0
