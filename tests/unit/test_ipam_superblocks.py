"""Pools that are split by a node label: whose nodes claim where, and what becomes of full and empty super-blocks."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from uuid import UUID

import pytest

from config import prefix
from config.load import check_text
from config.model import Config
from ipam import cluster, records
from ipam.claims import Claims
from ipam.errors import (
    AddressInUseError,
    NewerStateError,
    NoLabelError,
    PoolConflictError,
    PoolExhaustedError,
    PoolInUseError,
)
from ipam.given import Handle
from ipam.identity import Identity
from ipam.pool import Pool, Split
from ipam.records import Block, NodeRecord
from ipam.service import Ipam
from ipam.store import Delete, Put
from tests.stores import Counting

SPLIT = Pool.parse("pods", "10.64.0.0/16", 26, split=Split("rack", 24))
"""Super-blocks of four blocks."""
SMALL = Pool.parse("small", "10.65.0.0/23", 26, split=Split("rack", 24))
"""Two super-blocks."""


async def join(store: Counting, name: str, rack: str, *pools: Pool) -> Claims:
    me = Identity(name, str(UUID(int=int.from_bytes(name.encode(), "big"))))
    claims = Claims(store, me)
    await claims.register(NodeRecord(me.name, me.uuid, labels={"rack": rack} if rack else {}), 0)
    await claims.seed(pools)
    return claims


async def claim(claims: Claims, pool: Pool) -> Block:
    (found,) = await claims.claim([[pool]])
    assert found is not None
    return found


async def supers(store: Counting) -> dict[str, str]:
    return {one.cidr: one.value for one in await cluster.superblocks(store)}


def within(block: Block, length: int = 24) -> str:
    family, wire = block.family, block.prefix
    return prefix.text(family, prefix.make(family, int.from_bytes(wire[1:].ljust(4, b"\0"), "big"), length))


async def test_all_blocks_of_a_rack_lie_in_its_super_blocks_and_no_others(store: Counting) -> None:
    nodes = {f"n{n}": await join(store, f"n{n}", f"r{n % 3}", SPLIT) for n in range(9)}
    claimed: list[tuple[str, Block]] = []
    for _ in range(3):
        found = await asyncio.gather(*(claim(one, SPLIT) for one in nodes.values()))
        claimed += zip(nodes, found, strict=True)
    assert len({block.prefix for _, block in claimed}) == 27
    whose = await supers(store)
    for name, block in claimed:
        assert whose[within(block)] == f"r{int(name[1:]) % 3}"
    # Nine blocks a rack, four in a super-block: a full one got another
    assert Counter(whose.values()) == {"r0": 3, "r1": 3, "r2": 3}


async def test_a_super_block_comes_with_its_first_block_in_one_transaction(store: Counting) -> None:
    n1 = await join(store, "n1", "r1", SPLIT)
    await n1.supers.read(SPLIT)
    store.trips = 0
    first = await claim(n1, SPLIT)
    await claim(n1, SPLIT)
    assert store.trips == 2
    (entry,) = (await store.list(records.SUPERS)).entries
    assert entry.created == first.generation


async def test_two_nodes_of_a_rack_that_begin_at_once_share_a_super_block(store: Counting) -> None:
    n1, n2 = await join(store, "n1", "r1", SPLIT), await join(store, "n2", "r1", SPLIT)
    for claims in (n1, n2):
        await claims.supers.read(SPLIT)
    store.trips = 0
    one, other = await asyncio.gather(claim(n1, SPLIT), claim(n2, SPLIT))
    assert store.trips == 2  # the second has it tried in the first one's super-block, should there be one by then
    assert within(one) == within(other)
    assert len(await supers(store)) == 1


async def test_a_claim_takes_two_round_trips_at_most_also_where_the_rack_needs_another_super_block(
    store: Counting,
) -> None:
    """Whatever the node knew of its rack's super-blocks is out of date by then."""
    views = [Counting(store) for _ in range(6)]
    nodes = [await join(view, f"n{n}", f"r{n % 2}", SPLIT) for n, view in enumerate(views)]
    for node in nodes:
        await node.supers.read(SPLIT)
    trips: list[int] = []
    for _ in range(8):
        for view, node in zip(views, nodes, strict=True):
            view.trips = 0
            await claim(node, SPLIT)
            trips.append(view.trips)
    assert max(trips) == 2
    assert Counter((await supers(store)).values()) == {"r0": 6, "r1": 6}  # 24 blocks each: no more than needed


async def test_a_rack_that_claims_all_at_once_makes_no_super_block_too_many(store: Counting) -> None:
    nodes = [await join(store, f"n{n}", f"r{n % 2}", SPLIT) for n in range(16)]
    found = [one for _ in range(4) for one in await asyncio.gather(*(claim(node, SPLIT) for node in nodes))]
    assert len({one.prefix for one in found}) == 64
    assert Counter((await supers(store)).values()) == {"r0": 8, "r1": 8}


async def test_an_empty_super_block_goes_back_with_its_last_block(store: Counting) -> None:
    n1, n2 = await join(store, "n1", "r1", SPLIT), await join(store, "n2", "r1", SPLIT)
    one, other = await claim(n1, SPLIT), await claim(n2, SPLIT)
    await n1.give_back(one)
    assert list((await supers(store)).values()) == ["r1"]
    await n2.give_back(other)
    assert await supers(store) == {}
    # A node that still remembers it finds out, and makes another
    await claim(n1, SPLIT)
    assert list((await supers(store)).values()) == ["r1"]


async def test_the_last_empty_super_block_of_another_rack_is_taken_over(store: Counting) -> None:
    n1, n2, n3 = [await join(store, f"n{n}", f"r{n}", SMALL) for n in (1, 2, 3)]
    await claim(n1, SMALL)
    lost = await claim(n2, SMALL)
    assert await n3.claim([[SMALL]]) == [None]
    # As a crash between the two steps of giving back leaves it
    await store.transact([], [Delete(records.block_key(4, lost.prefix))])
    taken = await claim(n3, SMALL)
    assert (await supers(store))[within(taken)] == "r3"
    assert await n2.claim([[SMALL]]) == [None]


async def test_a_super_block_is_not_made_around_the_block_of_somebody_else(store: Counting) -> None:
    n1 = await join(store, "n1", "r1", SMALL)
    for cidr in ("10.65.0.0/26", "10.65.1.64/26"):
        family, wire = prefix.parse(cidr)
        stray = Block(family, wire, "small", "other", "uuid")
        await store.transact([], [Put(records.block_key(family, wire), records.encode_block(stray))])
    assert await n1.claim([[SMALL]]) == [None]
    assert await supers(store) == {}
    with pytest.raises(AddressInUseError, match=r"block 10.65.0.128/26 of pool small belongs to node other"):
        await n1.claim_exactly(SMALL, 2)


async def test_a_certain_block_is_claimed_only_in_ones_own_super_blocks(store: Counting) -> None:
    n1, n2 = await join(store, "n1", "r1", SPLIT), await join(store, "n2", "r2", SPLIT)
    made = await n1.claim_exactly(SPLIT, 40)
    assert await supers(store) == {within(made): "r1"}
    assert (await n1.claim_exactly(SPLIT, 41)).cidr == "10.64.10.64/26"
    assert await n1.claim_exactly(SPLIT, 41) == await n1.claim_exactly(SPLIT, 41)
    text = "block 10.64.10.128/26 of pool pods lies in 10.64.10.0/24, which belongs to the nodes with rack=r1; node n2"
    with pytest.raises(AddressInUseError, match=text):
        await n2.claim_exactly(SPLIT, 42)
    n3 = await join(store, "n3", "", SPLIT)
    with pytest.raises(AddressInUseError, match="belongs to nobody; node n3 has no such label"):
        await n3.claim_exactly(SPLIT, 0)


async def test_a_split_pool_is_one_thing_for_all_nodes(store: Counting) -> None:
    await join(store, "n1", "r1", SPLIT)
    with pytest.raises(PoolConflictError, match="pool pods is"):
        await join(store, "n2", "r1", Pool.parse("pods", "10.64.0.0/16", 26))
    with pytest.raises(PoolConflictError, match=r"split by rack into /22, .* split by rack into /24"):
        await join(store, "n2", "r1", Pool.parse("pods", "10.64.0.0/16", 26, split=Split("rack", 22)))
    # How it is announced is a switch
    await join(store, "n2", "r1", Pool.parse("pods", "10.64.0.0/16", 26, split=Split("rack", 24, "only")))
    changed = await cluster.change_pool(store, "pods", aggregate="beside")
    assert changed.split == Split("rack", 24, "beside")
    with pytest.raises(PoolInUseError, match="blocks of /24 do not fit pool pods"):
        await cluster.change_pool(store, "pods", block_size=24)
    entry = await store.get(records.pool_key("pods"))
    assert entry is not None
    assert b'"schema":3' in entry.value
    with pytest.raises(NewerStateError):
        records.decode_pool(entry._replace(value=entry.value.replace(b'"schema":3', b'"schema":4')))


def configuration(directory: Path, name: str, labels: str, pool: str) -> Config:
    text = f"""\
apiVersion: podroute/v1
node: {{name: {name}, as: 65000, routerId: 10.0.0.1, labels: {labels}}}
stateDir: {directory}/{name}
store: sqlite://{directory}/store.db
pools: {pool}
"""
    config = check_text(text, "f").config
    assert config is not None
    return config


POOL = "{p: {cidr: 10.64.0.0/23, blockSize: 26, splitBy: {label: rack, size: 24, aggregate: MODE}}}"


async def test_a_node_announces_the_aggregates_that_it_contributes_to(tmp_path: Path) -> None:
    ipam = Ipam(configuration(tmp_path, "n1", "{rack: r1}", POOL.replace("MODE", "only")))
    await ipam.start()
    (block,) = ipam.blocks()
    ((pool, wire, only),) = ipam.aggregates()
    assert (pool.name, prefix.text(4, wire), only) == ("p", within(block), True)
    await ipam.stop()
    # The same node in another rack: its block lies in the old one's part
    moved = Ipam(configuration(tmp_path, "n1", "{rack: r2}", POOL.replace("MODE", "only")))
    await moved.start()
    assert moved.blocks() == [block]
    assert moved.aggregates() == []
    await moved.stop()


async def test_a_node_without_the_label_is_told_so(tmp_path: Path) -> None:
    seeder = Ipam(configuration(tmp_path, "n1", "{rack: r1}", POOL.replace("MODE", "none")))
    await seeder.start()
    await seeder.stop()
    ipam = Ipam(configuration(tmp_path, "n2", "{}", "{}"))
    await ipam.start()
    text = r"split pools need a label that node n2 lacks \(p by rack\): set rack under node.labels"
    with pytest.raises(NoLabelError, match=text):
        await ipam.allocate(Handle("net", "c", "eth0"), families=[4])
    with pytest.raises(NoLabelError):
        await ipam.allocate(Handle("net", "c", "eth0"), addresses=["10.64.0.1"])
    await ipam.stop()


async def test_a_pool_without_room_for_another_rack_says_so(tmp_path: Path) -> None:
    nodes = []
    for number in (1, 2, 3):
        nodes.append(Ipam(configuration(tmp_path, f"n{number}", f"{{rack: r{number}}}", POOL.replace("MODE", "none"))))
        await nodes[-1].start()
    with pytest.raises(PoolExhaustedError, match="pool p has no super-block left for this node's rack"):
        await nodes[2].allocate(Handle("net", "c", "eth0"))
    for node in nodes:
        await node.stop()


@pytest.mark.parametrize(
    ("pool", "problem"),
    [
        (
            "{cidr: 10.64.0.0/16, blockSize: 26, splitBy: {label: zone, size: 20}}",
            "f:pools.p.splitBy.label: is zone, which is no label of this node: must be one, or add it to node.labels",
        ),
        (
            "{cidr: 10.64.0.0/16, blockSize: 26, splitBy: {label: rack, size: 26}}",
            "f:pools.p.splitBy.size: is 26, must be 16 (the pool) to 25 (two blocks)",
        ),
        (
            "{cidr: 10.64.0.0/16, blockSize: 26, splitBy: {label: rack, size: 15}}",
            "f:pools.p.splitBy.size: is 15, must be 16 (the pool) to 25 (two blocks)",
        ),
        (
            "{cidr: 10.64.0.0/26, blockSize: 26, splitBy: {label: rack, size: 26}}",
            "f:pools.p.splitBy.size: is 26, must be left out: it is one block",
        ),
        (
            "{cidr: 10.64.0.0/16, splitBy: {label: rack, size: 20, aggregate: always}}",
            'f:pools.p.splitBy.aggregate: is "always", must be none',
        ),
    ],
)
def test_what_a_file_can_get_wrong(pool: str, problem: str) -> None:
    node = "node: {name: n1, as: 65000, routerId: 10.0.0.1, labels: {rack: r1}}"
    report = check_text(f"apiVersion: podroute/v1\n{node}\npools: {{p: {pool}}}\n", "f")
    (found,) = [one.render("f") for one in report.problems]
    assert found.startswith(problem)
