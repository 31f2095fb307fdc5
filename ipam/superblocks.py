"""Pools that are split by a node label: super-blocks, each for one value of it, in which its nodes claim their blocks.

A super-block is made in one transaction with the first block in it, refused where any super-block or block overlaps it.
Every claim inside wants it unchanged, so an empty one can be deleted, or given to another value, at any time.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from typing import NamedTuple, Protocol

from config import prefix
from ipam import records
from ipam.errors import AddressInUseError
from ipam.offers import Candidate, Claimed, Offers
from ipam.pool import Pool, Span, span
from ipam.records import Block, SuperBlock
from ipam.search import BLIND, Search
from ipam.store import Condition, Delete, Differs, Entry, Holds, Put, Quiet, Range, Store, Unchanged, Write

log = logging.getLogger("podroute.ipam")

_AT_ONCE = 100
"""Super-blocks looked into by one question: etcd takes 128 operations."""
_LOOK = 16
"""Super-blocks of this node's value looked into by a refused claim."""
_PLACES = (8, 2)
"""Blocks tried by one claim in each new super-block."""


class Around(NamedTuple):
    """What a claim inside a super-block wants of it, writes, and reads where it is refused."""

    conditions: Sequence[Condition] = ()
    writes: Sequence[Write] = ()
    reads: Sequence[Range] = ()


class Claiming(Protocol):
    """What claims blocks; ipam.claims.Claims."""

    def search(self, pools: Sequence[Pool], blind: int = BLIND) -> Search: ...

    async def read_on(self, search: Search) -> None: ...

    async def first_of(self, wants: Sequence[Offers]) -> list[Claimed]: ...


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
        """Claim a block for this node's value, in a new super-block where all it has are full; None: no room.

        The one that was used last is tried first; a refusal shows all super-blocks there are now, and what is in those
        of this value. With that the second transaction tries what room there is, or else a new one, or the same if
        another node of this value was faster to make it.
        """
        if pool.name not in self._known:
            await self.read(pool)
        searches: dict[bytes, Search] = {}
        avoid: list[Span] = []
        while True:
            for one in self.mine(pool):
                searches.setdefault(one.prefix, self._claims.search([pool.part(one.prefix)]))
            mine = [one for one in self.mine(pool) if searches[one.prefix].pool is not None]
            inside = [
                (one, index) for one in _worth_trying(mine, searches) for index in searches[one.prefix].candidates
            ]
            new = self._new_ones(pool, avoid) if all(searches[one.prefix].whole for one in mine) else []
            if not inside and not new:
                unread = [one for one in mine if not searches[one.prefix].whole]
                if not unread:
                    return await self._take_over(pool)
                await self._claims.read_on(searches[unread[0].prefix])
                continue
            candidates = [self._in(pool, one, index) for one, index in inside]
            candidates += self._in_new(pool, new)
            looked = mine[:_LOOK]
            windows = [searches[one.prefix].windows() for one in looked]
            reads = [records.supers_inside(pool.family, pool.prefix), *chain.from_iterable(windows)]
            (claimed,) = await self._claims.first_of([Offers(candidates, reads)])
            if claimed.block is not None:
                self._took(pool, claimed.block, made=bool(candidates[claimed.tried].writes))
                return claimed.block
            tried = Counter(one.prefix for one, _ in inside[: claimed.tried])
            rest = iter(claimed.read[1:])
            for one, asked in zip(looked, windows, strict=True):
                searches[one.prefix].see(tried[one.prefix], list(islice(rest, len(asked))))
            self._learn(pool, claimed.read[0])
            if claimed.tried > len(inside):
                avoid += self._not_to_be_had(pool, new)

    async def around(self, pool: Pool, block: bytes, *, fresh: bool) -> Around:
        """Return what a claim of one certain block wants. Raises AddressInUseError where it cannot be this node's."""
        if fresh or pool.name not in self._known:
            await self.read(pool)
        assert pool.split is not None
        label, wire, value = pool.split.label, pool.part(block).prefix, self._value(pool)
        there = self._known[pool.name].get(wire)
        if value is None or (there is not None and there.value != value):
            whose = f"belongs to the nodes with {label}={there.value}" if there else "belongs to nobody"
            cidr, around = prefix.text(pool.family, block), prefix.text(pool.family, wire)
            raise AddressInUseError(
                f"block {cidr} of pool {pool.name} lies in {around}, which {whose}; "
                f"node {self._node} has {'no such label' if value is None else f'{label}={value}'}"
            )
        if there is not None:
            return Around([_is(there)])
        made = SuperBlock(pool.family, wire, pool.name, value)
        return Around(_nothing_inside(made), [_put(made)], [records.inside(pool.family, wire, 1)])

    async def give_back(self, pool: Pool, block: Block) -> None:
        """Delete the super-block of a block that is gone, if it was the last one inside."""
        wire = pool.part(block.prefix).prefix
        there = self._known.get(pool.name, {}).get(wire)
        if there is None:
            return
        key, within = records.super_key(pool.family, wire), records.inside(pool.family, wire)
        outcome = await self._store.transact([_is(there), Quiet(within.start, within.end)], [Delete(key)])
        if outcome.committed:
            del self._known[pool.name][wire]
            log.info("super-block given back", extra={"fields": {"superblock": there.cidr, "pool": pool.name}})

    def _in(self, pool: Pool, one: SuperBlock, index: int) -> Candidate:
        return Candidate(pool.part(one.prefix), index, [_is(one)])

    def _in_new(self, pool: Pool, new: Sequence[SuperBlock]) -> list[Candidate]:
        """Return the ways to a block in a new super-block: another node of this value has just made it, or we do.

        The second is for when another value has the first one now.
        """
        found: list[Candidate] = []
        others: list[Condition] = []
        for made, most in zip(new, _PLACES, strict=False):
            part = pool.part(made.prefix)
            places = self._claims.search([part], most).candidates
            found += [Candidate(part, index, [*others, _is(made)]) for index in places]
            found.append(Candidate(part, places[0], [*others, *_nothing_inside(made)], [_put(made)]))
            others.append(Differs(records.super_key(made.family, made.prefix), records.encode_super(made)))
        return found

    def _new_ones(self, pool: Pool, avoid: Sequence[Span]) -> list[SuperBlock]:
        """Return the super-blocks to make next, in an order that all nodes of this value agree on."""
        value, parts = self._value(pool), pool.parts()
        assert value is not None
        taken = sorted([*(span(pool.family, wire) for wire in self._known[pool.name]), *avoid])
        start = parts.start(value)
        order = chain(parts.free(start, parts.count, taken), parts.free(0, start, taken))
        free = (SuperBlock(pool.family, parts.block(index), pool.name, value) for index in order)
        # One may be reserved as a whole, in pieces
        return list(
            islice((made for made in free if self._claims.search([pool.part(made.prefix)]).candidates), len(_PLACES))
        )

    def _not_to_be_had(self, pool: Pool, new: Sequence[SuperBlock]) -> list[Span]:
        """Return which of the new super-blocks was refused though there is none: somebody has blocks in it."""
        for made in new:
            there = self._known[pool.name].get(made.prefix)
            if there is None:
                return [span(pool.family, made.prefix)]
            if there.value == made.value:  # then the next one was not even tried
                break
        return []

    async def _take_over(self, pool: Pool) -> Block | None:
        """Claim an empty super-block of another value, as there is no other one left."""
        value = self._value(pool)
        assert value is not None
        others = [one for one in self._known[pool.name].values() if one.value != value]
        for at in range(0, len(others), _AT_ONCE):
            some = others[at : at + _AT_ONCE]
            # A condition that does not hold: it only asks
            asked = await self._store.transact(
                [Unchanged(records.pool_key(pool.name), 0)], [], [records.inside(o.family, o.prefix, 1) for o in some]
            )
            empty = [one for one, blocks in zip(some, asked.read, strict=True) if not blocks]
            for one in empty:
                part = pool.part(one.prefix)
                within = records.inside(one.family, one.prefix)
                made = SuperBlock(one.family, one.prefix, pool.name, value)
                conditions: list[Condition] = [_is(one), Quiet(within.start, within.end)]
                places = self._claims.search([part]).candidates[:1]
                if not places:
                    continue
                (claimed,) = await self._claims.first_of(
                    [Offers([Candidate(part, places[0], conditions, [_put(made)])])]
                )
                if claimed.block is not None:
                    self._took(pool, claimed.block, made=True)
                    return claimed.block
        return None

    def _took(self, pool: Pool, block: Block, *, made: bool) -> None:
        value, wire = self._value(pool), pool.part(block.prefix).prefix
        assert value is not None
        one = SuperBlock(pool.family, wire, pool.name, value)
        self._known[pool.name][wire] = one
        self._latest[pool.name] = wire
        if made:
            log.info("super-block granted", extra={"fields": {"superblock": one.cidr, "pool": pool.name, "for": value}})

    def _learn(self, pool: Pool, entries: Sequence[Entry]) -> None:
        found = map(records.decode_super, entries)
        self._known[pool.name] = {one.prefix: one for one in found if one.pool == pool.name}

    def _value(self, pool: Pool) -> str | None:
        return None if pool.split is None else self.labels.get(pool.split.label)


def _worth_trying(mine: Sequence[SuperBlock], searches: Mapping[bytes, Search]) -> list[SuperBlock]:
    """Return those known to have room; without one, the first of which nothing is known."""
    blind = [one for one in mine if searches[one.prefix].blind]
    return [one for one in mine if one not in blind and searches[one.prefix].candidates] or blind[:1]


def _is(one: SuperBlock) -> Holds:
    return Holds(records.super_key(one.family, one.prefix), records.encode_super(one))


def _nothing_inside(made: SuperBlock) -> list[Condition]:
    supers, blocks = records.supers_inside(made.family, made.prefix), records.inside(made.family, made.prefix)
    return [Quiet(supers.start, supers.end), Quiet(blocks.start, blocks.end)]


def _put(made: SuperBlock) -> Put:
    return Put(records.super_key(made.family, made.prefix), records.encode_super(made))
