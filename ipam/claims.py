"""What a node says and asks in the shared store: who it is, which pools there are, and its claims of blocks.

A claim is one transaction: it writes the block's record if nothing overlaps it, and if the node and the pool are still
what they were. There is no state between free and owned, so a crash at any moment leaves one or the other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from config import prefix
from ipam import records
from ipam.errors import AddressInUseError, NameTakenError, PoolChangedError, PoolConflictError
from ipam.identity import Identity
from ipam.pool import Pool, overlap, span
from ipam.records import Block, NodeRecord
from ipam.store import Condition, Delete, Entry, Put, Quiet, Range, Store, Unchanged, Write

log = logging.getLogger("podroute.ipam")

_PAGE = 256
"""Block records read at a time in search of a gap."""
_BULK = 1000


class Claims:
    """One node's dealings with the store."""

    def __init__(self, store: Store, identity: Identity) -> None:
        self._store = store
        self._me = identity
        self._node_revision = 0
        self._pools: dict[str, Pool] = {}
        self._pool_revisions: dict[str, int] = {}
        self.pools_as_of = 0
        """The store's revision as of which the pools are known."""
        self._mine: set[str] = set()
        """Keys of the blocks that we know to be ours."""
        self._next: dict[str, int] = {}
        """Where to look in a pool next: behind the block of ours that was granted last."""

    async def register(self, record: NodeRecord, lease: int) -> None:
        """Write this node's record, and that it lives as long as a lease.

        Raises NameTakenError where another node has the name.
        """
        key = records.node_key(self._me.name)
        while True:
            entry = await self._store.get(key)
            if entry is not None:
                self._check_name(records.decode_node(entry))
            before = 0 if entry is None else entry.modified
            live = Put(records.live_key(self._me.name), self._me.uuid.encode(), lease)
            writes = [Put(key, records.encode_node(record)), live]
            outcome = await self._store.transact([Unchanged(key, before)], writes)
            if outcome.committed:
                self._node_revision = outcome.revision
                return

    async def seed(self, pools: Sequence[Pool]) -> list[Pool]:
        """Add the pools that the store lacks; return all it has then, ours first and in our order.

        Raises PoolConflictError where the store has a pool otherwise than we do, or one that overlaps ours.
        """
        while True:
            listing = await self._store.list(records.POOLS)
            known = [(entry, *records.decode_pool(entry)) for entry in listing.entries]
            named = {pool.name: (pool, by) for _, pool, by in known}
            missing = [pool for pool in pools if not self._agrees(pool, named)]
            for pool in missing:
                self._refuse_overlap(pool, named)
            revisions = {pool.name: entry.modified for entry, pool, _ in known}
            self.pools_as_of = listing.revision
            if missing:
                quiet = Quiet(records.POOLS.start, records.POOLS.end, listing.revision)
                puts = [Put(records.pool_key(pool.name), records.encode_pool(pool, self._me.name)) for pool in missing]
                outcome = await self._store.transact([quiet], puts)
                if not outcome.committed:
                    continue
                revisions.update((pool.name, outcome.revision) for pool in missing)
                self.pools_as_of = outcome.revision
            self._pool_revisions = revisions
            # In our order, as the store has them
            stored = {pool.name: pool for _, pool, _ in known}
            self._pools = {pool.name: stored.get(pool.name, pool) for pool in (*pools, *stored.values())}
            for pool in pools:
                if pool != self._pools[pool.name]:
                    log.warning("pool is as the store has it, not as the file", extra={"fields": {"pool": pool.name}})
            return list(self._pools.values())

    async def owned(self) -> list[Block]:
        """Return the blocks that the store says are this node's, and the addresses on loan to it."""
        mine: list[Block] = []
        wanted = records.BLOCKS._replace(limit=_BULK)
        while True:
            entries = (await self._store.list(wanted)).entries
            # Others' records are not even read: a newer agent may have written them
            for entry in entries:
                if self._me.uuid.encode() in entry.value:
                    found = records.decode_block(entry)
                    mine += [found] if found.uuid == self._me.uuid else found.on_loan(self._me.uuid)
            if len(entries) < _BULK:
                for block in mine:
                    if not block.lender:
                        self._note(block)
                return mine
            wanted = wanted._replace(start=Range.key(entries[-1].key).end)

    async def claim(self, wants: Sequence[Sequence[Pool]]) -> list[Block | None]:
        """Claim one block for each want, out of the first of its pools that has one; None: they are all exhausted.

        All are claimed in one transaction. Where the first choice is taken, the refusal brings the records around it
        along, so two round trips are the rule. Raises NameTakenError and PoolConflictError where the store has
        changed meanwhile.
        """
        searches = [_Search(pools, self._next, self._me.name) for pools in wants]
        while live := [search for search in searches if search.found is None and search.candidate is not None]:
            blocks = [self._block(*search.place) for search in live]
            pools = list(dict.fromkeys(block.pool for block in blocks))
            outcome = await self._store.transact(
                self._conditions(blocks),
                self._puts(blocks),
                [
                    Range.key(records.node_key(self._me.name)),
                    *(Range.key(records.pool_key(name)) for name in pools),
                    *(search.window() for search in live),
                ],
            )
            if outcome.committed:
                for search, block in zip(live, self._granted(blocks, outcome.revision), strict=True):
                    search.found = block
                continue
            self._check_node(outcome.read[0])
            self._check_pools(pools, outcome.read[1 : 1 + len(pools)])
            moved = [
                await self._move(search, entries)
                for search, entries in zip(live, outcome.read[1 + len(pools) :], strict=True)
            ]
            if not any(moved):
                # Refused by what no window shows: a greater block around one of them, or one that is gone again
                for search in live:
                    search.step()
        return [search.found for search in searches]

    async def _move(self, search: _Search, entries: Sequence[Entry]) -> bool:
        """Let a search see what is around its candidate; return whether it has another one now."""
        before = search.place
        for entry in entries:
            # A claim of ours whose answer was lost
            if self._me.uuid.encode() in entry.value and entry.key not in self._mine:
                stray = records.decode_block(entry)
                if stray.uuid == self._me.uuid and stray.pool == before[0].name:
                    self._note(stray)
                    search.found = stray
                    return True
        while not search.see(entries):
            entries = (await self._store.list(search.window())).entries
        return search.candidate is None or search.place != before

    async def give_back(self, block: Block) -> None:
        """Delete the record of a block that is ours and that nobody uses."""
        key = records.block_key(block.family, block.prefix)
        entry = await self._store.get(key)
        if entry is not None and records.decode_block(entry).uuid == self._me.uuid:
            await self._store.transact([Unchanged(key, entry.modified)], [Delete(key)])
        self._mine.discard(key)

    async def claim_exactly(self, pool: Pool, index: int) -> Block:
        """Claim one certain block. Raises AddressInUseError where another node has it or a part of it."""
        block = self._block(pool, index)
        key = records.block_key(block.family, block.prefix)
        reads = [Range.key(records.node_key(self._me.name)), Range.key(records.pool_key(pool.name))]
        reads += [Range(quiet.start, quiet.end, 1) for quiet in records.nothing_overlaps(block.family, block.prefix)]
        while True:
            outcome = await self._store.transact(self._conditions([block]), self._puts([block]), reads)
            if outcome.committed:
                return self._granted([block], outcome.revision)[0]
            self._check_node(outcome.read[0])
            self._check_pools([pool.name], outcome.read[1:2])
            there = next((entry for entries in outcome.read[2:] for entry in entries), None)
            if there is None:
                continue  # our own record had been written anew
            found = records.decode_block(there)
            if there.key == key and found.uuid == self._me.uuid:
                self._note(found)
                return found
            raise AddressInUseError(
                f"block {block.cidr} of pool {pool.name} belongs to node {found.owner}, not to {self._me.name}"
            )

    def _block(self, pool: Pool, index: int) -> Block:
        return Block(pool.family, pool.block(index), pool.name, self._me.name, self._me.uuid, 0, records.now())

    def _conditions(self, blocks: Sequence[Block]) -> list[Condition]:
        conditions: list[Condition] = [Unchanged(records.node_key(self._me.name), self._node_revision)]
        for name in dict.fromkeys(block.pool for block in blocks):
            conditions.append(Unchanged(records.pool_key(name), self._pool_revisions[name]))
        for block in blocks:
            conditions += records.nothing_overlaps(block.family, block.prefix)
        return conditions

    def _puts(self, blocks: Sequence[Block]) -> list[Write]:
        return [Put(records.block_key(block.family, block.prefix), records.encode_block(block)) for block in blocks]

    def _granted(self, blocks: Sequence[Block], revision: int) -> list[Block]:
        granted = [replace(block, generation=revision) for block in blocks]
        for block in granted:
            self._note(block)
        return granted

    def _note(self, block: Block) -> None:
        """Remember a block as ours, and to go on behind it."""
        self._mine.add(records.block_key(block.family, block.prefix))
        pool = self._pools.get(block.pool)
        index = pool.index(span(block.family, block.prefix)[0]) if pool else None
        if pool and index is not None:
            self._next[pool.name] = (index + 1) % pool.count

    def _check_node(self, entries: Sequence[Entry]) -> None:
        if not entries:
            raise NameTakenError(
                f"the record of node {self._me.name} is gone from the store {self._store.url}: somebody removed the "
                "node while its agent runs; it joins again"
            )
        self._check_name(records.decode_node(entries[0]))
        self._node_revision = entries[0].modified

    def _check_name(self, found: NodeRecord) -> None:
        if found.uuid != self._me.uuid:
            raise NameTakenError(
                f"node name {self._me.name} is taken: the store {self._store.url} has it with UUID {found.uuid} (last "
                f"started {found.seen_at or 'at an unknown time'}), this node has UUID {self._me.uuid}; set another "
                "node.name, or, if this is that node set up again, put its UUID back into identity.json in stateDir or "
                f"give its blocks up (podroute ipam reclaim {self._me.name})"
            )

    def _check_pools(self, names: Sequence[str], read: Sequence[Sequence[Entry]]) -> None:
        for name, entries in zip(names, read, strict=True):
            if not entries or entries[0].modified != self._pool_revisions[name]:
                what = "has been removed from" if not entries else "has been changed in"
                raise PoolChangedError(
                    f"pool {name} {what} the store {self._store.url}: the agent is reading it anew, try again"
                )

    def _agrees(self, pool: Pool, named: dict[str, tuple[Pool, str]]) -> bool:
        """Tell whether the store has a pool as we do; False where it has none of that name."""
        if pool.name not in named:
            return False
        theirs, by = named[pool.name]
        if not theirs.same_blocks(pool):
            raise PoolConflictError(
                f"pool {pool.name} is {_definition(pool)} in the configuration of node {self._me.name}, but "
                f"{_definition(theirs)} in the store {self._store.url} (from node {by}): make the configuration the "
                "same as the store, or give the pool another name and other addresses"
            )
        return True

    def _refuse_overlap(self, pool: Pool, named: dict[str, tuple[Pool, str]]) -> None:
        for theirs, by in named.values():
            if overlap(pool, theirs):
                raise PoolConflictError(
                    f"pool {pool.name} ({pool.cidr}) in the configuration of node {self._me.name} overlaps pool "
                    f"{theirs.name} ({theirs.cidr}) in the store {self._store.url} (from node {by}): use the same "
                    "name and definition for the same addresses, and other addresses for another pool"
                )


@dataclass
class _Place:
    pool: Pool
    index: int


class _Search:
    """Goes through the blocks of some pools, each from a start of the node's own and once around."""

    def __init__(self, pools: Sequence[Pool], starts: Mapping[str, int], node: str) -> None:
        """``starts``: where to begin in a pool, instead of where the node's name says."""
        self._rest = list(pools)
        self._starts = starts
        self._node = node
        self.found: Block | None = None
        self._start = 0
        self._wrapped = False
        self.candidate: _Place | None = None
        self._next_pool()

    @property
    def place(self) -> tuple[Pool, int]:
        assert self.candidate is not None
        return self.candidate.pool, self.candidate.index

    def window(self) -> Range:
        """Return the range of the records that tell whether the candidate and those behind it are taken."""
        pool, index = self.place
        return records.blocks_from(pool, index, self._high(pool), _PAGE)

    def see(self, entries: Sequence[Entry]) -> bool:
        """Move on to the first block that these records of the window leave free.

        Returns False where the records say too little, and those of the new window must be seen.
        """
        pool, index = self.place
        spans = [records.block_span(entry.key) for entry in entries]
        high = self._high(pool)
        free = pool.first_free(index, high, spans)
        self.candidate = _Place(pool, free)
        if free == high:
            return self._run_out(pool)
        return len(entries) < _PAGE or span(pool.family, pool.block(free)) < spans[-1]

    def step(self) -> None:
        """Move on by one block."""
        pool, index = self.place
        self.candidate = _Place(pool, pool.first_free(index + 1, self._high(pool), ()))
        if self.candidate.index == self._high(pool):
            self._run_out(pool)

    def _high(self, pool: Pool) -> int:
        return self._start if self._wrapped else pool.count

    def _run_out(self, pool: Pool) -> bool:
        """Go on at the pool's beginning, or with the next pool; return whether the candidate may be tried unseen."""
        if self._wrapped or self._start == 0:
            self._next_pool()
            return True
        self._wrapped = True
        self.candidate = _Place(pool, 0)
        return False

    def _next_pool(self) -> None:
        self._wrapped = False
        if not self._rest:
            self.candidate = None
            return
        pool = self._rest.pop(0)
        self._start = self._starts.get(pool.name, pool.start(self._node))
        first = pool.first_free(self._start, pool.count, ())
        if first == pool.count:  # nothing but reserved ones behind the start
            self._start = pool.count
            first = pool.first_free(0, pool.count, ())
            self._wrapped = True
        self.candidate = _Place(pool, first)
        if first == pool.count:
            self._next_pool()


def _definition(pool: Pool) -> str:
    nodes = ", ".join(f"{label}={value}" for label, value in pool.nodes.items())
    return f"{prefix.text(pool.family, pool.prefix)} in blocks of /{pool.block_size} for {nodes or 'all nodes'}"
