"""A namespace with uplinks and a Fib in it, and a witness of what happens to its routes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path as File
from typing import Any

from config.kernel import MAIN_TABLE, ROUTE_PROTOCOL
from config.nexthop import NextHop, NextHopResolver, NextHops
from config.prefix import Family, parse, text
from routes import netlink
from routes.dumps import read_nexthops, read_routes
from routes.encode import (
    REPLACE,
    Placement,
    delete_nexthop,
    delete_shape,
    route_batch,
    via_paths,
    write_shape,
)
from routes.fib import Fib
from routes.messages import (
    RT_SCOPE_UNIVERSE,
    RTN_UNICAST,
    Event,
    Nexthop,
    NexthopEvent,
    Path,
    Route,
    RouteEvent,
)
from routes.monitor import Monitor
from routes.neighbours import NeighbourCheck
from routes.resolver import Resolver
from routes.state import Result, State
from tests.netns import Netns, link

METRIC = 20


def packed(address: str) -> bytes:
    return ip_address(address).packed


def wire(prefix: str) -> bytes:
    return parse(prefix)[1]


def via(*hops: str) -> NextHops:
    """``via("a=10.0.0.2", "b=fe80::1%up0")``: peer=address%device."""
    made = []
    for hop in hops:
        peer, _, rest = hop.partition("=")
        address, _, device = rest.partition("%")
        made.append(NextHop(peer, packed(address), device))
    return tuple(sorted(made))


def uplinks(make: Callable[[], Netns], count: int = 2) -> tuple[Netns, Netns]:
    """Return (node, fabric), joined by ``count`` links: up0 has 10.0.0.1/24 and fd00:0::1/64, up1 10.0.1.1/24...

    Their addresses are in use at once: duplicate address detection would have the kernel tell of them a second later,
    into the middle of what a test counts.
    """
    node, fabric = make(), make()
    for ns in (node, fabric):
        ns.run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
    for number in range(count):
        link(node, f"up{number}", fabric, f"down{number}")
        for ns, name, host in ((node, f"up{number}", 1), (fabric, f"down{number}", 2)):
            ns.run("ip", "address", "add", f"10.0.{number}.{host}/24", "dev", name)
            ns.run("ip", "address", "add", f"fd00:{number}::{host}/64", "dev", name, "nodad")
    return node, fabric


class Witness:
    """Hears all route and next-hop events of a namespace, podroute's own included."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.past: list[Event] = []
        """All events, in order, those that were awaited included."""
        self._news = asyncio.Event()
        self.monitor = Monitor(receive_buffer=512 << 20)

    async def start(self) -> None:
        await self.monitor.start()
        self.monitor.watch_neighbours(True)
        self.monitor.subscribe(self._hear, lambda: None)

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        self.past.append(event)
        self._news.set()

    async def until(self, seen: Callable[[Event], bool]) -> Event:
        """Wait for an event, one of the past included; it and all before it are forgotten."""
        place = 0
        async with asyncio.timeout(30):
            while True:
                while place < len(self.events):
                    event = self.events[place]
                    place += 1
                    if seen(event):
                        del self.events[:place]
                        return event
                self._news.clear()
                await self._news.wait()

    async def route(self, prefix: str, *, gone: bool = False, protocol: int = ROUTE_PROTOCOL) -> Route:
        event = await self.until(
            lambda e: (
                isinstance(e, RouteEvent)
                and (e.route.prefix, e.gone, e.route.protocol) == (wire(prefix), gone, protocol)
            )
        )
        assert isinstance(event, RouteEvent)
        return event.route

    async def routes(self, *prefixes: str) -> None:
        """Wait until all of these were written, in whatever order."""
        for prefix in prefixes:
            async with asyncio.timeout(30):
                while not any(_written(event, wire(prefix)) for event in self.events):
                    self._news.clear()
                    await self._news.wait()

    async def nexthop(self, seen: Callable[[NexthopEvent], bool]) -> None:
        await self.until(lambda e: isinstance(e, NexthopEvent) and seen(e))

    async def when(self, true: Callable[[], bool]) -> None:
        """Wait until something holds that events of any kind bring about."""
        async with asyncio.timeout(30):
            while True:
                self._news.clear()
                if true():
                    return
                await self._news.wait()

    def deletions(self) -> list[Event]:
        return [e for e in self.events if isinstance(e, RouteEvent | NexthopEvent) and e.gone]


def _written(event: Event, prefix: bytes) -> bool:
    return isinstance(event, RouteEvent) and not event.gone and event.route.prefix == prefix


class Node:
    """One run of monitor, resolver and Fib."""

    def __init__(self, ns: Netns, state: File, *, resolver: NextHopResolver | None = None, **options: Any) -> None:
        self.ns = ns
        self.results: list[Result] = []
        self.told = asyncio.Event()
        self.changed: list[set[tuple[bytes, str]]] = []
        check = options.pop("check_neighbours", False)
        self.monitor = Monitor(receive_buffer=options.pop("monitor_buffer", 64 << 20))
        self.resolver = Resolver(self.monitor, on_changed=self._changed, onlink=options.pop("onlink", {}))
        self.next_hops: set[tuple[bytes, str]] = set()
        """All that were ever learned."""
        self.neighbours = NeighbourCheck(
            self.monitor, self.resolver, in_use=lambda: self.next_hops, on_changed=self._changed, interval=0.05
        )
        self._check_neighbours = check
        options.setdefault("compare_interval", 3600)
        if options.get("table", MAIN_TABLE) == MAIN_TABLE:
            options["others"] = self.resolver.others
        self.fib = Fib(
            monitor=self.monitor,
            resolver=resolver or self.neighbours,
            state_file=state,
            on_results=self._results,
            **options,
        )

    def _results(self, results: list[Result]) -> None:
        self.results.extend(results)
        self.told.set()

    def _changed(self, changed: set[tuple[bytes, str]]) -> None:
        self.changed.append(changed)
        self.told.set()
        self.fib.next_hops_changed()

    async def start(self, peers: list[str] | None = None) -> None:
        with self.ns.entered():
            await self.monitor.start()
            await self.resolver.start()
            if self._check_neighbours:
                await self.neighbours.start()
            await self.fib.start(peers=peers)

    async def stop(self, *, keep: bool = False) -> None:
        await self.fib.stop(keep=keep)
        self.neighbours.stop()
        await self.resolver.stop()
        self.monitor.stop()

    def learn(self, prefix: str, hops: NextHops | None) -> None:
        family, encoded = parse(prefix)
        self.next_hops.update((hop.address, hop.device) for hop in hops or ())
        self.fib.update(family, [([encoded], hops)])

    async def until(self, state: State, prefix: str) -> Result:
        """Wait until the Fib has told that a prefix is in a state, and return what it said."""
        async with asyncio.timeout(30):
            while True:
                self.told.clear()
                for place, result in enumerate(self.results):
                    if (result.prefix, result.state) == (wire(prefix), state):
                        del self.results[: place + 1]
                        return result
                await self.told.wait()

    async def drained(self) -> None:
        async with asyncio.timeout(30):
            await self.fib.drained()

    def state(self, prefix: str) -> State | None:
        """What the Fib says of a learned prefix."""
        family, encoded = parse(prefix)
        return next((r.state for r in self.fib.route(family, encoded) if r.metric == METRIC), None)


@asynccontextmanager
async def running(ns: Netns, state: File, *, keep: bool = False, **options: Any) -> AsyncIterator[Node]:
    node = Node(ns, state, **options)
    await node.start()
    try:
        yield node
    finally:
        await node.stop(keep=keep)


@asynccontextmanager
async def witness(ns: Netns) -> AsyncIterator[Witness]:
    found = Witness()
    with ns.entered():
        await found.start()
    try:
        yield found
    finally:
        found.monitor.stop()


class Unheard:
    """Changes IPv4 routes as another program does, without any event of it reaching a node's monitor."""

    def __init__(self, node: Node) -> None:
        self._sock = node.ns.call(netlink.open_socket)
        self._names = node.ns.call(lambda: {name: index for index, name in socket.if_nameindex()})
        node.monitor.ignore([netlink.port(self._sock)])

    def __enter__(self) -> Unheard:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def delete(self, prefix: str) -> None:
        self._send(route_batch(delete_shape(self._place(METRIC)), [wire(prefix)]))

    def write(self, prefix: str, gateway: str, device: str, *, metric: int = METRIC) -> None:
        """Add a route of podroute's protocol, or replace the one that is there."""
        way = via_paths(4, [Path(packed(gateway), self._names[device])])
        shape = write_shape(self._place(metric), REPLACE, RTN_UNICAST, RT_SCOPE_UNIVERSE, way)
        self._send(route_batch(shape, [wire(prefix)]))

    def delete_nexthop(self, identifier: int) -> None:
        self._send(delete_nexthop(identifier))

    @staticmethod
    def _place(metric: int) -> Placement:
        return Placement(4, MAIN_TABLE, metric, ROUTE_PROTOCOL)

    def _send(self, request: bytes | bytearray) -> None:
        self._sock.send(request)
        refused, _ = netlink.receive_refusals(self._sock)
        assert not refused


def routes(ns: Netns, family: Family, *, protocol: int = ROUTE_PROTOCOL, table: int = 254) -> dict[str, Route]:
    """Return the kernel's routes by prefix text and metric: ``{"10.0.0.0/8 metric 20": Route}``."""

    def read() -> dict[str, Route]:
        with netlink.open_socket() as sock:
            found = read_routes(sock, family, table, protocol=protocol)
            return {f"{text(family, route.prefix)} metric {route.metric}": route for route in found}

    return ns.call(read)


def nexthops(ns: Netns) -> dict[int, Nexthop]:
    """Return podroute's next-hop objects and groups by id."""

    def read() -> dict[int, Nexthop]:
        with netlink.open_socket() as sock:
            return {n.id: n for n in read_nexthops(sock) if n.protocol == ROUTE_PROTOCOL}

    return ns.call(read)


def gateways(ns: Netns, prefix: str) -> set[str]:
    """Return what the kernel would use for a learned prefix, ``{"10.0.0.2 up0"}``; empty if it has no such route."""
    family, encoded = parse(prefix)
    route = next((r for r in routes(ns, family).values() if (r.prefix, r.metric) == (encoded, METRIC)), None)
    if route is None:
        return set()
    named = ns.call(lambda: dict(socket.if_nameindex()))
    objects = nexthops(ns)
    if route.nexthop:
        group = objects[route.nexthop]
        return {f"{ip_address(objects[i].gateway)} {named[objects[i].ifindex]}" for i, _ in group.members}
    return {f"{ip_address(path.gateway)} {named[path.ifindex]}" for path in route.paths}


def flush(ns: Netns, family: Family, metric: int = METRIC) -> int:
    """Delete our learned routes as another program would, in bulk; return how many."""

    def run() -> int:
        with netlink.open_socket() as query, netlink.open_socket(send_buffer=1 << 20) as writer:
            found = read_routes(query, family, 254, protocol=ROUTE_PROTOCOL)
            prefixes = [route.prefix for route in found if route.metric == metric]
            shape = delete_shape(Placement(family, 254, metric, ROUTE_PROTOCOL))
            for start in range(0, len(prefixes), 500):
                writer.send(route_batch(shape, prefixes[start : start + 500]))
                refused, _ = netlink.receive_refusals(writer)
                assert not refused
            return len(prefixes)

    return ns.call(run)
