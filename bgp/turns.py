"""The one task that works for all peers of a speaker: it reads, decides and writes for some milliseconds each in a turn
of the event loop, so that neither a full table nor a slow peer holds it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from bgp.peer import LITTLE, Peer
from bgp.rib import Rib

if TYPE_CHECKING:
    from bgp.session import Session

log = logging.getLogger("podroute.bgp")

_SLICE = 0.005
"""Seconds of reading, of deciding and of writing in one turn of the event loop."""
_LEAST, _MOST = 16, 8192
"""Bounds of the number of prefixes decided in one slice."""
_BACKLOG = 50_000
"""Prefixes that wait to be decided at which no more octets are processed: peers are to slow down, not we to grow."""
_READ = 16 * 1024
"""Octets of one peer processed at a time; some 4,000 prefixes, or 300 with new attributes each."""
_SPARED = 64 * 1024
"""Octets heard from peers that say little ahead of others, until the decisions and the FIB do not lag behind."""
_WRITE = 32 * 1024
"""Octets taken from a peer's Adj-RIB-Out at a time."""
_ACKNOWLEDGED = 0.01
"""Seconds between two looks at TCP's send queues while somebody waits for them: the kernel has no event for it."""


class Turns:
    """Gives each its turn: sessions that have received, the RIB that has something to decide, peers to be written to.

    ``fib_full`` tells that no table is to be read for a while. ``on_failure`` gets an exception that is a fault of
    podroute's own and after which the task does no more.
    """

    def __init__(self, rib: Rib, fib_full: Callable[[], bool], on_failure: Callable[[BaseException], None]) -> None:
        self._rib = rib
        self._fib_full = fib_full
        self._on_failure = on_failure
        self.readers: deque[Session] = deque()
        """Sessions with octets to process; the one whose turn it is comes first."""
        self.writers: deque[Peer] = deque()
        """All peers; the one whose turn to write it is comes first."""
        self.idle = True
        """All that was received is decided, and written as far as the peers' connections take it."""
        self._work = asyncio.Event()
        self._changed = asyncio.Event()
        self._pending = False
        """The RIB may have something to decide, or peers may have something to be written to them."""
        self._lagging = False
        """Decisions lag so far behind that no more octets are to be processed."""
        self._spared = 0
        """Octets processed since the decisions or the FIB began to lag behind."""
        self._budget = 1024
        self._task: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        return self._task is not None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self.run(), name="bgp")
        self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def wake(self) -> None:
        """There is something to decide or to write."""
        self.idle = False
        self._pending = True
        self._work.set()

    def read_on(self) -> None:
        """There are octets to process."""
        self._work.set()

    def notify(self) -> None:
        """Tell those who wait that something has changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Return at the next ``notify``, or when all work is done."""
        await self._changed.wait()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return once a condition holds, which may depend on what TCP has acknowledged."""
        while True:
            # Before asking: an acknowledgement that arrives in between tells nobody
            unacknowledged = self.idle and any(peer.unacknowledged for peer in self.writers)
            if holds():
                return
            try:
                async with asyncio.timeout(_ACKNOWLEDGED if unacknowledged else None):
                    await self.changed()
            except TimeoutError:
                continue

    async def run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            if self.turn():
                self._work.set()
                await asyncio.sleep(0)  # what has arrived meanwhile comes behind us in this turn of the loop
                await asyncio.sleep(0)
            elif not self.idle and not self.readers:
                self.idle = True
                self.notify()

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:  # a fault of ours: the agent decides, the FIB stays as it is
            log.critical("the BGP speaker has failed", exc_info=error)
            self._on_failure(error)

    def turn(self) -> bool:
        """Read, decide and write, each for some milliseconds; True: there is more to do at once."""
        start = time.perf_counter()
        if self._read_little(start + _SLICE) and self.readers:  # others take their time
            self._rib.run_few(self._budget)
        unread = self._read(time.perf_counter() + _SLICE)
        if not self._pending:  # nothing but keepalives
            return unread
        self._pending = False
        read = time.perf_counter()
        more = self._rib.run(self._budget)
        self._lagging = more and self._rib.waiting >= _BACKLOG
        decided = time.perf_counter()
        factor = _SLICE / max(decided - read, 1e-6)
        if more or factor < 1.0:
            self._budget = int(min(max(self._budget * min(factor, 2.0), _LEAST), _MOST))
        self._pending = self._flush(decided + _SLICE) or more
        return self._pending or unread

    def _read_little(self, until: float) -> bool:
        """Process what those have sent who have sent little, before anything else; True: there was something."""
        readers = self.readers
        some = False
        for _ in range(len(readers)):
            session = readers.popleft()
            octets = session.unread
            if octets > LITTLE or self._spared > _SPARED or time.perf_counter() > until:
                readers.append(session)
            else:
                some = True
                self._spared += octets
                if session.read(LITTLE):
                    readers.append(session)
        return some

    def _read(self, until: float) -> bool:
        """Process what peers sent, each in turn, unless decisions or the FIB lag behind; True: there is more to do."""
        readers = self.readers
        full = self._fib_full()
        if full or self._lagging:
            return bool(readers) and not full
        self._spared = 0
        while readers and time.perf_counter() < until:
            session = readers.popleft()
            if session.read(_READ):
                readers.append(session)
        return bool(readers)

    def _flush(self, until: float) -> bool:
        """Let each peer write in turn; True: some have more, and time is up."""
        satisfied = 0
        while satisfied < len(self.writers):
            if time.perf_counter() > until:
                return True
            satisfied = 0 if self.writers[0].flush(_WRITE) else satisfied + 1
            self.writers.rotate(-1)
        return False
