"""Sets of next hops and the groups that they lead to, through all that happens to peers, links and objects. No I/O.

Every learned route leads to a group, also where it has one next hop: moving all its routes is then one message,
whatever their number. A group's members are objects keyed by (peer, gateway, device), so that a lost session is one
delete per object: the kernel takes it out of every group and drops the routes of groups that it empties.

Without objects (``objects=False``) a target writes its gateways into each route, and a change means new targets to
which the prefixes move one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from math import lcm

from config.nexthop import NextHopResolver, NextHops
from routes import causes
from routes.encode import delete_nexthop
from routes.groups import NO_OBJECTS, PASSING, Groups, Operation
from routes.heirs import Moves, alike, give_back, let_go, take_over
from routes.interfaces import Interfaces
from routes.messages import Nexthop, Resilience
from routes.target import Kind, Member, MemberKey, Target

_MAX_WEIGHT = 256
_FEW = 2000
"""So many routes go with a next-hop object in about a millisecond."""


class Registry(Groups):
    """Owner of all learned targets: which there are for which next hops, and what becomes of them."""

    def __init__(
        self,
        *,
        resolver: NextHopResolver,
        interfaces: Interfaces,
        ids: range,
        protocol: int,
        objects: bool,
        resilience: Resilience | None = None,
    ) -> None:
        super().__init__(interfaces=interfaces, ids=ids, protocol=protocol, objects=objects, resilience=resilience)
        self.fresh: list[Target] = []
        """Targets that ``realize`` is to give groups."""
        self.outdated = False
        """Some target is not current: prefixes have to move."""
        self._resolver = resolver
        self._targets: dict[NextHops, Target] = {}
        self._orphans: set[Target] = set()
        self._leaving: set[Target] = set()

    def __iter__(self) -> Iterator[Target]:
        yield from self._targets.values()
        yield from self._orphans
        yield from self._leaving

    def set_resilience(self, resilience: Resilience | None) -> None:
        """Have groups be of another kind: routes move to new ones, without a gap. Timers change in place."""
        self.resilience, self.refusal = resilience, ""
        if resilience is not None and not self.objects:
            self._without_resilience(NO_OBJECTS)
        for target in list(self._targets.values()) if self.objects else ():
            if not target.id or target.absent:
                continue
            if not alike(target.resilience, resilience):
                self._outdate(target)
            elif target.resilience != resilience:
                target.resilience = resilience
                self._write_group(target)

    def refusals(self) -> Counter[str]:
        """Return how many groups are not as they are to be for want of something that passes, by the kernel's words."""
        return Counter(target.text for target in self if target.wanted and target.errno in PASSING)

    def target(self, key: NextHops) -> Target:
        """Return the target of a set of next hops; a new one is ``absent`` if none of them resolves."""
        found = self._targets.get(key)
        if found is None:
            found = self._targets[key] = Target(Kind.LEARNED, key=key)
            if self.resilience is None:
                self._realize(found, self._wanted(key))
            else:
                found.ready = False
                self.fresh.append(found)
        return found

    def realize(self, moves: Moves) -> None:
        """Give new targets groups: those that their prefixes come from where they can be taken over, else new ones."""
        fresh, self.fresh = self.fresh, []
        for target in fresh:
            if target.absent or target.members:
                continue
            wanted = self._wanted(target.key)
            for former, count in moves.get(target, Counter[Target]()).most_common():
                if self._passes(former, count, wanted):
                    self._inherit(target, former)
                    break
            if not target.members or wanted != target.weights or target.resilience != self.resilience:
                target.resilience = self.resilience
                self._realize(target, wanted)

    def completed(self, operations: list[Operation], refused: dict[int, tuple[int, str]]) -> None:
        super().completed(operations, refused)
        for target in {one.subject for one in operations if isinstance(one.subject, Target)} if self.objects else ():
            there = self._targets.get(target.key) is target and target.ready and not target.absent
            if there and not alike(target.resilience, self.resilience):  # made before it was known what is wanted
                self._outdate(target)

    def successor(self, target: Target) -> Target:
        """Return where the prefixes of a target that is not current go."""
        while not target.current:
            heir = target.successor or self.target(target.key)
            if target.lost:
                heir.lost |= target.lost
                target.lost = {}
                self._count_repairs(heir)
            target = heir
        return target

    def take(self) -> list[Operation]:
        """Return the requests that have gathered, those for new targets among them, in the order of their sending."""
        self.realize({})
        return super().take()

    def refresh(self) -> bool:
        """Ask the resolver anew for every target, and follow; tell whether traffic leaves a next hop that is lost."""
        changed = [(target, self._wanted(target.key)) for target in self._targets.values()]
        shed = self.objects and self._shed({target: wanted for target, wanted in changed if not target.absent})
        for target, wanted in changed:
            if wanted == target.weights and not target.errno:
                continue
            if target.absent:
                if wanted:
                    self._outdate(target)
            elif not self.objects:
                self._outdate(target)
            elif wanted:
                self._realize(target, wanted)
            else:
                self._vanish(target)
                self._leave(target, list(target.members))
        return shed

    def peer_lost(self, peer: str) -> tuple[list[bytes], list[bytes]]:
        """Take a peer's next hops away and return the deletions, which are also among the gathered requests.

        First those that the kernel is through with in 2 ms, because they only shrink groups or take few routes along,
        then those with which many routes go. The peer's targets stay as they are left, and answer to their key no more:
        what the peer announces next is new.
        """
        self.realize({})
        quick: list[bytes] = []
        slow: list[bytes] = []
        for target in [t for t in self if peer in t.peers]:
            if self._targets.get(target.key) is target:
                del self._targets[target.key]
            if target.current and self.objects:
                self._orphans.add(target)
            else:
                self._replace_without(target, peer)
        if self.objects:
            for member in [m for m in self._members.values() if m.key.peer == peer]:
                last = [target for target in member.users if len(target.members) == 1]
                going = sum(one.refs for target in last for one in (target, *target.shades))
                (quick if going < _FEW else slow).append(delete_nexthop(member.id))
                self._drop(member)
        return quick, slow

    def peer_back(self, peer: str) -> None:
        """The peer has announced all it has: what is still desired through its lost next hops is so for good reason."""
        for target in [t for t in self._orphans if peer in t.peers]:
            target.successor = None
            self._outdate(target)

    def link_lost(self, ifindex: int) -> None:
        """The kernel has deleted, silently, the objects of a device that went down or lost its carrier."""
        for member in [m for m in self._members.values() if m.ifindex == ifindex]:
            self._note_loss(member.users, [member.key], causes.LINK_UP)
            if self.objects:
                self._drop(member)
        if not self.objects:
            for target in list(self._targets.values()):
                if any(member.ifindex == ifindex for member in target.members.values()):
                    self._outdate(target)

    def vanished(self, identifier: int, cause: str) -> bool:
        """An object or group of ours was deleted by somebody; False if it is not one of ours."""
        subject = self._by_id.get(identifier)
        if isinstance(subject, Member):
            self._note_loss(subject.users, [subject.key], cause)
            self._drop(subject)
        elif isinstance(subject, Target):
            self._lost(subject, cause)
        return subject is not None

    def altered(self, nexthop: Nexthop, cause: str) -> bool:
        """Compare an object in the kernel with ours of that id, and claim it back; False if there was no need.

        One that another program has taken over is left to it.
        """
        subject = self._by_id.get(nexthop.id)
        taken_over = nexthop.protocol != self._protocol
        if isinstance(subject, Member):
            key = subject.key
            there = nexthop.gateway, nexthop.ifindex, nexthop.onlink
            if taken_over or there != (key.gateway, subject.ifindex, key.onlink):
                self._note_loss(subject.users, [subject.key], cause)
                self._drop(subject)
                return True
        elif isinstance(subject, Target):  # its creation may have been answered, or be about to be
            if taken_over:
                if not subject.ready:  # the answer will say whose the id is
                    return False
                self._lost(subject, cause)
            elif not alike(nexthop.resilience, subject.resilience):
                self._outdate(subject)
            elif sorted(nexthop.members) == subject.group() and nexthop.resilience == subject.resilience:
                return False
            else:
                self._note_loss([subject], subject.members, cause)
                self._write_group(subject)
            return True
        return False

    def release(self, targets: Iterable[Target]) -> None:
        """Delete the groups and objects of targets that nothing names any more."""
        for target in targets:
            if not target.refs and target.kind is Kind.LEARNED:
                self._end(target)
                self._leaving.discard(target)

    def moved(self) -> None:
        """All prefixes have followed to where they were to move: release the targets that none has come to."""
        self.release([target for target in (*self._orphans, *self._leaving) if not target.refs])

    def retire(self, target: Target) -> None:
        """Delete a group all of whose routes are to be deleted: the kernel drops them with it.

        One that is shared stays: its routes are deleted one by one.
        """
        if target.heir is None and not target.shades:
            self._end(target)
            self._leaving.add(target)

    def _end(self, target: Target) -> None:
        if self._targets.get(target.key) is target:
            del self._targets[target.key]
        self._orphans.discard(target)
        if target.heir is not None:
            let_go(target)
        elif target.shades and not target.absent:
            self._by_id[target.id] = give_back(target)
        self._vanish(target)
        self._leave(target, list(target.members))

    def adopt(
        self,
        key: NextHops,
        identifier: int,
        members: dict[MemberKey, tuple[int, int, int]],
        resilience: Resilience | None = None,
    ) -> Target:
        """Take over what an earlier run left: member key -> (object id, ifindex, weight).

        From a group of another kind than new ones have, prefixes move as they are confirmed.
        """
        target = Target(Kind.LEARNED, key=key)
        target.id, target.resilience = identifier, resilience
        for member_key, (object_id, ifindex, weight) in members.items():
            member = self._members.get(member_key)
            if member is None:
                member = self._members[member_key] = Member(member_key, ifindex, object_id)
                if object_id:
                    self.ids.adopt(object_id)
                    self._by_id[object_id] = member
            member.users.add(target)
            target.members[member_key] = member
            target.weights[member_key] = weight
        target.hops = target.paths()
        if identifier:
            self.ids.adopt(identifier)
            self._by_id[identifier] = target
        if self.objects and not alike(resilience, self.resilience):
            self._outdate(target)
        elif key in self._targets:
            self._orphans.add(target)
        else:
            self._targets[key] = target
            if resilience != self.resilience:  # other timers
                target.resilience = self.resilience
                self._write_group(target)
        return target

    def _passes(self, former: Target, count: int, wanted: dict[MemberKey, int]) -> bool:
        """Tell whether the group of a target, ``count`` of whose prefixes move, can become that of these members."""
        usable = self._by_id.get(former.id) is former and former.ready
        if not usable or not alike(former.resilience, self.resilience):
            return False
        if former.weights == wanted and self._targets.get(former.key) is not former:  # as a lost session left it
            return True
        return count == former.refs and not former.shades and not former.members.keys().isdisjoint(wanted)

    def _inherit(self, heir: Target, former: Target) -> None:
        if self._targets.get(former.key) is former:
            del self._targets[former.key]
            self._leaving.add(former)
        take_over(heir, former)
        self._by_id[heir.id] = heir
        self.changed = True

    def _wanted(self, key: NextHops) -> dict[MemberKey, int]:
        """Return the members that a set of next hops resolves to, with weights.

        Those that do not answer are left out, unless none does: the last way out stays.
        A gateway that several peers announced counts as one: its members share a weight.
        """
        wanted: dict[MemberKey, int] = {}
        found = [(hop, self._resolver.lookup(hop.address, hop.device)) for hop in key]
        answered = any(resolution.answers for _, resolution in found if resolution is not None)
        for hop, resolution in found:
            for gateway in resolution.gateways if resolution is not None and resolution.answers >= answered else ():
                if self._interfaces.named(gateway.device) is not None:
                    wanted[MemberKey(hop.peer, *gateway)] = 1
        announced = Counter((member.gateway, member.device) for member in wanted)
        common = lcm(*announced.values())
        if 1 < common <= _MAX_WEIGHT:
            wanted = {member: common // announced[member.gateway, member.device] for member in wanted}
        return wanted

    def _shed(self, wanted: Mapping[Target, Mapping[MemberKey, int]]) -> bool:
        """Delete objects that groups are to lose: 2 ms, where rewriting the groups takes a notification per route.

        That is with net.ipv4.nexthop_compat_mode=1. Groups that are to keep one, as their last way, get one of their
        own; where more routes lead to those, rewriting is the lesser work after all. False: there was no such object.
        """
        shed = False
        for member in list(self._members.values()):
            losing = [t for t in member.users if t in wanted and member.key not in wanted[t]]
            if not losing or not all(t.members.keys() & wanted[t].keys() for t in losing):
                continue
            keeping = member.users.difference(losing)
            if sum(t.refs for t in keeping) <= sum(t.refs for t in losing):
                fresh = self._divide(member, keeping) if keeping else None
                self._drop(member)
                if fresh is not None:
                    self._members[fresh.key] = fresh
                shed = True
        return shed

    def _divide(self, member: Member, users: set[Target]) -> Member:
        """Give some users of an object another one to the same end."""
        fresh = Member(member.key, member.ifindex, self.ids.take())
        self._create(fresh)
        for target in users:
            member.users.discard(target)
            fresh.users.add(target)
            target.members[fresh.key] = fresh
            self._write_group(target)
        return fresh

    def _lost(self, target: Target, cause: str) -> None:
        super()._lost(target, cause)
        if self._targets.get(target.key) is target:
            self._outdate(target)

    def _outdate(self, target: Target) -> None:
        target.current = False
        self.outdated = True
        if self._targets.get(target.key) is target:
            del self._targets[target.key]
        self._orphans.discard(target)
        self._leaving.add(target)

    def _replace_without(self, target: Target, peer: str) -> None:
        """Let a target's prefixes move, one by one, to what is left of it."""
        rest = Target(Kind.LEARNED, key=target.key)
        self._orphans.add(rest)
        self._realize(rest, {key: weight for key, weight in self._wanted(target.key).items() if key.peer != peer})
        target.successor = rest
        self._outdate(target)
