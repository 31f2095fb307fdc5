"""Where in its pools a node tries to claim a block.

At first it knows nothing: it tries the block behind its last one, or where its name says, and a few far from there. A
refusal tells what lies around those, and with that it has many blocks to try that were free a moment ago, each node
others. Only where these are gone too, or where there was none, it goes through the pool once from beginning to end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2s
from itertools import islice
from random import Random

from ipam import records
from ipam.pool import Pool
from ipam.store import Entry, Range

PAGE = 256
"""Block records read at a time."""
BLIND = 2
"""Blocks tried before anything is known of the pool."""


class Search:
    """Looks for one block. The caller tries ``candidates``, and shows what it read of ``windows`` where all failed.

    Where there are none, it shows only that.
    """

    def __init__(
        self, pools: Sequence[Pool], starts: Mapping[tuple[str, bytes], int], node: str, blind: int = BLIND
    ) -> None:
        """``starts``: where to begin in a pool, by its name and prefix, instead of where the node's name says.
        ``blind``: how many blocks to try before anything is known."""
        self._rest = list(pools)
        self._starts = starts
        self._node = node
        self._most = blind
        self.candidates: list[int] = []
        """Blocks of the pool to try, the best first."""
        self.pool: Pool | None = None
        """Where it looks now; None: there is none left."""
        self.blind = True
        """Whether nothing is known of the pool yet."""
        self.whole = False
        """Whether there can be no other free block in the pool than the candidates."""
        self._windows: list[tuple[int, int, int]] = []
        """First block, end, and most records."""
        self._tried: set[int] = set()
        self._start = self._walked = 0
        self._wrapped = False
        self._next_pool()

    @property
    def here(self) -> Pool:
        assert self.pool is not None
        return self.pool

    def windows(self) -> list[Range]:
        """Return the ranges of records that say where to go on if all candidates are taken."""
        pool = self.here
        return [records.blocks_from(pool, low, high, limit) for low, high, limit in self._windows]

    def see(self, tried: int, read: Sequence[Sequence[Entry]]) -> None:
        """Learn that so many of the candidates, the first ones, cannot be had, and what the windows showed."""
        self._tried.update(self.candidates[:tried])
        pool, known = self.here, dict[int, None]()
        for (low, high, limit), entries in zip(self._windows, read, strict=True):
            spans = [records.block_span(entry.key) for entry in entries]
            # What these records tell of: up to the last of them where there may be more
            told = high if len(entries) < limit else 1 + (pool.index(spans[-1][0]) or 0)
            # Also a block that seems free may be refused: part of a greater one, or one that was given back just now
            free = (index for index in pool.free(low, told, spans) if index not in self._tried)
            known.update(dict.fromkeys(islice(free, PAGE)))
            self._walked = told
        # Others that met here at once see the same: not all must try the same blocks
        seed = blake2s(f"{self._node}\0{len(self._tried)}".encode()).digest()
        self.candidates = Random(seed).sample(list(known), len(known))
        self.whole = self._windows == [(0, pool.count, PAGE)] and self._walked == pool.count and len(known) < PAGE
        blind, self.blind = self.blind, False
        if blind and pool.count > PAGE:
            self._windows = [(self._start, pool.count, PAGE)]
        elif not known:
            self._walk_on()

    def _walk_on(self) -> None:
        high = self._windows[0][1]
        if self._walked < high:
            self._windows = [(self._walked, high, PAGE)]
        elif self._start and not self._wrapped:
            self._wrapped = True
            self._windows = [(0, self._start, PAGE)]
        else:
            self._next_pool()

    def _next_pool(self) -> None:
        self.pool = self._rest.pop(0) if self._rest else None
        self._tried = set()
        self.blind, self.whole, self._wrapped, self._walked = True, False, False, 0
        self.candidates, self._windows = [], []
        if self.pool is None:
            return
        pool = self.pool
        self._start = self._starts.get((pool.name, pool.prefix), pool.start(self._node))
        self.candidates = list(dict.fromkeys(self._blindly(pool)))
        if pool.count <= PAGE:
            self._windows = [(0, pool.count, PAGE)]
            self._wrapped = True
        else:
            share = PAGE // max(1, len(self.candidates))
            self._windows = [(index, pool.count, share) for index in self.candidates]
        if not self.candidates:  # nothing but reserved ones
            self._next_pool()

    def _blindly(self, pool: Pool) -> Iterator[int]:
        random = Random(blake2s(f"{pool.name}\0{self._node}".encode()).digest())
        place = self._start
        for _ in range(self._most):
            found = pool.first_free(place, pool.count, ())
            if found == pool.count:
                found = pool.first_free(0, place, ())
                if found == place:
                    return
            yield found
            place = (self._start + random.randrange(pool.count)) % pool.count
