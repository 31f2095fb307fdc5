"""The arithmetic of pools: a range of addresses cut into blocks of one size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from config import prefix
from config.prefix import BITS, Family

Span = tuple[int, int]
"""First and last address of a range, both included, as integers."""


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

    @classmethod
    def parse(cls, name: str, cidr: str, block_size: int, nodes: dict[str, str] | None = None) -> Pool:
        """Return a pool of text; ValueError where the prefix is none or no block of that size fits."""
        family, wire = prefix.parse(cidr)
        if not wire[0] <= block_size <= BITS[family]:
            raise ValueError(f"blocks of /{block_size} do not fit {cidr}")
        return cls(name, family, wire, block_size, dict(nodes or {}))

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

    def start(self, node: str) -> int:
        """Return the block where a node begins to look for a free one.

        It depends on nothing but the names, so nodes spread over the pool without asking each other.
        """
        digest = hashlib.blake2s(f"{self.name}\0{node}".encode()).digest()
        return int.from_bytes(digest, "big") % self.count

    def first_free(self, low: int, high: int, taken: Iterable[Span]) -> int:
        """Return the first block of [low, high) that no range of ``taken`` touches; ``high`` where there is none.

        ``taken`` is sorted by first address; ranges of any size, and outside of the pool, are allowed.
        """
        first, last = self.span
        shift = BITS[self.family] - self.block_size
        for begin, end in taken:
            if end < first or begin > last:
                continue
            if low < (max(begin, first) - first) >> shift:
                break
            low = max(low, ((min(end, last) - first) >> shift) + 1)
        return min(low, high)


def span(family: Family, wire: bytes) -> Span:
    """Return the first and last address of a prefix."""
    bits = BITS[family]
    first = int.from_bytes(wire[1:].ljust(bits // 8, b"\0"), "big")
    return first, first | ((1 << (bits - wire[0])) - 1)


def overlap(one: Pool, other: Pool) -> bool:
    return one.family == other.family and (
        prefix.contains(one.prefix, other.prefix) or prefix.contains(other.prefix, one.prefix)
    )
