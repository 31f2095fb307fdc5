"""Which next-hop objects exist for which targets, and what is asked of the kernel when something changes."""

from __future__ import annotations

import errno
import json
import struct
from collections.abc import Iterator
from pathlib import Path

from config.nexthop import Gateway, NextHop, NextHops, Resolution
from config.prefix import Family
from routes.groups import Operation
from routes.heirs import alike
from routes.ids import IdPool
from routes.interfaces import Interfaces
from routes.leftovers import SavedMember, load, save, snapshot
from routes.messages import Link, LinkEvent, Nexthop, Resilience, decode_nexthop
from routes.netlink import RTM_NEWNEXTHOP, messages
from routes.nexthops import Registry
from routes.target import Kind, Target

FIRST_ID = 1000
A, B, C = (NextHop(peer, bytes([10, 0, number, 2])) for number, peer in enumerate("abc"))


class Fixed:
    """Each next hop is its own gateway, on link "up" plus its third octet."""

    def __init__(self) -> None:
        self.lost: set[bytes] = set()
        self.silent: set[bytes] = set()
        self.moved: dict[bytes, tuple[Gateway, ...]] = {}

    def lookup(self, address: bytes, device: str = "") -> Resolution | None:
        if address in self.lost:
            return None
        return Resolution(
            self.moved.get(address, (Gateway(address, f"up{address[2]}"),)), 0, address not in self.silent
        )

    def local(self, session_address: bytes, family: Family) -> bytes | None:
        return None


class Objects:
    """The kernel's next-hop objects, as its answers show them."""

    def __init__(self) -> None:
        self.there: dict[int, Nexthop] = {}
        self.taken: set[int] = set()
        self.bad: set[bytes] = set()
        self.plain_only = False
        self.scarce = 0
        """So many of the next requests for objects find no memory."""

    def run(self, operations: list[Operation]) -> dict[int, tuple[int, str]]:
        refused = {}
        for place, operation in enumerate(operations):
            if operation.request:
                number = self.one(operation.request)
                if number:
                    refused[place] = number, f"errno {number}"
        return refused

    def one(self, request: bytes) -> int:
        (msg,) = messages(request)
        nexthop = decode_nexthop(request, msg)
        replace = bool(msg.flags & 0x100)
        if msg.kind == RTM_NEWNEXTHOP:
            if self.scarce:
                self.scarce -= 1
                return errno.ENOMEM
            if nexthop.gateway in self.bad:
                return errno.ENETUNREACH
            if any(member not in self.there for member, _ in nexthop.members):
                return errno.EINVAL
            if nexthop.resilience is not None and self.plain_only:
                return errno.EINVAL
            if nexthop.id in self.taken or (nexthop.id in self.there and not replace):
                return errno.EEXIST
            if nexthop.id not in self.there and replace:
                return errno.ENOENT
            if replace and not alike(nexthop.resilience, self.there[nexthop.id].resilience):
                return errno.EINVAL
            self.there[nexthop.id] = nexthop
            return 0
        return 0 if self.delete(nexthop.id) else errno.ENOENT

    def delete(self, identifier: int) -> bool:
        if self.there.pop(identifier, None) is None:
            return False
        for group, nexthop in list(self.there.items()):
            if nexthop.members:
                left = tuple(member for member in nexthop.members if member[0] != identifier)
                if left:
                    self.there[group] = nexthop._replace(members=left)
                else:
                    del self.there[group]
        return True

    def group(self, target: Target) -> set[bytes]:
        found = self.there.get(target.id)
        return set() if found is None else {self.there[member].gateway for member, _ in found.members}


def prepared(objects: bool = True, resilience: Resilience | None = None) -> tuple[Registry, Fixed, Objects]:
    interfaces = Interfaces()
    for number in range(4):
        interfaces.apply(LinkEvent(Link(number + 1, f"up{number}", 0x41), False))
    resolver = Fixed()
    registry = Registry(
        resolver=resolver,
        interfaces=interfaces,
        ids=range(FIRST_ID, FIRST_ID + 1000),
        protocol=201,
        objects=objects,
        resilience=resilience,
    )
    return registry, resolver, Objects()


def settle(registry: Registry, kernel: Objects) -> int:
    """Run what was asked until nothing more is, and return how many requests it took."""
    count = 0
    while operations := registry.take():
        count += sum(bool(operation.request) for operation in operations)
        registry.completed(operations, kernel.run(operations))
        assert count < 1000
    return count


def used(registry: Registry, key: NextHops) -> Target:
    target = registry.target(key)
    target.refs += 1
    return target


def moved(registry: Registry, kernel: Objects, target: Target) -> set[bytes]:
    """Move what leads to a target to its successor, and return the gateways of that."""
    successor = registry.successor(target)
    successor.refs += target.refs
    settle(registry, kernel)
    return kernel.group(successor)


def test_objects_are_shared_and_go_with_their_last_user() -> None:
    registry, _, kernel = prepared()
    one, two = used(registry, (A,)), used(registry, (A, B))
    assert [one.ready, two.ready] == [False, False]
    assert registry.target((A, B)) is two
    assert settle(registry, kernel) == 4
    assert [one.ready, two.ready] == [True, True]
    assert kernel.group(two) == {A.address, B.address}
    two.refs = 0
    registry.release([two])
    settle(registry, kernel)
    assert kernel.group(one) == {A.address}
    assert len(kernel.there) == 2
    one.refs = 0
    registry.release([one])
    settle(registry, kernel)
    assert kernel.there == {}
    assert snapshot(registry) == []


def test_losing_a_peer_is_one_deletion_per_object() -> None:
    registry, _, kernel = prepared()
    targets = [used(registry, key) for key in ((A,), (A, B), (B,), (A, B, C))]
    settle(registry, kernel)
    requests, slow = registry.peer_lost("a")
    assert len(requests) == 1
    assert slow == []  # nothing that takes many routes along
    for request in requests:
        kernel.one(request)
    assert [kernel.group(target) for target in targets] == [
        set(),
        {B.address},
        {B.address},
        {B.address, C.address},
    ]
    assert [target.absent for target in targets] == [True, False, False, False]
    settle(registry, kernel)  # the same again, in order with all else: harmless
    fresh = used(registry, (A, B))
    assert fresh is not targets[1]
    settle(registry, kernel)
    assert kernel.group(fresh) == {A.address, B.address}
    registry.peer_back("a")
    assert registry.successor(targets[1]) is fresh
    assert registry.outdated


def test_a_resolution_that_changes_moves_the_group_only() -> None:
    registry, resolver, kernel = prepared()
    target = used(registry, (A, B))
    settle(registry, kernel)
    resolver.moved[A.address] = (Gateway(bytes([10, 0, 3, 9]), "up3"),)
    registry.refresh()
    settle(registry, kernel)
    assert kernel.group(target) == {bytes([10, 0, 3, 9]), B.address}
    assert len(kernel.there) == 3
    resolver.lost |= {A.address, B.address}
    registry.refresh()
    settle(registry, kernel)
    assert (target.absent, target.current) == (True, True)
    assert kernel.there == {}
    resolver.lost.clear()
    registry.refresh()
    assert (target.absent, target.current) == (True, False)
    assert moved(registry, kernel, target) == {bytes([10, 0, 3, 9]), B.address}


def test_what_several_groups_lose_is_one_deletion() -> None:
    registry, resolver, kernel = prepared()
    targets = [used(registry, key) for key in ((A, B), (A, C), (A, B, C))]
    settle(registry, kernel)
    resolver.lost.add(A.address)
    assert registry.refresh()
    assert settle(registry, kernel) == 1
    assert [kernel.group(t) for t in targets] == [{B.address}, {C.address}, {B.address, C.address}]
    resolver.lost.clear()
    registry.refresh()
    assert settle(registry, kernel) == 4  # the object, and each group with it again
    assert [kernel.group(t) for t in targets] == [
        {A.address, B.address},
        {A.address, C.address},
        {A.address, B.address, C.address},
    ]


def test_a_silent_gateway_leaves_all_groups_but_those_that_have_no_other() -> None:
    registry, resolver, kernel = prepared()
    alone, both, three = (used(registry, key) for key in ((A,), (A, B), (A, B, C)))
    settle(registry, kernel)
    (before,) = kernel.there[alone.id].members
    resolver.silent.add(A.address)
    assert registry.refresh()
    assert settle(registry, kernel) == 3  # an object and a group for the one that keeps it, and the deletion
    assert [kernel.group(t) for t in (alone, both, three)] == [{A.address}, {B.address}, {B.address, C.address}]
    assert before[0] not in kernel.there
    assert not any(target.absent for target in (alone, both, three))
    resolver.silent.add(B.address)
    registry.refresh()
    settle(registry, kernel)
    assert [kernel.group(t) for t in (alone, both, three)] == [{A.address}, {A.address, B.address}, {C.address}]
    resolver.silent.clear()
    registry.refresh()
    settle(registry, kernel)
    assert kernel.group(three) == {A.address, B.address, C.address}
    assert len(kernel.there) == 3 + 3
    assert sorted(registry.expected()) == sorted(kernel.there)


def test_where_more_routes_keep_a_silent_gateway_the_others_are_rewritten() -> None:
    registry, resolver, kernel = prepared()
    alone, both = used(registry, (A,)), used(registry, (A, B))
    alone.refs = 1000
    settle(registry, kernel)
    there = kernel.there[alone.id]
    resolver.silent.add(A.address)
    assert not registry.refresh()
    assert settle(registry, kernel) == 1
    assert kernel.there[alone.id] == there
    assert kernel.group(both) == {B.address}


def test_a_silent_gateway_without_objects() -> None:
    registry, resolver, kernel = prepared(objects=False)
    alone, both = used(registry, (A,)), used(registry, (A, B))
    settle(registry, kernel)
    resolver.silent.add(A.address)
    registry.refresh()
    assert (alone.current, both.current) == (True, False)
    assert [path.gateway for path in registry.successor(both).paths()] == [B.address]


def test_a_gateway_that_comes_into_a_subnet_gets_another_object() -> None:
    registry, resolver, kernel = prepared()
    resolver.moved[A.address] = (Gateway(A.address, "up0", True),)
    target = used(registry, (A, B))
    settle(registry, kernel)
    assert sorted((o.gateway, o.onlink) for o in kernel.there.values() if not o.members) == [
        (A.address, True),
        (B.address, False),
    ]
    assert [path.onlink for path in target.paths()] == [True, False]
    del resolver.moved[A.address]
    registry.refresh()
    settle(registry, kernel)
    assert not any(nexthop.onlink for nexthop in kernel.there.values())
    assert kernel.group(target) == {A.address, B.address}
    (member,) = [nexthop for nexthop in kernel.there.values() if nexthop.gateway == A.address]
    assert not registry.altered(member, "a test")
    assert registry.altered(member._replace(onlink=True), "a test")


def test_a_link_lost_and_back_before_anybody_looked() -> None:
    registry, _, kernel = prepared()
    one, two = used(registry, (A,)), used(registry, (A, B))
    settle(registry, kernel)
    for identifier in [i for i, nexthop in kernel.there.items() if nexthop.ifindex == 1]:
        kernel.delete(identifier)
    registry.link_lost(1)
    registry.refresh()
    settle(registry, kernel)
    assert kernel.group(two) == {A.address, B.address}
    assert two.current
    assert moved(registry, kernel, one) == {A.address}


def test_a_member_that_the_kernel_refuses() -> None:
    registry, _, kernel = prepared()
    kernel.bad.add(A.address)
    one, two = used(registry, (A,)), used(registry, (A, B))
    settle(registry, kernel)
    assert (one.absent, one.errno) == (True, errno.ENETUNREACH)
    assert two.ready
    assert kernel.group(two) == {B.address}
    kernel.bad.clear()
    registry.refresh()
    settle(registry, kernel)
    assert kernel.group(two) == {A.address, B.address}
    assert moved(registry, kernel, one) == {A.address}


def test_ids_that_somebody_takes() -> None:
    registry, _, kernel = prepared()
    kernel.taken = {1000, 1002, 1003}
    target = used(registry, (A, B))
    settle(registry, kernel)
    assert target.ready
    assert kernel.group(target) == {A.address, B.address}
    assert kernel.taken.isdisjoint(kernel.there)


def test_changed_while_requests_are_on_their_way() -> None:
    registry, _, kernel = prepared()
    target = used(registry, (A, B))
    operations = registry.take()
    for request in registry.peer_lost("a")[0]:  # overtakes, and finds nothing to delete
        kernel.one(request)
    registry.completed(operations, kernel.run(operations))
    settle(registry, kernel)
    assert kernel.group(target) == {B.address}
    assert target.ready
    assert len(kernel.there) == 2


def test_objects_that_somebody_deletes_or_alters() -> None:
    registry, _, kernel = prepared()
    target = used(registry, (A, B))
    target.refs = 7
    settle(registry, kernel)
    member = next(i for i, nexthop in kernel.there.items() if nexthop.gateway == A.address)
    kernel.delete(member)
    assert registry.vanished(member, "deleted")
    registry.refresh()
    settle(registry, kernel)
    assert kernel.group(target) == {A.address, B.address}
    group = kernel.there[target.id]
    kernel.there[target.id] = group._replace(members=group.members[:1])
    assert registry.altered(kernel.there[target.id], "changed")
    settle(registry, kernel)
    assert kernel.group(target) == {A.address, B.address}
    assert not registry.altered(kernel.there[target.id], "changed")
    kernel.delete(target.id)
    assert registry.vanished(target.id, "deleted")
    registry.refresh()
    settle(registry, kernel)
    assert moved(registry, kernel, target) == {A.address, B.address}
    assert registry.repaired == {"deleted": 14, "changed": 7}
    assert not registry.vanished(5, "deleted")
    assert not registry.altered(Nexthop(5, 201, b"", 0, ()), "changed")
    assert sorted(registry.expected()) == sorted(kernel.there)


def test_what_is_refused_is_not_repaired() -> None:
    registry, _, kernel = prepared()
    target = used(registry, (A, B))
    settle(registry, kernel)
    member = next(i for i, nexthop in kernel.there.items() if nexthop.gateway == A.address)
    kernel.bad.add(A.address)
    kernel.delete(member)
    assert registry.vanished(member, "deleted")
    for _ in range(2):
        registry.refresh()
        settle(registry, kernel)
        assert kernel.group(target) == {B.address}
        assert not registry.repaired
    kernel.bad.clear()
    registry.refresh()
    settle(registry, kernel)
    assert kernel.group(target) == {A.address, B.address}
    assert registry.repaired == {"deleted": 1}


def test_without_objects_a_change_means_a_new_target() -> None:
    registry, resolver, kernel = prepared(objects=False)
    target = used(registry, (A, B))
    assert [target.ready] == [False]  # until the state file names it
    assert settle(registry, kernel) == 0
    assert [target.ready] == [True]
    assert [path.gateway for path in target.paths()] == [A.address, B.address]
    resolver.lost.add(A.address)
    registry.refresh()
    assert not target.current
    successor = registry.successor(target)
    assert [path.gateway for path in successor.paths()] == [B.address]
    assert not target.absent  # its routes are still there
    successor.refs += 1
    assert registry.peer_lost("b") == ([], [])
    last = registry.successor(successor)
    assert last.absent
    assert registry.successor(target).absent


def test_the_state_file_names_all_that_exists(tmp_path: Path) -> None:
    registry, _, kernel = prepared()
    used(registry, (A, B))
    settle(registry, kernel)
    path = tmp_path / "new" / "fib.json"
    save(path, snapshot(registry))
    (target,) = load(path)
    assert target.key == [("a", "0a000002", ""), ("b", "0a000102", "")]
    assert target.members == [
        SavedMember("a", "0a000002", "up0", 1, 1000),
        SavedMember("b", "0a000102", "up1", 1, 1001),
    ]
    assert target.id == 1002
    saved = json.loads(path.read_text())
    for member in saved["targets"][0][2]:
        assert member.pop() is False
    path.write_text(json.dumps(saved))  # as versions wrote it that knew no flag
    assert load(path) == [target]
    assert [p.name for p in path.parent.iterdir()] == ["fib.json"]


def test_ids_are_not_used_again_soon() -> None:
    pool = IdPool(range(10, 14))
    pool.reserve(11)
    assert [pool.take(), pool.take()] == [10, 12]
    pool.free(10)
    assert [pool.take(), pool.take()] == [13, 10]


def test_group_encoding_matches_the_headers() -> None:
    def parts(data: bytes) -> Iterator[tuple[int, int, int]]:
        yield from struct.iter_unpack("=IBBxx", data)

    registry, _, _ = prepared()
    used(registry, (A, B))
    request = registry.take()[-1].request
    assert list(parts(request[-16:])) == [(1000, 0, 0), (1001, 0, 0)]
    assert Target(Kind.COVER).kind is Kind.COVER
