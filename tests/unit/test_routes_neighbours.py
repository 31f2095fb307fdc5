"""Which neighbours are silent, by what the kernel says of their entries."""

from __future__ import annotations

import pytest

from routes.messages import (
    NUD_DELAY,
    NUD_FAILED,
    NUD_NOARP,
    NUD_PERMANENT,
    NUD_PROBE,
    NUD_REACHABLE,
    NUD_STALE,
    Neighbour,
)
from routes.neighbours import Neighbours, Place

HERE, THERE = Place(2, bytes([10, 0, 0, 2])), Place(3, bytes([10, 0, 0, 2]))
INCOMPLETE, GONE = 1, 0


def heard(neighbours: Neighbours, *states: int, place: Place = HERE) -> set[Place]:
    for state in states:
        neighbours.hear(Neighbour(*place, state))
    return neighbours.settle()


@pytest.fixture
def silent() -> Neighbours:
    neighbours = Neighbours()
    assert heard(neighbours, NUD_REACHABLE, NUD_PROBE, NUD_FAILED) == {HERE}
    return neighbours


@pytest.mark.parametrize("state", [NUD_REACHABLE, NUD_STALE, NUD_DELAY, NUD_PROBE, NUD_PERMANENT, NUD_NOARP])
def test_a_valid_entry_ends_silence(silent: Neighbours, state: int) -> None:
    assert heard(silent, state, place=THERE) == set()
    assert silent.silent == {HERE}
    assert heard(silent, state) == {HERE}
    assert silent.silent == set()


def test_silence_is_told_once(silent: Neighbours) -> None:
    assert heard(silent, NUD_FAILED) == heard(silent, INCOMPLETE) == heard(silent, NUD_FAILED) == set()
    assert heard(silent, INCOMPLETE, NUD_REACHABLE, NUD_FAILED) == set()
    assert silent.silent == {HERE}


def test_an_entry_that_somebody_deletes_is_said_to_fail_first() -> None:
    neighbours = Neighbours()
    assert heard(neighbours, NUD_REACHABLE, NUD_FAILED, GONE) == set()
    assert neighbours.silent == set()


def test_a_failed_entry_that_the_kernel_collects_ends_no_silence(silent: Neighbours) -> None:
    assert heard(silent, GONE) == set()
    assert silent.silent == {HERE}


def test_a_complete_reading(silent: Neighbours) -> None:
    silent.replace([Neighbour(*THERE, NUD_FAILED)])
    assert silent.settle() == {THERE}  # of the other there is no entry, which says nothing
    silent.replace([Neighbour(*HERE, NUD_STALE), Neighbour(*THERE, NUD_FAILED)])
    assert silent.settle() == {HERE}
    assert silent.silent == {THERE}


def test_a_link_that_goes_takes_silence_along(silent: Neighbours) -> None:
    heard(silent, NUD_FAILED, place=THERE)
    silent.hear(Neighbour(*HERE, NUD_FAILED))
    silent.forget_link(HERE.ifindex)
    assert silent.settle() == set()
    assert silent.silent == {THERE}


def test_what_only_traffic_would_resolve() -> None:
    neighbours = Neighbours()
    assert neighbours.idle(HERE)
    for state, idle in ((NUD_STALE, True), (NUD_REACHABLE, False), (NUD_PERMANENT, False), (NUD_FAILED, False)):
        heard(neighbours, state)
        assert neighbours.idle(HERE) is idle
