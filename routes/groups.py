"""What there is of next-hop objects and groups (Linux >= 5.3), and what is asked of the kernel for them. No I/O.

Without objects a target writes its gateways into each route: requests are empty then, and an object is only a name.
"""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from routes import causes
from routes.encode import delete_nexthop, new_group, new_nexthop
from routes.heirs import alike, owner
from routes.ids import IdPool
from routes.interfaces import Interfaces
from routes.messages import Resilience
from routes.target import Loss, Member, MemberKey, Target

log = logging.getLogger("podroute.routes")

PASSING = (errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EBUSY, errno.EINTR)
"""Refusals that say nothing of what was asked."""
NO_OBJECTS = "it knows no next-hop objects"
_ATTEMPTS = 3
"""So often is the same asked at once, as of a route; then again with the next ``refresh``."""


class Operation(NamedTuple):
    """One request to the kernel. ``subject`` is None for deletions, whose refusal means that it is gone already."""

    request: bytes
    subject: Member | Target | None
    version: int = 0
    group: tuple[tuple[int, int], ...] = ()
    doubt: str = ""
    """With which words the kernel has refused the same as a resilient group."""
    resilience: Resilience | None = None
    """Of a group."""


class Groups:
    """Owner of objects and groups. Requests gather in order and are fetched with ``take``."""

    def __init__(
        self, *, interfaces: Interfaces, ids: range, protocol: int, objects: bool, resilience: Resilience | None
    ) -> None:
        self.objects = objects
        self.resilience = resilience
        """What new groups are to be like; None: plain ones, of which other members spread all flows anew."""
        self.refusal = ""
        """Why groups are plain ones though they were to be resilient."""
        self.changed = False
        """What the state file must know has changed."""
        self.doubtful = False
        """A group was refused, maybe for want of an object: the kernel's are to be compared with ours. Its reader
        clears it."""
        self.repaired: Counter[str] = Counter()
        """Routes that have next hops again, by what had taken these away; its reader takes them out."""
        self.ids = IdPool(ids)
        self._interfaces = interfaces
        self._protocol = protocol
        self._members: dict[MemberKey, Member] = {}
        self._by_id: dict[int, Member | Target] = {}
        self._operations: list[Operation] = []
        self._refused: set[Target] = set()
        """Targets whose groups have been refused once."""
        if resilience is not None and not objects:
            self._without_resilience(NO_OBJECTS)

    def take(self) -> list[Operation]:
        """Return the requests that have gathered, in the order in which they must be sent."""
        operations, self._operations = self._operations, []
        return operations

    def completed(self, operations: list[Operation], refused: dict[int, tuple[int, str]]) -> None:
        """Learn what became of requests: ``refused`` maps the place of an operation to errno and text."""
        for place, operation in enumerate(operations):
            subject = operation.subject
            if subject is None:
                continue
            number, text = refused.get(place, (0, ""))
            if isinstance(subject, Member):
                if not number:
                    subject.attempts = 0
                elif self._members.get(subject.key) is subject:
                    self._member_refused(subject, number, text)
                continue
            subject = owner(subject)
            if subject.absent:
                continue
            if not number:  # also where others have followed it: it is there
                subject.ready = True
                self._refused.discard(subject)
                if not alike(operation.resilience, subject.resilience):
                    subject.resilience = operation.resilience
                if operation.doubt and self.resilience is not None:
                    self._without_resilience(operation.doubt)
            if operation.version == subject.version:
                if not number:
                    subject.attempts = 0
                    self._count_repairs(subject)
                else:
                    self._group_refused(subject, operation, number, text)

    def sizes(self) -> tuple[int, int]:
        """Return how many next-hop objects and how many groups there are; without objects none."""
        if not self.objects:
            return 0, 0
        groups = sum(isinstance(subject, Target) for subject in self._by_id.values())
        return len(self._by_id) - groups, groups

    def known(self, identifier: int) -> bool:
        return identifier in self._by_id

    def expected(self) -> list[int]:
        """Return the ids that the kernel should have now."""
        return [i for i, subject in self._by_id.items() if isinstance(subject, Member) or subject.ready]

    def compared(self) -> None:
        """The kernel's objects have been compared with ours: ask once more for the groups that it refused."""
        for target in [t for t in self._refused if not t.ready]:
            target.errno, target.text = 0, ""
            self._write_or_fail(target)

    def _realize(self, target: Target, wanted: dict[MemberKey, int]) -> None:
        """Give a target these members and tell the kernel."""
        target.errno, target.text, target.attempts = 0, "", 0
        surplus = [target.members.pop(key) for key in list(target.members) if key not in wanted]
        for key in wanted:
            if key not in target.members:
                member = self._member(key)
                member.users.add(target)
                target.members[key] = member
        target.weights.clear()  # the object stays: shades share it
        target.weights.update(wanted)
        if wanted:
            self._write_group(target)
        else:
            self._vanish(target)
        for member in surplus:  # after the group let go of them: it never points to nowhere
            self._part(target, member)

    def _member(self, key: MemberKey) -> Member:
        member = self._members.get(key)
        if member is None:
            link = self._interfaces.named(key.device)
            member = self._members[key] = Member(key, link.ifindex if link is not None else 0, 0)
            if self.objects:
                member.id = self.ids.take()
                self._create(member)
        return member

    def _create(self, member: Member) -> None:
        self._by_id[member.id] = member
        key = member.key
        request = new_nexthop(member.id, self._protocol, key.gateway, member.ifindex, onlink=key.onlink)
        self._request(request, member)

    def _write_group(self, target: Target, doubt: str = "") -> None:
        target.version += 1
        if not self.objects:
            target.ready = False
            target.hops = target.paths()
            self._request(b"", target, target.version)
            return
        if not target.id:
            target.id = self.ids.take()
            target.ready = False
            target.resilience = self.resilience
            self._by_id[target.id] = target
        group = target.group()
        request = new_group(target.id, self._protocol, group, replace=target.ready, resilience=target.resilience)
        self._add(Operation(request, target, target.version, tuple(group), doubt, target.resilience))

    def _request(self, request: bytes, subject: Member | Target | None = None, version: int = 0) -> None:
        self._add(Operation(request, subject, version))

    def _add(self, operation: Operation) -> None:
        self._operations.append(operation)
        self.changed = True

    def _member_refused(self, member: Member, number: int, text: str) -> None:
        users = list(member.users)
        if self._to_be_asked_again(member, number):
            self._create(member)
        elif number == errno.EEXIST:  # another program has that id
            del self._by_id[member.id]
            self.ids.free(member.id)
            self.ids.reserve(member.id)
            member.id = self.ids.take()
            self._create(member)
        else:
            del self._by_id[member.id]
            self.ids.free(member.id)
            del self._members[member.key]
            for target in users:
                del target.members[member.key], target.weights[member.key]
                target.errno, target.text = number, text
        for target in users:
            self._write_or_fail(target)

    @staticmethod
    def _to_be_asked_again(subject: Member | Target, number: int) -> bool:
        """Tell whether what the kernel refused with this errno is worth another try at once."""
        subject.attempts += 1
        if number in PASSING and subject.attempts < _ATTEMPTS:
            return True
        subject.attempts = 0
        return False

    def _group_refused(self, target: Target, operation: Operation, number: int, text: str) -> None:
        if number == errno.EEXIST:
            if not target.ready:  # another program has that id; else an earlier request of ours has made it
                del self._by_id[target.id]
                self.ids.free(target.id)
                self.ids.reserve(target.id)
                target.id = 0
            self._write_group(target)
        elif number == errno.ENOENT and target.ready:
            self._lost(target, causes.GROUP_MISSING)
        elif operation.group != tuple(target.group()):  # a member went while the request was on its way
            self._write_or_fail(target)
        elif self._to_be_asked_again(target, number):
            self._write_group(target, operation.doubt)
        elif target.resilience is not None and not target.ready and number not in PASSING:  # why? A plain one tells
            target.resilience = None
            self._write_group(target, text)
        else:
            target.errno, target.text = target.errno or number, target.text or text
            if target.ready:
                return
            if number == errno.EINVAL and target not in self._refused:
                # A link that has just gone took a member along? Routes stay as they are until that is known.
                self._refused.add(target)
                self.doubtful = True
                target.resilience = self.resilience
            else:
                self._vanish(target)
                self._leave(target, list(target.members))

    def _lost(self, target: Target, cause: str) -> None:
        """The kernel has no such group any more, and has dropped its routes."""
        self._note_loss([target], target.members, cause)
        self._vanish(target)
        self._leave(target, list(target.members))

    def _write_or_fail(self, target: Target) -> None:
        if target.members:
            self._write_group(target)
        else:
            self._vanish(target)

    def _drop(self, member: Member) -> None:
        """Forget an object that the kernel has lost or is to lose; the request makes sure."""
        self._request(delete_nexthop(member.id))
        del self._members[member.key]
        del self._by_id[member.id]
        self.ids.free(member.id)
        for target in member.users:
            del target.members[member.key], target.weights[member.key]
            if not target.members:
                self._vanish(target)

    @staticmethod
    def _note_loss(targets: Iterable[Target], keys: Iterable[MemberKey], cause: str) -> None:
        lost = list(keys)
        for target in targets:
            if target.refs:
                target.lost |= dict.fromkeys(lost, Loss(cause, target.refs))

    def _count_repairs(self, target: Target) -> None:
        """Count the routes that have again what they had lost."""
        if target.lost and target.ready:
            for loss in {target.lost.pop(key) for key in target.members if key in target.lost}:
                self.repaired[loss.cause] += loss.routes

    def _leave(self, target: Target, keys: list[MemberKey]) -> None:
        """Take members out of a target, and delete the objects that no other needs."""
        for key in keys:
            target.weights.pop(key, None)
            self._part(target, target.members.pop(key))

    def _part(self, target: Target, member: Member) -> None:
        member.users.discard(target)
        if not member.users:
            if self.objects:
                self._drop(member)
            else:
                del self._members[member.key]

    def _vanish(self, target: Target) -> None:
        """Nothing leads this way any more. A group that should be gone may be there: of what was asked for it, or is
        being asked, the kernel may have refused some."""
        target.absent = True
        target.ready = True
        self._refused.discard(target)
        for shade in target.shades:
            self._vanish(shade)
        if self._by_id.get(target.id) is target:
            self._request(delete_nexthop(target.id))
            del self._by_id[target.id]
            self.ids.free(target.id)
        self.changed = True

    def _without_resilience(self, why: str) -> None:
        self.resilience, self.refusal = None, why
        log.warning("the kernel refuses resilient next-hop groups", extra={"fields": {"reason": why}})
