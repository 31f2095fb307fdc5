"""Sorting by parts gives what sorting gives, and no step of it is large."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bgp.ordering import PART, in_order, prefix_order
from bgp.table import Table
from config.prefix import make


@given(st.lists(st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)), max_size=50))
def test_small_tables(drawn: list[tuple[int, int]]) -> None:
    prefixes = {make(6, address, length) for address, length in drawn}
    assert [p for part in in_order([prefixes]) for p in part] == sorted(prefixes, key=prefix_order)


def test_a_large_table_is_sorted_in_small_steps() -> None:
    """Everything under one first octet, and lengths mixed, the shorter before the longer one at the same address."""
    table: Table[int] = Table()
    for number in range(60_000):
        table[b"\x18" + (0x0A0000 + number).to_bytes(3, "big")] = 1
        table[b"\x17" + (0x0A0000 + (number & ~1)).to_bytes(3, "big")] = 1
    table[b"\x08\x0a"] = table[b"\x00"] = table[b"\x10\x0a\x00"] = 1
    parts = list(in_order(table.shards))
    assert [p for part in parts for p in part] == sorted(table, key=prefix_order)
    assert max(map(len, parts)) <= PART
    assert len(parts) < 4 * len(table) / PART + 600


def test_what_goes_while_it_is_sorted_may_or_may_not_be_there() -> None:
    table: Table[int] = Table()
    for number in range(10_000):
        table[b"\x18" + number.to_bytes(3, "big")] = 1
    parts = in_order(table.shards)
    next(parts)
    for number in range(0, 10_000, 2):
        del table[b"\x18" + number.to_bytes(3, "big")]
    found = [p for part in parts for p in part]
    assert found == sorted(found, key=prefix_order)
    assert set(table) <= set(found)
