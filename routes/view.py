"""What the kernel holds now, for people: read in a thread, while routes go on being written.

What is written while it is read is no drift, wherever the reading was at that moment. So each reading knows which
prefixes were.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

from config.prefix import Family
from routes import netlink
from routes.compare import survey
from routes.differences import LiveTable
from routes.dumps import read_nexthops
from routes.interfaces import Interfaces
from routes.live import KernelRoute, describe, read_prefix
from routes.shard import Flight
from routes.table import Table, watched

_READINGS = 3
"""So often is a prefix read at most that is written meanwhile: one that flaps is never at rest."""


class KernelView:
    """``tables`` are the desired ones, by family and metric; ``table`` and ``protocol`` are those of our routes."""

    def __init__(
        self, tables: Mapping[tuple[Family, int], Table], interfaces: Interfaces, *, table: int, protocol: int
    ) -> None:
        self._tables = tables
        self._interfaces = interfaces
        self._table, self._protocol = table, protocol
        self._written: list[tuple[Family, set[bytes]]] = []

    def settled(self, table: Table, flight: Flight) -> None:
        """Learn that the kernel has been told of these changes."""
        for family, written in self._written:
            if family == table.place.family:
                written.update(flight)

    async def prefix(self, family: Family, prefix: bytes) -> list[KernelRoute]:
        """Return the entries of one prefix, routes of others included, the one that the kernel uses first.

        Takes as long as a dump of the table. What is desired is to be asked afterwards. Raises OSError.
        """
        names = self._names()
        with netlink.open_socket() as sock:  # here, where the namespace is the right one

            def read() -> list[KernelRoute]:
                return describe(sock, read_prefix(sock, family, self._table, prefix), names)

            for _ in range(_READINGS):
                with self._watched(family) as written:
                    found = await asyncio.to_thread(read)
                if prefix not in written:
                    break
            return found

    @asynccontextmanager
    async def whole(self, family: Family) -> AsyncIterator[LiveTable]:
        """Read everything; takes seconds with a full table. What is written until the end counts. Raises OSError."""
        tables = {metric: table for (f, metric), table in self._tables.items() if f == family}
        names = self._names()
        with netlink.open_socket() as sock, self._watched(family) as written, watched(tables.values()):

            def read() -> LiveTable:
                found = survey(sock, family, self._table, self._protocol, tables)
                objects = {nexthop.id: nexthop for nexthop in read_nexthops(sock)}
                return LiveTable(found, objects, names, self._protocol, written)

            yield await asyncio.to_thread(read)

    def _names(self) -> dict[int, str]:
        return {link.ifindex: link.name for link in self._interfaces.links()}

    @contextmanager
    def _watched(self, family: Family) -> Iterator[set[bytes]]:
        entry = (family, set[bytes]())
        self._written.append(entry)
        try:
            yield entry[1]
        finally:
            self._written = [other for other in self._written if other is not entry]
