"""The whole cluster as the store has it, for people: pools, nodes, blocks. And what an operator does to them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from config.model import BLOCK_SIZES
from ipam import records
from ipam.errors import NodeAliveError, NoSuchNodeError, NoSuchPoolError, PoolInUseError
from ipam.pool import Aggregate, Pool
from ipam.records import Block, NodeRecord, SuperBlock
from ipam.store import Condition, Delete, Entry, Put, Quiet, Range, Store, Unchanged, Write

_PAGE = 5000
_BATCH = 100
"""Blocks given back in one transaction: etcd takes 128 conditions and as many operations."""

QUARANTINE = 300
"""Seconds that the blocks of a reclaimed node rest before anybody can claim them."""


@dataclass(frozen=True, slots=True)
class Member:
    node: NodeRecord
    alive: bool
    used: Mapping[str, int]
    """Addresses in use by pool, as the node last said."""


async def pools(store: Store) -> list[Pool]:
    return [records.decode_pool(entry)[0] for entry in (await store.list(records.POOLS)).entries]


async def superblocks(store: Store) -> list[SuperBlock]:
    return [records.decode_super(entry) for entry in await _entries(store, records.SUPERS)]


async def members(store: Store) -> list[Member]:
    alive = {entry.key.rpartition("/")[2] for entry in (await store.list(records.LIVE)).entries}
    said = {entry.key.rpartition("/")[2]: entry.value for entry in (await store.list(records.USAGE)).entries}
    nodes = [records.decode_node(entry) for entry in (await store.list(records.NODES)).entries]
    return [Member(node, node.name in alive, json.loads(said.get(node.name, b"{}"))) for node in nodes]


async def blocks(store: Store) -> list[Block]:
    return [records.decode_block(entry) for entry in await _entries(store, records.BLOCKS)]


async def reclaim(store: Store, name: str, *, quarantine: int = QUARANTINE, revision: int = 0) -> list[Block]:
    """Take the blocks of a dead node away from it and return them; they can be claimed after ``quarantine`` seconds (0:
    at once).

    Until then each keeps a record, which no claim gets past and which names nobody as its owner: it is bound to a
    lease, so the store itself frees the block. One with addresses on loan rests until the last is returned. What the
    node had borrowed goes back to the lenders. The node's record goes too, in the same transaction where there are no
    more than a hundred blocks. ``revision``: of the node's record, which must not have been written since; 0: any.

    Raises NoSuchNodeError, and NodeAliveError for a node that gave a sign of life.
    """
    key, live = records.node_key(name), records.live_key(name)
    while True:
        entry = await store.get(key)
        if entry is None:
            known = ", ".join(member.node.name for member in await members(store)) or "none"
            raise NoSuchNodeError(f"no node {name} in the store {store.url}; there are: {known}")
        if await store.get(live) is not None or revision not in (0, entry.modified):
            raise NodeAliveError(
                f"node {name} is alive, as the store {store.url} sees it: stop its agent and wait until its lease has "
                "ended (ipam.lease in its file, usually 30 s)"
            )
        uuid = records.decode_node(entry).uuid
        touched = await blocks_of(store, uuid)
        lease = await store.grant(quarantine) if quarantine else 0
        writes: list[Write] = [_without(found.key, block, uuid, name, lease) for found, block in touched]
        goodbye = [Delete(one) for one in (key, records.usage_key(name), records.offer_key(name))]
        if await _commit(store, [Unchanged(key, entry.modified), Unchanged(live, 0)], touched, writes, goodbye):
            return [block for _, block in touched if block.uuid == uuid]


async def blocks_of(store: Store, uuid: str) -> list[tuple[Entry, Block]]:
    """Return the block records in which a node is named, as owner or as borrower."""
    found = [entry for entry in await _entries(store, records.BLOCKS) if uuid.encode() in entry.value]
    return [
        (entry, block) for entry in found if (block := records.decode_block(entry)).uuid == uuid or block.on_loan(uuid)
    ]


async def change_pool(store: Store, name: str, *, aggregate: Aggregate | None = None, **changes: Any) -> Pool:
    """Change fields of a pool for all nodes. Raises NoSuchPoolError, and PoolInUseError where blocks forbid it."""
    key = records.pool_key(name)
    while True:
        entry = await store.get(key)
        if entry is None:
            known = ", ".join(pool.name for pool in await pools(store)) or "none"
            raise NoSuchPoolError(f"no pool {name} in the store {store.url}; there are: {known}")
        pool, seeded_by = records.decode_pool(entry)
        if aggregate is not None and pool.split is None:
            raise PoolInUseError(f"pool {name} is not split by a node label, so it has no aggregates: leave them alone")
        split = replace(pool.split, aggregate=aggregate) if pool.split and aggregate else pool.split
        changed = replace(pool, **changes, split=split)
        conditions: list[Condition] = [Unchanged(key, entry.modified)]
        if changed.block_size != pool.block_size:
            least = pool.prefix[0] if pool.split is None else pool.split.size + 1
            sizes = range(max(BLOCK_SIZES[pool.family].start, least), BLOCK_SIZES[pool.family].stop)
            if changed.block_size not in sizes:
                raise PoolInUseError(
                    f"blocks of /{changed.block_size} do not fit pool {name} ({pool.cidr}): "
                    f"give {sizes.start} to {sizes.stop - 1}"
                )
            within = records.blocks_from(pool, 0, pool.count, 0)
            conditions.append(Quiet(within.start, within.end))
            if live := (await store.list(within)).entries:
                first = records.decode_block(live[0])
                raise PoolInUseError(
                    f"pool {name} has {len(live)} live blocks ({first.cidr} of node {first.owner} for one), so its "
                    f"block size stays /{pool.block_size}: disable it, let its blocks run empty, or add another pool"
                )
        outcome = await store.transact(conditions, [Put(key, records.encode_pool(changed, seeded_by))])
        if outcome.committed:
            return changed


def _without(key: str, block: Block, uuid: str, name: str, lease: int) -> Write:
    """Return what remains of a block's record without a node; ``lease``: of one without owner, 0: nothing does."""
    left = replace(block, loans=tuple(loan for loan in block.loans if loan.uuid != uuid))
    if block.uuid == uuid:
        left = replace(left, owner=f"{name} (reclaimed)", uuid="")
    if not (lease or left.uuid or left.loans):
        return Delete(key)
    return put_block(key, left, lease)


def put_block(key: str, block: Block, quarantine: int) -> Put:
    """Return the write of a block's record: one without owner and loans goes with the lease ``quarantine``."""
    return Put(key, records.encode_block(block), 0 if block.uuid or block.loans else quarantine)


async def _commit(
    store: Store,
    conditions: Sequence[Condition],
    touched: Sequence[tuple[Entry, Block]],
    writes: Sequence[Write],
    goodbye: Sequence[Write],
) -> bool:
    """Write it all, in as few transactions as etcd allows; False where something has changed meanwhile."""
    for start in range(0, max(len(touched), 1), _BATCH):
        unchanged = [Unchanged(entry.key, entry.modified) for entry, _ in touched[start : start + _BATCH]]
        last = goodbye if start + _BATCH >= len(touched) else ()
        outcome = await store.transact([*conditions, *unchanged], [*writes[start : start + _BATCH], *last])
        if not outcome.committed:
            return False
    return True


async def _entries(store: Store, wanted: Range) -> list[Entry]:
    found: list[Entry] = []
    while True:
        entries = (await store.list(wanted._replace(limit=_PAGE))).entries
        found += entries
        if len(entries) < _PAGE:
            return found
        wanted = wanted._replace(start=Range.key(entries[-1].key).end)
