"""Pools that are split by a node label: super-blocks, each for one value of it, in which its nodes claim their blocks.

A super-block is made in one transaction with the first block in it, refused where any super-block or block overlaps it.
Every claim inside wants it unchanged, so an empty one can be deleted, or given to another value, at any time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from config import prefix
from ipam import records
from ipam.errors import AddressInUseError
from ipam.pool import Pool, Span, span
from ipam.records import Block, SuperBlock
from ipam.store import Condition, Delete, Entry, Put, Quiet, Range, Store, Unchanged, Write

log = logging.getLogger("podroute.ipam")

_AT_ONCE = 100
"""Super-blocks looked into by one question: etcd takes 128 operations."""


class ChangedError(Exception):
    """The super-blocks are not any more what they were taken for."""


class _OutrunError(Exception):
    """Another node of the same value was faster: there is room now, and it is known where."""


class Around(NamedTuple):
    """What a claim inside a super-block wants of it, writes, and reads where it is refused."""

    conditions: Sequence[Condition] = ()
    writes: Sequence[Write] = ()
    reads: Sequence[Range] = ()


class Claiming(Protocol):
    """What claims blocks; ipam.claims.Claims."""

    async def claim_from(
        self, wants: Sequence[Sequence[Pool]], guard: SuperBlock | None = None
    ) -> list[Block | None]: ...

    async def attempt(
        self,
        places: Sequence[tuple[Pool, int]],
        conditions: Sequence[Condition],
        writes: Sequence[Write] = (),
        reads: Sequence[Range] = (),
    ) -> tuple[list[Block], Sequence[Sequence[Entry]]]: ...


class SuperBlocks:
    """The super-blocks of all split pools, as this node last saw them."""

    def __init__(self, store: Store, claims: Claiming, node: str) -> None:
        self._store = store
        self._claims = claims
        self._node = node
        self.labels: Mapping[str, str] = {}
        """Of this node."""
        self._known: dict[str, dict[bytes, SuperBlock]] = {}
        self._latest: dict[str, bytes] = {}
        """By pool: where the last block was found, which is where to look first."""

    async def read(self, pool: Pool) -> None:
        """Learn the super-blocks of a pool."""
        self._learn(pool, (await self._store.list(records.supers_inside(pool.family, pool.prefix))).entries)

    def mine(self, pool: Pool) -> list[SuperBlock]:
        """Return those of this node's value, the one that was used last first."""
        value, latest = self._value(pool), self._latest.get(pool.name)
        found = [one for one in self._known.get(pool.name, {}).values() if one.value == value]
        return sorted(found, key=lambda one: (one.prefix != latest, one.prefix))

    async def claim(self, pool: Pool) -> Block | None:
        """Claim a block for this node's value, in a new super-block where all it has are full; None: no room."""
        if pool.name not in self._known:
            await self.read(pool)
        while True:
            try:
                for one in self.mine(pool):
                    (block,) = await self._claims.claim_from([[pool.part(one.prefix)]], one)
                    if block is not None:
                        self._latest[pool.name] = one.prefix
                        return block
                return await self._grow(pool)
            except _OutrunError:
                continue
            except ChangedError:
                await self.read(pool)

    async def around(self, pool: Pool, block: Block, *, fresh: bool) -> Around:
        """Return what a claim of one certain block wants. Raises AddressInUseError where it cannot be this node's."""
        if fresh or pool.name not in self._known:
            await self.read(pool)
        assert pool.split is not None
        label, wire, value = pool.split.label, pool.part(block.prefix).prefix, self._value(pool)
        there = self._known[pool.name].get(wire)
        if value is None or (there is not None and there.value != value):
            whose = f"belongs to the nodes with {label}={there.value}" if there else "belongs to nobody"
            raise AddressInUseError(
                f"block {block.cidr} of pool {pool.name} lies in {prefix.text(pool.family, wire)}, which {whose}; "
                f"node {self._node} has {'no such label' if value is None else f'{label}={value}'}"
            )
        if there is not None:
            return Around([Unchanged(records.super_key(pool.family, wire), there.revision)])
        made = SuperBlock(pool.family, wire, pool.name, value)
        return Around(_nothing_inside(made), [_put(made)], [records.inside(pool.family, wire, 1)])

    async def give_back(self, pool: Pool, block: Block) -> None:
        """Delete the super-block of a block that is gone, if it was the last one inside."""
        wire = pool.part(block.prefix).prefix
        there = self._known.get(pool.name, {}).get(wire)
        if there is None:
            return
        key, within = records.super_key(pool.family, wire), records.inside(pool.family, wire)
        outcome = await self._store.transact(
            [Unchanged(key, there.revision), Quiet(within.start, within.end)], [Delete(key)]
        )
        if outcome.committed:
            del self._known[pool.name][wire]
            log.info("super-block given back", extra={"fields": {"superblock": there.cidr, "pool": pool.name}})

    async def _grow(self, pool: Pool) -> Block | None:
        """Claim a new super-block with a block in it; None where there is none left."""
        value, avoid = self._value(pool), list[Span]()
        assert value is not None
        parts = pool.parts()
        while True:
            known = self._known[pool.name]
            taken = sorted([*(span(pool.family, wire) for wire in known), *avoid])
            start = parts.start(value)
            index = parts.first_free(start, parts.count, taken)
            if index == parts.count and (index := parts.first_free(0, start, taken)) == start:
                return await self._take_over(pool, value)
            made = SuperBlock(pool.family, parts.block(index), pool.name, value)
            place = self._place(pool.part(made.prefix))
            if place is None:  # all of it is reserved, in pieces
                avoid.append(span(pool.family, made.prefix))
                continue
            reads = [records.supers_inside(pool.family, pool.prefix), records.inside(pool.family, made.prefix, 1)]
            granted, read = await self._claims.attempt([place], _nothing_inside(made), [_put(made)], reads)
            if granted:
                return self._made(pool, made, granted[0])
            mine = self.mine(pool)
            self._learn(pool, read[0])
            if self.mine(pool) != mine:
                raise _OutrunError
            if read[1]:
                avoid.append(span(pool.family, made.prefix))

    async def _take_over(self, pool: Pool, value: str) -> Block | None:
        """Claim an empty super-block of another value, as there is no other one left."""
        others = [one for one in self._known[pool.name].values() if one.value != value]
        for at in range(0, len(others), _AT_ONCE):
            some = others[at : at + _AT_ONCE]
            # A condition that does not hold: it only asks
            asked = await self._store.transact(
                [Unchanged(records.pool_key(pool.name), 0)], [], [records.inside(o.family, o.prefix, 1) for o in some]
            )
            for one in (one for one, blocks in zip(some, asked.read, strict=True) if not blocks):
                place = self._place(pool.part(one.prefix))
                if place is None:
                    continue
                key, within = records.super_key(one.family, one.prefix), records.inside(one.family, one.prefix)
                made = SuperBlock(one.family, one.prefix, pool.name, value)
                conditions: list[Condition] = [Unchanged(key, one.revision), Quiet(within.start, within.end)]
                granted, _ = await self._claims.attempt([place], conditions, [_put(made)])
                if granted:
                    return self._made(pool, made, granted[0])
        return None

    def _made(self, pool: Pool, made: SuperBlock, block: Block) -> Block:
        one = SuperBlock(made.family, made.prefix, made.pool, made.value, block.generation)
        self._known[pool.name][made.prefix] = one
        self._latest[pool.name] = made.prefix
        log.info("super-block granted", extra={"fields": {"superblock": one.cidr, "pool": pool.name, "for": one.value}})
        return block

    def _place(self, part: Pool) -> tuple[Pool, int] | None:
        start = part.start(self._node)
        index = part.first_free(start, part.count, ())
        if index == part.count and (index := part.first_free(0, start, ())) == start:
            return None
        return part, index

    def _learn(self, pool: Pool, entries: Sequence[Entry]) -> None:
        found = map(records.decode_super, entries)
        self._known[pool.name] = {one.prefix: one for one in found if one.pool == pool.name}

    def _value(self, pool: Pool) -> str | None:
        return None if pool.split is None else self.labels.get(pool.split.label)


def _nothing_inside(made: SuperBlock) -> list[Condition]:
    supers, blocks = records.supers_inside(made.family, made.prefix), records.inside(made.family, made.prefix)
    return [Quiet(supers.start, supers.end), Quiet(blocks.start, blocks.end)]


def _put(made: SuperBlock) -> Put:
    return Put(records.super_key(made.family, made.prefix), records.encode_super(made))
