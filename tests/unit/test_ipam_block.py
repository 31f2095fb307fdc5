from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from config import prefix
from ipam.block import FreeAddresses
from ipam.holdings import Holdings, Key, Taken
from ipam.pool import Pool
from ipam.records import Block


def test_never_used_addresses_come_first_then_the_longest_released() -> None:
    free = FreeAddresses(3)
    assert [free.take(0, 5) for _ in range(4)] == [0, 1, 2, None]
    free.give_back(1, 10)
    free.give_back(0, 11)
    assert free.take(14, 5) is None
    assert free.oldest() == 10
    assert [free.take(20, 5), free.take(20, 5), free.take(20, 5)] == [1, 0, None]


def test_an_address_that_rests_is_given_only_on_demand() -> None:
    free = FreeAddresses(1)
    assert free.take(0, 5) == 0
    free.give_back(0, 1)
    assert free.take(2, 5) is None
    assert free.take_oldest() == 0
    assert free.take_oldest() is None


def test_what_nobody_got_comes_next() -> None:
    free = FreeAddresses(4)
    first = free.take(0, 5)
    second = free.take(0, 5)
    assert (first, second) == (0, 1)
    free.take(0, 5), free.take(0, 5)
    free.give_back(0, 1)
    free.undo(1)
    assert free.take(1, 5) == 1
    assert free.take(1, 5) is None


def test_certain_addresses() -> None:
    free = FreeAddresses(4, used=[2], released=[(1, 0.0)])
    assert not free.take_exactly(2)
    assert free.take_exactly(0)
    assert free.take_exactly(1)
    assert [free.take(9, 0), free.take(9, 0)] == [3, None]
    assert (free.used, free.free) == (4, 0)


def test_after_a_start_released_addresses_are_not_fresh() -> None:
    free = FreeAddresses(4, used=[0], released=[(2, 1.0), (1, 2.0)])
    assert [free.take(100, 5) for _ in range(4)] == [3, 2, 1, None]


class Addresses(RuleBasedStateMachine):
    """Two blocks of one pool against a plain set of what is in use."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pool = Pool.parse("p", "10.0.0.0/28", 30)
        self.holdings = Holdings()
        self.out: dict[str, Taken] = {}

    @initialize(indexes=st.sets(st.integers(0, 3), min_size=1, max_size=3))
    def own(self, indexes: set[int]) -> None:
        self.size = 4 * len(indexes)
        for index in indexes:
            self.holdings.add(Block(4, self.pool.block(index), "p", "n", "u"))

    def got(self, taken: Taken | None) -> None:
        if taken is not None:
            assert taken.assignment.address not in self.out
            self.out[taken.assignment.address] = taken

    @rule(wait=st.floats(0, 10))
    def wait(self, wait: float) -> None:
        self.now += wait

    @rule()
    def take(self) -> None:
        self.got(self.holdings.take([self.pool], self.now, 5))

    @rule()
    def take_any(self) -> None:
        """Whatever is free can be had: fresh and rested first, then what rests."""
        taken = self.holdings.take([self.pool], self.now, 5) or self.holdings.take_oldest([self.pool])
        assert (taken is None) == (len(self.out) == self.size)
        self.got(taken)

    @rule(number=st.integers(0, 15))
    def take_exactly(self, number: int) -> None:
        first = self.pool.span[0] + number
        key: Key = (4, prefix.make(4, first, 30))
        if key in self.holdings.blocks:
            taken = self.holdings.take_exactly(key, first)
            assert (taken is None) == (str(prefix.address_text(first.to_bytes(4, "big"))) in self.out)
            self.got(taken)

    @rule(data=st.data(), undo=st.booleans())
    def back(self, data: st.DataObject, undo: bool) -> None:
        if self.out:
            taken = self.out.pop(data.draw(st.sampled_from(sorted(self.out))))
            if undo:
                self.holdings.undo(taken)
            else:
                self.holdings.give_back(taken.assignment, self.now)

    @invariant()
    def counts_agree(self) -> None:
        assert sum(held.free.used for held in self.holdings.blocks.values()) == len(self.out)


Addresses.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAddresses = Addresses.TestCase
