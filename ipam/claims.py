"""What a node says and asks in the shared store: who it is, which pools there are, and its claims of blocks.

A claim is one transaction: it writes the block's record if nothing overlaps it, and if the node and the pool are still
what they were. There is no state between free and owned, so a crash at any moment leaves one or the other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

from config import prefix
from ipam import records
from ipam.errors import AddressInUseError, NameTakenError, PoolChangedError, PoolConflictError, StoreUnavailableError
from ipam.identity import Identity
from ipam.offers import Candidate, Claimed, Offers
from ipam.pool import Pool, overlap, span
from ipam.records import Block, NodeRecord
from ipam.search import BLIND, Search
from ipam.store import (
    MOST_CONDITIONS,
    Attempt,
    Choice,
    Delete,
    Entry,
    Put,
    Quiet,
    Range,
    Store,
    Unchanged,
)
from ipam.superblocks import Around, SuperBlocks

log = logging.getLogger("podroute.ipam")

BULK = 1000
"""Block records read at a time in search of our own."""


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
        self._record = NodeRecord(identity.name, identity.uuid)
        self._doubts: set[str] = set()
        """Keys of the blocks that we may have claimed: the answer was lost."""
        self._strays: list[Block] = []
        """Those of them that we have claimed, and have not used yet."""
        self._next: dict[tuple[str, bytes], int] = {}
        """Where to look next in a pool or a super-block of it: behind the block of ours that was granted last."""
        self.supers = SuperBlocks(store, self, identity.name)

    async def register(self, record: NodeRecord, lease: int) -> None:
        """Write this node's record, and that it lives as long as a lease.

        Raises NameTakenError where another node has the name.
        """
        key = records.node_key(self._me.name)
        self.supers.labels = record.labels
        self._record = record
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
        wanted = records.BLOCKS._replace(limit=BULK)
        while True:
            entries = (await self._store.list(wanted)).entries
            # Others' records are not even read: a newer agent may have written them
            for entry in entries:
                if self._me.uuid.encode() in entry.value:
                    found = records.decode_block(entry)
                    mine += [found] if found.uuid == self._me.uuid else found.on_loan(self._me.uuid)
            if len(entries) < BULK:
                for block in mine:
                    if not block.lender:
                        self._note(block)
                return mine
            wanted = wanted._replace(start=Range.key(entries[-1].key).end)

    async def claim(self, wants: Sequence[Sequence[Pool]]) -> list[Block | None]:
        """Claim one block for each want, out of the first of its pools that has one; None: they are all exhausted.

        One transaction tries many blocks, and its refusal brings the records around them along: where pools have room
        two round trips do, also while others claim. No two wants may have a pool in common. Raises NameTakenError and
        PoolConflictError where the store has changed meanwhile.
        """
        await self._settle_doubts()
        if any(pool.split for pools in wants for pool in pools):
            return [await self._claim_one(pools) for pools in wants]
        return await self._claim_together(wants)

    async def _claim_one(self, pools: Sequence[Pool]) -> Block | None:
        if (stray := self._stray(pools)) is not None:
            return stray
        for pool in pools:
            found = await self.supers.claim(pool) if pool.split else (await self._claim_together([[pool]]))[0]
            if found is not None:
                return found
        return None

    async def _claim_together(self, wants: Sequence[Sequence[Pool]]) -> list[Block | None]:
        found = [self._stray(pools) for pools in wants]
        searches = [self.search(pools) for pools in wants]
        while live := [n for n, search in enumerate(searches) if found[n] is None and search.pool is not None]:
            offers = [
                Offers([Candidate(search.here, index) for index in search.candidates], search.windows())
                for search in (searches[n] for n in live)
            ]
            for n, claimed in zip(live, await self.first_of(offers), strict=True):
                found[n] = claimed.block
                if claimed.block is None:
                    searches[n].see(claimed.tried, claimed.read)
                    await self.read_on(searches[n])
        return found

    def search(self, pools: Sequence[Pool], blind: int = BLIND) -> Search:
        """Return a search through pools that are not split; each begins behind the node's last block there."""
        return Search(pools, self._next, self._me.name, blind)

    async def read_on(self, search: Search) -> None:
        """Read until a search has something to try, or has seen everything."""
        while search.pool is not None and not search.candidates:
            search.see(0, [(await self._store.list(wanted)).entries for wanted in search.windows()])

    async def first_of(self, wants: Sequence[Offers]) -> list[Claimed]:
        """Claim the first of each that can be had, as many as one transaction can try."""
        names = list(dict.fromkeys(one.pool.name for want in wants for one in want.candidates))
        own = Range.key(records.node_key(self._me.name))
        while True:
            conditions = [Unchanged(own.start, self._node_revision)]
            conditions += [Unchanged(records.pool_key(name), self._pool_revisions[name]) for name in names]
            room = MOST_CONDITIONS - max(len(conditions), len(wants))
            tried = [list(self._attempts(want.candidates, room - len(want.reads))) for want in wants]
            choices = [
                Choice([attempt for _, attempt in each], want.reads) for each, want in zip(tried, wants, strict=True)
            ]
            try:
                outcome = await self._store.transact(
                    conditions, [], [own, *(Range.key(records.pool_key(name)) for name in names)], choices
                )
            except StoreUnavailableError:
                self._doubts |= {_key(block) for each in tried for block, _ in each}
                raise
            if outcome.committed:
                break
            # What refused it may have been our own record, written anew
            self._check_node(outcome.read[0])
            self._check_pools(names, outcome.read[1:])
        found = []
        for each, chosen in zip(tried, outcome.chosen, strict=True):
            if chosen.attempt is None:
                found.append(Claimed(None, len(each), chosen.read))
                continue
            block = replace(each[chosen.attempt][0], generation=outcome.revision)
            self._note(block)
            found.append(Claimed(block, chosen.attempt, ()))
        return found

    def _attempts(self, candidates: Sequence[Candidate], room: int) -> Iterator[tuple[Block, Attempt]]:
        """Yield claims of as many blocks as there is room for conditions."""
        for one in candidates:
            block = Block(
                one.pool.family,
                one.pool.block(one.index),
                one.pool.name,
                self._me.name,
                self._me.uuid,
                0,
                records.now(),
            )
            conditions = [*records.nothing_overlaps(block.family, block.prefix), *one.conditions]
            room -= len(conditions)
            if room < 0:
                return
            yield block, Attempt(conditions, [Put(_key(block), records.encode_block(block)), *one.writes])

    async def _settle_doubts(self) -> None:
        """Find out what became of claims whose answers were lost; after a new record of this node they are too late."""
        if not self._doubts:
            return
        own = Range.key(records.node_key(self._me.name))
        put = Put(own.start, records.encode_node(self._record))
        outcome = await self._store.transact([Unchanged(own.start, self._node_revision)], [put], [own])
        if outcome.committed:
            self._node_revision = outcome.revision
        else:
            self._check_node(outcome.read[0])
        for key in sorted(self._doubts):
            entry = await self._store.get(key)
            if entry is not None and key not in self._mine and self._me.uuid.encode() in entry.value:
                block = records.decode_block(entry)
                if block.uuid == self._me.uuid:
                    self._strays.append(block)
        self._doubts.clear()

    def _stray(self, pools: Sequence[Pool]) -> Block | None:
        """Return a block out of these pools that was claimed though the answer was lost."""
        names = [pool.name for pool in pools]
        for block in self._strays:
            if block.pool in names:
                self._strays.remove(block)
                self._note(block)
                return block
        return None

    async def give_back(self, block: Block) -> None:
        """Delete the record of a block that is ours and that nobody uses."""
        key = _key(block)
        entry = await self._store.get(key)
        if entry is not None and records.decode_block(entry).uuid == self._me.uuid:
            await self._store.transact([Unchanged(key, entry.modified)], [Delete(key)])
        self._mine.discard(key)
        pool = self._pools.get(block.pool)
        if pool is not None and pool.split:
            await self.supers.give_back(pool, block)

    async def claim_exactly(self, pool: Pool, index: int) -> Block:
        """Claim one certain block. Raises AddressInUseError where another node has it or a part of it."""
        await self._settle_doubts()
        family, wire = pool.family, pool.block(index)
        cidr, key = prefix.text(family, wire), records.block_key(family, wire)
        overlaps = [Range(quiet.start, quiet.end, 1) for quiet in records.nothing_overlaps(family, wire)]
        refused = False
        while True:
            around = await self.supers.around(pool, wire, fresh=refused) if pool.split else Around()
            candidate = Candidate(pool, index, around.conditions, around.writes)
            (claimed,) = await self.first_of([Offers([candidate], [*overlaps, *around.reads])])
            if claimed.block is not None:
                if around.writes:
                    await self.supers.read(pool)
                return claimed.block
            there = next((entry for entries in claimed.read for entry in entries), None)
            if there is None:
                refused = True  # the super-block's record had been written anew
                continue
            found = records.decode_block(there)
            if there.key == key and found.uuid == self._me.uuid:
                self._note(found)
                return found
            raise AddressInUseError(
                f"block {cidr} of pool {pool.name} belongs to node {found.owner}, not to {self._me.name}"
            )

    def _note(self, block: Block) -> None:
        """Remember a block as ours, and to go on behind it."""
        self._mine.add(_key(block))
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


def _key(block: Block) -> str:
    return records.block_key(block.family, block.prefix)


def _definition(pool: Pool) -> str:
    nodes = ", ".join(f"{label}={value}" for label, value in pool.nodes.items())
    split = f", split by {pool.split.label} into /{pool.split.size}," if pool.split else ""
    return f"{prefix.text(pool.family, pool.prefix)} in blocks of /{pool.block_size}{split} for {nodes or 'all nodes'}"
