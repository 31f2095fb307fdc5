"""Whether the fabric knows of this node's blocks: what CNI's STATUS answers, and what ADD waits for.

A block is advertised once it is written to a peer and acknowledged by that peer's TCP. That it once was is what counts:
when a ToR fails later, its whole rack should not become NotReady, unless the configuration says after how long.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence

from bgp.speaker import Speaker
from cni.errors import Code
from cni.hooks import Assignment
from config import prefix
from config.prefix import Family
from ipam.lasting import lasting
from ipam.records import Block

log = logging.getLogger("podroute.agent")

Key = tuple[Family, bytes]


class Advertising:
    """``blocks`` returns this node's, ``announced`` what is announced for one, None: nothing. ``wait`` is how long an
    ADD waits for its block's advertisement, in seconds; ``not_ready_after`` how long no peer may have been told of a
    block, None: for ever."""

    def __init__(
        self,
        speaker: Speaker,
        blocks: Callable[[], Sequence[Block]],
        *,
        announced: Callable[[Block], Key | None],
        wait: float,
        not_ready_after: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._speaker = speaker
        self._blocks = blocks
        self._announced = announced
        self._wait = wait
        self._not_ready_after = not_ready_after
        self._clock = clock
        self._told: set[Key] = set()
        """Blocks that were advertised once."""
        self._waited: set[Key] = set()
        """Blocks that an ADD has waited for in vain; the next one does not."""
        self._all_told = False
        self._lost_since: float | None = None
        self._progress = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = lasting(self._watch(), "advertising", log)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def wait(self, assignments: Iterable[Assignment]) -> None:
        """Return once the blocks of a new pod's addresses are advertised, or have had their time."""
        fresh = {(assignment.family, assignment.block) for assignment in assignments} - self._told - self._waited
        if not fresh or not self._expected():
            return
        try:
            async with asyncio.timeout(self._wait):
                while fresh - self._told:
                    await self._progress.wait()
        except TimeoutError:
            blocks = ", ".join(sorted(prefix.text(*key) for key in fresh - self._told))
            fields = {"blocks": blocks, "waited": self._wait}
            log.warning("container added before its block is advertised", extra={"fields": fields})
            self._waited |= fresh

    def trouble(self) -> tuple[int, str] | None:
        """Return None where containers can be added, else CNI's STATUS code and why."""
        blocks = self._blocks()
        if not blocks:
            return Code.NOT_AVAILABLE, "this node owns no block of addresses: see `podroute status` and its log"
        if not self._expected():
            return None
        if not self._all_told:
            missing = [prefix.text(*key) for block in blocks if (key := (block.family, block.prefix)) not in self._told]
            return Code.LIMITED_CONNECTIVITY, f"no peer has been told of {', '.join(missing)} yet"
        if self._not_ready_after is not None and self._lost_since is not None:
            lost = self._clock() - self._lost_since
            if lost >= self._not_ready_after:
                return Code.LIMITED_CONNECTIVITY, f"no peer has been told of this node's blocks for {lost:.0f} s"
        return None

    async def _watch(self) -> None:
        while True:
            changed = asyncio.ensure_future(self._speaker.changed())
            try:
                if self._speaker.idle:
                    await self._look()
                await changed
            finally:
                changed.cancel()

    async def _look(self) -> None:
        blocks = self._blocks()
        announced = {(block.family, block.prefix): self._announced(block) for block in blocks}
        keys, hidden = announced.keys(), {key for key, by in announced.items() if by is None}
        self._told = self._told & keys | hidden
        self._waited &= keys
        for key in keys - self._told:
            by = announced[key]
            exports = self._speaker.rib.explain(*by).exports if by is not None else ()
            if any([await self._speaker.flushed(export.peer) for export in exports if export.advertised]):
                self._told.add(key)
                self._progress.set()
                self._progress = asyncio.Event()
        self._all_told = self._all_told or (bool(keys) and keys <= self._told)
        if not self._lost(keys - hidden):
            self._lost_since = None
        elif self._lost_since is None:
            self._lost_since = self._clock()

    def _expected(self) -> bool:
        """Tell whether there is anybody to be told."""
        return bool(self._speaker.peers() or self._speaker.ranges())

    def _lost(self, keys: Iterable[Key]) -> bool:
        """Tell whether some family of blocks is advertised to nobody."""
        peers = [peer for peer in self._speaker.peers() if peer.uptime is not None]
        told = {family for peer in peers for family, status in peer.families.items() if status.advertised}
        return not {family for family, _ in keys} <= told
