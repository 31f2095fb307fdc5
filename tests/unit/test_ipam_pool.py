from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import prefix
from config.model import BLOCK_SIZES
from config.prefix import BITS, Family
from ipam import records
from ipam.pool import Pool, overlap, span
from ipam.store import Range


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    family: Family = draw(st.sampled_from((4, 6)))
    size = draw(st.sampled_from(list(BLOCK_SIZES[family])))
    length = draw(st.integers(max(size - 12, 0), size))
    address = draw(st.integers(0, 2 ** BITS[family] - 1))
    return Pool("p", family, prefix.make(family, address, length), size)


@given(pools(), st.data())
def test_blocks_tile_the_pool(pool: Pool, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, pool.count - 1))
    block = ip_network(prefix.text(pool.family, pool.block(index)))
    assert block.prefixlen == pool.block_size
    assert block.subnet_of(ip_network(pool.cidr))  # type: ignore[arg-type]
    first, last = span(pool.family, pool.block(index))
    assert pool.index(first) == pool.index(last) == index
    if index:
        assert span(pool.family, pool.block(index - 1))[1] + 1 == first
    assert pool.count * block.num_addresses == ip_network(pool.cidr).num_addresses


@given(pools())
def test_the_edges_of_a_pool(pool: Pool) -> None:
    first, last = pool.span
    assert (pool.index(first), pool.index(last)) == (0, pool.count - 1)
    assert pool.index(first - 1) is None
    assert pool.index(last + 1) is None
    for outside in (-1, pool.count):
        with pytest.raises(IndexError):
            pool.block(outside)


@given(pools(), st.text(max_size=20))
def test_a_node_starts_somewhere_in_the_pool_and_always_there(pool: Pool, node: str) -> None:
    assert 0 <= pool.start(node) < pool.count
    assert pool.start(node) == pool.start(node)


def test_nodes_spread_over_a_pool() -> None:
    pool = Pool.parse("pods", "10.64.0.0/16", 26)
    assert len({pool.start(f"node{number}") for number in range(200)}) > 150


@given(pools(), st.data())
def test_first_free_is_what_trying_every_block_finds(pool: Pool, data: st.DataObject) -> None:
    low = data.draw(st.integers(0, pool.count))
    high = data.draw(st.integers(low, min(pool.count, low + 200)))
    first, last = pool.span
    edge = st.integers(max(first - 300, 0), min(last + 300, 2 ** BITS[pool.family] - 1))
    ranges = data.draw(st.lists(st.tuples(edge, edge).map(lambda pair: (min(pair), max(pair))), max_size=8))
    taken = sorted(ranges)

    def touched(index: int) -> bool:
        begin, end = span(pool.family, pool.block(index))
        return any(one <= end and other >= begin for one, other in taken)

    expected = next((index for index in range(low, high) if not touched(index)), high)
    assert pool.first_free(low, high, taken) == expected


@given(pools(), pools())
def test_overlap(one: Pool, other: Pool) -> None:
    a, b = ip_network(one.cidr), ip_network(other.cidr)
    assert overlap(one, other) == (a.version == b.version and a.overlaps(b))


def test_pools_that_cannot_be() -> None:
    for cidr, size in (("10.0.0.0/24", 23), ("10.0.0.0/24", 33), ("10.0.0.1/24", 26), ("x", 26)):
        with pytest.raises(ValueError):
            Pool.parse("p", cidr, size)


@given(st.sampled_from((4, 6)), st.data())
def test_block_keys_sort_by_address_and_come_back(family: Family, data: st.DataObject) -> None:
    addresses = st.integers(0, 2 ** BITS[family] - 1)
    lengths = st.sampled_from(list(BLOCK_SIZES[family]))
    wires = [prefix.make(family, data.draw(addresses), data.draw(lengths)) for _ in range(2)]
    keys = [records.block_key(family, wire) for wire in wires]
    assert [records.block_span(key) for key in keys] == [span(family, wire) for wire in wires]
    assert (keys[0] < keys[1]) == (span(family, wires[0]) < span(family, wires[1]))


@settings(max_examples=300)
@given(st.sampled_from((4, 6)), st.data())
def test_the_conditions_of_a_claim_see_every_block_that_overlaps(family: Family, data: st.DataObject) -> None:
    near = st.integers(0, 2**14).map(lambda offset: int(ip_address("10.64.0.0" if family == 4 else "fd00::")) + offset)
    lengths = st.sampled_from(list(BLOCK_SIZES[family]))
    ours, theirs = (prefix.make(family, data.draw(near), data.draw(lengths)) for _ in range(2))
    key = records.block_key(family, theirs)
    seen = any(condition.start <= key < condition.end for condition in records.nothing_overlaps(family, ours))
    assert seen == (prefix.contains(ours, theirs) or prefix.contains(theirs, ours))


def test_keys_as_they_are_documented() -> None:
    family, wire = prefix.parse("10.64.0.0/26")
    assert records.block_key(family, wire) == "/podroute/v1/blocks/4/0a400000-0a40003f"
    family, wire = prefix.parse("fd00:64::/122")
    hexadecimal = "fd000064" + "0" * 24
    assert records.block_key(family, wire) == f"/podroute/v1/blocks/6/{hexadecimal}-{hexadecimal[:-2]}3f"
    assert Range.below("/a/b/") == Range("/a/b/", "/a/b0")
    assert "/a/b/" <= "/a/b/zzz" < "/a/b0"
