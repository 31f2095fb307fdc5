"""What others have in the kernel: a table's routes of other protocols, and their next-hop objects, kept from events.

Next hops are resolved over them, and routes of ours are shadowed by them. Links that go down take their routes along,
IPv4 ones without a word; so do next-hop objects and addresses that go, and then all is read anew.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection

from config.kernel import MAIN_TABLE, ROUTE_PROTOCOL
from config.prefix import FAMILIES, Family
from routes import netlink
from routes.dumps import read_nexthops, read_routes
from routes.foreign import ForeignRoutes
from routes.messages import IFF_UP, AddressEvent, Event, LinkEvent, Nexthop, NexthopEvent, RouteEvent
from routes.monitor import Monitor

Changed = Callable[[Collection[tuple[Family, bytes]] | None], None]
"""Hears at which prefixes something changed, none if it was a next-hop object; None: anything may have."""


class Others:
    """Construct and start it in the loop's thread, inside the namespace, after the monitor."""

    def __init__(self, monitor: Monitor, *, table: int = MAIN_TABLE, protocol: int = ROUTE_PROTOCOL) -> None:
        """``protocol`` is our own."""
        self.table = table
        self.routes = {family: ForeignRoutes(family) for family in FAMILIES}
        self.nexthops: dict[int, Nexthop] = {}
        self._monitor = monitor
        self._protocol = protocol
        self._listeners: list[Changed] = []
        self._reading: asyncio.Task[None] | None = None
        self._again = False
        self._missed: list[Event] = []
        self._sock: socket.socket | None = None

    @property
    def started(self) -> bool:
        return self._sock is not None

    async def start(self) -> None:
        """Read the kernel's routes and follow them. Raises OSError."""
        self._sock = netlink.open_socket()
        self._monitor.subscribe(self._event, self.reread)
        self.routes, self.nexthops = _read(self._sock, self.table, self._protocol)

    async def stop(self) -> None:
        """Let go of the kernel; what is known stays."""
        if self._reading is not None:
            await asyncio.wait([self._reading])
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    async def settled(self) -> None:
        """Wait until no reading is under way, and everybody knows what it has found."""
        while self._reading is not None:
            await asyncio.wait([self._reading])

    def subscribe(self, changed: Changed) -> None:
        """Call ``changed`` after each event that may be one of these routes or objects."""
        self._listeners.append(changed)

    def reread(self) -> None:
        """Read all anew in a thread, and apply to the result what happens meanwhile."""
        if self._reading is not None:
            self._again = True
        elif self._sock is not None:
            self._reading = asyncio.get_running_loop().create_task(self._reread(self._sock))

    def _event(self, event: Event) -> None:
        if self._reading is not None:
            self._missed.append(event)
        prefixes = self._take(event)
        if prefixes is not None:
            self._tell(prefixes)
        if self._silent(event):
            self.reread()

    def _tell(self, prefixes: Collection[tuple[Family, bytes]] | None) -> None:
        for listener in self._listeners:
            listener(prefixes)

    def _take(self, event: Event) -> list[tuple[Family, bytes]] | None:
        """Take over one event and return the prefixes at which it changed something; None: it is of no concern."""
        if isinstance(event, RouteEvent):
            return self._take_route(event)
        if isinstance(event, NexthopEvent):
            if event.nexthop.protocol == self._protocol:
                return None
            if event.gone:
                self.nexthops.pop(event.nexthop.id, None)
            else:
                self.nexthops[event.nexthop.id] = event.nexthop
            return []
        if isinstance(event, LinkEvent) and (event.gone or not event.link.flags & IFF_UP):
            ifindex = event.link.ifindex
            return [(f, prefix) for f, table in self.routes.items() for prefix in table.forget_device(ifindex)]
        return None

    def _take_route(self, event: RouteEvent) -> list[tuple[Family, bytes]] | None:
        route = event.route
        if route.table != self.table:
            return None
        table = self.routes[route.family]
        if event.replaced:
            table.supersede(route)
        elif route.protocol == self._protocol:
            return None
        if event.gone:
            table.remove(route)
        elif route.protocol != self._protocol:
            table.add(route)
        return [(route.family, route.prefix)]

    def _silent(self, event: Event) -> bool:
        """Tell whether the kernel may have dropped IPv4 routes of others along with what an event says is gone."""
        if isinstance(event, NexthopEvent):
            return event.gone and any(table.uses(event.nexthop.id) for table in self.routes.values())
        return isinstance(event, AddressEvent) and event.gone and event.address.family == 4

    async def _reread(self, sock: socket.socket) -> None:
        try:
            state = await asyncio.to_thread(_read, sock, self.table, self._protocol)
        finally:
            self._reading = None
            missed, self._missed = self._missed, []
        self.routes, self.nexthops = state
        for event in missed:
            self._take(event)
        self._tell(None)
        if self._again:
            self._again = False
            self.reread()


_State = tuple[dict[Family, ForeignRoutes], dict[int, Nexthop]]


def _read(sock: socket.socket, table: int, protocol: int) -> _State:
    nexthops = {nexthop.id: nexthop for nexthop in read_nexthops(sock)}
    return {family: _read_table(sock, family, table, protocol) for family in FAMILIES}, nexthops


def _read_table(sock: socket.socket, family: Family, table: int, protocol: int, attempts: int = 5) -> ForeignRoutes:
    while True:
        attempts -= 1
        found = ForeignRoutes(family)
        try:
            for route in read_routes(sock, family, table, but=protocol):
                found.add(route)
        except netlink.DumpInterruptedError:
            if attempts > 0:
                continue
        return found
