"""The blocks of this node and what is free in them: memory only, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from config import prefix
from config.prefix import BITS, Family
from ipam.block import FreeAddresses
from ipam.given import Assignment
from ipam.pool import Pool, span
from ipam.records import Block

Key = tuple[Family, bytes]
"""Family and prefix of a block."""


class Held(NamedTuple):
    """A block of ours with its free addresses."""

    block: Block
    first: int
    """The block's first address."""
    free: FreeAddresses


class Taken(NamedTuple):
    """An address that is nobody else's, and not yet anybody's."""

    held: Held
    ordinal: int

    @property
    def assignment(self) -> Assignment:
        block = self.held.block
        wire = prefix.make(block.family, self.held.first + self.ordinal, BITS[block.family])
        return Assignment(block.family, prefix.address_text(wire[1:]), wire, block.pool, block.prefix)


class Holdings:
    """Takes addresses out of blocks and puts them back. Times are seconds of a clock that does not go back."""

    def __init__(self) -> None:
        self.blocks: dict[Key, Held] = {}
        self._with_space: dict[str, dict[bytes, Held]] = {}
        """By pool and prefix: blocks that are not full, so that many full ones cost nothing."""

    def add(
        self,
        block: Block,
        used: Iterable[int] = (),
        kept: Iterable[int] = (),
        released: Iterable[tuple[int, float]] = (),
        pool: Pool | None = None,
    ) -> None:
        """Add a block; ``used`` and ``kept`` are addresses, ``released`` addresses and when, oldest first."""
        first, last = span(block.family, block.prefix)
        free = FreeAddresses(
            last - first + 1,
            (address - first for address in (*used, *kept)),
            ((at - first, since) for at, since in released),
            (address - first for address in pool.reserved(first, last)) if pool else (),
            (address - first for address in kept),
        )
        held = Held(block, first, free)
        self.blocks[block.family, block.prefix] = held
        self._note(held)

    def refresh(self, block: Block) -> None:
        """Take the store's record of a block in place of the one that is here."""
        held = self.blocks[block.family, block.prefix]._replace(block=block)
        self.blocks[block.family, block.prefix] = held
        self._note(held)

    def remove(self, key: Key) -> Held:
        held = self.blocks.pop(key)
        self._with_space.get(held.block.pool, {}).pop(held.block.prefix, None)
        return held

    def serves(self, pools: Sequence[Pool]) -> bool:
        """Tell whether a block of one of these pools is here, full or not."""
        names = {pool.name for pool in pools}
        return any(held.block.pool in names and not held.block.lender for held in self.blocks.values())

    def count(self, family: Family) -> int:
        """Return how many blocks of a family are here, without addresses on loan to us."""
        return sum(of == family and not held.block.lender for (of, _), held in self.blocks.items())

    def unused_loans(self, family: Family) -> list[Block]:
        """Return the addresses on loan to us that nobody has."""
        return [
            held.block
            for (of, _), held in self.blocks.items()
            if of == family and held.block.lender and not held.free.used
        ]

    def resting(self, pools: Sequence[Pool]) -> bool:
        """Tell whether some address of these pools was released, be it this moment."""
        return any(
            held.free.oldest() is not None for pool in pools for held in self._with_space.get(pool.name, {}).values()
        )

    def take(self, pools: Sequence[Pool], now: float, cool_down: float) -> Taken | None:
        """Take an address that was never used or has rested, out of the first pool that has one."""
        for pool in pools:
            for held in self._with_space.get(pool.name, {}).values():
                ordinal = held.free.take(now, cool_down)
                if ordinal is not None:
                    self._note(held)
                    return Taken(held, ordinal)
        return None

    def take_oldest(self, pools: Sequence[Pool]) -> Taken | None:
        """Take the address that was released longest ago, however recently."""
        resting = [
            (since, held)
            for pool in pools
            for held in self._with_space.get(pool.name, {}).values()
            if (since := held.free.oldest()) is not None
        ]
        if not resting:
            return None
        _, held = min(resting, key=lambda item: item[0])
        ordinal = held.free.take_oldest()
        assert ordinal is not None
        self._note(held)
        return Taken(held, ordinal)

    def crowded(self, pools: Sequence[Pool]) -> bool:
        """Tell whether more than half of the addresses are in use, none being so too."""
        names = {pool.name for pool in pools}
        free = [held.free for held in self.blocks.values() if held.block.pool in names]
        return 2 * sum(one.used for one in free) >= sum(one.size for one in free)

    def free(self, pools: Sequence[Pool]) -> int:
        """Return how many addresses of these pools are free here."""
        return sum(held.free.free for pool in pools for held in self._with_space.get(pool.name, {}).values())

    def take_exactly(self, key: Key, address: int) -> Taken | None:
        """Take one address of a block that is here; None where it is in use."""
        held = self.blocks[key]
        taken = Taken(held, address - held.first)
        if not held.free.take_exactly(taken.ordinal):
            return None
        self._note(held)
        return taken

    def undo(self, taken: Taken) -> None:
        """Put back what nobody got."""
        taken.held.free.undo(taken.ordinal)
        self._note(taken.held)

    def give_back(self, assignment: Assignment, now: float) -> None:
        """Put back what somebody had; an address of a block that is not here is none of ours."""
        held = self.blocks.get((assignment.family, assignment.block))
        if held is not None:
            held.free.give_back(int.from_bytes(assignment.packed, "big") - held.first, now)
            self._note(held)

    def _note(self, held: Held) -> None:
        if (held.block.family, held.block.prefix) not in self.blocks:
            return  # taken from before the block was lost
        space = self._with_space.setdefault(held.block.pool, {})
        if held.free.free:
            space[held.block.prefix] = held
        else:
            space.pop(held.block.prefix, None)


class IdleBlocks:
    """Since when blocks have been empty."""

    def __init__(self) -> None:
        self._since: dict[Key, float] = {}

    def due(self, holdings: Holdings, family: Family, now: float, after: float) -> list[Block]:
        """Return the blocks of a family that have been empty for ``after`` seconds; one of the family always stays."""
        blocks = {key: held for key, held in holdings.blocks.items() if key[0] == family and not held.block.lender}
        empty = [key for key, held in blocks.items() if not held.free.used]
        known = {key: since for key, since in self._since.items() if key[0] != family}
        self._since = known | {key: self._since.get(key, now) for key in empty}
        idle = [blocks[key].block for key in empty if now - self._since[key] >= after]
        return idle[: len(blocks) - 1]
