"""Resilient groups: kept per target, passed on to the next set of next hops, given up where the kernel refuses them."""

from __future__ import annotations

import errno
from collections import Counter

import pytest

from config.nexthop import Gateway
from routes.batch import Batch
from routes.encode import Placement
from routes.heirs import moves
from routes.leftovers import snapshot
from routes.messages import Resilience
from routes.nexthops import Registry
from routes.table import Table
from routes.target import Target
from tests.unit.test_routes_nexthops import A, B, C, Objects, moved, prepared, settle, used

RESILIENT = Resilience(128, 12000, 0)


def inherited(registry: Registry, kernel: Objects, heir: Target, former: Target, count: int) -> None:
    """Let ``count`` prefixes of ``former`` lead to ``heir``: they are desired there, and the kernel is not told yet."""
    heir.refs = count
    registry.realize({heir: Counter({former: count})})
    settle(registry, kernel)


def told(registry: Registry, former: Target, count: int) -> None:
    """The kernel has been told of routes that lead elsewhere now."""
    former.refs -= count
    if not former.refs:
        registry.release([former])


def test_every_group_is_resilient_and_stays_so() -> None:
    registry, resolver, kernel = prepared(resilience=RESILIENT)
    one, two = used(registry, (A,)), used(registry, (A, B))
    assert [one.ready, two.ready] == [False, False]
    settle(registry, kernel)
    assert [kernel.there[target.id].resilience for target in (one, two)] == [RESILIENT, RESILIENT]
    resolver.moved[A.address] = (Gateway(bytes([10, 0, 3, 9]), "up3"),)
    registry.refresh()
    settle(registry, kernel)
    assert kernel.group(two) == {bytes([10, 0, 3, 9]), B.address}
    assert not registry.altered(kernel.there[two.id], "a test")
    other = kernel.there[two.id]._replace(resilience=Resilience(128, 1, 0))
    assert registry.altered(other, "a test")
    settle(registry, kernel)
    assert kernel.there[two.id].resilience == RESILIENT
    kernel.there[two.id] = other._replace(resilience=None)  # deleted, and made as a plain one
    assert registry.altered(kernel.there[two.id], "a test")
    assert moved(registry, kernel, two) == {bytes([10, 0, 3, 9]), B.address}
    assert kernel.there[registry.successor(two).id].resilience == RESILIENT


def test_a_lost_session_is_one_deletion_per_object() -> None:
    registry, _, kernel = prepared(resilience=RESILIENT)
    one, two = used(registry, (A,)), used(registry, (A, B))
    settle(registry, kernel)
    quick, slow = registry.peer_lost("a")
    assert (len(quick), slow) == (1, [])
    kernel.one(quick[0])
    assert (kernel.group(one), kernel.group(two)) == (set(), {B.address})
    assert (one.absent, two.absent) == (True, False)


def test_a_lost_peer_leaves_its_group_to_those_that_stay() -> None:
    registry, _, kernel = prepared(resilience=RESILIENT)
    all_three = used(registry, (A, B, C))
    all_three.refs = 1000
    settle(registry, kernel)
    group = all_three.id
    for request in registry.peer_lost("b")[0]:
        kernel.one(request)
    settle(registry, kernel)
    rest = registry.target((A, C))
    inherited(registry, kernel, rest, all_three, 10)  # the first of many
    assert (rest.id, rest.ready, kernel.group(rest)) == (group, True, {A.address, C.address})
    assert [saved.id for saved in snapshot(registry)] == [group]
    assert (all_three.id, all_three.absent) == (group, False)
    # The peer is back before all have moved: what never moved is its for good reason.
    fresh = registry.target((A, B, C))
    assert fresh is not all_three
    registry.peer_back("b")
    assert registry.successor(all_three) is fresh
    inherited(registry, kernel, fresh, all_three, 5)
    assert fresh.id != group
    assert kernel.group(fresh) == {A.address, B.address, C.address}
    assert kernel.group(rest) == {A.address, C.address}
    told(registry, all_three, 1000)
    settle(registry, kernel)
    assert kernel.group(rest) == {A.address, C.address}
    told(registry, rest, 10)
    settle(registry, kernel)
    assert rest.id not in kernel.there


def test_a_group_goes_where_all_its_prefixes_go() -> None:
    registry, _, kernel = prepared(resilience=RESILIENT)
    two = used(registry, (A, B))
    settle(registry, kernel)
    group = two.id
    three = registry.target((A, B, C))
    inherited(registry, kernel, three, two, 1)
    assert (three.id, kernel.group(three)) == (group, {A.address, B.address, C.address})
    told(registry, two, 1)
    settle(registry, kernel)
    again = registry.target((A, B))
    assert again is not two
    inherited(registry, kernel, again, three, 1)
    assert (again.id, kernel.group(again)) == (group, {A.address, B.address})
    told(registry, three, 1)
    settle(registry, kernel)
    assert len(kernel.there) == 3  # C's object is gone
    told(registry, again, 1)
    settle(registry, kernel)
    assert kernel.there == {}


@pytest.mark.parametrize("count", [1, 2])
def test_a_group_that_others_need_stays(count: int) -> None:
    registry, _, kernel = prepared(resilience=RESILIENT)
    two = used(registry, (A, B))
    two.refs = 3
    settle(registry, kernel)
    three = registry.target((A, B, C))
    inherited(registry, kernel, three, two, count)
    assert three.id != two.id
    assert kernel.group(two) == {A.address, B.address}
    assert registry.target((A, B)) is two


def test_nothing_in_common_is_nothing_to_keep() -> None:
    registry, _, kernel = prepared(resilience=RESILIENT)
    one = used(registry, (A,))
    settle(registry, kernel)
    other = registry.target((B,))
    inherited(registry, kernel, other, one, 1)
    assert other.id != one.id


def test_shades_share_what_becomes_of_the_group() -> None:
    registry, resolver, kernel = prepared(resilience=RESILIENT)
    three = used(registry, (A, B, C))
    three.refs = 100
    settle(registry, kernel)
    for request in registry.peer_lost("b")[0]:
        kernel.one(request)
    rest = registry.target((A, C))
    inherited(registry, kernel, rest, three, 50)
    # Its heir is not named any more, and it still is.
    told(registry, rest, 50)
    settle(registry, kernel)
    assert (kernel.group(three), three.absent) == ({A.address, C.address}, False)
    assert [saved.id for saved in snapshot(registry)] == [three.id]
    # Another one inherits it, and loses everything.
    again = registry.target((A, C))
    inherited(registry, kernel, again, three, 50)
    assert again.id == three.id
    resolver.lost |= {A.address, C.address}
    registry.refresh()
    settle(registry, kernel)
    assert (again.absent, three.absent) == (True, True)
    assert kernel.there == {}
    told(registry, three, 100)
    told(registry, again, 50)
    assert not settle(registry, kernel)


def test_a_group_under_way_answers_to_its_heir() -> None:
    registry, resolver, kernel = prepared(resilience=RESILIENT)
    two = used(registry, (A, B))
    settle(registry, kernel)
    resolver.moved[A.address] = (Gateway(bytes([10, 0, 3, 9]), "up3"),)
    registry.refresh()
    operations = registry.take()
    three = registry.target((A, B, C))
    three.refs = 1
    registry.realize({three: Counter({two: 1})})
    assert three.id == two.id
    kernel.bad.add(C.address)
    registry.completed(operations, kernel.run(operations))
    settle(registry, kernel)
    assert kernel.group(three) == {bytes([10, 0, 3, 9]), B.address}
    assert (three.errno, three.absent) == (errno.ENETUNREACH, False)
    assert not registry.altered(kernel.there[three.id], "a test")


def test_what_an_earlier_run_left_of_another_kind() -> None:
    before, _, kernel = prepared(resilience=RESILIENT)
    left = used(before, (A, B))
    settle(before, kernel)
    members = {key: (member.id, member.ifindex, 1) for key, member in left.members.items()}
    for now in (None, Resilience(64, 12000, 0)):
        registry, _, _ = prepared(resilience=now)
        adopted = registry.adopt((A, B), left.id, dict(members), RESILIENT)
        adopted.refs = 1
        assert (adopted.absent, adopted.current) == (False, False)
        new = registry.target((A, B))
        assert new is registry.successor(adopted) is not adopted
        inherited(registry, kernel, new, adopted, 1)
        assert new.id != left.id
        assert kernel.there[new.id].resilience == now
        told(registry, adopted, 1)
        settle(registry, kernel)
        assert left.id not in kernel.there
        kernel.there[left.id] = kernel.there.pop(new.id)._replace(resilience=RESILIENT)
    timers = Resilience(128, 100, 200)
    registry, _, _ = prepared(resilience=timers)
    adopted = registry.adopt((A, B), left.id, dict(members), RESILIENT)
    assert registry.target((A, B)) is adopted
    settle(registry, kernel)
    assert kernel.there[left.id].resilience == timers
    same, _, _ = prepared(resilience=timers)
    same.adopt((A, B), left.id, dict(members), timers)
    assert not settle(same, kernel)


def test_a_kernel_that_refuses_them(caplog: pytest.LogCaptureFixture) -> None:
    registry, _, kernel = prepared(resilience=RESILIENT)
    kernel.plain_only = True
    targets = [used(registry, key) for key in ((A,), (A, B))]
    settle(registry, kernel)
    assert [target.ready for target in targets] == [True, True]
    assert kernel.group(targets[1]) == {A.address, B.address}
    assert (registry.resilience, registry.refusal) == (None, "errno 22")
    targets.append(used(registry, (A, B, C)))
    settle(registry, kernel)
    assert [kernel.there[target.id].resilience for target in targets] == [None, None, None]
    assert [record.message for record in caplog.records] == ["the kernel refuses resilient next-hop groups"]


def test_a_group_that_is_refused_for_another_reason() -> None:
    registry, _, kernel = prepared(resilience=RESILIENT)
    target = used(registry, (A, B))
    operations = registry.take()
    for operation in operations[:2]:
        kernel.one(operation.request)
    for identifier in list(kernel.there):  # as when a link is lost, of which we have not heard yet
        kernel.delete(identifier)
    refused = dict.fromkeys((2,), (errno.EINVAL, "Invalid nexthop id"))
    registry.completed(operations, refused)
    settle(registry, kernel)
    assert (target.absent, target.ready, registry.doubtful) == (False, False, True)
    registry.compared()
    settle(registry, kernel)
    assert (target.absent, target.errno) == (True, errno.EINVAL)
    assert (registry.resilience, registry.refusal) == (RESILIENT, "")


def test_without_objects_there_are_none() -> None:
    registry, _, _ = prepared(objects=False, resilience=RESILIENT)
    assert (registry.resilience, registry.refusal) == (None, "it knows no next-hop objects")


def test_where_changes_come_from() -> None:
    registry, _, _ = prepared()
    one, two = used(registry, (A,)), used(registry, (B,))
    table = Table(Placement(4, 254, 20, 201), shards=4, on_result=lambda _: None, on_released=lambda _: None)
    prefixes = [bytes([24, 10, 0, number]) for number in range(9)]
    for prefix in prefixes[:8]:
        table.set(prefix, one)
    batch = Batch()
    for target in (one, two):
        target.ready = True
    table.take(batch, 100)
    assert batch.size == 8
    for flight in batch.flights:
        table.settle(flight)
    for prefix in prefixes[:3]:
        table.set(prefix, two)
    table.set(prefixes[3], None)
    table.set(prefixes[8], two)
    assert moves([table], [two]) == {two: Counter({one: 3})}
    assert moves([table], [one]) == {one: Counter()}
