"""The Fib: podroute's routes in the kernel, kept as the rest of the agent desires them."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from config.kernel import COVER_METRIC, DEFAULT_METRIC, MAIN_TABLE, NEXT_HOP_IDS, POD_METRIC, ROUTE_PROTOCOL
from config.nexthop import NextHopResolver, NextHops
from config.prefix import BITS, FAMILIES, Family, address_text
from routes import causes, netlink
from routes.differences import FibRoute
from routes.encode import delete_nexthop
from routes.installer import Installer, log_crash
from routes.leftovers import Reader, load, save, snapshot
from routes.messages import Event, Link, LinkEvent, Resilience, Route
from routes.monitor import Monitor
from routes.nexthops import Registry
from routes.others import Others
from routes.purge import purge
from routes.reconciler import Reconciler
from routes.shadows import Shadows
from routes.shard import Flight
from routes.state import Result, RouteStatus, State
from routes.table import Table
from routes.target import Kind, Target
from routes.view import KernelView

log = logging.getLogger("podroute.routes")


class FibError(Exception):
    """The Fib cannot run; the text is for the operator."""


class Fib:
    """Construct and start it in the loop's thread, inside the namespace whose routes it writes, after the monitor.

    The monitor and the resolver belong to the caller; so do ``others`` of the same table if given, and started.
    ``on_results`` hears, in batches, of routes that are not installed or not used and why, and of their recovery.
    ``on_room`` is called when ``full`` has ended. ``objects=False`` does without next-hop objects, as happens by itself
    on kernels before 5.3. ``resilience`` makes groups resilient where the kernel can (5.13). Without ``metric_ipv6``
    learned IPv6 routes have ``metric`` too; covers and routes to pods have metrics of their own (COVER_METRIC,
    POD_METRIC).
    """

    def __init__(
        self,
        *,
        monitor: Monitor,
        resolver: NextHopResolver,
        state_file: Path,
        on_results: Callable[[list[Result]], None],
        protocol: int = ROUTE_PROTOCOL,
        table: int = MAIN_TABLE,
        metric: int = DEFAULT_METRIC,
        metric_ipv6: int | None = None,
        objects: bool = True,
        resilience: Resilience | None = None,
        others: Others | None = None,
        compare_interval: float = 60.0,
        receive_buffer: int = 16 << 20,
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._monitor = monitor
        self._others = others or Others(monitor, table=table, protocol=protocol)
        self._own_others = others is None
        self._interfaces = monitor.interfaces
        self._resolver = resolver
        self._state_file = state_file
        self._on_results = on_results
        self._protocol, self._table = protocol, table
        self._metrics: dict[Family, int] = {4: metric, 6: metric if metric_ipv6 is None else metric_ipv6}
        self._objects = objects
        self._resilience = resilience
        self._interval = compare_interval
        self._receive_buffer = receive_buffer
        self._on_room = on_room
        self._cover = Target(Kind.COVER)
        self._pod_targets: dict[int, Target] = {}
        # A host prefix tells its family.
        self._pods: dict[bytes, str] = {}
        self._pods_of: dict[str, tuple[bytes, ...]] = {}
        self._confirmed: dict[Family, set[str]] = {4: set(), 6: set()}
        self._early: list[Event] | None = []
        self._retained: set[Family] = set()
        self._sock: socket.socket | None = None
        self._installer_: Installer | None = None
        self._reconciler: Reconciler | None = None
        self._shadows: Shadows | None = None
        self._view: KernelView | None = None
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self, *, peers: Collection[str] | None = None) -> None:
        """Take over what an earlier run left, and begin. Raises FibError.

        ``peers`` are the configured ones: what was learned from others goes at once. None: any may come.
        """
        installer: Installer | None = None
        try:
            self._sock = netlink.open_socket(receive_buffer=4 << 20)
            installer = self._prepared(objects=self._probe() and self._objects)
            self._monitor.ignore(installer.open(receive_buffer=self._receive_buffer))
            if self._own_others:
                await self._others.start()
            self._monitor.subscribe(self._event, lambda: self.resync(causes.EVENTS_LOST))
            await self._adopt(installer, peers)
        except OSError as error:
            if installer is not None:
                await installer.close()
            raise FibError(f"cannot read the kernel's routes: {error.strerror or error}") from error
        self._installer_ = installer
        self._shadows = Shadows(self._others, installer.tables, installer.report)
        self._view = KernelView(installer.tables, self._interfaces, table=self._table, protocol=self._protocol)
        installer.on_settled = self._settled
        self._reconciler = Reconciler(
            installer,
            self._sock,
            table=self._table,
            protocol=self._protocol,
            interval=self._interval,
            others=self._others,
            on_link=self._link,
        )
        self._reconciler.start({link.ifindex: link.up for link in self._interfaces.links()})
        early, self._early = self._early or [], None
        for event in early:
            self._reconciler.event(event)
        installer.start()

    async def stop(self, *, keep: bool) -> None:
        """End. ``keep`` leaves routes for the next run to take over, otherwise everything of ours is removed."""
        reconciler, self._reconciler, self._early = self._reconciler, None, None
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping])
            self._sweeping = None
        if reconciler is not None:
            await reconciler.stop()
        if self._shadows is not None:
            await self._shadows.stop()
        if self._own_others:
            await self._others.stop()
        if self._installer_ is not None:
            await self._installer_.close()
            if keep:
                self._save(self._installer_.registry)
            elif self._sock is not None:
                await asyncio.to_thread(purge, self._sock, self._table, self._protocol)
                self._state_file.unlink(missing_ok=True)
        self._installer_ = None
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def update(self, family: Family, changes: Iterable[tuple[Sequence[bytes], NextHops | None]]) -> None:
        """Desire learned routes: ``(prefixes, next hops)``, None to withdraw. Returns at once; changes coalesce."""
        installer = self._installer
        table = installer.table(family, self._metrics[family])
        table.update(changes, installer.registry.target)
        installer.hurry(table)
        installer.schedule()

    def add_cover(self, family: Family, prefix: bytes) -> None:
        """Desire an ``unreachable`` route over an own block: a free address is nowhere. None for /32 and /128."""
        if prefix[0] < BITS[family]:
            self._static(family, COVER_METRIC, prefix, self._cover)

    def remove_cover(self, family: Family, prefix: bytes) -> None:
        self._static(family, COVER_METRIC, prefix, None)

    def expect_pod(self, family: Family, prefix: bytes, device: str) -> None:
        """Desire a host route to a pod. It may exist already, under our protocol: then it is taken over as it is."""
        self._unplace(prefix)
        link = self._interfaces.named(device)
        name = link.name if link else device
        self._pods[prefix] = name
        self._pods_of[name] = (*self._pods_of.get(name, ()), prefix)
        self._place_pod(family, prefix, device, link)

    def forget_pod(self, family: Family, prefix: bytes) -> None:
        """Desire it no more; call it before the route or its interface is deleted."""
        self._unplace(prefix)
        self._static(family, POD_METRIC[family], prefix, None)

    def peer_lost(self, peer: str) -> None:
        """Take away at once what only this peer announced; the changes that follow from it come with ``update``.

        For an established session that ended, not for one that could not be established.
        """
        installer = self._installer
        quick, slow = installer.registry.peer_lost(peer)
        installer.at_once(quick)
        installer.urgent(slow)
        self.sweep(peer, restore=False)
        installer.schedule()

    def end_of_rib(self, peer: str, family: Family) -> None:
        """The peer has confirmed what it confirms: leftovers that name nobody else but such peers go."""
        self._installer.registry.peer_back(peer)
        self._confirm(peer, family)

    def sweep(self, peer: str, *, restore: bool = True) -> None:
        """Give up waiting for a peer's End-of-RIB, in all families."""
        if restore:
            self._installer.registry.peer_back(peer)
        for family in FAMILIES:
            self._confirm(peer, family)

    def expectations_complete(self) -> None:
        """All covers and pods were told: leftover ones that nobody expects go."""
        for table in self._installer.tables.values():
            table.sweep(lambda held: held.kind is not Kind.LEARNED)
        self._installer.schedule()

    def next_hops_changed(self) -> None:
        """The resolver reported changes: have groups follow. Call it before the speaker is told."""
        if self._reconciler is not None:
            self._reconciler.refresh()

    def set_resilience(self, resilience: Resilience | None) -> None:
        """Have next-hop groups be of another kind from now on; routes move to new ones without a gap."""
        installer = self._installer
        installer.registry.set_resilience(resilience)
        installer.schedule()

    def resync(self, cause: str) -> None:
        """Have everything in the kernel compared with what is desired, soon; ``cause`` is for the log and counters."""
        if self._reconciler is not None:
            self._reconciler.resync(cause)

    async def drained(self) -> None:
        """Wait until the kernel holds what is desired, or has refused it."""
        await self._installer.drained()

    @property
    def idle(self) -> bool:
        return self._installer.idle

    @property
    def backlog(self) -> int:
        """Changes that the kernel has not been told of: the measure for back-pressure."""
        return self._installer.backlog

    @property
    def full(self) -> bool:
        """So much waits for the kernel that more would only wait, and keep what is urgent waiting: read no peer now."""
        return self._installer_ is not None and self._installer_.full

    @property
    def counters(self) -> Counter[str]:
        return self._installer.counters

    @property
    def retained(self) -> frozenset[Family]:
        """The families in which the kernel still held routes of an earlier run at the start: it went on forwarding."""
        return frozenset(self._retained)

    @property
    def uses_objects(self) -> bool:
        """Whether routes go through next-hop objects."""
        return self._installer.registry.objects

    def sizes(self) -> tuple[int, int]:
        """Return how many next-hop objects and how many groups there are; without objects none."""
        return self._installer.registry.sizes()

    @property
    def findings(self) -> list[str]:
        """What is not as configured or desired, because the kernel cannot do it."""
        registry = self._installer.registry
        found = [
            f"the kernel refuses {count} next-hop groups: {text}; asked again at the next change and every minute"
            for text, count in registry.refusals().items()
        ]
        if registry.refusal:
            found.append(f"routes.resilient has no effect, the kernel refuses such groups: {registry.refusal}")
        return found

    def route(self, family: Family, prefix: bytes) -> list[FibRoute]:
        """Return what there is of one prefix: at most one route of each metric."""
        tables = [table for (f, _), table in sorted(self._installer.tables.items()) if f == family]
        return [self._shown(family, found) for table in tables if (found := table.status(prefix)) is not None]

    def routes(self, family: Family) -> Iterator[FibRoute]:
        """Yield all routes in no order; changes between two steps are harmless."""
        for (f, _), table in sorted(self._installer.tables.items()):
            if f == family:
                for found in table.statuses():
                    yield self._shown(family, found)

    def counts(self, family: Family) -> Iterator[Counter[State]]:
        """Yield how many routes are in which state, some thousand routes at a time: the sum is what there is."""
        assert self._shadows is not None
        for (f, metric), table in sorted(self._installer.tables.items()):
            if f == family:
                yield from table.counts()
                others = Counter(self._shadows.counts(family, metric))
                yield Counter({**others, State.INSTALLED: -others.total()})

    def unlearned(self, family: Family) -> list[bytes]:
        """Return the prefixes here that need no announcement: of pods, and what an earlier run left."""
        found = [prefix for prefix in self._pods if prefix[0] == BITS[family]]
        for (f, _), table in self._installer.tables.items():
            if f == family:
                found += table.leftovers()
        return list(dict.fromkeys(found))

    @property
    def protocol(self) -> int:
        """Protocol number of our routes."""
        return self._protocol

    @property
    def view(self) -> KernelView:
        """What the kernel holds now, for people."""
        if self._view is None:
            raise RuntimeError("the Fib is not running")
        return self._view

    @property
    def _installer(self) -> Installer:
        if self._installer_ is None:
            raise RuntimeError("the Fib is not running")
        return self._installer_

    def _settled(self, table: Table, flight: Flight) -> None:
        assert self._shadows is not None
        self._shadows.settled(table, flight)
        self.view.settled(table, flight)

    def _probe(self) -> bool:
        """Tell whether the kernel has next-hop objects; id 0 never exists. Raises FibError without privileges."""
        assert self._sock is not None
        self._sock.send(delete_nexthop(0))
        refusals, _ = netlink.receive_refusals(self._sock)
        numbers = {refusal.errno for refusal in refusals}
        if numbers & {errno.EPERM, errno.EACCES}:
            raise FibError("cannot write routes: permission denied; run podroute as root or with CAP_NET_ADMIN")
        return errno.EOPNOTSUPP not in numbers

    def _prepared(self, *, objects: bool) -> Installer:
        registry = Registry(
            resolver=self._resolver,
            interfaces=self._interfaces,
            ids=NEXT_HOP_IDS,
            protocol=self._protocol,
            objects=objects,
            resilience=self._resilience,
        )
        return Installer(
            registry,
            table=self._table,
            protocol=self._protocol,
            state_file=self._state_file,
            on_results=self._on_results,
            on_unverified=self.resync,
            on_room=self._on_room,
        )

    async def _adopt(self, installer: Installer, peers: Collection[str] | None) -> None:
        assert self._sock is not None
        registry = installer.registry
        reader = Reader(
            registry,
            self._interfaces,
            table=self._table,
            protocol=self._protocol,
            cover=self._cover,
            other=installer.other,
            pod=self._pod_target,
        )
        saved = load(self._state_file)

        def place(route: Route, target: Target) -> None:
            installer.table(route.family, route.metric).leave_stale(route.prefix, target)
            if target.kind is not Kind.OTHER and not target.absent:
                self._retained.add(route.family)

        found = await asyncio.to_thread(reader.read, self._sock, saved, peers, place)
        installer.raw([delete_nexthop(identifier) for identifier in found.unknown_objects])
        if peers is not None:
            for name in {hop.peer for target in found.adopted for hop in target.key} - set(peers):
                registry.peer_lost(name)
                for family in FAMILIES:
                    self._confirmed[family].add(name)
        for table in installer.tables.values():
            table.sweep(lambda held: held.kind is Kind.OTHER or held.absent)
        registry.release(target for target in found.adopted if not target.refs)
        installer.refresh()

    def _save(self, registry: Registry) -> None:
        try:
            save(self._state_file, snapshot(registry))
        except OSError as error:
            log.error("cannot write the state file", extra={"fields": {"file": self._state_file, "error": error}})

    def _confirm(self, peer: str, family: Family) -> None:
        self._confirmed[family].add(peer)
        former = False
        for (f, metric), table in self._installer.tables.items():
            if f == family and metric == self._effective(family):
                table.sweep(self._confirmable(family))
            elif f == family:
                former |= table.has_stale
        if former and self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().create_task(self._sweep_former(self._installer))
            self._sweeping.add_done_callback(log_crash)
        self._installer.schedule()

    def _confirmable(self, family: Family) -> Callable[[Target], bool]:
        """Return what tells leftovers whose peers have all had their chance."""
        confirmed = self._confirmed[family]
        return lambda held: held.kind is Kind.LEARNED and (held.absent or held.peers <= confirmed)

    async def _sweep_former(self, installer: Installer) -> None:
        """Learned routes of another metric, a former one, go when those that take their place are in the kernel."""
        await installer.drained()
        self._sweeping = None
        for (family, metric), table in installer.tables.items():
            if metric != self._effective(family):
                table.sweep(self._confirmable(family))
        installer.schedule()

    def _static(self, family: Family, metric: int, prefix: bytes, target: Target | None) -> None:
        table = self._installer.table(family, metric)
        if table.shard(prefix).desired.get(prefix) is not target or prefix in table.shard(prefix).stale:
            table.set(prefix, target)
            self._installer.schedule()

    def _pod_target(self, ifindex: int) -> Target:
        found = self._pod_targets.get(ifindex)
        if found is None:
            found = self._pod_targets[ifindex] = Target(Kind.POD, ifindex=ifindex)
        return found

    def _place_pod(self, family: Family, prefix: bytes, device: str, link: Link | None) -> None:
        """Desire a pod's route over its interface, where there is one: ``link``."""
        if link is not None:
            target = self._pod_target(link.ifindex)
        else:
            target = Target(Kind.POD)
            target.absent, target.errno, target.text = True, errno.ENODEV, f"no interface {device}"
        self._static(family, POD_METRIC[family], prefix, target)

    def _unplace(self, prefix: bytes) -> None:
        device = self._pods.pop(prefix, None)
        if device is not None and (rest := tuple(one for one in self._pods_of.pop(device) if one != prefix)):
            self._pods_of[device] = rest

    def _effective(self, family: Family) -> int:
        return self._metrics[family] or (1024 if family == 6 else 0)

    def _event(self, event: Event) -> None:
        if self._reconciler is not None:
            self._reconciler.event(event)
        elif self._early is not None:
            self._early.append(event)

    def _link(self, event: LinkEvent) -> None:
        """A pod's interface came, went or changed: the kernel dropped its routes silently when it was down."""
        link = event.link
        if event.gone:
            self._pod_targets.pop(link.ifindex, None)
        for prefix in self._pods_of.get(link.name, ()):
            family: Family = 4 if prefix[0] == BITS[4] else 6
            self._place_pod(family, prefix, link.name, None if event.gone else link)
            if link.up and not event.gone:
                table = self._installer.table(family, POD_METRIC[family])
                self._installer.repair(table, prefix, None, causes.LINK_UP)

    def _shown(self, family: Family, status: RouteStatus) -> FibRoute:
        assert self._shadows is not None
        status = self._shadows.shown(family, status)
        known = status.desired or status.kernel
        kind, hops = (known.kind, known.key) if known is not None else (Kind.OTHER, ())
        refused = status.desired.text if status.desired is not None else ""
        return FibRoute(
            status.prefix,
            status.metric,
            kind.value,
            hops,
            self._leads(status.desired),
            self._leads(status.kernel),
            status.state,
            status.errno,
            status.text or refused,
        )

    def _leads(self, target: Target | None) -> tuple[str, ...]:
        if target is None or target.absent:
            return ()
        if target.kind is Kind.COVER:
            return ("unreachable",)
        if target.kind is Kind.POD:
            link = self._interfaces.link(target.ifindex)
            return (f"dev {link.name}" if link is not None else f"interface {target.ifindex}",)
        if target.kind is Kind.OTHER:
            return ("elsewhere",)
        return tuple(
            f"{address_text(key.gateway)} dev {key.device}{' onlink' if key.onlink else ''} peer {key.peer}"
            for key in sorted(target.members)
        )
