"""Drift: what others, or the kernel by itself, do to routes and next-hop objects of ours is seen and set right.

Routes and objects that somebody deletes or replaces come as events. When a device goes down or loses its carrier the
kernel deletes next-hop objects, shrinks groups and drops routes without a word, and restores nothing afterwards: the
link's own event is the only sign. A slow full comparison catches the rest.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from config.prefix import FAMILIES, Family
from routes import causes
from routes.compare import Drift, Finding, compare
from routes.dumps import read_nexthops
from routes.encode import delete_nexthop
from routes.installer import Installer, log_crash
from routes.messages import (
    RTN_UNICAST,
    AddressEvent,
    Event,
    LinkEvent,
    Nexthop,
    NexthopEvent,
    RouteEvent,
)
from routes.others import Others
from routes.state import State
from routes.table import watched

log = logging.getLogger("podroute.routes")
T = TypeVar("T")

_ATTEMPTS = 5
"""Readings of the next-hop objects, until one is not overtaken by changes of our own."""


class Reconciler:
    """``on_link`` hears of links before their next hops are looked at again."""

    def __init__(
        self,
        installer: Installer,
        sock: socket.socket,
        *,
        table: int,
        protocol: int,
        interval: float,
        others: Others,
        on_link: Callable[[LinkEvent], None],
    ) -> None:
        self._installer = installer
        self._registry = installer.registry
        self._sock = sock
        self._table, self._protocol = table, protocol
        self._interval = interval
        self._others = others
        self._on_link = on_link
        self._up: dict[int, bool] = {}
        self._cause = ""
        self._wanted = asyncio.Event()
        self._refreshing = False
        self._suspects: set[tuple[Family, int, bytes]] = set()
        self._task: asyncio.Task[None] | None = None
        self._reading: asyncio.Future[Any] | None = None
        self._loop = asyncio.get_running_loop()

    def start(self, up: dict[int, bool]) -> None:
        """Begin the periodic comparison; ``up`` tells which links are up now."""
        self._up = up
        self._task = self._loop.create_task(self._watch())
        self._task.add_done_callback(log_crash)

    async def stop(self) -> None:
        """End, also a comparison under way: the socket is free then."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        if self._reading is not None:
            await asyncio.wait([self._reading])

    def resync(self, cause: str) -> None:
        """Compare everything soon; until it is done the installer's state is in doubt."""
        self._cause = self._cause or cause
        self._installer.doubt(True)
        self._installer.counters["resyncs"] += 1
        self._installer.counters[f"resync, {cause}"] += 1
        self._wanted.set()

    def refresh(self) -> None:
        """Ask the resolver for every next hop anew, once, with the loop's next turn."""
        if not self._refreshing:
            self._refreshing = True
            self._loop.call_soon(self._refresh)
            self._installer.schedule()

    def event(self, event: Event) -> None:
        if isinstance(event, RouteEvent):
            if event.route.table == self._table:
                self._route(event)
        elif isinstance(event, NexthopEvent):
            self._nexthop(event)
        elif isinstance(event, LinkEvent):
            self._link(event)
        elif isinstance(event, AddressEvent):
            self.refresh()

    def _refresh(self) -> None:
        self._refreshing = False
        self._installer.refresh()
        for table in self._installer.tables.values():
            table.retry(lambda failure: failure.state is State.FAILED)

    def _link(self, event: LinkEvent) -> None:
        ifindex = event.link.ifindex
        up = event.link.up and not event.gone
        before = self._up.get(ifindex, False)
        self._up[ifindex] = up
        if event.gone:
            del self._up[ifindex]
        if before and not up:
            self._registry.link_lost(ifindex)
        self._on_link(event)
        self.refresh()

    def _nexthop(self, event: NexthopEvent) -> None:
        identifier = event.nexthop.id
        others = event.nexthop.protocol != self._protocol
        if others:
            (self._registry.ids.release if event.gone else self._registry.ids.reserve)(identifier)
        if not self._registry.known(identifier) or (others and event.gone):  # gone since: that id is ours again
            return
        if (
            self._registry.vanished(identifier, causes.OBJECT_DELETED)
            if event.gone
            else self._registry.altered(event.nexthop, causes.OBJECT_CHANGED)
        ):
            self._installer.counters["repaired next-hop objects"] += 1
            log.warning("somebody changed a next-hop object", extra={"fields": {"id": identifier, "port": event.port}})
            self.refresh()

    def _route(self, event: RouteEvent) -> None:
        route = event.route
        table = self._installer.tables.get((route.family, route.metric))
        if table is None or route.tos:
            return
        prefix = route.prefix
        shard = table.shard(prefix)
        want = shard.desired.get(prefix)
        if route.protocol == self._protocol:
            if event.gone:
                if want is not None or shard.unsettled(prefix):
                    self._installer.repair(table, prefix, None, causes.ROUTE_DELETED)
            elif want is not None and not want.matches(route):
                self._installer.repair(table, prefix, self._installer.other, causes.ROUTE_REPLACED)
        elif event.gone:
            if prefix in shard.failed and shard.failed[prefix].state is State.CONFLICT:
                table.observe(prefix, None)
                self._installer.schedule()
        elif event.replaced and want is not None and not want.absent:
            table.observe(prefix, None)
            self._installer.schedule()

    async def _watch(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._interval):  # wait_for may swallow the cancellation by stop()
                    await self._wanted.wait()
            except TimeoutError:
                await self._installer.drained()
            cause, self._cause = self._cause, ""
            self._wanted.clear()
            try:
                await self._compare(cause or "periodic comparison")
            except OSError as error:
                log.error("cannot read the kernel's routes: %s", error)
            if cause:
                await self._others.settled()
            else:
                self._others.reread()
                for table in self._installer.tables.values():
                    table.retry(lambda failure: True)
            self._installer.doubt(self._wanted.is_set())

    async def _compare(self, cause: str) -> None:
        self._installer.counters["comparisons"] += 1
        for _ in range(_ATTEMPTS):
            await self._installer.nexthops_settled()
            jobs = self._installer.nexthop_jobs
            objects = await self._in_thread(lambda: read_nexthops(self._sock))
            if jobs == self._installer.nexthop_jobs:
                self._compare_objects(objects, cause)
                break
        self._registry.compared()
        self._installer.refresh()
        suspects: set[tuple[Family, int, bytes]] = set()
        for family in FAMILIES:
            tables = {metric: table for (f, metric), table in self._installer.tables.items() if f == family}
            with watched(tables.values()):
                reading = partial(compare, self._sock, family, self._table, self._protocol, tables)
                found = await self._in_thread(reading)
            for finding in found:
                self._act(family, finding, cause, suspects)
        self._suspects = suspects

    async def _in_thread(self, read: Callable[[], T]) -> T:
        """Run what reads the socket. A thread cannot be cancelled, so ``stop`` has to know of it."""
        reading = asyncio.ensure_future(asyncio.to_thread(read))
        self._reading = reading
        return await asyncio.shield(reading)

    def _compare_objects(self, objects: list[Nexthop], cause: str) -> None:
        if not self._registry.objects:
            return
        there = {nexthop.id: nexthop for nexthop in objects}
        for identifier in self._registry.expected():
            found = there.get(identifier)
            if found is None and self._registry.known(identifier):
                self._registry.vanished(identifier, causes.OBJECT_MISSING + causes.FOUND_BY + cause)
                log.warning("a next-hop object has vanished", extra={"fields": {"id": identifier}})
            elif found is not None:
                self._registry.altered(found, causes.OBJECT_ALTERED + causes.FOUND_BY + cause)
        for identifier in [i for i, found in there.items() if found.protocol != self._protocol]:
            self._registry.ids.reserve(identifier)
            del there[identifier]
        self._installer.raw([delete_nexthop(i) for i in there if not self._registry.known(i)])

    def _act(self, family: Family, finding: Finding, cause: str, suspects: set[tuple[Family, int, bytes]]) -> None:
        drift, prefix, metric, route = finding
        table = self._installer.table(family, metric)
        want = table.shard(prefix).desired.get(prefix)
        if drift is Drift.MISSING:
            self._installer.repair(table, prefix, None, causes.MISSING + causes.FOUND_BY + cause)
        elif want is not None:
            self._installer.repair(table, prefix, self._installer.other, causes.ALTERED + causes.FOUND_BY + cause)
        elif route is not None:
            # A pod's route may be there before its expectation: only what two comparisons see is too much.
            pod = (
                route.kind == RTN_UNICAST and not route.nexthop and len(route.paths) == 1 and not route.paths[0].gateway
            )
            key = family, metric, prefix
            if pod and key not in self._suspects:
                suspects.add(key)
            else:
                self._installer.repair(table, prefix, self._installer.other, causes.SURPLUS + causes.FOUND_BY + cause)
