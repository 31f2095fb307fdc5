"""The search for a free block, against every state that a pool may be in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from config import prefix
from ipam import records
from ipam.pool import Pool, span
from ipam.search import PAGE, Search
from ipam.store import Entry, Range


def entries(taken: Iterable[bytes], wanted: Range) -> list[Entry]:
    keys = sorted(records.block_key(4, wire) for wire in taken)
    found = [Entry(key, b"", 1, 1) for key in keys if wanted.start <= key < wanted.end]
    return found[: wanted.limit] if wanted.limit else found


def run(search: Search, taken: set[bytes], most: int) -> tuple[Pool, int] | None:
    """Return where a search ends if the store holds these blocks all the time."""
    spans = sorted(span(4, wire) for wire in taken)
    for _ in range(10_000):
        if search.pool is None:
            return None
        tried = search.candidates[:most]
        for index in tried:
            if search.pool.first_free(index, index + 1, spans) == index:
                return search.pool, index
        search.see(len(tried), [entries(taken, wanted) for wanted in search.windows()])
    raise AssertionError("the search does not end")


@st.composite
def pools(draw: st.DrawFn) -> tuple[list[Pool], set[bytes]]:
    """Pools of up to 2,048 blocks, and records in them: runs, single ones, and some of other sizes."""
    found: list[Pool] = []
    taken: set[bytes] = set()
    for number in range(draw(st.integers(1, 2))):
        size = draw(st.integers(24, 32))
        length = draw(st.integers(max(20, size - 11), size))
        reserved = draw(st.lists(st.integers(length, size), max_size=2))
        first = (10 << 24) + (number << 12)
        reservations = [prefix.text(4, prefix.make(4, first, one)) for one in reserved]
        pool = Pool.parse(f"p{number}", prefix.text(4, prefix.make(4, first, length)), size, reservations=reservations)
        found.append(pool)
        low = draw(st.integers(0, pool.count))
        for index in range(low, draw(st.integers(low, pool.count))):
            taken.add(pool.block(index))
        for index in draw(st.lists(st.integers(0, pool.count - 1), max_size=5)):
            taken.add(pool.block(index))
        for other in draw(st.lists(st.integers(length, 32), max_size=3)):
            address = first + draw(st.integers(0, (1 << (32 - length)) - 1))
            taken.add(prefix.make(4, address, other))
    return found, taken


@settings(deadline=None, max_examples=60)
@given(pools(), st.text("abc", min_size=1, max_size=3), st.integers(1, 20), st.data())
def test_it_finds_a_free_block_if_and_only_if_there_is_one(
    drawn: tuple[Sequence[Pool], set[bytes]], node: str, most: int, data: st.DataObject
) -> None:
    some, taken = drawn
    spans = sorted(span(4, wire) for wire in taken)
    starts = {(pool.name, pool.prefix): data.draw(st.integers(0, pool.count - 1)) for pool in some}
    found = run(Search(some, starts, node), taken, most)
    room = [pool for pool in some if pool.first_free(0, pool.count, spans) < pool.count]
    if found is None:
        assert not room
    else:
        assert found[0] == room[0]  # the first of its pools that has one


def test_what_one_page_shows_is_all_there_is() -> None:
    pool = Pool.parse("p", "10.0.0.0/24", 32)
    assert pool.count == PAGE
    search = Search([pool], {}, "n")
    taken = {pool.block(index) for index in range(PAGE - 5)} | {pool.block(index) for index in search.candidates}
    (window,) = search.windows()
    search.see(len(search.candidates), [entries(taken, window)])
    assert search.whole
    assert sorted(search.candidates) == [index for index in range(PAGE) if pool.block(index) not in taken]


def test_nodes_that_see_the_same_try_other_blocks() -> None:
    pool = Pool.parse("p", "10.0.0.0/16", 32)
    first = set()
    for number in range(50):
        search = Search([pool], {("p", pool.prefix): 0}, f"n{number}")
        search.see(2, [entries({pool.block(0)}, wanted) for wanted in search.windows()])
        first.add(search.candidates[0])
    assert len(first) > 40
