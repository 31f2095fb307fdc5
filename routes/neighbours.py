"""Gateways that do not answer, by the state of their neighbour entries (ARP, RFC 826; RFC 4861 section 7.3).

A gateway is silent from when the kernel gives up resolving it (NUD_FAILED) until its entry is valid again. While it is
silent the kernel is asked every second to resolve it: without traffic, which goes elsewhere, nobody else would.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable, Iterable
from typing import NamedTuple

from config.nexthop import Gateway, Resolution
from config.prefix import Family, address_text
from routes import netlink
from routes.messages import (
    NUD_FAILED,
    NUD_STALE,
    NUD_VALID,
    Event,
    LinkEvent,
    Neighbour,
    NeighbourEvent,
    decode_neighbour,
    neighbours_request,
    resolve_request,
)
from routes.monitor import Monitor
from routes.resolver import Key, Resolver

log = logging.getLogger("podroute.routes")

_PER_TURN = 256
"""Requests sent at a time; about a millisecond."""
_FEW = 128
"""Up to so many gateways are kept resolved without traffic: with more entries (gc_thresh1) the kernel collects those
that nobody uses, and has to be able to."""


class Place(NamedTuple):
    """A neighbour's place in the kernel's table."""

    ifindex: int
    address: bytes


class Neighbours:
    """Which neighbours are silent. Pure: fed with what the kernel says."""

    def __init__(self) -> None:
        self.silent: set[Place] = set()
        self._states: dict[Place, int] = {}
        self._heard: set[Place] = set()

    def hear(self, neighbour: Neighbour) -> None:
        """Take note of an entry's state; it counts with the next ``settle``."""
        place = Place(neighbour.ifindex, neighbour.address)
        if neighbour.state:
            self._states[place] = neighbour.state
        else:
            self._states.pop(place, None)
        self._heard.add(place)

    def replace(self, found: Iterable[Neighbour]) -> None:
        """Take over a complete dump."""
        self._heard.update(self._states)
        self._states.clear()
        for neighbour in found:
            self.hear(neighbour)

    def forget_link(self, ifindex: int) -> None:
        """A link is down and its entries with it; when it is back its neighbours have to fail anew."""
        for places in (self.silent, self._heard, self._states):
            for place in [p for p in places if p.ifindex == ifindex]:
                places.remove(place) if isinstance(places, set) else places.pop(place)

    def settle(self) -> set[Place]:
        """Return the neighbours that fell silent, or answer again, by all that was heard since the last time.

        Only how a burst ends counts: an entry that somebody deletes is said to fail first. One that is gone says
        nothing, and leaves it at what it was: the kernel collects failed entries.
        """
        changed = set()
        for place in self._heard:
            state = self._states.get(place, 0)
            if (place in self.silent and state & NUD_VALID) or (place not in self.silent and state & NUD_FAILED):
                changed.add(place)
        self._heard.clear()
        self.silent ^= changed
        return changed

    def idle(self, place: Place) -> bool:
        """Tell whether the kernel would only resolve or confirm it when there is traffic."""
        return self._states.get(place, NUD_STALE) == NUD_STALE


class NeighbourCheck:
    """A resolver (config.nexthop) that leaves out silent gateways where another one of the next hop answers.

    Until it is started it leaves none out. Start it after the ``monitor`` and the ``resolver``, in the same thread and
    namespace; what is stopped may start again. ``in_use`` returns the next hops whose gateways are of interest,
    ``on_changed`` hears which of them resolve differently now. ``interval``: seconds between two requests to resolve a
    silent gateway.
    """

    def __init__(
        self,
        monitor: Monitor,
        resolver: Resolver,
        *,
        in_use: Callable[[], Iterable[Key]],
        on_changed: Callable[[set[Key]], None],
        interval: float = 1.0,
    ) -> None:
        self._monitor = monitor
        self._interfaces = monitor.interfaces
        self._resolver = resolver
        self._in_use = in_use
        self._on_changed = on_changed
        self._interval = interval
        self._neighbours = Neighbours()
        self._told: dict[Place, str] = {}
        """Silent gateways of which the log knows."""
        self._subscribed = False
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._sock: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Read the neighbours' states and follow them. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        self._sock = netlink.open_socket()
        if not self._subscribed:
            self._monitor.subscribe(self._event, self._read)
            self._subscribed = True
        try:
            self._monitor.watch_neighbours(True)
            self._read()
        except OSError:
            self.stop()
            raise
        self._timer = self._loop.call_later(self._interval, self._tick)

    @property
    def active(self) -> bool:
        return self._sock is not None

    def give_up(self) -> None:
        """Stop, and have silent gateways count as answering; ``on_changed`` hears of their next hops."""
        affected = {key for key in self._in_use() if not self._neighbours.silent.isdisjoint(self._places(key))}
        self.stop()
        self._monitor.watch_neighbours(False)
        if affected:
            self._on_changed(affected)

    def stop(self) -> None:
        """Let go of the kernel, and of what it said; harmless if never started."""
        self._neighbours = Neighbours()
        self._told.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def lookup(self, address: bytes, device: str = "") -> Resolution | None:
        found = self._resolver.lookup(address, device)
        if found is None or not self._neighbours.silent:
            return found
        answering = tuple(gateway for gateway in found.gateways if not self._is_silent(gateway))
        return found._replace(gateways=answering or found.gateways, answers=bool(answering))

    def local(self, session_address: bytes, family: Family) -> bytes | None:
        return self._resolver.local(session_address, family)

    def silent(self, address: bytes, device: str = "") -> list[str]:
        """Return a next hop's gateways that do not answer, ``10.1.1.1 dev eth0``."""
        found = self._resolver.lookup(address, device) if self._neighbours.silent else None
        return [_text(gateway) for gateway in found.gateways if self._is_silent(gateway)] if found is not None else []

    def all_silent(self) -> list[str]:
        """Return the gateways of all next hops in use that do not answer."""
        gateways = self._gateways()
        return sorted(_text(gateways[place]) for place in self._neighbours.silent & gateways.keys())

    def _event(self, event: Event) -> None:
        if self._sock is None:
            return
        if isinstance(event, NeighbourEvent):
            self._neighbours.hear(event.neighbour)
            self._schedule()
        elif isinstance(event, LinkEvent) and (event.gone or not event.link.up):
            self._neighbours.forget_link(event.link.ifindex)

    def _read(self) -> None:
        """Read the whole table anew."""
        if self._sock is None:  # stopped before the monitor
            return
        found = netlink.settled_dump(self._sock, netlink.RTM_GETNEIGH, neighbours_request())
        decoded = (decode_neighbour(data, msg) for data, msg in found)
        self._neighbours.replace(neighbour for neighbour in decoded if neighbour is not None)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._settle)

    def _settle(self) -> None:
        self._scheduled = False
        if self._sock is None:
            return
        changed = self._neighbours.settle()
        if not changed:
            return
        affected = {key for key in self._in_use() if not changed.isdisjoint(self._places(key))}
        if affected:
            self._on_changed(affected)
            self._tell()
            self._resolve(self._neighbours.silent & changed)

    def _tick(self) -> None:
        assert self._loop is not None
        self._timer = self._loop.call_later(self._interval, self._tick)
        gateways = self._gateways()
        wanted = self._neighbours.silent & gateways.keys()
        if len(gateways) <= _FEW:
            wanted |= {place for place in gateways if self._neighbours.idle(place)}
        self._tell()
        self._resolve(wanted)

    def _resolve(self, places: set[Place]) -> None:
        """Have the kernel ask for these; where there are too many, for some of them."""
        if not places or self._sock is None:
            return
        some = random.sample(list(places), min(len(places), _PER_TURN))
        requests = (
            netlink.message(netlink.RTM_NEWNEIGH, netlink.NLM_F_CREATE, resolve_request(*place)) for place in some
        )
        self._sock.send(b"".join(requests))
        netlink.receive_refusals(self._sock)  # an interface that has just gone is known from its own event

    def _tell(self) -> None:
        """Log each change once: also of a gateway that was silent before a next hop led there."""
        gateways = self._gateways()
        now = {place: _text(gateways[place]) for place in self._neighbours.silent & gateways.keys()}
        for place in now.keys() - self._told.keys():
            log.warning("gateway does not answer", extra={"fields": {"gateway": now[place]}})
        for place in self._told.keys() - now.keys():
            if place in gateways:
                log.info("gateway answers again", extra={"fields": {"gateway": self._told[place]}})
        self._told = now

    def _gateways(self) -> dict[Place, Gateway]:
        """Return where the next hops in use lead."""
        return {place: gateway for key in self._in_use() for place, gateway in self._places(key).items()}

    def _places(self, key: Key) -> dict[Place, Gateway]:
        found = self._resolver.lookup(*key)
        gateways = found.gateways if found is not None else ()
        return {place: gateway for gateway in gateways if (place := self._place(gateway)) is not None}

    def _place(self, gateway: Gateway) -> Place | None:
        link = self._interfaces.named(gateway.device)
        return Place(link.ifindex, gateway.address) if link is not None else None

    def _is_silent(self, gateway: Gateway) -> bool:
        return self._place(gateway) in self._neighbours.silent


def _text(gateway: Gateway) -> str:
    return f"{address_text(gateway.address)} dev {gateway.device}"
