"""Connection collisions (RFC 4271 section 6.8, RFC 6286 section 2.3)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from bgp.collision import Collision
from bgp.fsm_table import State


@dataclass(frozen=True)
class Connection:
    incoming: bool
    state: State


LOW, HIGH = bytes((9, 255, 255, 255)), bytes((10, 0, 0, 1))
WE_ARE_LOWER = Collision(local=(LOW, 65001), peer=(HIGH, 65002))
WE_ARE_HIGHER = Collision(local=(HIGH, 65001), peer=(LOW, 65002))


@pytest.mark.parametrize("state", [State.OPEN_SENT, State.OPEN_CONFIRM])
def test_the_connection_that_the_higher_identifier_initiated_is_kept(state: State) -> None:
    ours, theirs = Connection(False, State.OPEN_SENT), Connection(True, state)
    assert WE_ARE_LOWER.losers(ours, [theirs]) == [ours]
    assert WE_ARE_HIGHER.losers(ours, [theirs]) == [theirs]
    ours, theirs = Connection(False, state), Connection(True, State.OPEN_SENT)
    assert WE_ARE_LOWER.losers(theirs, [ours]) == [ours]
    assert WE_ARE_HIGHER.losers(theirs, [ours]) == [theirs]


def test_both_ends_decide_alike_whatever_open_comes_first() -> None:
    mine, yours = Connection(False, State.OPEN_SENT), Connection(True, State.OPEN_SENT)
    mine_there, yours_there = Connection(True, State.OPEN_CONFIRM), Connection(False, State.OPEN_SENT)
    assert WE_ARE_LOWER.losers(mine, [yours]) == [mine]
    assert WE_ARE_HIGHER.losers(yours_there, [mine_there]) == [mine_there]


def test_equal_identifiers_are_decided_by_the_as() -> None:
    ours, theirs = Connection(False, State.OPEN_SENT), Connection(True, State.OPEN_CONFIRM)
    assert Collision((HIGH, 65001), (HIGH, 65002)).losers(ours, [theirs]) == [ours]
    assert Collision((HIGH, 65003), (HIGH, 65002)).losers(ours, [theirs]) == [theirs]


def test_identifiers_are_compared_as_unsigned_numbers() -> None:
    assert Collision((bytes((127, 0, 0, 1)), 1), (bytes((192, 0, 2, 1)), 1)).keep_incoming
    assert not Collision((bytes((10, 0, 0, 1)), 1), (bytes((9, 0, 0, 2)), 1)).keep_incoming


@pytest.mark.parametrize("collision", [WE_ARE_LOWER, WE_ARE_HIGHER])
@pytest.mark.parametrize("incoming", [True, False])
@pytest.mark.parametrize("established_incoming", [True, False])
def test_an_established_session_wins(collision: Collision, incoming: bool, established_incoming: bool) -> None:
    new = Connection(incoming, State.OPEN_SENT)
    assert collision.losers(new, [Connection(established_incoming, State.ESTABLISHED)]) == [new]


@pytest.mark.parametrize("state", [State.IDLE, State.CONNECT, State.ACTIVE])
def test_a_connection_without_tcp_does_not_collide(state: State) -> None:
    assert WE_ARE_LOWER.losers(Connection(True, State.OPEN_SENT), [Connection(False, state)]) == []


def test_two_connections_from_one_end_collide_once_both_have_an_open() -> None:
    """As section 6.8 stands: the lower identifier closes the existing one, the higher the new one."""
    old, new = Connection(True, State.OPEN_CONFIRM), Connection(True, State.OPEN_SENT)
    assert WE_ARE_LOWER.losers(new, [old]) == [old]
    assert WE_ARE_HIGHER.losers(new, [old]) == [new]
    assert WE_ARE_HIGHER.losers(new, [Connection(True, State.OPEN_SENT)]) == []
