"""The RIBs of a speaker behind one door: UPDATEs in; desired routes and UPDATEs out (RFC 4271 sections 3.2 and 9).

Pure: no I/O and no clock. ``receive`` only notes what a peer says; decisions are made by ``run``, in slices whose size
the caller chooses, so that nothing holds an event loop for long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from weakref import WeakValueDictionary

from bgp.add_path_out import AddPathGroup
from bgp.adj_rib_in import NOTHING, AdjRibIn, Received, RibPeer, SessionFacts
from bgp.adj_rib_out import ExportGroup, GroupKey
from bgp.attribute_encoding import ExportKind, imported, own_attributes
from bgp.decision import Options
from bgp.first_paths import FirstPaths
from bgp.hops import Hop
from bgp.inspection import Counts, Explanation, Inspection
from bgp.loc_rib import Changes, LocRib, best
from bgp.messages import Negotiated
from bgp.own_prefixes import OwnPrefixes
from bgp.paths import Path, Peer
from bgp.peer_rib import PeerRib
from bgp.policy import NO_CHANGES, ImportPolicy, Policy, Source
from bgp.telling import Told
from bgp.walks import LIGHT, Walks
from config.nexthop import NextHopResolver, NextHops
from config.prefix import FAMILIES, Family

OnFib = Callable[[Family, list[tuple[Sequence[bytes], NextHops | None]]], None]
"""Takes prefixes and their next hops, None: no route; learned routes only."""

OnRefused = Callable[[str, Family, bytes, bytes], None]
"""Takes the name of a peer, a prefix that it may not announce, and the one of our own that this is, or is a part of."""

_INTERNED_LIMIT = 65536

_FEW = 64
"""A peer of which no more prefixes wait to be decided does not wait until those of others are."""


class Rib:
    """The Adj-RIBs-In, the Loc-RIB and the Adj-RIBs-Out of one speaker.

    ``router_id`` is four octets. ``resolver`` says which next hops can be reached; ``next_hops_changed`` must be called
    when that changes. ``on_fib`` is called out of ``run``, three times per family and call at most; ``on_refused``
    too, once for each prefix that a peer begins to announce though it is ours.
    """

    def __init__(
        self,
        *,
        local_as: int,
        router_id: bytes,
        resolver: NextHopResolver,
        on_fib: OnFib,
        on_refused: OnRefused = lambda name, family, prefix, own: None,
        max_paths: int = 64,
        cluster_id: bytes | None = None,
        multipath_relax: bool = True,
        always_compare_med: bool = False,
    ) -> None:
        options = Options(max_paths, multipath_relax, always_compare_med)
        self.local_as = local_as
        self.router_id = router_id
        self.cluster_id = cluster_id or router_id
        self.loc: dict[Family, LocRib] = {f: LocRib(f, options, self._intern) for f in FAMILIES}
        self.own: dict[Family, OwnPrefixes] = {f: OwnPrefixes(f) for f in FAMILIES}
        self.peers: dict[str, PeerRib] = {}
        self._resolver = resolver
        self._on_fib = on_fib
        self._on_refused = on_refused
        self._leaving: list[PeerRib] = []
        self._deferred: set[Family] = set()
        self._catching_up: set[Family] = set()
        """No longer deferred, but what arrived meanwhile is not decided yet."""
        self._incomplete: set[Family] = set()
        """Peers are missing whose routes we may have passed on before."""
        self._turn = 0
        self._room = 0
        """How many prefixes may be taken without a decision before the next ``run``: as many as the last decided over
        at most, as each is a change of the FIB as well."""
        self._hops: WeakValueDictionary[tuple[bytes, str], Hop] = WeakValueDictionary()
        self._interned: dict[NextHops, NextHops] = {}
        self._groups: dict[GroupKey, ExportGroup] = {}
        self._own_path = Path(None, own_attributes(), None, None)
        self._discarded: list[Sized] = []
        """What nobody needs any more, let go of a part at a time: even that takes long at once."""
        self._changes: dict[Family, Changes] = {f: Changes() for f in FAMILIES}
        self._walks = Walks(self.loc, self.own, self.peers, self._leaving, self._changes)
        self.inspection = Inspection(self.loc, self.own, self.peers)

    # Peers and their sessions

    def add_peer(self, settings: RibPeer) -> None:
        """Add a peer; ValueError where the name is taken."""
        if settings.name in self.peers:
            raise ValueError(f"peer {settings.name} exists")
        peer = Peer(settings.name, settings.asn, ibgp=settings.asn == self.local_as, client=settings.reflector_client)
        self.peers[settings.name] = PeerRib(settings, AdjRibIn(peer, settings, self.local_as, self._hop, self._intern))

    def remove_peer(self, name: str) -> None:
        """Forget a peer; what it announced is withdrawn."""
        self.peer_down(name)
        self._leaving.append(self.peers.pop(name))

    def set_asn(self, name: str, asn: int) -> None:
        """A peer without a session is in another AS; what is left of it there is withdrawn."""
        settings = replace(self.peers[name].settings, asn=asn)
        self.remove_peer(name)
        self.add_peer(settings)

    def peer_up(
        self,
        name: str,
        negotiated: Negotiated,
        *,
        peer_address: bytes,
        local_address: bytes,
        device: str,
        next_hops: Mapping[Family, bytes],
        keep: frozenset[Family] = frozenset(),
    ) -> None:
        """Begin a session: judge UPDATEs by what it negotiated, and announce the Loc-RIB.

        Addresses are packed. ``next_hops`` are our own on this session; a negotiated family without one is not
        announced to the peer. Stale paths stay in the families ``keep``, until End-of-RIB or ``drop_stale``.
        """
        rib = self.peers[name]
        if rib.adj_in.up:
            self.peer_down(name, keep)
        for family in FAMILIES:
            if family not in keep:
                rib.adj_in.drop_stale(family)
        peer = rib.adj_in.peer
        peer.identifier, peer.address, peer.device = negotiated.peer.identifier, peer_address, device
        rib.adj_in.start(
            SessionFacts(negotiated, _own_addresses(local_address, next_hops), self.router_id, self.cluster_id)
        )
        for family in sorted(negotiated.families):
            self._join(rib, negotiated, family, next_hops.get(family))

    def local_next_hops(
        self, name: str, negotiated: Negotiated, *, local_address: bytes, next_hops: Mapping[Family, bytes]
    ) -> None:
        """Announce with these next hops of our own from now on, on the established session of a peer.

        A family whose next hop is another one is announced anew as a whole; one that has none any more stays as it
        was last announced.
        """
        rib = self.peers[name]
        rib.adj_in.own_addresses_are(_own_addresses(local_address, next_hops))
        for family in sorted(negotiated.families.intersection(next_hops)):
            group = rib.groups.get(family)
            if group is None or group.next_hop(name) != next_hops[family]:
                told = None if group is None else group.told(name)
                self._leave(rib, family)
                self._join(rib, negotiated, family, next_hops[family], told)

    def peer_down(self, name: str, retain: frozenset[Family] = frozenset()) -> None:
        """End a session, if there is one: all paths of the peer go, but for the families ``retain``: they are stale."""
        rib = self.peers[name]
        for family in FAMILIES:
            self._leave(rib, family)
        self._discarded += rib.adj_in.stop(retain)
        self._discarded += rib.imported.release()
        for family in FAMILIES:
            self._discarded += self.loc[family].forget_decisions()  # most have lost a path
        for family, refused in rib.refused.items():
            if family not in retain:
                refused.clear()

    def received(self, name: str, family: Family) -> int:
        """Return how many paths a peer announces: one to a prefix, but for path identifiers."""
        return self.peers[name].adj_in.count(family)

    def told(self, name: str, family: Family) -> int:
        """Return of how many prefixes a peer has said something since the beginning, each as often as it did."""
        return self.peers[name].told(family)

    def stale(self, name: str, family: Family) -> int:
        """Return how many paths of a peer are stale (RFC 4724 section 4.2)."""
        return self.peers[name].adj_in.stale(family)

    def drop_stale(self, name: str) -> int:
        """Withdraw what is stale of a peer, and return how much it is."""
        return sum(self.peers[name].adj_in.drop_stale(family) for family in FAMILIES)

    def defer(self, families: Iterable[Family]) -> None:
        """Take in what peers announce, but select nothing of it until ``select`` (RFC 4724 section 4.1).

        Routes of our own are announced all the same. To those who get learned routes too, End-of-RIB waits until
        ``complete``.
        """
        self._deferred.update(families)
        self._incomplete.update(families)
        for group in self._groups.values():
            group.deferred = self._withholds(group)

    def select(self, family: Family) -> None:
        """Begin to select in a family."""
        self._deferred.discard(family)
        self._catching_up.add(family)

    def complete(self, family: Family) -> None:
        """No peer is waited for any more in a family."""
        self._incomplete.discard(family)
        self._catching_up.add(family)

    def set_policies(self, name: str, import_policy: Policy, export_policy: Policy) -> None:
        """Have other policies hold for a peer from now on; its session goes on (no route is asked for again)."""
        rib = self.peers[name]
        old = rib.settings
        rib.settings = replace(old, import_policy=import_policy, export_policy=export_policy)
        if import_policy != old.import_policy:
            rib.policy = ImportPolicy(import_policy)
            for family in FAMILIES:
                self._walks.policy_changed(rib, family)
        negotiated = rib.adj_in.negotiated
        if export_policy != old.export_policy and negotiated is not None:
            for family, group in list(rib.groups.items()):
                next_hop, told = group.next_hop(name), group.told(name)
                self._leave(rib, family)
                self._join(rib, negotiated, family, next_hop, told)

    def receive(self, name: str, body: bytes) -> Received:
        """Take in the body of an UPDATE from an established session.

        Raises BgpError 3/x where the session is to be reset (RFC 4271 section 6.3 as revised by RFC 7606).
        """
        told: list[Received] = []
        self.receive_all(name, (body,), told.append)
        return told[0] if told else NOTHING

    def receive_all(
        self, name: str, bodies: Iterable[bytes], tell: Callable[[Received], object], *, little: bool = False
    ) -> None:
        """Do ``receive`` for many bodies; ``tell`` is called at once where there is something to tell of one.

        ``little``: it is for ``run``, which has it pass what others say.
        """
        rib = self.peers[name]
        families = () if little else FAMILIES
        first = {family: paths for family in families if (paths := self._first_paths(rib, family)) is not None}
        try:
            rib.adj_in.receive_all(bodies, first, tell)
        finally:
            self._room -= sum(rib.took(paths) for paths in first.values())

    def refresh(self, name: str, family: Family) -> None:
        """Announce a family to a peer once more, because it asked (RFC 2918)."""
        group = self.peers[name].groups.get(family)
        if group is not None:
            negotiated = self.peers[name].adj_in.negotiated
            group.refresh(name, enhanced=negotiated is not None and negotiated.enhanced_refresh)

    def refresh_begins(self, name: str, family: Family) -> None:
        """The peer begins to announce a family once more: what it does not repeat is stale (RFC 7313 section 4)."""
        self.peers[name].adj_in.mark_stale(family)

    def refresh_ends(self, name: str, family: Family) -> int:
        """The peer has announced all there is: withdraw what is stale, and return how much it is."""
        return self.peers[name].adj_in.drop_stale(family)

    def end_of_rib_received(self, name: str) -> set[Family]:
        """Return the families whose End-of-RIB has arrived on the present session."""
        return set(self.peers[name].adj_in.end_of_rib)

    def announces(self, name: str, family: Family, prefix: bytes) -> bool:
        """A prefix is in the Adj-RIB-Out of a peer, be it sent already or due."""
        group = self.peers[name].groups.get(family)
        return group is not None and group.announces(prefix)

    def counts(self, name: str) -> dict[Family, Counts]:
        """Return a peer's counts for every family that has any, or that its session announces."""
        return self.inspection.counts(name)

    def explain(self, family: Family, prefix: bytes) -> Explanation:
        """Return every path to a prefix, what became of each, and what peers are told."""
        return self.inspection.explain(family, prefix)

    # Our own prefixes

    def originate(self, family: Family, prefix: bytes, *, owner: str, source: Source) -> None:
        """Start announcing a prefix. ``owner`` names who wants it; it stays until its last owner retracts it."""
        own = self.own[family]
        guard_changes = own.guard_changes
        own.add(prefix, owner, source)
        changes = self._changes[family]
        self.loc[family].replace(prefix, None, self._own_path, changes)
        changes.best[prefix] = best(self.loc[family].table[prefix])
        if own.guard_changes != guard_changes:
            self._walks.guard_changed(family)

    def retract(self, family: Family, prefix: bytes, owner: str) -> None:
        """Take back what ``originate`` said for this owner."""
        own = self.own[family]
        guard_changes = own.guard_changes
        if own.remove(prefix, owner):
            changes = self._changes[family]
            changes.best[prefix] = best(self.loc[family].table[prefix])  # its source may be another now
        else:
            self.loc[family].replace(prefix, None, None, self._changes[family])
        if own.guard_changes != guard_changes:
            self._walks.guard_changed(family)

    def lend(self, family: Family, prefixes: Iterable[bytes]) -> None:
        """Let peers announce these more specifics of our own prefixes, and no others."""
        own = self.own[family]
        guard_changes = own.guard_changes
        own.lend(prefixes)
        if own.guard_changes != guard_changes:
            self._walks.guard_changed(family)

    # Work

    def next_hops(self) -> list[tuple[bytes, str]]:
        """Return ``(address, device)`` of all next hops that peers have announced paths by."""
        return list(self._hops.keys())

    def next_hops_changed(self, changed: Iterable[tuple[bytes, str]]) -> None:
        """Take note that ``(address, device)`` pairs resolve differently now."""
        affected = set()
        for address, device in changed:
            hop = self._hops.get((address, device))
            if hop is not None:
                resolution = self._resolver.lookup(address, device)
                if resolution != hop.resolution:
                    hop.resolution = resolution
                    affected.add(hop)
        if affected:
            for family in FAMILIES:
                self._discarded += self.loc[family].forget_decisions()
                self._walks.next_hops_changed(family, affected)

    def run(self, budget: int) -> bool:
        """Decide over up to about ``budget`` prefixes; tell whether more are left.

        Changes of the FIB go to ``on_fib``, changed announcements into the Adj-RIBs-Out.
        """
        left = self._room = budget
        self._turn += 1  # who is first changes, so that nobody who always has work keeps the others from theirs
        ribs = [*self.peers.values(), *self._leaving]
        first = self._turn % len(ribs) if ribs else 0
        for family in FAMILIES if self._turn % 2 else FAMILIES[::-1]:
            left -= self._walks.run(family, left)
            left -= self._shorten_logs(family, left)
            ordered = ribs[first:] + ribs[:first] if family not in self._deferred else []
            left -= self._run_few(ordered, family, left // 2)  # many such leave the others their share
            for rib in ordered:
                if left <= 0:
                    break
                left -= self._run_peer(rib, family, left)
            self._walks.settle(family)
            changes = self._changes[family]
            self._changes[family] = Changes()
            for group in self._groups.values():
                if group.key.family == family:
                    if changes.best or changes.others:
                        group.update(changes.best, changes.others)
                    left -= group.work(max(left, 0))
            if changes.fib:
                self._on_fib(family, changes.fib)
        while self._discarded and left > 0:
            left -= len(self._discarded.pop()) // LIGHT
        self._leaving[:] = [rib for rib in self._leaving if rib.busy]
        for family in [f for f in self._catching_up if not any(rib.waiting((f,)) for rib in ribs)]:
            self._catching_up.discard(family)
            for group in self._groups.values():
                if group.key.family == family:
                    group.deferred = self._withholds(group)
        return self.busy

    def run_few(self, budget: int) -> None:
        """Decide over what those announce who announce little; ``run`` does the rest of its work on that later."""
        for family in FAMILIES:
            if family not in self._deferred:
                self._run_few(list(self.peers.values()), family, budget)

    @property
    def waiting(self) -> int:
        """How many prefixes that peers announced or withdrew are to be decided and have not been yet."""
        families = [family for family in FAMILIES if family not in self._deferred]
        return sum(rib.waiting(families) for rib in (*self.peers.values(), *self._leaving))

    @property
    def busy(self) -> bool:
        """``run`` has something to do."""
        return (
            self._walks.busy
            or bool(self._discarded)
            or any(c.best or c.others or c.fib for c in self._changes.values())
            or bool(self._catching_up)
            or self.waiting > 0
            or any(group.overlong or not group.complete for group in self._groups.values())
        )

    def outgoing(self, name: str, max_bytes: int) -> list[bytes]:
        """Return framed messages to write to a peer now, as many as start within ``max_bytes``; they count as sent.

        Withdrawals come before announcements, End-of-RIB after the initial table of its family.
        """
        taken: list[bytes] = []
        left = max_bytes
        for group in self.peers[name].groups.values():
            messages = group.outgoing(name, left)
            taken += messages
            left -= sum(map(len, messages))
            if left <= 0:
                break
        return taken

    def has_outgoing(self, name: str) -> bool:
        """``outgoing`` has something for the peer."""
        return any(group.has_outgoing(name) for group in self.peers[name].groups.values())

    # Inside

    def _join(
        self, rib: PeerRib, negotiated: Negotiated, family: Family, next_hop: bytes | None, told: Told | None = None
    ) -> None:
        """Have a family announced to a peer, which gets the whole of it first."""
        if next_hop is None or (family == 4 and len(next_hop) > 4 and not negotiated.extended(4)):
            return
        peer = rib.adj_in.peer
        kind = ExportKind(self.local_as, peer.ibgp, negotiated.four_octet_as, peer.client, self.cluster_id)
        paths = rib.settings.send_paths if negotiated.sends_paths(family) else 0
        key = GroupKey(family, rib.settings.export_policy, kind, negotiated.send_limit, len(next_hop), paths)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = self._new_group(key)
            group.deferred = self._withholds(group)
            group.fill(self._best_paths(family, list(self.own[family]) if group.own_only else self.loc[family].table))
        group.join(rib.adj_in.peer, next_hop, told)
        rib.groups[family] = group

    def _new_group(self, key: GroupKey) -> ExportGroup:
        if not key.paths:
            return ExportGroup(key, self.own[key.family].source)
        self.loc[key.family].all_paths = True
        return AddPathGroup(key, self.own[key.family].source, self.loc[key.family].ranked)

    def _withholds(self, group: ExportGroup) -> bool:
        """Tell whether End-of-RIB has to wait, as more is to come of what we learn again after our restart."""
        waiting = self._deferred | self._catching_up | self._incomplete
        return group.key.family in waiting and not group.own_only

    def _leave(self, rib: PeerRib, family: Family) -> None:
        group = rib.groups.pop(family, None)
        if group is not None:
            group.leave(rib.settings.name)
            if not group.members:
                del self._groups[group.key]
                self.loc[family].all_paths = any(key.paths and key.family == family for key in self._groups)
                self._discarded += group.table.shards

    def _run_few(self, ribs: Sequence[PeerRib], family: Family, most: int) -> int:
        """Decide over up to about ``most`` prefixes of those who announce little; tell the FIB of these apart."""
        done, changes = 0, self._changes[family]
        few = [rib for rib in ribs if 0 < rib.adj_in.dirty[family].waiting <= _FEW]
        if few and changes.fib:
            self._on_fib(family, changes.fib)
            changes.fib = []
        for rib in few:
            if done < most:
                done += self._run_peer(rib, family, most - done)
        if done and changes.fib:
            self._on_fib(family, changes.fib)
            changes.fib = []
        return done

    def _run_peer(self, rib: PeerRib, family: Family, budget: int) -> int:
        """Work off stale paths and dirty prefixes of one peer; return how many it were."""
        done = rib.adj_in.withdraw_stale(family, budget) // LIGHT
        while done < budget and (prefixes := rib.adj_in.dirty[family].take(budget - done)):
            rib.accepted[family] += self._decide(rib, family, prefixes)
            done += len(prefixes)
        return done

    def _decide(self, rib: PeerRib, family: Family, prefixes: list[bytes]) -> int:
        loc, changes, table = self.loc[family], self._changes[family], rib.adj_in.tables[family]
        peer = rib.adj_in.peer
        gained = 0
        if family in rib.adj_in.numbered:
            for prefix in dict.fromkeys(prefixes):
                gained += loc.replace_all(prefix, peer, self._import_all(rib, family, prefix), changes)
            return gained
        singly = prefixes
        if rib.policy.passes_all(family):
            refused = rib.refused[family]
            singly = self.own[family].touched(prefixes)
            if refused:
                singly += [prefix for prefix in prefixes if prefix in refused]
            others = prefixes
            if singly:
                apart = set(singly)
                others = [prefix for prefix in prefixes if prefix not in apart]
            gained = loc.take(others, peer, table, changes, exported=self._exported(family))
        for prefix in singly:
            path = self._import(rib, family, prefix, table.get(prefix))
            gained += loc.replace(prefix, peer, path, changes)
        return gained

    def _first_paths(self, rib: PeerRib, family: Family) -> FirstPaths | None:
        if self._room <= 0 or family in self._deferred:
            return None
        loc, changes, exported = self.loc[family], self._changes[family], self._exported(family)
        return rib.first_paths(loc, self.own[family], changes, room=self._room, exported=exported)

    def _exported(self, family: Family) -> bool:
        """Tell whether some peer is told of learned routes."""
        return not all(group.own_only for group in self._groups.values() if group.key.family == family)

    def _import_all(self, rib: PeerRib, family: Family, prefix: bytes) -> tuple[Path, ...]:
        paths = rib.adj_in.paths(family, prefix) or (None,)
        return tuple(p for path in paths if (p := self._import(rib, family, prefix, path)) is not None)

    def _import(self, rib: PeerRib, family: Family, prefix: bytes, path: Path | None) -> Path | None:
        violated = self.own[family].violated(prefix)
        if path is not None and violated is not None:
            refused = rib.refused[family]
            # Our own announcement that comes back, our AS in its path, is no news: some peers send it to everybody
            if not path.fault and not refused.get(prefix):
                self._on_refused(rib.settings.name, family, prefix, violated)
            refused[prefix] = b"" if path.fault else violated
            return None
        rib.refused[family].pop(prefix, None)
        if path is None:
            return None
        accepted, changes, _ = rib.policy.constant(family) or rib.policy.evaluate(family, prefix, path)
        if not accepted:
            return None
        if changes == NO_CHANGES:
            return path
        known = rib.imported.get((path, changes))
        if known is None:
            attributes = imported(path.attributes, changes, rib.settings.asn)
            known = Path(path.peer, attributes, path.hop, path.next_hops, path.fault, path.path_id)
            rib.imported[path, changes] = known
        return known

    def _shorten_logs(self, family: Family, budget: int) -> int:
        done = 0
        for group in self._groups.values():
            if group.key.family == family and done < budget:
                done += -(-group.catch_up((budget - done) * LIGHT) // LIGHT)
        return done

    def _best_paths(self, family: Family, prefixes: Iterable[bytes]) -> Iterator[tuple[bytes, Path | None]]:
        table = self.loc[family].table
        for prefix in prefixes:
            yield prefix, best(table.get(prefix))

    def _hop(self, address: bytes, device: str) -> Hop:
        key = address, device
        hop = self._hops.get(key)
        if hop is None:
            hop = self._hops[key] = Hop(address, device, self._resolver.lookup(address, device))
        return hop

    def _intern(self, next_hops: NextHops) -> NextHops:
        if len(self._interned) >= _INTERNED_LIMIT:
            self._interned.clear()
        return self._interned.setdefault(next_hops, next_hops)


def _own_addresses(local_address: bytes, next_hops: Mapping[Family, bytes]) -> frozenset[bytes]:
    return frozenset((local_address, *(a for n in next_hops.values() for a in (n[:16], n[16:]) if a)))
