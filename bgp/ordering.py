"""Prefixes in the order of their addresses, sorted a part at a time: sorting a full table holds an event loop for long.

They are dealt out by their first octet, then those of one large heap by the second, and so on, until a heap is small
enough to be sorted in one go.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice

PART = 2000
"""Prefixes that are sorted, or dealt out, in one step; a millisecond of work."""


def prefix_order(prefix: bytes) -> tuple[bytes, int]:
    """Return the key by which prefixes are sorted for people: address, then length."""
    return prefix[1:], prefix[0]


def in_order(shards: Iterable[Iterable[bytes]]) -> Iterator[list[bytes]]:
    """Sort the prefixes of the shards of a table, each as it is when its turn comes.

    Yields them in order, in stretches of up to ``PART``; empty ones stand for steps that only dealt out.
    """
    heaps: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for shard in shards:
        yield from _deal(list(shard), 1, heaps)
    yield from _each(heaps, 2)


def _each(heaps: dict[bytes, list[bytes]], octet: int) -> Iterator[list[bytes]]:
    """Sort heaps, each of prefixes that have the octets before ``octet`` in common."""
    for lead in sorted(heaps):
        heap = heaps.pop(lead)
        if len(heap) <= PART or not lead:  # prefixes without the octet before this one differ by their length alone
            yield sorted(heap, key=prefix_order)
            continue
        smaller: defaultdict[bytes, list[bytes]] = defaultdict(list)
        yield from _deal(heap, octet, smaller)
        yield from _each(smaller, octet + 1)


def _deal(prefixes: Iterable[bytes], octet: int, heaps: defaultdict[bytes, list[bytes]]) -> Iterator[list[bytes]]:
    rest = iter(prefixes)
    while some := list(islice(rest, PART)):
        for prefix in some:
            heaps[prefix[octet : octet + 1]].append(prefix)
        yield []
