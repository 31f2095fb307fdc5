"""The kernel has no memory for an object or a group: it is asked again, a few times at once and then now and then."""

from __future__ import annotations

import errno

import pytest

from routes.differences import FibRoute, rows
from routes.live import KernelRoute
from routes.messages import Resilience
from routes.state import State
from tests.unit.test_routes_nexthops import A, B, moved, prepared, settle, used

KINDS = pytest.mark.parametrize("resilience", [None, Resilience(64, 100, 0)], ids=["plain", "resilient"])


@KINDS
@pytest.mark.parametrize("refused", [2, 4])  # of object and group, both once or both twice
def test_what_is_short_for_a_moment_is_asked_for_again_at_once(resilience: Resilience | None, refused: int) -> None:
    registry, _, kernel = prepared(resilience=resilience)
    one = used(registry, (A,))
    one.wanted = 1
    kernel.scarce = refused
    settle(registry, kernel)
    assert kernel.scarce == 0
    assert kernel.group(one) == {A.address}
    assert kernel.there[one.id].resilience == resilience
    assert (registry.refusal, registry.resilience, registry.refusals()) == ("", resilience, {})


@KINDS
def test_what_stays_short_is_asked_for_with_the_next_refresh(resilience: Resilience | None) -> None:
    registry, _, kernel = prepared(resilience=resilience)
    one = used(registry, (A,))
    one.wanted = 1
    kernel.scarce = 100
    settle(registry, kernel)
    assert 100 - kernel.scarce <= 6  # three times each
    assert (one.absent, one.errno, registry.refusals()) == (True, errno.ENOMEM, {f"errno {errno.ENOMEM}": 1})
    assert (kernel.there, registry.expected()) == ({}, [])
    kernel.scarce = 0
    registry.refresh()
    assert moved(registry, kernel, one) == {A.address}
    assert kernel.there[registry.successor(one).id].resilience == resilience


@KINDS
def test_a_group_that_cannot_change_stays_as_it_is_and_is_asked_again(resilience: Resilience | None) -> None:
    registry, resolver, kernel = prepared(resilience=resilience)
    resolver.lost.add(B.address)
    two = used(registry, (A, B))
    two.wanted = 1
    settle(registry, kernel)
    resolver.lost.clear()
    kernel.scarce = 100
    registry.refresh()
    settle(registry, kernel)
    assert 100 - kernel.scarce <= 9  # the object, the group with it, and without
    assert (two.absent, kernel.group(two), registry.refusals().total()) == (False, {A.address}, 1)
    kernel.scarce = 0
    registry.refresh()
    settle(registry, kernel)
    assert (kernel.group(two), registry.refusals()) == ({A.address, B.address}, {})
    assert sorted(registry.expected()) == sorted(kernel.there)


def test_people_are_told_why_a_route_leads_elsewhere() -> None:
    desired = ("10.0.0.2 dev up0 peer a", "10.0.1.2 dev up1 peer b")
    route = FibRoute(b"", 20, "learned", (), desired, desired, State.INSTALLED, 0, "Cannot allocate memory")
    (row,) = rows([route], [KernelRoute(201, 20, ("10.0.0.2 dev up0",), 1)], 201)
    assert row.state == "altered"
    assert row.why == "leads 10.0.0.2 dev up0; the kernel refuses its next-hop group: Cannot allocate memory"
