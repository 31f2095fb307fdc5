"""The speaker: peers by name, the sockets that listen for them, and what operators and the agent ask of them.

Sessions only collect octets as they arrive; ``bgp.turns`` has them processed, decided and answered in slices.
"""

from __future__ import annotations

import asyncio
import logging
import random as random_module
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from bgp.adj_rib_in import RibPeer
from bgp.graceful_restart import Restart, RestartSettings
from bgp.listen_ranges import ListenRanges
from bgp.listener import Listener
from bgp.local import Local
from bgp.messages import Notification
from bgp.notifications import SHUTDOWN, shutdown_text
from bgp.peer import Peer
from bgp.policy import REJECT, Policy, Source, shutting_down
from bgp.quiet import Quiet
from bgp.rib import Rib
from bgp.settings import ListenRange, PeerSettings
from bgp.sockets import Endpoint, OpenSocket, open_socket, reset
from bgp.status import Convergence, PeerStatus, RangeStatus, SessionChange, SpeakerError
from bgp.turns import Turns
from config.nexthop import NextHopResolver, NextHops
from config.prefix import NAMES, Family

log = logging.getLogger("podroute.bgp")

DECONFIGURED = Notification(6, 3)
"""Cease/Peer De-configured (RFC 4486 section 4)."""


class Speaker:
    """A BGP speaker (RFC 4271).

    ``on_fib`` gets batches of Loc-RIB changes, ``on_session`` each session that comes up or is lost, the latter before
    anything else is done about it. ``listen`` holds addresses and ports; without any, podroute only connects.
    ``listen_limit`` is how many dynamic neighbours all listen ranges together may have.
    ``multipath_relax``: paths through other neighbouring ASes may share traffic too, AS_PATHs being equally long;
    ``always_compare_med``: also among paths through different ones (RFC 4271 section 9.1.2.2 c has it within one).
    ``cluster_id`` is four octets, None: the router ID (RFC 4456 section 7).
    ``fib_full`` tells that ``on_fib`` should be spared for a while: peers are then not read, until ``fib_ready``.
    ``on_failure`` gets an exception that is a fault of podroute's own and after which the speaker does no more.
    """

    def __init__(
        self,
        *,
        asn: int,
        router_id: bytes,
        resolver: NextHopResolver,
        on_fib: Callable[[Family, list[tuple[Sequence[bytes], NextHops | None]]], None],
        on_session: Callable[[SessionChange], None],
        listen: Sequence[tuple[str, int]] = (("0.0.0.0", 179), ("::", 179)),
        listen_limit: int = 1000,
        max_paths: int = 64,
        multipath_relax: bool = True,
        always_compare_med: bool = False,
        cluster_id: bytes | None = None,
        hostname: str = "",
        end_of_rib_wait: float = 30.0,
        restart: RestartSettings = RestartSettings(),  # noqa: B008 immutable
        opener: OpenSocket = open_socket,
        random: Callable[[], float] = random_module.random,
        on_failure: Callable[[BaseException], None] = lambda error: None,
        fib_full: Callable[[], bool] = lambda: False,
    ) -> None:
        self.rib = Rib(
            local_as=asn,
            router_id=router_id,
            resolver=resolver,
            on_fib=on_fib,
            on_refused=self._refused,
            max_paths=max_paths,
            multipath_relax=multipath_relax,
            always_compare_med=always_compare_med,
            cluster_id=cluster_id,
        )
        self._listen = tuple(listen)
        self._turns = Turns(self.rib, fib_full, on_failure)
        self._local = Local(
            asn=asn,
            router_id=router_id,
            hostname=hostname,
            rib=self.rib,
            resolver=resolver,
            opener=opener,
            random=random,
            end_of_rib_wait=end_of_rib_wait,
            restart=Restart(restart, self._complete, self._select),
            on_session=on_session,
            wake=self._turns.wake,
            unread=self._turns.read_on,
            notify=self._turns.notify,
            gone=self._gone,
            readers=self._turns.readers,
        )
        self._peers: dict[str, Peer] = {}
        self._by_endpoint: dict[Endpoint, Peer] = {}
        self._ranges = ListenRanges(listen_limit)
        self._dismissed: set[asyncio.Task[None]] = set()
        """Dynamic neighbours whose last connection is being closed."""
        self._listeners: list[Listener] = []
        self._restart_timers: list[asyncio.TimerHandle] = []

    async def start(self, *, retained: frozenset[Family] = frozenset(), expected: Iterable[str] = ()) -> None:
        """Listen, and connect to the peers known so far. Raises SpeakerError where it cannot listen.

        ``retained`` are the families whose routes the kernel kept over a restart of ours (RFC 4724 section 4.1): peers
        are told so, and routes are not selected before all peers have sent theirs, or too long have not. ``expected``
        names the dynamic neighbours among them: those that had announced something.
        """
        try:
            for address, port in self._listen:
                self._listeners.append(Listener(address, port, self._local.opener, self._accept))
            for peer in self._peers.values():
                self._set_password(peer)
            for admission in self._ranges:
                self._set_range_password(admission.settings)
        except BaseException:
            self._close_listeners()
            raise
        self._begin_restart(retained, expected)
        self._turns.start()
        for peer in self._peers.values():
            peer.start()

    async def stop(self, *, notification: Notification | None) -> None:
        """End all sessions, with this NOTIFICATION or (None) without a word, and stop listening."""
        self._close_listeners()
        for timer in self._restart_timers:
            timer.cancel()
        await asyncio.gather(*(peer.stop(notification) for peer in self._peers.values()), *self._dismissed)
        await self._turns.stop()

    @property
    def ports(self) -> list[int]:
        """The ports listened on, in the order of ``listen``."""
        return [listener.port for listener in self._listeners]

    @property
    def refused(self) -> int:
        """Connections turned away: from strangers, or one too many for a listen range."""
        return sum(listener.refused for listener in self._listeners) + sum(one.refused for one in self._ranges)

    # Peers and prefixes.

    def add_peer(self, settings: PeerSettings) -> None:
        """Begin with a peer, which a dynamic neighbour at its address makes way for.

        Raises SpeakerError where its name or address is taken, or the kernel refuses its password.
        """
        self._add(settings, None)

    def _add(self, settings: PeerSettings, quiet: Quiet | None) -> Peer:
        peer = Peer(settings, self._local, quiet)
        there = self._by_endpoint.get(peer.endpoint)
        if there is not None and there.settings.listen_range is not None:
            self._dismiss(there)
        other = self._peers.get(settings.name) or self._by_endpoint.get(peer.endpoint)
        if other is not None:
            raise SpeakerError(f"peer {settings.name}: {other.name} is at {other.endpoint} already")
        self._peers[settings.name] = self._by_endpoint[peer.endpoint] = peer
        self._turns.writers.append(peer)
        self.rib.add_peer(
            RibPeer(
                name=settings.name,
                asn=settings.asn,
                import_policy=settings.import_policy,
                export_policy=settings.export_policy,
                allow_own_as=settings.allow_own_as,
                enforce_first_as=settings.enforce_first_as,
                reflector_client=settings.route_reflector_client,
                send_paths=settings.add_path.send,
            )
        )
        if self._turns.begun:
            try:
                self._set_password(peer)
            except SpeakerError:
                self._unlist(settings.name)
                self._forget(settings.name)
                raise
            peer.start()
        return peer

    async def remove_peer(self, name: str, *, notification: Notification | None = DECONFIGURED) -> None:
        """End with a peer and forget it. Raises KeyError."""
        peer = self._unlist(name)
        await peer.stop(notification)
        if peer.settings.password is not None:
            for listener in self._listeners:
                listener.set_password(peer.endpoint, b"")
        self._forget(name)

    def _unlist(self, name: str) -> Peer:
        """Take a peer off the lists, so that nothing reaches it any more. Raises KeyError."""
        peer = self._peers.pop(name)
        del self._by_endpoint[peer.endpoint]
        self._turns.writers.remove(peer)
        return peer

    def _forget(self, name: str) -> None:
        self._local.restart.forget(name)
        self.rib.remove_peer(name)
        self._turns.wake()

    # Listen ranges and their dynamic neighbours.

    def add_range(self, settings: ListenRange) -> None:
        """Take connections from inside a prefix. Raises SpeakerError where the name is taken or the key is refused."""
        if settings.name in self._ranges:
            raise SpeakerError(f"listen range {settings.name} exists")
        if self._turns.begun:
            self._set_range_password(settings)
        self._ranges.add(settings)

    async def remove_range(self, name: str) -> None:
        """Take no more connections for a range, and end with all its peers. Raises KeyError."""
        admission = self._ranges.remove(name)
        for peer in list(admission.peers):
            self._dismiss(self._peers[peer])
        if admission.settings.password is not None:
            self._set_range_password(admission.settings, clear=True)
        if self._dismissed:
            await asyncio.wait(self._dismissed)

    def change_range(self, settings: ListenRange) -> None:
        """Have other policies and another limit hold for a range and its peers; sessions go on. Raises KeyError."""
        admission = self._ranges[settings.name]
        admission.settings = settings
        for name in admission.peers:
            self.set_policies(name, settings.import_policy, settings.export_policy)

    def ranges(self) -> list[RangeStatus]:
        return [admission.status() for admission in self._ranges]

    def _arrive(self, sock: socket.socket, remote: Endpoint) -> bool:
        """Make a peer of whoever connects from inside a range; False: a stranger's connection."""
        admission, room = self._ranges.admit(remote) or (None, False)
        if admission is None:
            return False
        if not room:
            reset(sock)
            return True
        peer = self._add(admission.settings.peer(remote, self._local.asn), admission.failures)
        admission.peers.add(peer.name)
        return peer.accept(sock)

    def _gone(self, name: str) -> None:
        """Forget a dynamic neighbour that has nothing left."""
        self._leave_range(self._unlist(name))
        self._forget(name)
        self._turns.notify()

    def _dismiss(self, peer: Peer) -> None:
        """End with a dynamic neighbour."""
        self._leave_range(self._unlist(peer.name))
        peer.end(DECONFIGURED)
        self._forget(peer.name)
        task = asyncio.get_running_loop().create_task(peer.closed())
        self._dismissed.add(task)
        task.add_done_callback(self._dismissed.discard)

    def _leave_range(self, peer: Peer) -> None:
        made = peer.settings.listen_range
        if made is not None and made.name in self._ranges:
            self._ranges[made.name].peers.discard(peer.name)

    def _set_range_password(self, settings: ListenRange, *, clear: bool = False) -> None:
        if settings.password is not None:
            for listener in self._listeners:
                password = b"" if clear else settings.password
                listener.set_password(settings.network, password, length=settings.prefix[0])

    # What operators and the agent ask for.

    def shut_down(self, name: str, text: str = "") -> None:
        """End a peer's session, telling it ``text`` (RFC 9003), and have none until ``start_peer``. Raises KeyError."""
        reason = f"shut down by the operator{f': {text}' if text else ''}"
        self._peers[name].hold(reason, Notification(6, SHUTDOWN, shutdown_text(text)))

    def start_peer(self, name: str) -> None:
        """Have sessions with a peer again that was shut down, or announced too many prefixes. Raises KeyError."""
        self._peers[name].release()

    def ask_refresh(self, name: str) -> bool:
        """Ask a peer to announce everything once more; False: it has no session, or cannot. Raises KeyError."""
        return self._peers[name].ask_refresh()

    def set_policies(self, name: str, import_policy: Policy, export_policy: Policy) -> None:
        """Have other policies hold for a peer from now on, without touching its session. Raises KeyError."""
        self.rib.set_policies(name, import_policy, export_policy)
        self._turns.wake()

    def shut_gracefully(self) -> None:
        """Announce all that is announced as what is to be avoided, because it will go soon (RFC 8326)."""
        self._export(shutting_down)

    def withdraw(self) -> None:
        """Withdraw all that is announced; sessions stay."""
        self._export(lambda policy: REJECT)

    def _export(self, other: Callable[[Policy], Policy]) -> None:
        """Have other export policies hold for all peers, and for those that a listen range may bring yet."""
        for admission in self._ranges:
            admission.settings = replace(admission.settings, export_policy=other(admission.settings.export_policy))
        for name, rib in self.rib.peers.items():
            self.set_policies(name, rib.settings.import_policy, other(rib.settings.export_policy))

    def originate(self, family: Family, prefix: bytes, *, owner: str, source: Source) -> None:
        """Advertise a prefix of our own (wire bytes); ``owner`` is who may retract it."""
        self.rib.originate(family, prefix, owner=owner, source=source)
        self._turns.wake()

    def retract(self, family: Family, prefix: bytes, owner: str) -> None:
        self.rib.retract(family, prefix, owner)
        self._turns.wake()

    def lend(self, family: Family, prefixes: Iterable[bytes]) -> None:
        """Let peers announce these more specifics of our own prefixes, and no others."""
        self.rib.lend(family, prefixes)
        self._turns.wake()

    def next_hops_changed(self, changed: Iterable[tuple[bytes, str]]) -> None:
        """The resolver's answers for these ``(address, device)`` have changed, or the node's own addresses have."""
        self.rib.next_hops_changed(changed)
        for peer in self._peers.values():
            peer.next_hops_changed()
        self._turns.wake()

    def fib_ready(self) -> None:
        """``fib_full`` does not hold any more: read on."""
        if self._turns.readers:
            self._turns.wake()

    # Status.

    def peers(self) -> list[PeerStatus]:
        return [peer.status() for peer in self._peers.values()]

    def peer(self, name: str) -> PeerStatus:
        """Return one peer's status. Raises KeyError."""
        return self._peers[name].status()

    def converged(self) -> Convergence:
        """Tell whether all peers are established, their tables complete, and ours written and acknowledged by TCP."""
        waiting = [line for peer in self._peers.values() if (line := peer.waiting_for())]
        for family, peers in self._local.restart.waiting.items():
            what = "route selection" if family in self._local.restart.deferred else "completeness"
            names = ", ".join(sorted(peers))
            waiting.append(f"{what} ({NAMES[family]}) after our restart: End-of-RIB of {names}")
        if not self._turns.idle:
            waiting.append("best paths to be decided")
        if not waiting:
            waiting = [
                f"acknowledgement of {peer.unacknowledged} octets by {peer.name}"
                for peer in self._peers.values()
                if peer.unacknowledged
            ]
        return Convergence(not waiting, tuple(waiting))

    @property
    def idle(self) -> bool:
        """All that was received is decided, and written as far as the peers' connections take it."""
        return self._turns.idle

    async def wait_converged(self) -> None:
        """Return once ``converged`` holds."""
        await self._turns.until(lambda: self.converged().ok)

    async def flushed(self, name: str) -> bool:
        """Return True once all that is due to a peer is written and acknowledged by its TCP.

        False: the session is lost, or there is no peer of this name (any more).
        """
        peer = self._peers.get(name)
        if peer is None:
            return False
        await self._turns.until(lambda: peer.established is None or (self._turns.idle and not self._due(peer)))
        return peer.established is not None

    def advertised(self, family: Family, prefix: bytes) -> list[str]:
        """Return the peers to which a prefix of ours is announced, written and acknowledged by their TCP."""
        if not self._turns.idle:
            return []
        return [name for name, peer in self._peers.items() if peer.has_told(family, prefix)]

    async def wait_advertised(self, family: Family, prefix: bytes) -> None:
        """Return once ``advertised`` names a peer."""
        await self._turns.until(lambda: bool(self.advertised(family, prefix)))

    async def changed(self) -> None:
        """Return at the next change of a session, of a table or of what is advertised."""
        await self._turns.changed()

    def _due(self, peer: Peer) -> bool:
        return self.rib.has_outgoing(peer.name) or peer.unacknowledged > 0

    # Connections.

    def _accept(self, sock: socket.socket, remote: Endpoint) -> bool:
        peer = self._by_endpoint.get(remote)
        return self._arrive(sock, remote) if peer is None else peer.accept(sock)

    def _set_password(self, peer: Peer) -> None:
        if peer.settings.password is not None and peer.settings.listen_range is None:
            for listener in self._listeners:
                listener.set_password(peer.endpoint, peer.settings.password)

    # Graceful restart.

    @property
    def deferred(self) -> frozenset[Family]:
        """Families in which nothing is selected yet, after a restart of ours."""
        return frozenset(self._local.restart.deferred)

    def _refused(self, name: str, family: Family, prefix: bytes, own: bytes) -> None:
        peer = self._peers.get(name)
        if peer is not None:  # else it is being forgotten
            peer.refused(family, prefix, own)

    def _begin_restart(self, retained: frozenset[Family], expected: Iterable[str]) -> None:
        restart = self._local.restart
        peers = {peer.name: peer.settings.families for peer in self._peers.values()}
        peers |= {name: made.families for name, made in self._ranges.makers(expected).items()}
        restart.begin(retained, peers)
        if restart.active:
            self.rib.defer(restart.waiting)
            loop = asyncio.get_running_loop()
            self._restart_timers = [
                loop.call_later(restart.settings.deferral, self._deferral_over),
                loop.call_later(restart.settings.absence, restart.absence_over),
            ]

    def _select(self, family: Family) -> None:
        self.rib.select(family)
        fields = {"family": NAMES[family], "missing": ",".join(sorted(self._local.restart.waiting.get(family, ())))}
        log.info("route selection begins after our restart", extra={"fields": fields})
        self._turns.wake()

    def _complete(self, family: Family) -> None:
        self.rib.complete(family)
        self._turns.wake()

    def _deferral_over(self) -> None:
        for family, peers in self._local.restart.expire().items():
            fields = {"family": NAMES[family], "peers": ",".join(sorted(peers))}
            log.warning("End-of-RIB still missing after our restart", extra={"fields": fields})

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
