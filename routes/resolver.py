"""BGP next hops resolved against the kernel (RFC 4271 section 5.1.3 and 9.1.2.1; implements config.nexthop).

A next hop is looked up, longest match first, in the main table's routes of other protocols than podroute's: a route
that BGP itself installed never resolves a next hop, so none can come to depend on itself. One look-up always ends the
recursion, because the kernel refuses a route whose gateway is not on a link: what a static or IGP route names is final.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType

from config.kernel import ROUTE_PROTOCOL
from config.nexthop import Gateway, Resolution
from config.prefix import BITS, Family, address_text, contains, text
from routes.messages import RTN_UNICAST, AddressEvent, Event, LinkEvent, Path, Route
from routes.monitor import Monitor
from routes.others import Others

Key = tuple[bytes, str]


class Resolver:
    """``on_changed`` hears, after each burst of kernel events, which looked-up next hops resolve differently now.

    ``via_default``: let a default route resolve next hops too. Off, as in FRR: the default often leads out of a
    management interface. ``onlink``: interfaces by (family, wire bytes of a prefix), at which next hops inside are
    taken as on-link where nothing else resolves them. Start it after the monitor, in the same thread and namespace.
    """

    def __init__(
        self,
        monitor: Monitor,
        *,
        on_changed: Callable[[set[Key]], None],
        protocol: int = ROUTE_PROTOCOL,
        via_default: bool = False,
        onlink: Mapping[tuple[Family, bytes], str] = MappingProxyType({}),
    ) -> None:
        self._monitor = monitor
        self._interfaces = monitor.interfaces
        self._on_changed = on_changed
        self._via_default = via_default
        self._onlink = _longest_first(onlink)
        self.others = Others(monitor, protocol=protocol)
        """What the main table holds of others, for those who look at the same."""
        self._reported: dict[Key, Resolution | None] = {}
        self._fresh: dict[Key, Resolution | None] = {}
        self._scheduled = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Read the kernel's routes and follow them. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        self._monitor.subscribe(self._event, lambda: None)
        self.others.subscribe(self._others_changed)
        await self.others.start()
        self._outdated()  # who asked before the start was told that nothing can be reached

    def set_onlink(self, onlink: Mapping[tuple[Family, bytes], str]) -> None:
        """Take next hops as on-link by another mapping from now on; what changes by it is reported."""
        self._onlink = _longest_first(onlink)
        self._outdated()

    async def stop(self) -> None:
        """Let go of the kernel; the answers stay."""
        await self.others.stop()

    def lookup(self, address: bytes, device: str = "") -> Resolution | None:
        """Return how a next hop is reached now; the answer is remembered, and its changes are reported."""
        key = address, device
        try:
            return self._fresh[key]
        except KeyError:
            resolution = self._fresh[key] = self._resolve(address, device)
            self._reported.setdefault(key, resolution)
            return resolution

    def local(self, session_address: bytes, family: Family) -> bytes | None:
        """Return our own next hop of ``family`` for a session: the lowest fit address on the session's interface."""
        if len(session_address) * 8 == BITS[family]:
            return session_address
        for ifindex in self._interfaces.holders(session_address):
            fit = self._interfaces.global_addresses(ifindex, family)
            if fit:
                return fit[0]
        return None

    def explain(self, address: bytes, device: str = "") -> str:
        """Return in words how a next hop is reached, or why it is not."""
        return self._examine(address, device)[1]

    def _resolve(self, address: bytes, device: str) -> Resolution | None:
        return self._examine(address, device)[0]

    def _examine(self, address: bytes, device: str) -> tuple[Resolution | None, str]:
        family: Family = 4 if len(address) == 4 else 6
        if self._interfaces.owns(address):
            return None, "it is this node's own address"
        if not _routable(address):
            return None, "it is not the address of a host"
        if device:
            link = self._interfaces.named(device)
            if link is None or not link.up:
                return None, f"interface {device} {'does not exist' if link is None else 'is down'}"
            return Resolution((Gateway(address, device),), 0), f"on-link at {device}"
        if family == 6 and address[0] == 0xFE and address[1] & 0xC0 == 0x80:
            return None, "it is link-local, and no interface is stated"
        why = "no route leads there"
        for route in self.others.routes[family].matches(address):
            name = f"{text(family, route.prefix)} (protocol {route.protocol}, metric {route.metric})"
            if not route.prefix[0] and not self._via_default:
                why = f"{why}, and the default route does not count"
                break
            if route.kind != RTN_UNICAST:  # unreachable, blackhole, prohibit: somebody says no
                return None, f"route {name} rejects it"
            gateways = tuple(sorted({g for path in self._paths(route) if (g := self._gateway(path, address))}))
            if gateways:
                on_link = all(gateway.address == address for gateway in gateways)
                ways = ", ".join(f"{address_text(gateway.address)} dev {gateway.device}" for gateway in gateways)
                words = f"on-link at {gateways[0].device}" if on_link else f"via {ways}"
                return Resolution(gateways, 0 if on_link else route.metric), f"{words}, by route {name}"
            why = f"route {name} leads over an interface that is down"
        return self._as_configured(family, address, why)

    def _as_configured(self, family: Family, address: bytes, why: str) -> tuple[Resolution | None, str]:
        """Resolve by configuration what nothing else resolves, for the reason ``why``."""
        host = bytes((BITS[family],)) + address
        for (its_family, prefix), device in self._onlink:
            if its_family == family and contains(prefix, host):
                link = self._interfaces.named(device)
                entry = f"routes.onlink {text(family, prefix)}"
                if link is not None and link.up:
                    return Resolution((Gateway(address, device, True),), 0), f"on-link at {device}, by {entry}"
                why = f"{why}; {entry}: interface {device} {'does not exist' if link is None else 'is down'}"
        return None, why

    def _paths(self, route: Route) -> Iterator[Path]:
        """Yield a route's paths, read from its next-hop object where the route itself shows none."""
        if route.paths or not route.nexthop:
            yield from route.paths
            return
        found = self.others.nexthops.get(route.nexthop)
        if found is None:
            return
        for member in [self.others.nexthops.get(i) for i, _ in found.members] if found.members else [found]:
            if member is not None:
                yield Path(member.gateway, member.ifindex, onlink=member.onlink)

    def _gateway(self, path: Path, address: bytes) -> Gateway | None:
        link = self._interfaces.link(path.ifindex)
        if link is None or not link.up:
            return None
        return Gateway(path.gateway or address, link.name, path.onlink)

    def _event(self, event: Event) -> None:
        if isinstance(event, LinkEvent | AddressEvent):
            self._outdated()

    def _others_changed(self, prefixes: Collection[tuple[Family, bytes]] | None) -> None:
        self._outdated()

    def _outdated(self) -> None:
        self._fresh.clear()
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._report)

    def _report(self) -> None:
        self._scheduled = False
        changed = set()
        for key, before in list(self._reported.items()):
            now = self.lookup(*key)
            if now != before:
                self._reported[key] = now
                changed.add(key)
        if changed:
            self._on_changed(changed)


def _longest_first(onlink: Mapping[tuple[Family, bytes], str]) -> list[tuple[tuple[Family, bytes], str]]:
    return sorted(onlink.items(), key=lambda entry: -entry[0][1][0])


def _routable(address: bytes) -> bool:
    """Tell whether an address can be a neighbour at all: neither unspecified, loopback, multicast nor broadcast."""
    if len(address) == 4:
        return address[0] not in (0, 127) and address[0] < 224
    return address[0] != 0xFF and any(address[:15])
