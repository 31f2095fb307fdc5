"""One node: the only place where speaker, FIB, addresses and CNI meet.

Start goes from what nobody sees to what all see: the kernel as an earlier run left it, the cluster's store, pods,
then sessions. Stop goes the other way, and leaves routes and pods in place: containers keep talking without the agent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from agent.addresses import IpamAddresses
from agent.advertising import Advertising
from agent.collector import Collector
from agent.errors import StartError
from agent.garbage import promote
from agent.leftovers import LeftoverSweep
from agent.mesh import Mesh
from agent.notify import notify
from agent.origination import Origination
from agent.peering import peer_settings, restart_settings
from agent.pods import PodHooks
from agent.reload import CONFIGURATION, Plan, RestartNeededError, add, apply, plan, restore
from agent.standing import Standing
from agent.stopping import Mode, take_leave
from agent.tcp_site import TcpSite
from bgp.messages import Notification
from bgp.settings import ListenRange, Neighbour, PeerSettings
from bgp.sockets import Endpoint
from bgp.speaker import Speaker
from bgp.status import SessionChange, SpeakerError
from cni import masquerade
from cni.commands import notes_directory
from cni.errors import Code
from cni.hooks import Assignment
from cni.podnet import PodNetwork
from cni.server import CniServer
from config.check import overlaps_with_subnets
from config.kernel import POD_METRIC, ROUTE_PROTOCOL
from config.load import load
from config.model import DEFAULT_PATH, Config
from config.nexthop import NextHops
from config.prefix import NAMES, Family, text
from config.problems import ConfigError, Problem
from config.routes import Resilient
from ipam.given import Assignment as Given
from ipam.quarantine import Running
from ipam.records import Block
from ipam.service import Ipam
from routes.fib import Fib
from routes.leftovers import saved_peers
from routes.messages import AddressEvent, Event, Resilience
from routes.monitor import Monitor
from routes.neighbours import NeighbourCheck
from routes.pods import pod_routes
from routes.resolver import Resolver
from routes.state import Result, State
from routes.sysctl import set_needed

log = logging.getLogger("podroute.agent")

STATE_FILE = "routes.json"
MESH_FILE = "mesh.json"


class Node:
    """Runs a node from its configuration. ``run`` is the whole life; the parts are public for the API to read."""

    def __init__(self, config: Config, path: str = DEFAULT_PATH) -> None:
        self.config = config
        self.path = path
        """Where ``config`` came from, and ``reload`` looks."""
        self.started_at = time.time()
        self.state = "starting"
        self.reloaded = True
        """Whether the last ``reload`` was a success."""
        self.configured_at = self.started_at
        """When ``config`` was read, seconds since the epoch."""
        self._peers = {name: peer_settings(config, name, peer) for name, peer in config.peers_here().items()}
        self.stop_mode: Mode = "graceful"
        """How the agent is being stopped."""
        self._farewell: Notification | None = None
        self._reloading = asyncio.Lock()
        self._started = asyncio.Event()
        self._ending = asyncio.Event()
        self._failure: BaseException | None = None
        state = Path(config.state_dir)
        self.ipam = Ipam(
            config,
            on_blocks=self._blocks_changed,
            addresses=config.node.addresses or _own_addresses(self._peers.values()),
            running=lambda: (Running(*route) for route in pod_routes(config.routes.table)),
            on_standing=lambda: self._standing.changed(),
            seen=lambda block: self._standing.seen(block),
        )
        self.monitor = Monitor()
        self.resolver = Resolver(self.monitor, on_changed=self._next_hops_changed, onlink=config.routes.onlink_devices)
        self.neighbours = NeighbourCheck(
            self.monitor,
            self.resolver,
            in_use=lambda: self.speaker.rib.next_hops(),
            on_changed=self._next_hops_changed,
        )
        self.fib = Fib(
            monitor=self.monitor,
            resolver=self.neighbours,
            state_file=state / STATE_FILE,
            on_results=self._fib_results,
            table=config.routes.table,
            metric=config.routes.metric,
            metric_ipv6=config.routes.metric_ipv6,
            resilience=_resilience(config.routes.resilient),
            others=self.resolver.others if config.routes.table == self.resolver.others.table else None,
            on_room=lambda: self.speaker.fib_ready(),
        )
        self.speaker = Speaker(
            asn=config.node.asn,
            router_id=config.node.identifier,
            resolver=self.neighbours,
            on_fib=self._routes_changed,
            on_session=self._session_changed,
            listen=config.bgp.listen_addresses,
            listen_limit=config.bgp.listen_limit,
            max_paths=config.bgp.max_paths,
            multipath_relax=config.bgp.multipath_relax,
            always_compare_med=config.bgp.always_compare_med,
            hostname=config.node.name,
            cluster_id=config.bgp.cluster_octets,
            restart=restart_settings(config.bgp.graceful_restart),
            on_failure=self._failed,
            fib_full=lambda: self.fib.full,
        )
        self._expected = self._dynamic_neighbours(state / STATE_FILE)
        self._standing = Standing(self.ipam, self.speaker, announce=lambda: self.origination.refresh())
        self.sweep = LeftoverSweep(
            self.speaker,
            self.fib,
            {*self._peers, *self._expected},
            patience=config.bgp.graceful_restart.restart_time,
        )
        self._mesh = Mesh(
            config,
            self.ipam,
            self.speaker,
            memory=state / MESH_FILE,
            on_added=self.sweep.expect,
            on_removed=self.sweep.dismiss,
        )
        self.origination = Origination(
            self.speaker,
            self.fib,
            blocks=self.ipam.blocks,
            announced=self.ipam.advertised,
            aggregates=self.ipam.aggregates,
        )
        self.advertising = Advertising(
            self.speaker,
            self.ipam.blocks,
            announced=self.origination.of,
            wait=config.cni.wait_advertised,
            not_ready_after=config.cni.not_ready_seconds,
        )
        self.cni = CniServer(
            Path(config.cni.socket),
            IpamAddresses(self.ipam),
            PodHooks(
                self.fib,
                self.advertising,
                uplinks=self._uplink_addresses,
                ready=self.ready,
                owns=self._owns,
            ),
            notes=notes_directory(config.state_dir),
            network=PodNetwork(
                mtu=config.cni.mtu if isinstance(config.cni.mtu, int) else None,
                protocol=ROUTE_PROTOCOL,
                metric=POD_METRIC,
                forwarding=config.cni.forwarding,
            ),
        )

        self._collector = Collector(self.ipam, self.cni.verbs, config.ipam.grace_time)

    @property
    def running(self) -> bool:
        return self.state in ("running", "draining")

    def stop(self, mode: Mode | None = None) -> None:
        """Have ``run`` end, as ``mode`` says; None: as configured."""
        if not self._ending.is_set():
            self.stop_mode = mode or self.config.on_stop.mode
            self._ending.set()

    async def run(self) -> None:
        """Start, work until ``stop`` is called, and end. Raises the rooms' errors, and StartError."""
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self.state = "running"
            self._started.set()
            notify("READY=1")
            log.info("running", extra={"fields": {"node": self.config.node.name, "as": self.config.node.asn}})
            await self._ending.wait()
            notify("STOPPING=1")
            await self._take_leave()
        log.info("stopped")
        if self._failure is not None:
            raise self._failure

    async def _start(self, stack: AsyncExitStack) -> None:
        """Start the parts; what was started stops in reverse order when the stack unwinds."""
        await self.monitor.start()
        stack.callback(self.monitor.stop)
        await self.ipam.open()
        stack.push_async_callback(self.ipam.stop)
        if problems := self.overlaps():
            raise StartError("; ".join(f"{problem.path}: {problem.text}" for problem in problems))
        self._set_sysctls()
        await self._masquerade(self.config.cni.masquerade)
        await self.resolver.start()
        self.monitor.subscribe(self._kernel_event, lambda: self.speaker.next_hops_changed(()))
        stack.push_async_callback(self.resolver.stop)
        if self.config.routes.check_neighbours:
            await self.neighbours.start()
        stack.callback(self.neighbours.stop)
        self._mesh.recall()
        await self.fib.start(peers={*self._peers, *self._mesh.sessions, *self._expected})
        stack.push_async_callback(self._stop_fib)
        await self.ipam.start()
        stack.push_async_callback(self._stop_ipam)
        stack.push_async_callback(self.cni.stop)  # before its start: it also clears up a start that failed
        await self.cni.start()
        self.fib.expectations_complete()
        self._standing.start()
        stack.push_async_callback(self._standing.stop)
        self._collector.start()
        stack.push_async_callback(self._collector.stop)
        for family, prefix in self.config.advertised:
            self.speaker.originate(family, prefix, owner=CONFIGURATION, source="static")
        for settings in self._peers.values():
            add(self.speaker, settings)
        self._mesh.begin()
        await self.speaker.start(retained=self.fib.retained, expected=self._expected)
        stack.push_async_callback(self._stop_speaker)
        self._mesh.start()
        stack.push_async_callback(self._mesh.stop)
        self.advertising.start()
        stack.push_async_callback(self.advertising.stop)
        self.sweep.start()
        stack.push_async_callback(self.sweep.stop)

    async def reload(self, site: TcpSite, *, dry_run: bool) -> Plan:
        """Change over to what the file says now, all of it or nothing; ``dry_run``: only say what that would be.

        ``site`` moves to where metrics are served then. Raises ConfigError, RestartNeededError, StartError or
        SpeakerError; the configuration so far then holds on.
        """
        async with self._reloading:
            try:
                return await self._reload(site, dry_run=dry_run)
            except (ConfigError, RestartNeededError, StartError, SpeakerError):
                self.reloaded = self.reloaded and dry_run
                raise

    async def _reload(self, site: TcpSite, *, dry_run: bool) -> Plan:
        new = await asyncio.to_thread(load, self.path)
        peers = {name: peer_settings(new, name, peer) for name, peer in new.peers_here().items()}
        steps = plan(self.config, new, self._peers, peers)
        if dry_run:
            return steps
        begins = new.routes.check_neighbours and not self.neighbours.active
        if begins:
            try:
                await self.neighbours.start()
            except OSError as error:
                raise StartError(f"cannot read the kernel's neighbours: {error.strerror or error}") from error
        try:
            await self._change_over(site, steps, new, peers)
        except (StartError, SpeakerError):
            if begins:
                self.neighbours.give_up()
            raise
        if self.neighbours.active and not new.routes.check_neighbours:
            self.neighbours.give_up()
        if steps.resilient:
            self.fib.set_resilience(_resilience(new.routes.resilient))
        self.reloaded, self.configured_at = True, time.time()
        log.info("configuration reloaded", extra={"fields": steps.as_json()})
        return steps

    async def _change_over(self, site: TcpSite, steps: Plan, new: Config, peers: dict[str, Neighbour]) -> None:
        old, before = self.config, self._peers
        opened = site.open(new.metrics.address) if steps.metrics else None
        try:
            await apply(steps, self.speaker, old, new, peers)
        except SpeakerError:
            if opened is not None:
                opened.close()
            await restore(steps, self.speaker, old, new, before)
            raise
        self.config, self._peers = new, peers
        if steps.metrics:
            await site.serve(opened)
        if steps.onlink:
            self.resolver.set_onlink(new.routes.onlink_devices)
        for name in steps.removed:
            self.sweep.dismiss(name)
        for name in steps.added:
            self.sweep.expect(name)

    async def _take_leave(self) -> None:
        mode = self.stop_mode
        log.info("stopping", extra={"fields": {"mode": mode}})
        if mode != "graceful":
            self.state = "draining"
            self._farewell = await take_leave(self.speaker, mode, self.config.on_stop.drain_time)
        self.state = "stopping"

    async def _stop_speaker(self) -> None:
        await self.speaker.stop(notification=self._farewell)

    async def _stop_fib(self) -> None:
        await self.fib.stop(keep=self.stop_mode != "purge")
        if self.stop_mode == "purge":
            await self._masquerade(False)

    async def _stop_ipam(self) -> None:
        await self.ipam.stop(leave=self.stop_mode == "purge")

    async def _masquerade(self, wanted: bool) -> None:
        """Set masquerade up or remove it; where it is off, a node without nft is fine."""
        pools = self.config.pools.values() if wanted else ()
        try:
            await asyncio.to_thread(masquerade.apply, [(pool.family, pool.prefix) for pool in pools])
        except masquerade.MasqueradeError as error:
            if wanted:
                raise StartError(str(error)) from error
            log.warning("an earlier run's masquerade may be left", extra={"fields": {"error": str(error)}})

    def waiting_for(self) -> list[str]:
        """Return what keeps this node from having converged, one line each; empty: it has.

        The one definition: configured peers established, their End-of-RIB in or timed out, own blocks advertised and
        acknowledged, the FIB's queue empty.
        """
        if self.state != "running":
            return [f"the agent is {self.state}"]
        waiting = list(self.speaker.converged().waiting_for)
        if not self.fib.idle:
            waiting.append(f"the kernel to take {self.fib.backlog} route changes")
        return waiting

    async def wait_converged(self, timeout: float) -> list[str]:  # noqa: ASYNC109
        """Wait up to ``timeout`` seconds until the node has converged; return what it still waits for then."""
        try:
            async with asyncio.timeout(timeout):
                # What has not started or is ending waits for nothing below, and would be asked without a pause.
                await self._started.wait()
                while self.state == "running" and self.waiting_for():
                    await self.speaker.wait_converged()
                    await self.fib.drained()
        except TimeoutError:
            pass
        return self.waiting_for()

    def ready(self, pools: Sequence[str]) -> tuple[int, str] | None:
        """Return None where containers can be added, else CNI's STATUS code and why. ``pools``: names; none: all."""
        if self.state != "running":
            return Code.NOT_AVAILABLE, f"the agent is {self.state}"
        if self.ipam.fenced:
            return Code.NOT_AVAILABLE, f"this node is fenced, as the store is away: {self.ipam.store().problem}"
        if not self.ipam.blocks() and (problem := self.ipam.store().problem):
            return Code.NOT_AVAILABLE, f"this node has no block of addresses yet: {problem}"
        if lacking := self.ipam.lacking(pools, full=self.config.cni.not_ready_when_full):
            return Code.NOT_AVAILABLE, lacking
        return self.advertising.trouble()

    def uplinks(self) -> set[str]:
        """Return the interfaces towards peers."""
        peers = (*self._peers.values(), *self._mesh.sessions.values())
        return {device for peer in peers for device in self._devices(peer)}

    def _uplink_addresses(self) -> list[str]:
        """Return peers' addresses, of a mesh's one for each way out: it may have thousands."""
        ways = {self._devices(peer): peer for peer in self._mesh.sessions.values()}
        return [str(_endpoint(peer)) for peer in (*self._peers.values(), *ways.values())]

    def _devices(self, peer: Neighbour) -> frozenset[str]:
        endpoint = _endpoint(peer)
        resolution = self.resolver.lookup(endpoint.packed, endpoint.device)
        return frozenset(gateway.device for gateway in resolution.gateways) if resolution else frozenset()

    def silent(self, address: bytes, device: str) -> list[str]:
        """Return the gateways of a next hop that do not answer, ``10.1.1.1 dev eth0``; none where nobody checks."""
        return self.neighbours.silent(address, device)

    def _dynamic_neighbours(self, state_file: Path) -> set[str]:
        """Return the dynamic neighbours of which routes of an earlier run may be left: they are expected back."""
        ranges = [one for one in self._peers.values() if isinstance(one, ListenRange)]
        names = saved_peers(state_file) if ranges else set()
        return {name for name in names if any(made.made(name) for made in ranges)}

    # What the rooms tell.

    def _failed(self, error: BaseException) -> None:
        """A part has a defect: end, so that a service manager starts us anew; the kernel keeps what it has."""
        self._failure = error
        self._ending.set()

    def _kernel_event(self, event: Event) -> None:
        if isinstance(event, AddressEvent):
            self.speaker.next_hops_changed(())  # our own next hop on a session may be another now

    def _blocks_changed(self, granted: Sequence[Block], released: Sequence[Block]) -> None:
        for block in granted:
            self.fib.add_cover(block.family, block.prefix)
            if self.running:  # lost before and ours again; at the start the CNI side tells of its pods
                for attachment, one in self.ipam.assigned(block.family, block.prefix):
                    self.fib.expect_pod(one.family, one.prefix, attachment.attributes.get("hostInterface", ""))
        self.origination.refresh()
        for block in released:
            self.fib.remove_cover(block.family, block.prefix)
            # Of a block that was lost: its old containers are cut off
            for _, one in self.ipam.assigned(block.family, block.prefix):
                self.fib.forget_pod(one.family, one.prefix)

    def _owns(self, assignment: Assignment) -> bool:
        return isinstance(assignment, Given) and self.ipam.owns(assignment.family, assignment.block)

    def _next_hops_changed(self, changed: set[tuple[bytes, str]]) -> None:
        self.fib.next_hops_changed()
        self.speaker.next_hops_changed(changed)

    def _routes_changed(self, family: Family, changes: list[tuple[Sequence[bytes], NextHops | None]]) -> None:
        # When we close our sessions, what they taught us stays in the kernel: traffic flows on without the agent.
        if self.state != "stopping":
            self.fib.update(family, changes)

    def _session_changed(self, change: SessionChange) -> None:
        if change.up:
            self.ipam.check_fence()  # after a suspension sessions may be back before a timer runs
            promote()
        if not change.up and not change.retained and self.state != "stopping":
            self.fib.peer_lost(change.peer)

    def _fib_results(self, results: list[Result]) -> None:
        for family in NAMES:
            self._log_results(family, [result for result in results if result.family == family])

    def _log_results(self, family: Family, results: list[Result]) -> None:
        """One line for a burst of failures with the same cause, with one prefix as an example."""
        by_cause: dict[tuple[State, str], list[Result]] = {}
        for result in results:
            if result.state not in (State.INSTALLED, State.PENDING):
                by_cause.setdefault((result.state, result.text), []).append(result)
        for (state, why), same in by_cause.items():
            fields = {"family": NAMES[family], "count": len(same), "prefix": text(family, same[0].prefix), "why": why}
            log.warning("routes %s", state.value, extra={"fields": fields})

    @staticmethod
    def _set_sysctls() -> None:
        settings = set_needed()
        for change in settings.changed:
            log.info("sysctl set: %s", change)
        for problem in settings.problems:
            log.warning(problem)

    def overlaps(self) -> list[Problem]:
        """Return which pools overlap a subnet of this node's own, but for those that plugins got from us."""
        return overlaps_with_subnets(self.config, self.monitor.interfaces.subnets(), self.ipam.subnets())


def _resilience(configured: Resilient | None) -> Resilience | None:
    if configured is None:
        return None
    return Resilience(configured.buckets, 100 * configured.idle_timer, 100 * configured.unbalanced_timer)


def _own_addresses(peers: Iterable[Neighbour]) -> list[str]:
    """Return where peers reach this node, as far as the file says it."""
    configured = [peer for peer in peers if isinstance(peer, PeerSettings)]
    return sorted({settings.local_address for settings in configured if settings.local_address})


def _endpoint(neighbour: Neighbour) -> Endpoint:
    """Return where packets for a peer, or for some peer of a listen range, go."""
    return neighbour.network if isinstance(neighbour, ListenRange) else neighbour.endpoint
