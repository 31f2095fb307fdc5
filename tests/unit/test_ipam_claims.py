from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from config import prefix
from ipam import claims as claims_module
from ipam import records, search
from ipam.claims import Claims
from ipam.errors import (
    AddressInUseError,
    NameTakenError,
    NewerStateError,
    PoolConflictError,
    StoreError,
    StoreUnavailableError,
)
from ipam.identity import Identity
from ipam.pool import Pool, span
from ipam.records import Block, NodeRecord
from ipam.search import Search
from ipam.store import Delete, Put, Range
from tests.stores import Counting

POOL4 = Pool.parse("pods4", "10.64.0.0/22", 26)
POOL6 = Pool.parse("pods6", "fd00:64::/116", 122)


def identity(number: int, name: str = "") -> Identity:
    return Identity(name or f"n{number}", str(UUID(int=number)))


async def join(store: Counting, number: int, *pools: Pool) -> Claims:
    me = identity(number)
    claims = Claims(store, me)
    await claims.register(NodeRecord(me.name, me.uuid, 65000, "10.0.0.1", {"rack": "r1"}, ("10.0.0.1",), "then"), 0)
    await claims.seed(pools)
    return claims


async def put_block(store: Counting, cidr: str, owner: str = "other") -> None:
    family, wire = prefix.parse(cidr)
    block = Block(family, wire, "foreign", owner, "uuid")
    await store.transact([], [Put(records.block_key(family, wire), records.encode_block(block))])


async def all_blocks(store: Counting) -> list[Block]:
    return [records.decode_block(entry) for entry in (await store.list(records.BLOCKS)).entries]


async def test_a_node_is_written_down_and_may_come_back(store: Counting) -> None:
    await join(store, 1)
    entry = await store.get("/podroute/v1/nodes/n1")
    assert entry is not None
    record = records.decode_node(entry)
    assert record == NodeRecord("n1", identity(1).uuid, 65000, "10.0.0.1", {"rack": "r1"}, ("10.0.0.1",), "then")
    await join(store, 1)


async def test_a_second_node_of_the_same_name_is_refused(store: Counting) -> None:
    await join(store, 1)
    second = Claims(store, identity(2, "n1"))
    with pytest.raises(NameTakenError) as caught:
        await second.register(NodeRecord("n1", identity(2).uuid), 0)
    assert str(caught.value) == (
        f"node name n1 is taken: the store {store.url} has it with UUID {identity(1).uuid} (last started then), this "
        f"node has UUID {identity(2).uuid}; set another node.name, or, if this is that node set up again, put its UUID "
        "back into identity.json in stateDir or give its blocks up (podroute ipam reclaim n1)"
    )


async def test_of_two_that_start_at_once_one_gets_the_name(store: Counting) -> None:
    both = [Claims(store, identity(number, "n")) for number in (1, 2)]
    starts = [one.register(NodeRecord("n", identity(number).uuid), 0) for number, one in enumerate(both, 1)]
    results = await asyncio.gather(*starts, return_exceptions=True)
    assert [type(result) for result in results if result] == [NameTakenError]


async def test_pools_are_seeded_once_and_rule_from_then_on(store: Counting) -> None:
    first = await join(store, 1)
    assert await first.seed([POOL4]) == [POOL4]
    second = await join(store, 2)
    assert await second.seed([POOL6, POOL4]) == [POOL6, POOL4]
    third = await join(store, 3)
    assert await third.seed([]) == [POOL4, POOL6]


@pytest.mark.parametrize(
    ("pool", "definition"),
    [
        (Pool.parse("pods4", "10.64.0.0/22", 27), "10.64.0.0/22 in blocks of /27 for all nodes"),
        (Pool.parse("pods4", "10.65.0.0/22", 26), "10.65.0.0/22 in blocks of /26 for all nodes"),
        (Pool.parse("pods4", "10.64.0.0/22", 26, {"rack": "r1"}), "10.64.0.0/22 in blocks of /26 for rack=r1"),
    ],
)
async def test_a_pool_defined_otherwise_is_refused(store: Counting, pool: Pool, definition: str) -> None:
    await join(store, 1, POOL4)
    with pytest.raises(PoolConflictError) as caught:
        await join(store, 2, pool)
    assert str(caught.value) == (
        f"pool pods4 is {definition} in the configuration of node n2, but 10.64.0.0/22 in blocks of /26 for all nodes "
        f"in the store {store.url} (from node n1): make the configuration the same as the store, or give the pool "
        "another name and other addresses"
    )


async def test_a_pool_that_overlaps_another_of_the_store_is_refused(store: Counting) -> None:
    await join(store, 1, POOL4)
    with pytest.raises(PoolConflictError) as caught:
        await join(store, 2, Pool.parse("mine", "10.64.0.0/16", 26))
    assert str(caught.value) == (
        f"pool mine (10.64.0.0/16) in the configuration of node n2 overlaps pool pods4 (10.64.0.0/22) in the store "
        f"{store.url} (from node n1): use the same name and definition for the same addresses, and other addresses for "
        "another pool"
    )


async def test_of_two_overlapping_pools_seeded_at_once_one_is_refused(store: Counting) -> None:
    nodes = [await join(store, number) for number in (1, 2)]
    mine = [Pool.parse("a", "10.64.0.0/16", 26), Pool.parse("b", "10.64.128.0/17", 26)]
    seeds = [node.seed([pool]) for node, pool in zip(nodes, mine, strict=True)]
    results = await asyncio.gather(*seeds, return_exceptions=True)
    assert sum(isinstance(result, PoolConflictError) for result in results) == 1
    assert len((await store.list(records.POOLS)).entries) == 1


async def test_a_claim_for_both_families_is_one_transaction(store: Counting) -> None:
    node = await join(store, 1, POOL4, POOL6)
    before = (await store.list(records.BLOCKS)).revision
    four, six = await node.claim([[POOL4], [POOL6]])
    assert four is not None
    assert six is not None
    assert (four.prefix, six.prefix) == (POOL4.block(POOL4.start("n1")), POOL6.block(POOL6.start("n1")))
    assert four.generation == six.generation == before + 1
    assert await all_blocks(store) == [four, six]
    assert await node.owned() == [four, six]


async def test_claims_never_overlap_and_use_the_pool_up(store: Counting) -> None:
    nodes = [await join(store, number, POOL4) for number in range(1, 5)]

    async def all_it_gets(node: Claims) -> list[Block]:
        mine: list[Block] = []
        while (block := (await node.claim([[POOL4]]))[0]) is not None:
            mine.append(block)
        return mine

    got = await asyncio.gather(*(all_it_gets(node) for node in nodes))
    prefixes = [block.prefix for blocks in got for block in blocks]
    assert sorted(prefixes) == [POOL4.block(index) for index in range(16)]
    for node, blocks in zip(nodes, got, strict=True):
        assert sorted(block.prefix for block in await node.owned()) == sorted(block.prefix for block in blocks)


async def test_a_full_pool_of_one_family_does_not_hold_up_the_other(store: Counting) -> None:
    node = await join(store, 1, POOL4, POOL6)
    await put_block(store, "10.64.0.0/22")
    four, six = await node.claim([[POOL4], [POOL6]])
    assert four is None
    assert six is not None


async def test_the_next_pool_is_used_when_the_first_is_full(store: Counting) -> None:
    more = Pool.parse("more", "10.65.0.0/26", 26)
    node = await join(store, 1, POOL4, more)
    await put_block(store, "10.64.0.0/22")
    (block,) = await node.claim([[POOL4, more]])
    assert block is not None
    assert (block.pool, block.cidr) == ("more", "10.65.0.0/26")
    assert await node.claim([[POOL4, more]]) == [None]


@pytest.mark.parametrize("taken", ["10.64.0.0/23", "10.64.2.0/23"])
async def test_blocks_of_another_size_are_gone_around(store: Counting, taken: str) -> None:
    """They can be there if a pool was removed and defined anew under live blocks."""
    node = await join(store, 1, POOL4)
    await put_block(store, taken)
    await put_block(store, "10.64.1.64/28" if taken == "10.64.2.0/23" else "10.64.3.16/32")
    got = set()
    while (block := (await node.claim([[POOL4]]))[0]) is not None:
        got.add(block.prefix)
    foreign = [block for block in await all_blocks(store) if block.owner == "other"]
    spans = [span(block.family, block.prefix) for block in foreign]
    free = [POOL4.block(index) for index in range(16) if POOL4.first_free(index, index + 1, spans) == index]
    assert got == set(free)
    assert len(free) == 7


async def test_long_runs_of_taken_blocks_are_read_page_by_page(
    store: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "PAGE", 4)
    small = Pool.parse("small", "10.66.0.0/26", 32)
    node = await join(store, 1, small)
    start = small.start("n1")
    left = (start - 1) % 64
    puts = [Put(records.block_key(4, small.block(n)), records.encode_block(Block(4, small.block(n), "", "o", "u")))
            for n in range(64) if n != left]  # fmt: skip
    await store.transact([], puts)
    (block,) = await node.claim([[small]])
    assert block is not None
    assert block.prefix == small.block(left)
    assert await node.claim([[small]]) == [None]


async def test_a_claim_has_something_else_to_try_where_its_first_choice_is_taken(store: Counting) -> None:
    node = await join(store, 1, POOL4)
    await put_block(store, prefix.text(4, POOL4.block(POOL4.start("n1"))))
    store.trips = 0
    (block,) = await node.claim([[POOL4]])
    assert block is not None
    assert store.trips == 1


@pytest.mark.parametrize("size", [26, 30])  # a pool that one page shows, and a greater one
async def test_two_round_trips_find_a_gap(store: Counting, size: int) -> None:
    pool = Pool.parse("p", "10.64.0.0/20", size)
    node = await join(store, 1, pool)
    blind = Search([pool], {}, "n1").candidates
    for index in blind:
        await put_block(store, prefix.text(4, pool.block(index)))
    store.trips = 0
    (block,) = await node.claim([[pool]])
    assert block is not None
    assert store.trips == 2


async def test_a_crowd_that_meets_in_a_pool_needs_two_round_trips_each(store: Counting) -> None:
    """All at once, until three of four blocks are taken: whatever happens between its two, one of many is free."""
    pool = Pool.parse("p", "10.64.0.0/18", 26)  # 256 blocks
    nodes = [await join(store, number, pool) for number in range(48)]
    store.trips = 0
    found = [block for _ in range(4) for block in await asyncio.gather(*(node.claim([[pool]]) for node in nodes))]
    prefixes = [block.prefix for (block,) in found if block is not None]
    assert len(set(prefixes)) == len(prefixes) == 4 * 48
    assert store.trips <= 2 * len(prefixes)


async def test_a_claim_whose_answer_was_lost_is_found_by_the_next(store: Counting) -> None:
    node = await join(store, 1, POOL4, POOL6)
    store.lost = "answer"
    with pytest.raises(StoreUnavailableError):
        await node.claim([[POOL4], [POOL6]])
    with pytest.raises(StoreUnavailableError):
        await node.claim([[POOL4], [POOL6]])
    store.lost = ""
    claimed = await all_blocks(store)
    assert len(claimed) == 2
    assert await node.claim([[POOL4], [POOL6]]) == claimed
    assert await all_blocks(store) == claimed
    # Only once
    (another,) = await node.claim([[POOL4]])
    assert another is not None
    assert another not in claimed


async def test_a_claim_that_arrives_late_is_refused(store: Counting) -> None:
    """Its answer was lost, and it is carried out when everything about it has been settled."""
    node = await join(store, 1, POOL4)
    store.lost = "question"
    with pytest.raises(StoreUnavailableError):
        await node.claim([[POOL4]])
    store.lost = ""
    (block,) = await node.claim([[POOL4]])
    assert not (await store.late[0]()).committed
    assert await all_blocks(store) == [block]


async def test_a_certain_block(store: Counting) -> None:
    one, other = await join(store, 1, POOL4), await join(store, 2, POOL4)
    block = await one.claim_exactly(POOL4, 3)
    assert block.cidr == "10.64.0.192/26"
    with pytest.raises(AddressInUseError) as caught:
        await other.claim_exactly(POOL4, 3)
    assert str(caught.value) == "block 10.64.0.192/26 of pool pods4 belongs to node n1, not to n2"
    await put_block(store, "10.64.2.0/24", owner="n9")
    with pytest.raises(AddressInUseError, match="belongs to node n9"):
        await other.claim_exactly(POOL4, 9)


async def test_a_certain_block_that_is_ours_already_is_ours(store: Counting) -> None:
    block = await (await join(store, 1, POOL4)).claim_exactly(POOL4, 3)
    again = await join(store, 1, POOL4)
    assert await again.claim_exactly(POOL4, 3) == block


async def test_our_own_record_written_anew_holds_no_claim_up(store: Counting) -> None:
    node = await join(store, 1, POOL4)
    await join_as(store, 1, "n1")
    assert (await node.claim_exactly(POOL4, 3)).cidr == "10.64.0.192/26"
    await join_as(store, 1, "n1")
    assert (await node.claim([[POOL4]]))[0] is not None


async def test_a_block_given_up_and_claimed_again_has_a_greater_generation(store: Counting) -> None:
    one, other = await join(store, 1, POOL4), await join(store, 2, POOL4)
    first = await one.claim_exactly(POOL4, 0)
    await store.transact([], [Delete(records.block_key(4, first.prefix))])
    assert (await other.claim_exactly(POOL4, 0)).generation > first.generation


async def test_a_node_whose_record_is_gone_claims_nothing(store: Counting) -> None:
    node = await join(store, 1, POOL4)
    await store.transact([], [Delete("/podroute/v1/nodes/n1")])
    with pytest.raises(NameTakenError, match="it joins again"):
        await node.claim([[POOL4]])
    await join_as(store, 9, "n1")
    with pytest.raises(NameTakenError, match="node name n1 is taken"):
        await node.claim([[POOL4]])
    assert await all_blocks(store) == []


async def join_as(store: Counting, number: int, name: str) -> None:
    await Claims(store, identity(number, name)).register(NodeRecord(name, identity(number).uuid), 0)


async def test_a_pool_that_changed_under_a_running_agent_is_not_claimed_from(store: Counting) -> None:
    node = await join(store, 1, POOL4)
    changed = records.encode_pool(Pool.parse("pods4", "10.64.0.0/22", 27), "n2")
    await store.transact([], [Put(records.pool_key("pods4"), changed)])
    with pytest.raises(PoolConflictError, match=r"pool pods4 has been changed in .*: the agent is reading it anew"):
        await node.claim([[POOL4]])
    await store.transact([], [Delete(records.pool_key("pods4"))])
    with pytest.raises(PoolConflictError, match="pool pods4 has been removed from"):
        await node.claim_exactly(POOL4, 0)


async def test_many_blocks_are_found_again(store: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "BULK", 3)
    one, other = await join(store, 1, POOL4), await join(store, 2, POOL4)
    for index in range(8):
        await (one if index % 2 else other).claim_exactly(POOL4, index)
    assert [block.prefix for block in await one.owned()] == [POOL4.block(index) for index in (1, 3, 5, 7)]
    assert [block.prefix for block in await other.owned()] == [POOL4.block(index) for index in (0, 2, 4, 6)]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (b'{"schema":4}', NewerStateError, r"was written by a newer podroute \(schema 4, this one knows 3\)"),
        (b"x", StoreError, "is none that podroute wrote: b'x'; remove it from the store"),
        (b'{"schema":1}', StoreError, "is none that podroute wrote"),
        (b"[]", StoreError, "is none that podroute wrote"),
    ],
)
async def test_records_that_cannot_be_understood(
    store: Counting, value: bytes, error: type[Exception], text: str
) -> None:
    for key in ("/podroute/v1/nodes/n1", "/podroute/v1/pools/x"):
        await store.transact([], [Put(key, value)])
        with pytest.raises(error, match=f"record {key} {text}"):
            await join(store, 1, POOL4)
        await store.transact([], [Delete(key)])
    node = await join(store, 1, POOL4)
    key = records.block_key(4, POOL4.block(0))
    await store.transact([], [Put(key, value)])
    assert await node.owned() == []  # somebody else's, of no concern here
    with pytest.raises(error, match=f"record {key} {text}"):
        await node.claim_exactly(POOL4, 0)


async def test_ranges_of_records() -> None:
    assert Range.key(records.node_key("n1")) == Range("/podroute/v1/nodes/n1", "/podroute/v1/nodes/n1\0")
    assert records.pool_key("p") == "/podroute/v1/pools/p"
