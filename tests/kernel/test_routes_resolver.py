"""Next hops resolved against a real kernel's addresses and routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from config.nexthop import Gateway, Resolution
from routes.monitor import Monitor
from routes.resolver import Resolver
from tests.kernel.routes_lab import packed, uplinks
from tests.netns import Netns

pytestmark = pytest.mark.root

Maker = Callable[[], Netns]


class Watched:
    def __init__(self, ns: Netns, via_default: bool) -> None:
        self.ns = ns
        self.monitor = Monitor()
        self.resolver = Resolver(self.monitor, on_changed=self.changed, via_default=via_default)
        self._news: asyncio.Queue[set[tuple[bytes, str]]] = asyncio.Queue()

    def changed(self, changed: set[tuple[bytes, str]]) -> None:
        self._news.put_nowait(changed)

    def lookup(self, address: str, device: str = "") -> list[str] | None:
        """Return ``["10.0.0.2 up0", ..., "metric 0"]`` or None."""
        found = self.resolver.lookup(packed(address), device)
        return None if found is None else _shown(found)

    async def changes(self, address: str) -> list[str] | None:
        """Wait until the resolution of an address is reported as changed, and return the new one."""
        async with asyncio.timeout(30):
            while (packed(address), "") not in await self._news.get():
                pass
        return self.lookup(address)


def _shown(found: Resolution) -> list[str]:
    import ipaddress

    def one(gateway: Gateway) -> str:
        return f"{ipaddress.ip_address(gateway.address)} {gateway.device}"

    return [*map(one, found.gateways), f"metric {found.metric}"]


@asynccontextmanager
async def resolving(ns: Netns, *, via_default: bool = False) -> AsyncIterator[Watched]:
    watched = Watched(ns, via_default)
    with ns.entered():
        await watched.monitor.start()
        await watched.resolver.start()
    try:
        yield watched
    finally:
        await watched.resolver.stop()
        watched.monitor.stop()


async def test_who_asks_before_the_start_is_told_afterwards(netns: Maker) -> None:
    ns, _ = uplinks(netns)
    watched = Watched(ns, via_default=False)
    with ns.entered():
        assert watched.lookup("10.0.0.2") is None
        await watched.monitor.start()
        await watched.resolver.start()
    try:
        assert await watched.changes("10.0.0.2") == ["10.0.0.2 up0", "metric 0"]
    finally:
        await watched.resolver.stop()
        watched.monitor.stop()


async def test_where_next_hops_lead(netns: Maker) -> None:
    ns, _ = uplinks(netns)
    for command in (
        "route add default via 10.0.0.2",
        "route add 172.16.0.0/16 via 10.0.0.2 metric 7",
        "route add 172.16.1.0/24 via 10.0.1.2",
        "route add 172.16.2.0/24 nexthop via 10.0.0.2 nexthop via 10.0.1.2",
        "route add 172.16.3.0/24 via inet6 fd00:1::2",
        "route add unreachable 172.16.4.0/24",
        "route add 172.16.5.0/24 via 10.0.1.2 metric 10",
        "route add 172.16.5.0/24 via 10.0.0.2 metric 5",
        "route add 172.16.6.0/24 via 10.0.1.2 proto 201",
        "route add 172.17.0.0/24 via 10.0.1.2 proto 201",
        "nexthop add id 5 via 10.0.1.2 dev up1",
        "nexthop add id 6 group 5",
        "route add 172.16.7.0/24 nhid 6",
        "-6 route add fd99::/32 via fd00:1::2 metric 9",
    ):
        ns.run("ip", *command.split())
    async with resolving(ns) as watched:
        assert watched.lookup("10.0.0.2") == ["10.0.0.2 up0", "metric 0"]
        assert watched.lookup("fd00:1::99") == ["fd00:1::99 up1", "metric 0"]
        assert watched.lookup("172.16.99.1") == ["10.0.0.2 up0", "metric 7"]
        assert watched.lookup("172.16.1.1") == ["10.0.1.2 up1", "metric 0"]
        assert watched.lookup("172.16.2.1") == ["10.0.0.2 up0", "10.0.1.2 up1", "metric 0"]
        assert watched.lookup("172.16.3.1") == ["fd00:1::2 up1", "metric 0"]
        assert watched.lookup("172.16.4.1") is None
        assert watched.lookup("172.16.5.1") == ["10.0.0.2 up0", "metric 5"]
        assert watched.lookup("172.16.6.1") == ["10.0.0.2 up0", "metric 7"]  # not through a route of our own
        assert watched.lookup("172.17.0.1") is None
        assert watched.lookup("172.16.7.1") == ["10.0.1.2 up1", "metric 0"]
        assert watched.lookup("fd99::1") == ["fd00:1::2 up1", "metric 9"]
        assert watched.lookup("8.8.8.8") is None  # only the default route leads there
        for own in ("10.0.0.1", "10.0.1.1", "fd00:0::1", "127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.5", "ff02::1"):
            assert watched.lookup(own) is None, own
        assert watched.lookup("fe80::1") is None
        assert watched.lookup("fe80::1", "up1") == ["fe80::1 up1", "metric 0"]
        assert watched.lookup("fe80::1", "nosuch") is None
    async with resolving(ns, via_default=True) as watched:
        assert watched.lookup("8.8.8.8") == ["10.0.0.2 up0", "metric 0"]


async def test_changes_are_reported(netns: Maker) -> None:
    ns, fabric = uplinks(netns)
    async with resolving(ns) as watched:
        assert watched.lookup("172.16.0.1") is None
        assert watched.lookup("10.0.0.2") is not None
        assert watched.lookup("10.0.0.77") is not None
        ns.run("ip", "route", "add", "172.16.0.0/24", "via", "10.0.0.2")
        assert await watched.changes("172.16.0.1") == ["10.0.0.2 up0", "metric 0"]
        ns.run("ip", "route", "replace", "172.16.0.0/24", "via", "10.0.1.2")
        assert await watched.changes("172.16.0.1") == ["10.0.1.2 up1", "metric 0"]
        ns.run("ip", "route", "append", "172.16.0.0/24", "via", "10.0.0.2", "metric", "5")
        ns.run("ip", "route", "del", "172.16.0.0/24", "via", "10.0.1.2")
        assert await watched.changes("172.16.0.1") == ["10.0.0.2 up0", "metric 5"]
        ns.run("ip", "address", "add", "10.0.0.77/32", "dev", "lo")
        assert await watched.changes("10.0.0.77") is None
        ns.run("ip", "address", "del", "10.0.0.77/32", "dev", "lo")
        assert await watched.changes("10.0.0.77") == ["10.0.0.77 up0", "metric 0"]
        # Carrier lost at the other end, and back.
        fabric.run("ip", "link", "set", "down0", "down")
        assert await watched.changes("10.0.0.2") is None
        assert watched.lookup("172.16.0.1") is None
        fabric.run("ip", "link", "set", "down0", "up")
        assert await watched.changes("10.0.0.2") == ["10.0.0.2 up0", "metric 0"]
        # Down and up: the kernel drops the static route, without a word.
        ns.run("ip", "link", "set", "up0", "down")
        assert await watched.changes("10.0.0.2") is None
        ns.run("ip", "link", "set", "up0", "up")
        assert await watched.changes("10.0.0.2") == ["10.0.0.2 up0", "metric 0"]
        assert watched.lookup("172.16.0.1") is None
        ns.run("ip", "link", "set", "up1", "down")
        ns.run("ip", "link", "set", "up1", "name", "other")
        ns.run("ip", "link", "set", "other", "up")
        assert watched.lookup("10.0.1.2") in (None, ["10.0.1.2 up1", "metric 0"])
        while watched.lookup("10.0.1.2") != ["10.0.1.2 other", "metric 0"]:
            await watched.changes("10.0.1.2")


async def test_ipv6_multipath_loses_and_gains_a_path(netns: Maker) -> None:
    ns, _ = uplinks(netns)
    async with resolving(ns) as watched:
        assert watched.lookup("fd99::1") is None
        ns.run("ip", "-6", "route", "add", "fd99::/64", "via", "fd00:0::2", "metric", "9")
        assert await watched.changes("fd99::1") == ["fd00::2 up0", "metric 9"]
        ns.run("ip", "-6", "route", "append", "fd99::/64", "via", "fd00:1::2", "metric", "9")
        assert await watched.changes("fd99::1") == ["fd00::2 up0", "fd00:1::2 up1", "metric 9"]
        ns.run("ip", "-6", "route", "del", "fd99::/64", "via", "fd00:0::2", "metric", "9")
        assert await watched.changes("fd99::1") == ["fd00:1::2 up1", "metric 9"]


async def test_own_address_on_a_session(netns: Maker) -> None:
    ns, _ = uplinks(netns)
    ns.run("ip", "address", "add", "fd00:0::a1/64", "dev", "up0", "nodad")
    ns.run("ip", "address", "add", "fd00:0::a0/64", "dev", "up1", "nodad")
    ns.run("ip", "address", "add", "192.168.0.1/24", "dev", "up1")
    ns.run("ip", "address", "add", "10.99.0.1/32", "dev", "lo")
    async with resolving(ns) as watched:

        def local(address: str, family: int) -> str | None:
            import ipaddress

            found = watched.resolver.local(packed(address), 4 if family == 4 else 6)
            return None if found is None else str(ipaddress.ip_address(found))

        assert local("10.0.0.1", 4) == "10.0.0.1"
        assert local("10.0.0.1", 6) == "fd00::1"
        assert local("fd00:0::a1", 6) == "fd00::a1"
        assert local("fd00:0::a1", 4) == "10.0.0.1"
        assert local("192.168.0.1", 6) == "fd00::a0"
        assert local("fd00:1::1", 4) == "10.0.1.1"
        assert local("10.99.0.1", 6) is None  # lo has only ::1
        assert local("10.1.2.3", 6) is None


async def test_events_lost_under_foreign_churn(netns: Maker) -> None:
    ns, _ = uplinks(netns)
    watched = Watched(ns, False)
    watched.monitor = Monitor(receive_buffer=2048)
    watched.resolver = Resolver(watched.monitor, on_changed=watched.changed)
    with ns.entered():
        await watched.monitor.start()
        await watched.resolver.start()
    assert watched.lookup("172.16.0.1") is None
    ns.run("sh", "-c", "for i in $(seq 100); do echo route add 10.8.$i.0/24 via 10.0.0.2; done | ip -batch -")
    ns.run("ip", "route", "add", "172.16.0.0/24", "via", "10.0.0.2")
    assert await watched.changes("172.16.0.1") == ["10.0.0.2 up0", "metric 0"]
    assert watched.monitor.overruns > 0
    await watched.resolver.stop()
    watched.monitor.stop()
