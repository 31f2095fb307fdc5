"""Whatever happens to routes and objects of ours behind our back is set right."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from config.prefix import make
from routes.interfaces import Interfaces
from routes.messages import NexthopEvent, RouteEvent
from routes.monitor import Monitor
from routes.state import State
from tests.kernel.routes_lab import (
    Node,
    Unheard,
    flush,
    gateways,
    nexthops,
    packed,
    routes,
    running,
    uplinks,
    via,
    wire,
    witness,
)
from tests.netns import Netns

pytestmark = pytest.mark.root

Maker = Callable[[], Netns]
both = pytest.mark.parametrize("objects", [True, False], ids=["objects", "fallback"])


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "fib.json"


@both
async def test_deleted_routes_return(
    netns: Maker, state: Path, objects: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, objects=objects) as node, witness(ns) as seen:
        node.learn("192.0.2.0/24", via("a=10.0.0.2", "b=10.0.1.2"))
        node.learn("2001:db8::/32", via("a=fd00:0::2", "b=fd00:1::2"))
        node.fib.add_cover(4, wire("10.64.0.0/26"))
        await node.drained()
        for family, prefix in ((4, "192.0.2.0/24"), (6, "2001:db8::/32"), (4, "10.64.0.0/26")):
            seen.events.clear()
            ns.run("ip", f"-{family}", "route", "del", *(["unreachable"] if "64" in prefix else []), prefix)
            await seen.route(prefix, gone=True)
            await seen.route(prefix)
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1"}
        assert gateways(ns, "2001:db8::/32") == {"fd00::2 up0", "fd00:1::2 up1"}
        assert node.fib.counters["repaired, route deleted by another program"] == 3
        assert "repaired routes" in caplog.text


async def test_flushed_table_returns(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state) as node, witness(ns) as seen:
        prefixes = [make(4, (20 << 24) + (number << 8), 24) for number in range(20_000)]
        node.fib.update(4, [(prefixes, via("a=10.0.0.2"))])
        sixes = [make(6, (0x20010DB8 << 96) + (n << 64), 64) for n in range(5000)]
        node.fib.update(6, [(sixes, via("a=fd00:0::2"))])
        await node.drained()
        seen.events.clear()
        await asyncio.to_thread(flush, ns, 6)
        assert await asyncio.to_thread(flush, ns, 4) >= 20_000
        ns.run("ip", "route", "add", "100.64.0.0/24", "dev", "up0")  # its event comes after all others
        done = asyncio.Event()
        node.monitor.subscribe(
            lambda e: done.set() if isinstance(e, RouteEvent) and e.route.prefix == wire("100.64.0.0/24") else None,
            done.set,
        )
        ns.run("ip", "route", "change", "100.64.0.0/24", "dev", "up1")
        async with asyncio.timeout(30):
            await done.wait()
        await node.drained()
        assert len(routes(ns, 4)) == 20_000
        assert len(routes(ns, 6)) == 5000
        assert repairs(node) == {"route deleted by another program": 25_000}


@both
async def test_replaced_routes_return(netns: Maker, state: Path, objects: bool) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, objects=objects) as node, witness(ns) as seen:
        node.learn("192.0.2.0/24", via("a=10.0.0.2"))
        node.learn("2001:db8::/32", via("a=fd00:0::2"))
        await node.drained()
        seen.events.clear()
        ns.run("ip", "route", "replace", "192.0.2.0/24", "via", "10.0.1.2", "metric", "20", "proto", "201")
        await seen.until(_replaced("192.0.2.0/24"))
        await seen.until(_replaced("192.0.2.0/24"))
        ns.run("ip", "-6", "route", "replace", "2001:db8::/32", "via", "fd00:1::2", "metric", "20", "proto", "201")
        await seen.until(_replaced("2001:db8::/32"))
        await seen.until(_replaced("2001:db8::/32"))
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0"}
        assert gateways(ns, "2001:db8::/32") == {"fd00::2 up0"}
        assert node.fib.counters["repaired, route replaced by another program"] == 2


def _replaced(prefix: str) -> Callable[[object], bool]:
    return lambda e: isinstance(e, RouteEvent) and e.replaced and e.route.prefix == wire(prefix)


async def test_replaced_by_a_foreign_route(netns: Maker, state: Path) -> None:
    """What stands there then is foreign, and left alone."""
    ns, _ = uplinks(netns)
    async with running(ns, state) as node, witness(ns) as seen:
        node.learn("192.0.2.0/24", via("a=10.0.0.2"))
        await node.drained()
        ns.run("ip", "route", "replace", "192.0.2.0/24", "via", "10.0.1.2", "metric", "20", "proto", "static")
        await node.until(State.CONFLICT, "192.0.2.0/24")
        assert routes(ns, 4) == {}
        assert set(routes(ns, 4, protocol=4)) == {"192.0.2.0/24 metric 20"}
        seen.events.clear()
        ns.run("ip", "route", "del", "192.0.2.0/24")
        await seen.route("192.0.2.0/24")


@both
@pytest.mark.parametrize("how", ["admin", "carrier"])
async def test_link_down_and_up(
    netns: Maker, state: Path, objects: bool, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    ns, fabric = uplinks(netns)
    switch = (ns, "up0") if how == "admin" else (fabric, "down0")
    ns.run("sysctl", "-qw", "net.ipv6.conf.up0.keep_addr_on_down=1")
    fabric.run("sysctl", "-qw", "net.ipv6.conf.down0.keep_addr_on_down=1")
    async with running(ns, state, objects=objects) as node, witness(ns) as seen:
        node.learn("192.0.2.0/24", via("a=10.0.0.2", "b=10.0.1.2"))
        node.learn("198.51.100.0/24", via("a=10.0.0.2"))
        node.learn("2001:db8::/32", via("a=fd00:0::2", "b=fd00:1::2"))
        node.learn("2001:db8:1::/48", via("a=fd00:0::2"))
        await node.drained()
        for _ in range(2):
            await _after(
                node.monitor,
                lambda: not _up(node.monitor.interfaces),
                switch[0],
                "ip",
                "link",
                "set",
                switch[1],
                "down",
            )
            await node.drained()
            assert gateways(ns, "192.0.2.0/24") == {"10.0.1.2 up1"}
            assert gateways(ns, "2001:db8::/32") == {"fd00:1::2 up1"}
            assert gateways(ns, "198.51.100.0/24") == gateways(ns, "2001:db8:1::/48") == set()
            assert node.state("198.51.100.0/24") is State.UNRESOLVED
            seen.events.clear()
            switch[0].run("ip", "link", "set", switch[1], "up")
            await seen.routes("198.51.100.0/24", "2001:db8:1::/48")
            await node.drained()
            assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1"}
            assert gateways(ns, "2001:db8::/32") == {"fd00::2 up0", "fd00:1::2 up1"}
            assert gateways(ns, "198.51.100.0/24") == {"10.0.0.2 up0"}
            assert gateways(ns, "2001:db8:1::/48") == {"fd00::2 up0"}
        assert len(routes(ns, 4)) == len(routes(ns, 6)) == 2
        # All four, each time: two had lost one of two ways
        assert repairs(node) == {"link came up": 8}
    assert {record.__dict__["fields"]["cause"] for record in caplog.records if record.msg == "repaired routes"} == {
        "link came up"
    }


def repairs(node: Node) -> dict[str, int]:
    """Return the repaired routes by cause, as they were counted."""
    counted = node.fib.counters.items()
    return {name.removeprefix("repaired, "): count for name, count in counted if name.startswith("repaired, ")}


def _up(known: Interfaces) -> bool:
    link = known.named("up0")
    return link is not None and link.up


async def _after(monitor: Monitor, condition: Callable[[], bool], ns: Netns, *command: str) -> None:
    """Run a command and wait until the monitor knows of what it does; what follows from it is then in hand."""
    seen = asyncio.Event()
    monitor.subscribe(lambda e: seen.set() if condition() else None, lambda: None)
    ns.run(*command)
    async with asyncio.timeout(30):
        await seen.wait()
    await asyncio.sleep(0)


@both
async def test_link_deleted_and_renamed(netns: Maker, state: Path, objects: bool) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, objects=objects) as node, witness(ns) as seen:
        node.learn("192.0.2.0/24", via("a=10.0.0.2", "b=10.0.1.2"))
        await node.drained()
        known = node.monitor.interfaces
        renamed = "ip", "link", "set", "up1", "name", "fresh"
        await _after(node.monitor, lambda: known.named("fresh") is not None, ns, *renamed)
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0", "10.0.1.2 fresh"}
        await _after(node.monitor, lambda: known.named("up0") is None, ns, "ip", "link", "del", "up0")
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.1.2 fresh"}
        seen.events.clear()
        ns.run("ip", "route", "add", "10.0.0.0/24", "dev", "fresh")
        await seen.until(_group_of(2) if objects else _replaced("192.0.2.0/24"))
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 fresh", "10.0.1.2 fresh"}
        assert len(nexthops(ns)) == (3 if objects else 0)


def _group_of(count: int) -> Callable[[object], bool]:
    return lambda e: isinstance(e, NexthopEvent) and not e.gone and len(e.nexthop.members) == count


async def test_deleted_objects_return(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state) as node, witness(ns) as seen:
        node.learn("192.0.2.0/24", via("a=10.0.0.2", "b=10.0.1.2"))
        node.learn("198.51.100.0/24", via("a=10.0.0.2"))
        node.learn("2001:db8::/32", via("a=fd00:0::2"))
        await node.drained()
        seen.events.clear()
        ns.run("ip", "nexthop", "flush", "proto", "201")
        await seen.routes("192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32")
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1"}
        assert gateways(ns, "198.51.100.0/24") == {"10.0.0.2 up0"}
        assert gateways(ns, "2001:db8::/32") == {"fd00::2 up0"}
        assert repairs(node)["next-hop object deleted by another program"] >= 3
        # One member's gateway is changed, one group's members are.
        group = next(i for i, n in nexthops(ns).items() if len(n.members) == 2)
        member = next(i for i, n in nexthops(ns).items() if n.gateway == packed("10.0.1.2"))
        seen.events.clear()
        ns.run("ip", "nexthop", "replace", "id", str(member), "via", "10.0.1.77", "dev", "up1", "proto", "201")
        await seen.until(_group_of(2))
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1"}
        seen.events.clear()
        alone = nexthops(ns)[group].members[0][0]
        ns.run("ip", "nexthop", "replace", "id", str(group), "group", str(alone), "proto", "201")
        await seen.until(_group_of(1))
        await seen.until(_group_of(2))
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1"}
        assert repairs(node)["next-hop object changed by another program"] == 2


async def test_comparison_finds_what_no_event_told(netns: Maker, state: Path, caplog: pytest.LogCaptureFixture) -> None:
    ns, _ = uplinks(netns)
    caplog.set_level(logging.WARNING, "podroute.routes")
    async with running(ns, state) as node:
        node.learn("192.0.2.0/24", via("a=10.0.0.2", "b=10.0.1.2"))
        node.learn("198.51.100.0/24", via("a=10.0.0.2"))
        node.learn("203.0.113.0/24", via("b=10.0.1.2"))
        await node.drained()
        group = next(i for i, n in nexthops(ns).items() if len(n.members) == 2)
        with Unheard(node) as unheard:
            unheard.delete_nexthop(group)
            unheard.delete("198.51.100.0/24")
            unheard.write("203.0.113.0/24", "10.0.0.2", "up0")
            unheard.write("10.77.0.0/16", "10.0.0.2", "up0")
            unheard.write("10.78.0.0/16", "10.0.0.2", "up0", metric=33)
        node.fib.resync("a test")
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1"}
        assert gateways(ns, "198.51.100.0/24") == {"10.0.0.2 up0"}
        assert gateways(ns, "203.0.113.0/24") == {"10.0.1.2 up1"}
        assert len(routes(ns, 4)) == 3
        assert node.fib.counters["repaired, missing, found by a test"] >= 1
        assert node.fib.counters["repaired, altered, found by a test"] == 1
        assert node.fib.counters["repaired, surplus, found by a test"] == 2
        # An undisturbed comparison finds nothing.
        before = dict(node.fib.counters)
        node.fib.resync("another test")
        await node.drained()
        assert {k: v for k, v in node.fib.counters.items() if k.startswith("repaired")} == {
            k: v for k, v in before.items() if k.startswith("repaired")
        }


async def test_periodic_comparison(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, compare_interval=0.05) as node, witness(ns) as seen:
        node.learn("192.0.2.0/24", via("a=10.0.0.2"))
        await node.drained()
        seen.events.clear()
        with Unheard(node) as unheard:
            unheard.delete("192.0.2.0/24")
        await seen.route("192.0.2.0/24", gone=True)
        await seen.route("192.0.2.0/24")


async def test_stopped_during_a_comparison(netns: Maker, state: Path) -> None:
    """Its end and the removal of all routes read one socket."""
    ns, _ = uplinks(netns)
    prefixes = [make(4, (20 << 24) + (number << 8), 24) for number in range(5000)]
    for delay in (0, 0.002, 0.005, 0.01, 0.02):  # somewhere in it, whatever the machine's speed
        async with asyncio.timeout(60), running(ns, state) as node:
            node.fib.update(4, [(prefixes, via("a=10.0.0.2"))])
            await node.drained()
            node.fib.resync("a test")
            while not node.fib.counters["comparisons"]:  # noqa: ASYNC110 -- no event tells
                await asyncio.sleep(0)
            await asyncio.sleep(delay)
        assert routes(ns, 4) == {}


async def test_events_lost(netns: Maker, state: Path) -> None:
    """A receive buffer far too small for what happens."""
    ns, _ = uplinks(netns)
    async with running(ns, state, monitor_buffer=2048) as node:
        prefixes = [make(4, (20 << 24) + (number << 8), 24) for number in range(3000)]
        node.fib.update(4, [(prefixes, via("a=10.0.0.2", "b=10.0.1.2"))])
        await node.drained()
        lost = asyncio.Event()
        node.monitor.subscribe(lambda event: None, lost.set)
        flush(ns, 4)  # in this thread: the loop cannot read meanwhile
        ns.run("ip", "link", "set", "up0", "down")
        ns.run("ip", "link", "set", "up0", "up")
        async with asyncio.timeout(30):
            await lost.wait()
        await node.drained()
        assert node.monitor.overruns > 0
        assert len(routes(ns, 4)) == 3000
        assert gateways(ns, "20.0.0.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1"}
        assert node.fib.counters["resyncs"] > 0


async def test_answers_lost(netns: Maker, state: Path) -> None:
    """The writer's receive buffer is far too small for the refusals of one batch."""
    ns, _ = uplinks(netns)
    script = state.with_name("batch")
    script.write_text(
        "".join(f"route add 20.{n >> 8}.{n & 255}.0/24 via 10.0.1.2 metric 20 proto static\n" for n in range(1500))
    )
    ns.run("ip", "-batch", str(script))
    async with running(ns, state, receive_buffer=65536) as node:
        prefixes = [make(4, (20 << 24) + (number << 8), 24) for number in range(2000)]
        node.fib.update(4, [(prefixes, via("a=10.0.0.2"))])
        await node.drained()
        assert node.fib.counters["resyncs"] > 0
        assert len(routes(ns, 4)) == 500
        assert len(routes(ns, 4, protocol=4)) == 1500
        states = [route.state for route in node.fib.routes(4)]
        assert states.count(State.CONFLICT) == 1500
        assert states.count(State.INSTALLED) == 500
