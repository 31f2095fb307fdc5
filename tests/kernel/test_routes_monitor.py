"""What the monitor hears of a namespace, and what it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from config.kernel import ROUTE_PROTOCOL
from routes.messages import AddressEvent, Event, LinkEvent, NeighbourEvent, NexthopEvent, RouteEvent
from routes.monitor import Monitor
from tests.kernel.routes_lab import packed, running, uplinks, via, wire
from tests.netns import Netns

pytestmark = pytest.mark.root

Maker = Callable[[], Netns]


async def test_events_of_every_kind(netns: Maker) -> None:
    ns, _ = uplinks(netns)
    monitor = Monitor()
    events: asyncio.Queue[Event] = asyncio.Queue()
    with ns.entered():
        await monitor.start()
    monitor.watch_neighbours(True)
    monitor.subscribe(events.put_nowait, lambda: None)
    up0 = monitor.interfaces.named("up0")
    assert up0 is not None
    assert up0.up
    assert monitor.interfaces.owns(packed("10.0.0.1"))
    assert monitor.interfaces.holders(packed("fd00:1::1")) == [monitor.interfaces.named("up1").ifindex]  # type: ignore[union-attr]

    async def until(seen: Callable[[Event], bool]) -> None:
        async with asyncio.timeout(30):
            while not seen(await events.get()):
                pass

    ns.run("ip", "address", "add", "10.5.0.1/24", "dev", "up0")
    await until(lambda e: isinstance(e, AddressEvent) and e.address.address == packed("10.5.0.1") and not e.gone)
    ns.run("ip", "route", "add", "192.0.2.0/24", "via", "10.5.0.2")
    await until(lambda e: isinstance(e, RouteEvent) and e.route.prefix == wire("192.0.2.0/24") and not e.gone)
    ns.run("ip", "nexthop", "add", "id", "9", "via", "10.5.0.2", "dev", "up0")
    await until(lambda e: isinstance(e, NexthopEvent) and e.nexthop.id == 9 and not e.gone)
    ns.run("ip", "neighbour", "add", "10.5.0.9", "lladdr", "02:00:00:00:00:09", "dev", "up0")
    await until(lambda e: isinstance(e, NeighbourEvent) and e.neighbour.address == packed("10.5.0.9"))
    ns.run("ip", "link", "set", "up0", "down")
    await until(lambda e: isinstance(e, LinkEvent) and e.link.name == "up0" and not e.link.up)
    ns.run("ip", "link", "del", "up1")
    await until(lambda e: isinstance(e, LinkEvent) and e.link.name == "up1" and e.gone)
    assert monitor.interfaces.named("up1") is None
    assert monitor.interfaces.holders(packed("fd00:1::1")) == []
    monitor.stop()
    monitor.stop()


async def test_own_echoes_are_dropped_in_the_kernel(netns: Maker, tmp_path: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, tmp_path / "fib.json") as node:
        heard: list[Event] = []
        foreign = asyncio.Event()

        def hear(event: Event) -> None:
            if isinstance(event, NexthopEvent) or (
                isinstance(event, RouteEvent) and event.route.protocol == ROUTE_PROTOCOL
            ):
                heard.append(event)
            if isinstance(event, RouteEvent) and event.route.prefix == wire("198.51.100.0/24"):
                foreign.set()

        node.monitor.subscribe(hear, lambda: None)
        node.learn("192.0.2.0/24", via("a=10.0.0.2", "b=10.0.1.2"))
        node.learn("2001:db8::/32", via("a=fd00:0::2"))
        node.learn("2001:db8:1::/48", via("a=fd00:0::2"))
        await node.drained()
        node.learn("192.0.2.0/24", None)
        node.fib.peer_lost("a")  # the kernel itself removes the IPv6 routes, and says so one by one
        await node.drained()
        ns.run("ip", "route", "add", "198.51.100.0/24", "via", "10.0.0.2")
        async with asyncio.timeout(30):
            await foreign.wait()
        assert heard == []


async def test_events_older_than_a_loss_count_no_more(netns: Maker) -> None:
    """The kernel tells of the loss first, and of what came before it afterwards: by then the state has been read."""
    ns, _ = uplinks(netns)
    monitor = Monitor(receive_buffer=16_384)
    with ns.entered():
        await monitor.start()
    overrun, last = asyncio.Event(), asyncio.Event()
    monitor.subscribe(
        lambda e: last.set() if isinstance(e, RouteEvent) and e.route.prefix == wire("198.51.100.0/24") else None,
        overrun.set,
    )
    # Without a turn of the loop: that the link is down waits in the buffer, that it is up has no place there.
    many = "for i in $(seq 0 255); do echo route add 20.0.$i.0/24 via 10.0.1.2; done | ip -b -"
    ns.run("sh", "-c", f"ip link set up0 down; {many}; ip link set up0 up")
    async with asyncio.timeout(30):
        await overrun.wait()
        ns.run("ip", "route", "add", "198.51.100.0/24", "via", "10.0.1.2")
        await last.wait()
    up0 = monitor.interfaces.named("up0")
    assert up0 is not None
    assert up0.up
    assert monitor.overruns == 1
    monitor.stop()
