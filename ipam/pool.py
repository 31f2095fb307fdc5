"""The arithmetic of pools: a range of addresses cut into blocks of one size."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from config import prefix
from config.model import Pool as Written
from config.prefix import BITS, Family

Aggregate = Literal["none", "beside", "only"]
Span = tuple[int, int]
"""First and last address of a range, both included, as integers."""


@dataclass(frozen=True, slots=True)
class Split:
    """How a pool is divided among the values of a node label."""

    label: str
    size: int
    """Prefix length of a super-block."""
    aggregate: Aggregate = "none"
    """Whether a node announces the super-blocks of its blocks: not, too, or instead of the blocks."""


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool as the store has it."""

    name: str
    family: Family
    prefix: bytes
    """Wire bytes (config.prefix)."""
    block_size: int
    """Prefix length of a block."""
    nodes: dict[str, str] = field(default_factory=dict)
    """Labels that a node must have to use it."""
    disabled: bool = False
    """Nothing new is given out of it."""
    manual: bool = False
    """Used only by requests that name it."""
    not_advertised: bool = False
    reservations: tuple[bytes, ...] = ()
    """Prefixes of which addresses are given only to those who ask for them: wire bytes, in order."""
    split: Split | None = None

    @classmethod
    def parse(
        cls,
        name: str,
        cidr: str,
        block_size: int,
        nodes: dict[str, str] | None = None,
        *,
        disabled: bool = False,
        manual: bool = False,
        not_advertised: bool = False,
        reservations: Sequence[str] = (),
        split: Split | None = None,
    ) -> Pool:
        """Return a pool of text; ValueError where the prefix is none or no block of that size fits."""
        family, wire = prefix.parse(cidr)
        if not wire[0] <= block_size <= BITS[family]:
            raise ValueError(f"blocks of /{block_size} do not fit {cidr}")
        reserved = tuple(sorted((prefix.parse(text)[1] for text in reservations), key=lambda one: span(family, one)))
        if split is not None and not wire[0] <= split.size < block_size:
            raise ValueError(f"super-blocks of /{split.size} do not fit {cidr} in blocks of /{block_size}")
        return cls(name, family, wire, block_size, dict(nodes or {}), disabled, manual, not_advertised, reserved, split)

    @classmethod
    def of(cls, name: str, written: Written) -> Pool:
        """Return the pool that a node's file defines."""
        return cls.parse(
            name,
            written.cidr,
            written.block_size,
            written.nodes,
            disabled=written.disabled,
            manual=written.manual,
            not_advertised=written.not_advertised,
            reservations=written.reservations,
            split=Split(**written.split_by.model_dump()) if written.split_by else None,
        )

    def same_blocks(self, other: Pool) -> bool:
        """Tell whether two definitions cut the same addresses for the same nodes."""
        return self._cut() == other._cut()

    def _cut(self) -> tuple[object, ...]:
        return self.prefix, self.block_size, self.nodes, self.split and (self.split.label, self.split.size)

    @property
    def cidr(self) -> str:
        return prefix.text(self.family, self.prefix)

    @property
    def span(self) -> Span:
        return span(self.family, self.prefix)

    @property
    def count(self) -> int:
        """Number of blocks."""
        return 1 << (self.block_size - self.prefix[0])

    def block(self, index: int) -> bytes:
        """Return the prefix of a block, counted from 0."""
        if not 0 <= index < self.count:
            raise IndexError(f"{self.cidr} has {self.count} blocks, not {index + 1}")
        first = self.span[0] + (index << (BITS[self.family] - self.block_size))
        return prefix.make(self.family, first, self.block_size)

    def index(self, address: int) -> int | None:
        """Return which block an address lies in; None where it is not in the pool."""
        first, last = self.span
        return (address - first) >> (BITS[self.family] - self.block_size) if first <= address <= last else None

    def part(self, wire: bytes) -> Pool:
        """Return the super-block that a prefix lies in as a pool of its own, of the same name."""
        assert self.split is not None
        number = int.from_bytes(wire[1:].ljust(BITS[self.family] // 8, b"\0"), "big")
        return replace(self, prefix=prefix.make(self.family, number, self.split.size), split=None)

    def parts(self) -> Pool:
        """Return a pool whose blocks are the super-blocks."""
        assert self.split is not None
        return replace(self, block_size=self.split.size, split=None)

    def start(self, node: str) -> int:
        """Return the block where a node begins to look for a free one.

        It depends on nothing but the names, so nodes spread over the pool without asking each other.
        """
        digest = hashlib.blake2s(f"{self.name}\0{node}".encode()).digest()
        return int.from_bytes(digest, "big") % self.count

    def first_free(self, low: int, high: int, taken: Iterable[Span]) -> int:
        """Return the first block that ``free`` yields; ``high`` where there is none."""
        return next(self.free(low, high, taken), high)

    def free(self, low: int, high: int, taken: Iterable[Span]) -> Iterator[int]:
        """Yield the blocks of [low, high) that no range of ``taken`` touches.

        ``taken`` is sorted by first address; ranges of any size, and outside of the pool, are allowed. A block that is
        reserved as a whole counts as taken.
        """
        first, last = self.span
        shift = BITS[self.family] - self.block_size
        for begin, end in heapq.merge(taken, self._reserved_blocks()):
            if end < first or begin > last:
                continue
            before = min(high, (max(begin, first) - first) >> shift)
            while low < before:
                yield low
                low += 1
            low = max(low, ((min(end, last) - first) >> shift) + 1)
        while low < high:
            yield low
            low += 1

    def reserved(self, first: int, last: int) -> Iterator[int]:
        """Yield the addresses of a range that are reserved."""
        for one in self.reservations:
            begin, end = span(self.family, one)
            yield from range(max(first, begin), min(last, end) + 1)

    def _reserved_blocks(self) -> list[Span]:
        """Return the ranges of whole blocks that are reserved."""
        size = 1 << (BITS[self.family] - self.block_size)
        spans = (span(self.family, one) for one in self.reservations)
        return [one for one in spans if one[1] - one[0] + 1 >= size]


def span(family: Family, wire: bytes) -> Span:
    """Return the first and last address of a prefix."""
    bits = BITS[family]
    first = int.from_bytes(wire[1:].ljust(bits // 8, b"\0"), "big")
    return first, first | ((1 << (bits - wire[0])) - 1)


def overlap(one: Pool, other: Pool) -> bool:
    return one.family == other.family and (
        prefix.contains(one.prefix, other.prefix) or prefix.contains(other.prefix, one.prefix)
    )
