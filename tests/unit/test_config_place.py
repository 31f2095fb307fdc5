"""Where tables keep a prefix: places of growing shares, the same in all rooms."""

from __future__ import annotations

from collections import Counter

from bgp.table import Table as Rib
from config.place import PLACE, PLACES, TOP
from config.prefix import LEAD
from routes.encode import Placement
from routes.table import Table

PREFIXES = [bytes((24, 10, second, third)) for second in range(64) for third in (1, 2)]


def test_every_place_has_a_share_and_the_last_has_twice_the_first() -> None:
    shares = Counter(PLACE)
    assert sorted(shares) == list(range(PLACES))
    assert list(PLACE) == sorted(PLACE)
    assert 1.8 < shares[PLACES - 1] / shares[0] < 2.2


def test_what_is_together_in_one_room_is_together_in_the_other() -> None:
    here: Rib[int] = Rib(LEAD[4])
    there = Table(Placement(4, 254, 20, 201), shards=32, on_result=lambda _: None, on_released=lambda _: None)
    for prefix in PREFIXES:
        here[prefix] = 0
    for kept in here.shards:
        assert len({id(there.shard(prefix)) for prefix in kept}) <= 1


def test_neighbours_are_together() -> None:
    assert len({PLACE[hash(bytes((24, 10, 9, third))[: LEAD[4]]) >> TOP] for third in range(256)}) == 1
