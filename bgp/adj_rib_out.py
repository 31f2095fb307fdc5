"""Adj-RIB-Out: what is announced to peers (RFC 4271 section 3.2), once per group of peers that get the same.

A group holds one table and a log of its changes. A member is a cursor into the log, and before that there may be what
the log does not tell (``bgp.telling``): the table as it was when the member joined, or the way here from another group.
Members that stand at the same place are served with the same packed messages. A withdrawal goes out only for what that
peer was told before.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

from bgp import nlri
from bgp.attribute_encoding import ExportKind, exported
from bgp.attributes import NO_ADVERTISE, NO_EXPORT, NO_EXPORT_SUBCONFED
from bgp.interning import Interned
from bgp.messages import BORR, EORR
from bgp.paths import Path, Peer
from bgp.policy import Changes, ExportPolicy, Policy, Source, Verdict
from bgp.table import PLACE, SHARDS, TOP, Table
from bgp.telling import SLICE, Backlog, Change, Difference, Exported, Member, Retelling, Told, Untold, Whole
from bgp.update import Announcement, announcements, encode_end_of_rib, encode_refresh_marker, fits, room, withdrawals
from config.prefix import Family

_KNOWN_PATHS = 4096
"""Paths of which it is remembered what they are exported as, so that not every prefix has it worked out."""

_LOG_LIMIT = 50_000
"""Changes kept for members that lag behind; then they get a backlog of their own."""


class GroupKey(NamedTuple):
    """What decides over the messages of a session, but for its own next hop."""

    family: Family
    policy: Policy
    kind: ExportKind
    limit: int
    """Longest message in octets."""
    next_hop_size: int
    """Octets of the session's own next hop."""
    paths: int = 0
    """How many paths to a prefix are told, with path identifiers (RFC 7911); 0: the best one, without."""


R = TypeVar("R", Path, Exported)

_Content = tuple[bytes, bytes, bytes | None, Peer | None, frozenset[Peer] | None]


class _Plan(NamedTuple):
    """The messages of a stretch of changes, as far as they do not depend on the session."""

    withdrawn: list[bytes]
    announced: list[Announcement]
    peers: set[Peer]
    """Peers that get another plan, because they announced something of it, or get what others do not."""
    rendered: dict[bytes, list[bytes]]
    """Whole messages by the session's own next hop."""


class ExportGroup:
    """The Adj-RIB-Out of one family and kind of session.

    ``source`` tells where a route of our own comes from. Where path identifiers are sent, each prefix has one before it
    in the table, in the log and in all that comes of them (``bgp.add_path_out``).
    """

    def __init__(self, key: GroupKey, source: Callable[[bytes], Source]) -> None:
        self.key = key
        self.table: Table[Exported] = Table()
        self.members: dict[str, Member] = {}
        self.kept_back: Counter[Peer] = Counter()
        """How many routes of the table a peer does not get: those that it announced to us itself."""
        self.deferred = False
        """What there is to tell is not complete yet, whatever the log says: End-of-RIB has to wait."""
        self._source = source
        self._policy = ExportPolicy(key.policy)
        constant = self._policy.constant(key.family, "learned")
        self.own_only = constant is not None and not constant.accepted
        """The export policy passes no learned route."""
        self._log: list[Difference] = []
        self._base = 0
        """Number of the first change in the log."""
        self._unseen: Iterator[tuple[bytes, Path | None]] | None = None
        self._by_path: dict[Path, tuple[Changes, Exported | None]] = {}
        """What became of paths of late."""
        self._by_content: Interned[_Content, Exported] = Interned()
        self._plans: dict[tuple[int, int], _Plan] = {}

    @property
    def end(self) -> int:
        """Number that the next change will have."""
        return self._base + len(self._log)

    @property
    def complete(self) -> bool:
        """The whole Loc-RIB has been through the export policy."""
        return self._unseen is None

    def fill(self, routes: Iterator[tuple[bytes, Path | None]]) -> None:
        """Take in the Loc-RIB, ``(prefix, best path)``, as far as ``work`` is called."""
        self._unseen = routes

    def work(self, budget: int | None) -> int:
        """Put up to ``budget`` prefixes of the Loc-RIB, None: all, through the policy; return how many it were."""
        if self._unseen is None:
            return 0
        stretch = dict(islice(self._unseen, budget))
        self.update(stretch)
        if budget is None or len(stretch) < budget:
            self._unseen = None
            for member in self.members.values():
                self._begin(member)
        return len(stretch)

    def update(self, best: Mapping[bytes, Path | None], others: Iterable[bytes] = ()) -> None:
        """Take in changed best paths, None: no longer any. ``others`` have the same best path, but other paths."""
        constant = self._policy.constant(self.key.family, "learned") is not None
        self._store(best, self._export, constant)

    def _store(
        self, wanted: Mapping[bytes, R | None], export: Callable[[bytes, R], Exported | None], constant: bool
    ) -> None:
        """Bring the table to what ``export`` makes of some routes, and note for the members what changes.

        ``constant``: what it makes of a learned route does not depend on the prefix.
        """
        table, shards, log, complete = self.table, self.table.shards, self._log, self.complete
        last: R | None = None
        known: Exported | None = None
        gained: defaultdict[Peer, int] = defaultdict(int)
        for prefix, route in wanted.items():
            if route is None or (self.own_only and route.peer is not None):
                new = None
            elif route is last:
                new = known
            else:
                new = export(prefix, route)
                if constant and route.peer is not None:
                    last, known = route, new
            at = PLACE[hash(prefix) >> TOP]
            old = shards[at].get(prefix)
            if new is old:
                continue
            if new is None:
                del table.writable(at)[prefix]
            else:
                table.writable(at)[prefix] = new
                if new.peer is not None:
                    gained[new.peer] += 1
            if old is not None and old.peer is not None:
                gained[old.peer] -= 1
            if complete:  # before that, no member has been told anything
                log.append((prefix, old, new))
        self.kept_back.update(gained)

    def join(self, peer: Peer, next_hop: bytes, told: Told | None = None) -> None:
        """Add a peer, which is to be told everything. ``told`` is what it has been told on this session already."""
        member = self.members[peer.name] = Member(peer, next_hop, self.end)
        if told is not None:
            member.queue = told.queue
            member.end_of_rib_due = told.end_of_rib_due
            member.retelling = Retelling(told, peer, next_hop)
            if told.refresh is not None:
                self.refresh(peer.name, enhanced=told.refresh)
        if self.complete:
            self._begin(member)

    def _begin(self, member: Member) -> None:
        """Have a member told the table as it is now."""
        if member.retelling is not None:
            member.retelling.begin(self.table.snapshot())
        else:
            member.tables.append(Whole(self.table.snapshot(), first=True))

    def told(self, name: str) -> Told:
        """Return what a peer has been told on its session so far."""
        member = self.members[name]
        if member.retelling is not None:
            told = member.retelling.interrupt()
            refresh = True if member.refresh_due else told.refresh
            mixed = member.retelling.begun and told.next_hop != member.next_hop
            next_hop = b"" if mixed else told.next_hop
            return told._replace(
                queue=member.queue, end_of_rib_due=member.end_of_rib_due, next_hop=next_hop, refresh=refresh
            )
        held = (Untold(self._log, member.cursor - self._base, len(self._log)).pairs, Backlog(member.backlog).pairs)
        untold = tuple(table for table in member.tables if table.first)
        again = [table.marked for table in member.tables if not table.first]
        refresh = True if member.refresh_due or any(again) else False if again else None
        shards = self.table.snapshot() if self.complete else [{} for _ in range(SHARDS)]
        return Told(shards, held, untold, member.queue, member.end_of_rib_due, member.next_hop, refresh)

    def leave(self, name: str) -> None:
        """Remove a peer."""
        del self.members[name]

    def next_hop(self, name: str) -> bytes:
        """Return our own next hop in what a peer is told."""
        return self.members[name].next_hop

    def refresh(self, name: str, *, enhanced: bool = False) -> None:
        """Announce everything to a peer once more (RFC 2918 section 4), between BoRR and EoRR where ``enhanced``."""
        member = self.members[name]
        if enhanced and member.end_of_rib_due:
            member.refresh_due = True
        elif member.retelling is not None:
            member.retelling.refresh = enhanced or bool(member.retelling.refresh)
        elif self.complete and (not member.tables or member.tables[-1].begun):
            member.gather = self.end
            member.tables.append(Whole(self.table.snapshot(), first=False, marked=enhanced))

    def advertised(self, name: str) -> int:
        """Return how many prefixes, or paths with identifiers, the peer is, or is about to be, told."""
        return len(self.table) - self.kept_back[self.members[name].peer]

    def announces(self, prefix: bytes) -> bool:
        """A prefix is in the table, whoever of the members gets it."""
        return prefix in self.table

    @property
    def prefixes(self) -> Sequence[Mapping[bytes, object]]:
        """The shards of a table whose keys are the prefixes that are announced."""
        return self.table.shards

    def routes_to(self, peer: Peer, prefix: bytes) -> list[tuple[int | None, Exported]]:
        """Return what a member is, or is about to be, told of a prefix: path identifiers and routes."""
        route = self.table.get(prefix)
        return [(None, route)] if route is not None and route.goes_to(peer) else []

    def has_outgoing(self, name: str) -> bool:
        member = self.members[name]
        due = self.complete and (member.retelling is not None or (member.end_of_rib_due and not self.deferred))
        return bool(member.queue or member.tables or member.backlog or member.cursor < self.end or due)

    def outgoing(self, name: str, max_bytes: int) -> list[bytes]:
        """Return framed messages for a peer, as many as start within ``max_bytes``; they count as sent.

        May return less, and nothing at all, while there is more: what it visits in one go is bounded too.
        """
        member = self.members[name]
        taken: list[bytes] = []
        size = visited = 0
        while size < max_bytes:
            if member.queue:
                taken.append(member.queue.popleft())
                size += len(taken[-1])
            elif visited >= SLICE or not (count := self._advance(member)):
                break
            else:
                visited += count
        return taken

    def verdict(self, prefix: bytes, path: Path) -> Verdict:
        """Return what the export policy says about a route."""
        return self._policy.evaluate(self.key.family, prefix, self._source_of(prefix, path), path)

    def withheld(self, path: Path) -> str:
        """Return why a path may not be announced to this kind of session whatever the policy says; empty if it may."""
        if path.peer is None:
            return ""
        scope = path.scope
        if scope & NO_ADVERTISE:
            return "community no-advertise (RFC 1997)"
        if not self.key.kind.ibgp:
            return "community no-export (RFC 1997)" if scope & (NO_EXPORT | NO_EXPORT_SUBCONFED) else ""
        if path.peer.ibgp and not (path.peer.client or self.key.kind.client):
            return "learned from an internal peer (RFC 4271 section 9.2), and neither is a client (RFC 4456)"
        return ""

    def _source_of(self, prefix: bytes, path: Path) -> Source:
        return "learned" if path.peer is not None else self._source(prefix)

    def _export(self, prefix: bytes, path: Path) -> Exported | None:
        if self.withheld(path):
            return None
        source = self._source_of(prefix, path)
        verdict = self._policy.constant(self.key.family, source)
        if verdict is None:
            verdict = self._policy.evaluate(self.key.family, prefix, source, path)
        if not verdict.accepted:
            return None
        known = self._by_path.get(path)
        if known is None or known[0] is not verdict.changes:
            if len(self._by_path) >= _KNOWN_PATHS:
                self._by_path.clear()
            known = self._by_path[path] = verdict.changes, self._encode(path, verdict.changes)
        return known[1]

    def _encode(self, path: Path, changes: Changes) -> Exported | None:
        reflected = path.peer is not None and path.peer.ibgp
        originator = path.peer.identifier if path.peer is not None and reflected else None
        before, after = exported(path.attributes, self.key.kind, changes, originator)
        next_hop = None
        keeps = self.key.kind.ibgp or changes.next_hop_keep
        if keeps and path.hop is not None and not changes.next_hop_self and not path.hop.device:
            next_hop = path.hop.address
            if self.key.family == 4 and len(next_hop) > self.key.next_hop_size:
                next_hop = None  # an IPv6 next hop on a session that has not negotiated RFC 8950
        size = self.key.next_hop_size if next_hop is None else len(next_hop)
        numbered = self.key.paths > 0
        if not fits(self.key.family, size, len(before) + len(after), self.key.limit, numbered=numbered):
            return None  # RFC 8654 section 4: attributes that arrived in a longer message than this session takes
        return self._shared((before, after, next_hop, path.peer, None))

    def _shared(self, content: _Content) -> Exported:
        known = self._by_content.get(content)
        if known is None:
            known = self._by_content[content] = Exported(*content)
        return known

    def _advance(self, member: Member) -> int:
        """Pack the next stretch of what a member has not been told; return its size, 0 where there is nothing."""
        if member.retelling is not None:
            count = self._retell(member, member.retelling) if member.retelling.begun else 0
        elif member.cursor < member.gather:
            count = min(SLICE, member.gather - member.cursor)
            self._absorb(member, member.cursor + count)
        elif member.tables:
            whole = member.tables[0]
            if whole.marked and not whole.begun:
                member.queue.append(encode_refresh_marker(self.key.family, BORR))
            count = whole.sort()
            if not count:
                routes = whole.take()
                others = [(route, some) for route, some in routes if route.goes_to(member.peer)]
                member.queue.extend(self._render(self._pack([], others, set()), member.next_hop))
                if not routes:
                    member.tables.popleft()
                    if whole.marked:
                        member.queue.append(encode_refresh_marker(self.key.family, EORR))
                count = 1 + sum(len(some) for _, some in routes)
        elif member.backlog:
            backlog = member.backlog
            count = min(SLICE, len(backlog))
            stretch = [(prefix, *change) for prefix, change in (backlog.popitem() for _ in range(count))]
            member.queue.extend(self._render(self._plan(stretch, member.peer), member.next_hop))
        elif member.cursor < self.end:
            first = member.cursor
            member.cursor = min(first + SLICE, self.end)
            count = member.cursor - first
            plan = self._plans.get((first, member.cursor))
            if plan is None:
                plan = self._plan(self._stretch(first, member.cursor), None)
                self._plans[first, member.cursor] = plan
            if member.peer in plan.peers:
                plan = self._plan(self._stretch(first, member.cursor), member.peer)
            member.queue.extend(self._render(plan, member.next_hop))
            if len(self._plans) > 8 or len(self._log) > SLICE:
                self._forget()
        elif member.end_of_rib_due and self.complete and not self.deferred:
            member.end_of_rib_due = False
            member.queue.append(encode_end_of_rib(self.key.family))
            if member.refresh_due:
                member.refresh_due = False
                self.refresh(member.peer.name, enhanced=True)
            count = 1
        else:
            count = 0
        return count

    def _retell(self, member: Member, retelling: Retelling) -> int:
        count, differences = retelling.take()
        member.queue.extend(self._render(self._plan(differences, member.peer), member.next_hop))
        if not count:
            member.retelling = None
            if retelling.refresh is not None:
                self.refresh(member.peer.name, enhanced=retelling.refresh)
        return count or 1

    def _stretch(self, first: int, last: int) -> list[Difference]:
        return self._log[first - self._base : last - self._base]

    def _plan(self, stretch: Iterable[Difference], receiver: Peer | None) -> _Plan:
        """Sort a stretch of changes into messages: the last state of each prefix, if it differs from the first.

        ``receiver`` does not get what it announced itself; None stands for all who get nothing that others do not.
        """
        net: dict[bytes, Change] = {}
        peers: set[Peer] = set()
        for prefix, old, new in stretch:
            if old is not None and old.peer is not None:
                peers.add(old.peer)
                if old.only is not None:
                    peers |= old.only
                    old = old if receiver in old.only else None
                elif old.peer is receiver:
                    old = None
            if new is not None and new.peer is not None:
                peers.add(new.peer)
                if new.only is not None:
                    peers |= new.only
                    new = new if receiver in new.only else None
                elif new.peer is receiver:
                    new = None
            known = net.get(prefix)
            net[prefix] = (old, new) if known is None else (known[0], new)
        withdrawn: list[bytes] = []
        routes: dict[Exported, list[bytes]] = {}
        for prefix, (held, wanted) in net.items():
            if wanted is not None:
                routes.setdefault(wanted, []).append(prefix)
            elif held is not None:
                withdrawn.append(prefix)
        return self._pack(withdrawn, routes.items(), peers)

    def _pack(self, withdrawn: list[bytes], routes: Iterable[tuple[Exported, list[bytes]]], peers: set[Peer]) -> _Plan:
        key = self.key
        announced = []
        for route, prefixes in routes:
            size = key.next_hop_size if route.next_hop is None else len(route.next_hop)
            space = room(key.family, size, len(route.before) + len(route.after), key.limit)
            parts = tuple(nlri.chunks(prefixes, space))
            announced.append(Announcement(route.before, route.after, route.next_hop, parts))
        return _Plan(withdrawals(key.family, withdrawn, key.limit), announced, peers, {})

    def _render(self, plan: _Plan, next_hop: bytes) -> list[bytes]:
        messages = plan.rendered.get(next_hop)
        if messages is None:
            messages = list(plan.withdrawn)
            for announcement in plan.announced:
                messages += announcements(self.key.family, announcement, next_hop)
            plan.rendered[next_hop] = messages
        return messages

    @property
    def overlong(self) -> bool:
        """``catch_up`` has something to do."""
        return len(self._log) > _LOG_LIMIT

    def catch_up(self, limit: int) -> int:
        """Shorten a log that is too long: members that lag get a backlog of their own instead.

        Up to ``limit`` changes are taken over by one member or another; returns how many it were.
        """
        if not self.overlong:
            return 0
        done, recent = 0, self.end - _LOG_LIMIT // 2
        for member in self.members.values():
            if member.cursor < recent and done < limit:
                count = min(recent - member.cursor, limit - done)
                self._absorb(member, member.cursor + count)
                done += count
        self._forget()
        return done

    def _absorb(self, member: Member, last: int) -> None:
        """Move what the log holds for a member, up to the change ``last``, into its backlog."""
        backlog = member.backlog
        for prefix, old, new in self._stretch(member.cursor, last):
            held = backlog[prefix][0] if prefix in backlog else old
            if held is None and new is None:
                backlog.pop(prefix, None)
            else:
                backlog[prefix] = held, new
        member.cursor = last

    def _forget(self) -> None:
        """Drop what no member has yet to be told."""
        low = min((m.cursor for m in self.members.values()), default=self.end)
        if low > self._base:
            self._log = self._log[low - self._base :]  # a new list: ``told`` has given the old one away
            self._base = low
            self._plans = {stretch: plan for stretch, plan in self._plans.items() if stretch[0] >= low}
