"""Groups that change, or go, while requests for them are on their way: none is left over, none comes back empty."""

from __future__ import annotations

import pytest

from routes.messages import Resilience
from routes.nexthops import Registry
from routes.target import Target
from tests.unit.test_routes_nexthops import A, B, C, Objects, prepared, settle, used

KINDS = pytest.mark.parametrize("resilience", [None, Resilience(64, 100, 0)], ids=["plain", "resilient"])


def assert_agreed(registry: Registry, kernel: Objects) -> None:
    settle(registry, kernel)
    assert sorted(registry.expected()) == sorted(kernel.there)


def assert_made_anew(registry: Registry, kernel: Objects, target: Target) -> None:
    """The routes went with the group: they move to one of another id, and the old one is gone."""
    assert (target.absent, registry.outdated) == (True, True)
    anew = registry.successor(target)
    anew.refs, target.refs = target.refs, 0
    registry.release([target])
    assert_agreed(registry, kernel)
    assert target.id not in kernel.there
    assert kernel.group(anew) == {A.address, B.address}


@KINDS
def test_the_last_member_of_a_group_goes_whose_change_is_refused(resilience: Resilience | None) -> None:
    registry, resolver, kernel = prepared(resilience=resilience)
    used(registry, (A, B)).refs = 2
    settle(registry, kernel)
    registry.peer_lost("a")  # what is left of it keeps B's object
    two = used(registry, (B, C))
    registry.realize({})
    resolver.lost.add(B.address)
    registry.refresh()
    operations = registry.take()  # its creation with B and C, and what is refused until that is answered: C alone
    registry.peer_lost("c")
    assert two.absent
    registry.completed(operations, kernel.run(operations))
    assert_agreed(registry, kernel)
    assert two.id not in kernel.there


@KINDS
def test_somebody_deletes_a_group_that_is_about_to_change(resilience: Resilience | None) -> None:
    registry, resolver, kernel = prepared(resilience=resilience)
    resolver.lost.add(B.address)
    two = used(registry, (A, B))
    settle(registry, kernel)
    kernel.delete(two.id)
    resolver.lost.clear()
    registry.refresh()
    settle(registry, kernel)
    assert_made_anew(registry, kernel, two)
    assert not registry.vanished(two.id, "the event, late")
    assert_agreed(registry, kernel)


@KINDS
@pytest.mark.parametrize("told_first", [False, True])
def test_links_take_a_group_that_is_about_to_change(resilience: Resilience | None, *, told_first: bool) -> None:
    registry, _, kernel = prepared(resilience=resilience)
    two = used(registry, (A, B))
    settle(registry, kernel)
    first, second = (member.ifindex for member in two.members.values())
    for identifier in [member.id for member in two.members.values()]:
        kernel.delete(identifier)  # both links lose their carrier, and have it again
    registry.link_lost(first)
    registry.refresh()
    operations = registry.take()
    if told_first:
        registry.link_lost(second)
        registry.refresh()
    registry.completed(operations, kernel.run(operations))
    registry.link_lost(second)
    registry.refresh()
    settle(registry, kernel)
    assert_made_anew(registry, kernel, two)


@KINDS
def test_a_link_goes_before_a_group_is_made(resilience: Resilience | None) -> None:
    registry, _, kernel = prepared(resilience=resilience)
    two = used(registry, (A, B))
    settle(registry, kernel)
    lost = next(member.id for key, member in two.members.items() if key.peer == "b")
    kernel.delete(lost)
    three = used(registry, (A, B, C))
    settle(registry, kernel)
    assert (three.absent, three.ready, registry.doubtful) == (False, False, True)  # what comes from elsewhere waits
    assert registry.vanished(lost, "a comparison")
    registry.compared()
    settle(registry, kernel)
    assert (three.absent, three.ready) == (False, True)
    assert kernel.group(three) == {A.address, C.address}
    assert kernel.there[three.id].resilience == resilience
    registry.refresh()
    assert_agreed(registry, kernel)
    assert kernel.group(three) == {A.address, B.address, C.address}
    three.refs = 0
    registry.release([three])
    assert_agreed(registry, kernel)


@KINDS
def test_somebody_changes_a_group_before_we_know_that_it_is_there(resilience: Resilience | None) -> None:
    registry, _, kernel = prepared(resilience=resilience)
    two = used(registry, (A, B))
    operations = registry.take()
    refused = kernel.run(operations)
    kernel.there[two.id] = changed = kernel.there[two.id]._replace(members=kernel.there[two.id].members[:1])
    assert registry.altered(changed, "its event")
    registry.completed(operations, refused)
    settle(registry, kernel)
    assert kernel.group(two) == {A.address, B.address}
