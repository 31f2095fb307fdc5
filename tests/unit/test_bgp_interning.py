"""Interned values are found again while somebody has them, and forgotten after."""

from __future__ import annotations

from bgp.interning import _FIRST_SWEEP, Interned
from bgp.table import SHARDS


class Value:
    pass


def key(number: int) -> bytes:
    return number.to_bytes(4, "big")


def test_what_is_held_stays_and_all_else_goes() -> None:
    interned: Interned[bytes, Value] = Interned()
    held = {key(number): Value() for number in range(0, 200_000, 100)}
    for number in range(200_000):
        interned[key(number)] = held.get(key(number)) or Value()
    assert all(interned.get(each) is value for each, value in held.items())
    assert len(interned) <= SHARDS * _FIRST_SWEEP + 4 * len(held)


def test_a_value_in_use_only_by_a_container_stays() -> None:
    interned: Interned[bytes, Value] = Interned()
    container = [Value()]
    interned[b"it"] = container[0]
    for number in range(100_000):
        interned[key(number)] = Value()
    assert interned.get(b"it") is container[0]


def test_what_is_released_is_found_no_more() -> None:
    interned: Interned[bytes, Value] = Interned()
    for number in range(1000):
        interned[key(number)] = Value()
    parts = interned.release()
    assert sum(map(len, parts)) == 1000
    assert len(parts) > SHARDS // 2
    assert not len(interned)
    assert interned.get(key(1)) is None
