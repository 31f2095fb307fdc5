"""What this node announces of its own addresses: blocks, and the super-blocks of split pools that they lie in.

An aggregate stands as long as it has a contributor, a block of this node. Its discard route is part of it: the fabric
sends us what no block covers, and a default route would send it back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bgp.policy import Source
from bgp.speaker import Speaker
from config import prefix
from config.prefix import Family
from ipam.pool import Pool
from ipam.records import Block
from routes.fib import Fib

Key = tuple[Family, bytes]


class Origination:
    """Keeps the speaker's own routes as blocks and pools have them."""

    def __init__(
        self,
        speaker: Speaker,
        fib: Fib,
        *,
        blocks: Callable[[], Sequence[Block]],
        announced: Callable[[Block], bool],
        aggregates: Callable[[], Sequence[tuple[Pool, bytes, bool]]],
    ) -> None:
        """``aggregates`` returns pool, prefix, and whether it stands in place of the blocks inside."""
        self._speaker = speaker
        self._fib = fib
        self._blocks = blocks
        self._announced = announced
        self._aggregates = aggregates
        self._routes: dict[Key, tuple[str, Source]] = {}
        """What is announced, its owner, and its source."""
        self._discards: set[Key] = set()
        self._announced_by: dict[Key, Key] = {}
        """By block: what announces it, itself or its aggregate."""

    def of(self, block: Block) -> Key | None:
        """Return what is announced for a block: itself, its aggregate, or None where its pool is not advertised."""
        return self._announced_by.get((block.family, block.prefix))

    def refresh(self) -> None:
        """Bring what is announced in line with what is owned; what stays is not touched."""
        wanted: dict[Key, tuple[str, Source]] = {}
        discards: set[Key] = set()
        instead: dict[str, list[Key]] = {}
        for pool, wire, only in self._aggregates():
            wanted[pool.family, wire] = f"aggregate of pool {pool.name}", "aggregate"
            discards.add((pool.family, wire))
            if only:
                instead.setdefault(pool.name, []).append((pool.family, wire))
        announced_by: dict[Key, Key] = {}
        for block in filter(self._announced, self._blocks()):
            key = (block.family, block.prefix)
            # An address on loan is another node's: it needs its own route
            around = () if block.lender else instead.get(block.pool, ())
            announced_by[key] = next((one for one in around if prefix.contains(one[1], block.prefix)), key)
            if announced_by[key] == key:
                wanted[key] = f"block of pool {block.pool}", "exception" if block.lender else "block"
        # The discard route is there before the aggregate, and an aggregate before the blocks that it stands for leave
        for key in discards - self._discards:
            self._fib.add_cover(*key)
        for key in wanted.keys() - self._routes.keys():
            owner, source = wanted[key]
            self._speaker.originate(*key, owner=owner, source=source)
        for key in self._routes.keys() - wanted.keys():
            self._speaker.retract(*key, self._routes[key][0])
        for key in self._discards - discards:
            self._fib.remove_cover(*key)
        self._routes, self._discards, self._announced_by = wanted, discards, announced_by
