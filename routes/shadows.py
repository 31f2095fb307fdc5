"""Routes of ours that the kernel holds and does not use, because of somebody else's route to the same prefix. No I/O.

The lowest metric wins; of equal ones, which the kernel keeps side by side if told to (`ip route append`, `prepend`),
whichever was put in front. Others' routes are left alone: this only says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from config.prefix import Family
from routes.installer import log_crash
from routes.live import protocol_name
from routes.messages import Route
from routes.others import Others
from routes.shard import Flight
from routes.state import Result, RouteStatus, State
from routes.table import Table

_SLICE = 500
"""Prefixes looked at before the loop gets its turn again: about 2 ms."""


_FEW = 16
"""So few prefixes are looked at rather than those that a flight is about."""


class Shadow(NamedTuple):
    state: State
    """SHADOWED, or CONFLICT where the metrics are equal."""
    text: str


class Shadows:
    """``tables`` are the desired ones by family and metric; ``report`` hears who is shadowed, and who no longer."""

    def __init__(
        self,
        others: Others,
        tables: Mapping[tuple[Family, int], Table],
        report: Callable[[Result], None],
    ) -> None:
        self._others = others
        self._tables = tables
        self._report = report
        self._known: dict[tuple[Family, int], dict[bytes, Shadow]] = {}
        self._task: asyncio.Task[None] | None = None
        self._again = False
        others.subscribe(self._changed)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def shown(self, family: Family, status: RouteStatus) -> RouteStatus:
        """Return a status with the truth about a route that is installed, and yet not used."""
        shadow = self._find(family, status.metric, status.prefix) if status.state is State.INSTALLED else None
        return status if shadow is None else status._replace(state=shadow.state, text=shadow.text)

    def counts(self, family: Family, metric: int) -> Iterator[State]:
        """Yield the states of routes of one table that it counts as installed."""
        table = self._tables[family, metric]
        for prefix, shadow in list(self._known.get((family, metric), {}).items()):
            status = table.status(prefix)
            if status is not None and status.state is State.INSTALLED:
                yield shadow.state

    def settled(self, table: Table, flight: Flight) -> None:
        """Look at changes that the kernel has been told of."""
        family, metric = table.place.family, table.place.metric
        others = self._others.routes[family].prefixes
        known = self._known.get((family, metric), {})
        few = len(others) + len(known) <= _FEW
        if few and not any(table.shard(prefix) is flight.shard for prefix in (*others, *known)):
            return
        for prefix in flight:
            if prefix in others or prefix in known:
                self._look(family, metric, prefix)

    def _changed(self, prefixes: Collection[tuple[Family, bytes]] | None) -> None:
        if prefixes is None:
            self._again = True
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._look_at_all())
                self._task.add_done_callback(log_crash)
        else:
            self._look_at(prefixes)

    def _look_at(self, prefixes: Iterable[tuple[Family, bytes]]) -> None:
        for family, prefix in prefixes:
            for f, metric in list(self._tables):
                if f == family:
                    self._look(family, metric, prefix)

    async def _look_at_all(self) -> None:
        try:
            while self._again:
                self._again = False
                everything = {(f, prefix) for (f, _), known in self._known.items() for prefix in known}
                for f, routes in self._others.routes.items():
                    everything.update((f, prefix) for prefix in routes.prefixes)
                waiting = list(everything)
                for start in range(0, len(waiting), _SLICE):
                    self._look_at(waiting[start : start + _SLICE])
                    await asyncio.sleep(0)
        finally:
            self._task = None

    def _look(self, family: Family, metric: int, prefix: bytes) -> None:
        table = self._tables[family, metric]
        status = table.status(prefix)
        installed = status is not None and status.state is State.INSTALLED
        shadow = self._find(family, metric, prefix) if installed else None
        known = self._known.setdefault((family, metric), {})
        if known.get(prefix) == shadow:
            return
        if shadow is None:
            del known[prefix]
        else:
            known[prefix] = shadow
        if installed:
            state, text = shadow or (State.INSTALLED, "")
            self._report(Result(table.place.table, family, prefix, state, 0, text))

    def _find(self, family: Family, metric: int, prefix: bytes) -> Shadow | None:
        for route in self._others.routes[family].of(prefix):
            if route.metric <= metric and not route.tos:
                return _shadow(route, metric)
        return None


def _shadow(route: Route, metric: int) -> Shadow:
    name = protocol_name(route.protocol)
    if route.metric == metric:
        return Shadow(State.CONFLICT, f"a route of protocol {name} with the same metric is beside ours")
    return Shadow(State.SHADOWED, f"by a route of protocol {name} with metric {route.metric}")
