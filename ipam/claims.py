"""What a node says and asks in the shared store: who it is, which pools there are, and its claims of blocks.

A claim is one transaction: it writes the block's record if nothing overlaps it, and if the node and the pool are still
what they were. There is no state between free and owned, so a crash at any moment leaves one or the other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2s
from itertools import cycle

from config import prefix
from ipam import records
from ipam.errors import AddressInUseError, NameTakenError, PoolChangedError, PoolConflictError
from ipam.identity import Identity
from ipam.pool import Pool, overlap, span
from ipam.records import Block, NodeRecord, SuperBlock
from ipam.store import Condition, Delete, Entry, Put, Quiet, Range, Store, Unchanged, Write
from ipam.superblocks import Around, ChangedError, SuperBlocks

log = logging.getLogger("podroute.ipam")

_PAGE = 256
"""Block records read at a time in search of a gap."""
_BULK = 1000
_SPREAD = 64
"""Free blocks behind one that is taken among which nodes choose the next to try."""


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
        self._next: dict[tuple[str, bytes], int] = {}
        """Where to look next in a pool or a super-block of it: behind the block of ours that was granted last."""
        self.supers = SuperBlocks(store, self, identity.name)

    async def register(self, record: NodeRecord, lease: int) -> None:
        """Write this node's record, and that it lives as long as a lease.

        Raises NameTakenError where another node has the name.
        """
        key = records.node_key(self._me.name)
        self.supers.labels = record.labels
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

        Raises NameTakenError and PoolConflictError where the store has changed meanwhile.
        """
        if not any(pool.split for pools in wants for pool in pools):
            return await self.claim_from(wants)
        return [await self._claim_one(pools) for pools in wants]

    async def _claim_one(self, pools: Sequence[Pool]) -> Block | None:
        for pool in pools:
            found = await self.supers.claim(pool) if pool.split else (await self.claim_from([[pool]]))[0]
            if found is not None:
                return found
        return None

    async def claim_from(self, wants: Sequence[Sequence[Pool]], guard: SuperBlock | None = None) -> list[Block | None]:
        """Do what ``claim`` says for pools that are not split, or for the super-block ``guard`` of one that is.

        All are claimed in one transaction. Where the first choice is taken, the refusal brings the records around it
        along, so two round trips are the rule. Raises ChangedError where the super-block has changed.
        """
        searches = [_Search(pools, self._next, self._me.name) for pools in wants]
        guards = [(records.super_key(guard.family, guard.prefix), guard.revision)] if guard else []
        conditions = [Unchanged(*one) for one in guards]
        while live := [search for search in searches if search.found is None and search.candidate is not None]:
            reads = [*(Range.key(key) for key, _ in guards), *(search.window() for search in live)]
            granted, read = await self.attempt([search.place for search in live], conditions, reads=reads)
            if granted:
                for search, block in zip(live, granted, strict=True):
                    search.found = block
                continue
            for (_, revision), entries in zip(guards, read, strict=False):
                if [entry.modified for entry in entries] != [revision]:
                    raise ChangedError
            moved = [
                await self._move(search, entries) for search, entries in zip(live, read[len(guards) :], strict=True)
            ]
            if not any(moved):
                # Refused by what no window shows: a greater block around one of them, or one that is gone again
                for search in live:
                    search.step()
        return [search.found for search in searches]

    async def attempt(
        self,
        places: Sequence[tuple[Pool, int]],
        conditions: Sequence[Condition],
        writes: Sequence[Write] = (),
        reads: Sequence[Range] = (),
    ) -> tuple[list[Block], Sequence[Sequence[Entry]]]:
        """Claim these blocks in one transaction; return them, or none and what was read in the same moment."""
        blocks = [self._block(*place) for place in places]
        pools = list(dict.fromkeys(block.pool for block in blocks))
        outcome = await self._store.transact(
            [*self._conditions(blocks), *conditions],
            [*self._puts(blocks), *writes],
            [
                Range.key(records.node_key(self._me.name)),
                *(Range.key(records.pool_key(name)) for name in pools),
                *reads,
            ],
        )
        if outcome.committed:
            return self._granted(blocks, outcome.revision), ()
        self._check_node(outcome.read[0])
        self._check_pools(pools, outcome.read[1 : 1 + len(pools)])
        return [], outcome.read[1 + len(pools) :]

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
        pool = self._pools.get(block.pool)
        if pool is not None and pool.split:
            await self.supers.give_back(pool, block)

    async def claim_exactly(self, pool: Pool, index: int) -> Block:
        """Claim one certain block. Raises AddressInUseError where another node has it or a part of it."""
        block = self._block(pool, index)
        key = records.block_key(block.family, block.prefix)
        overlaps = [Range(quiet.start, quiet.end, 1) for quiet in records.nothing_overlaps(block.family, block.prefix)]
        refused = False
        while True:
            around = await self.supers.around(pool, block, fresh=refused) if pool.split else Around()
            reads = [*overlaps, *around.reads]
            granted, read = await self.attempt([(pool, index)], around.conditions, around.writes, reads)
            if granted:
                if around.writes:
                    await self.supers.read(pool)
                return granted[0]
            there = next((entry for entries in read for entry in entries), None)
            if there is None:
                refused = True  # our own record had been written anew, or the super-block's
                continue
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
        if pool and pool.split:
            pool = pool.part(block.prefix)
        index = pool.index(span(block.family, block.prefix)[0]) if pool else None
        if pool and index is not None:
            self._next[pool.name, pool.prefix] = (index + 1) % pool.count

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

    def __init__(self, pools: Sequence[Pool], starts: Mapping[tuple[str, bytes], int], node: str) -> None:
        """``starts``: where to begin in a pool, instead of where the node's name says."""
        self._rest = list(pools)
        self._starts = starts
        self._node = node
        self._skips = cycle(byte % _SPREAD for byte in blake2s(node.encode()).digest())
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
        if free == high:
            self.candidate = _Place(pool, free)
            return self._run_out(pool)
        # What these records tell of: up to the last of them where there may be more
        told = high if len(entries) < _PAGE else pool.index(spans[-1][0]) or high
        # Others that met here at once look at the same records: not all must try the same block next
        for _ in range(next(self._skips)):
            further = pool.first_free(free + 1, told, spans)
            if further >= told:
                break
            free = further
        self.candidate = _Place(pool, free)
        return free < told or len(entries) < _PAGE

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
        self._start = self._starts.get((pool.name, pool.prefix), pool.start(self._node))
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
    split = f", split by {pool.split.label} into /{pool.split.size}," if pool.split else ""
    return f"{prefix.text(pool.family, pool.prefix)} in blocks of /{pool.block_size}{split} for {nodes or 'all nodes'}"
