"""The fence: a node that consents to automatic reclaim stops using its blocks before anybody else can have them.

What a node has promised is in its state directory before its record says it in the store, and holds, also after a
restart with another configuration, until a record without it is in the store. Time is that of the machine since its
start, suspension included: the wall clock does not matter. After a reboot nobody knows when the store last heard of
the node, so it is fenced until it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from ipam.errors import IdentityError
from ipam.identity import write_durably
from ipam.lasting import lasting

log = logging.getLogger("podroute.ipam")

FENCE_FILE = "fence.json"
TICK = 0.5
"""Seconds between looks at the clock: a timer of the event loop does not count while the machine sleeps."""
_NEVER = float("-inf")


def boot_clock() -> float:
    """Return seconds since the machine's start, those in which it was suspended included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Fence:
    """``fenced`` tells whether the node's blocks may not be used now."""

    def __init__(
        self,
        directory: str,
        after: int | None,
        on_change: Callable[[], None],
        *,
        clock: Callable[[], float] = boot_clock,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        """``after``: seconds without the store until the node is fenced; None: it never is.

        ``on_change`` is called whenever ``fenced`` has become another.
        """
        self._path = os.path.join(directory, FENCE_FILE)
        self._wanted = after
        self._on_change = on_change
        self._clock = clock
        self._boot = boot
        self._promised: int | None = None
        self._confirmed = _NEVER
        self._said = False
        self._task: asyncio.Task[None] | None = None

    @property
    def fenced(self) -> bool:
        return self._promised is not None and self._clock() - self._confirmed >= self._promised

    def open(self) -> None:
        """Read what an earlier run promised, and begin to watch the clock."""
        try:
            data = json.loads(Path(self._path).read_bytes())
            self._promised = int(data["after"])
            if data["boot"] == self._boot():
                self._confirmed = float(data["confirmed"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError):
            self._promised, self._confirmed = 1, _NEVER
        if self._confirmed > self._clock():  # no time of this start of the machine
            self._confirmed = _NEVER
        self._said = self.fenced
        self._task = lasting(self._watch(), "fence", log)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def promise(self, now: float) -> None:
        """Note what the record will say that is about to be written; what an earlier one says holds as well.

        Raises IdentityError where it cannot be put on disk: then the record must not be written.
        """
        if self._wanted is None:
            return
        if self._promised is None:
            self._promised, self._confirmed = self._wanted, now
        self._promised = min(self._promised, self._wanted)
        try:
            write_durably(self._path, self._encoded())
        except OSError as error:
            raise IdentityError(
                f"{self._path} cannot be written: {error.strerror}; automatic reclaim (ipam.reclaimAfter) needs it"
            ) from error

    def kept(self, now: float) -> None:
        """The record is in the store, as of ``now``: only what it says holds on."""
        self._promised = self._wanted
        if self._promised is None:
            with contextlib.suppress(OSError):  # left there, it only fences a start without the store
                os.unlink(self._path)
        self.confirmed(now)

    def confirmed(self, now: float) -> None:
        """The store knows this node to be alive, from a question asked at ``now``."""
        self._confirmed = now
        if self._promised is not None:
            # Not synchronised: after a crash of the machine it says too early a time, or that of another start
            with contextlib.suppress(OSError):
                new = Path(self._path + ".new")
                new.write_bytes(self._encoded())
                new.rename(self._path)
        self.check()

    def started(self) -> None:
        """The node has started: say so if it is fenced, as the store was not there to lift it."""
        if self.fenced:
            log.error("NODE FENCED from the start: its blocks may be another's until the store says otherwise")

    def check(self) -> None:
        """Tell of a change, if there is one."""
        fenced = self.fenced
        if fenced == self._said:
            return
        self._said = fenced
        if fenced:
            log.error(
                "NODE FENCED: the store has not been heard of for too long; blocks are withdrawn, containers refused",
                extra={"fields": {"seconds": self._promised}},
            )
        else:
            log.warning("fence lifted: the store says which blocks are this node's")
        self._on_change()

    def _encoded(self) -> bytes:
        confirmed = None if self._confirmed == _NEVER else self._confirmed
        return json.dumps({"after": self._promised, "boot": self._boot(), "confirmed": confirmed}).encode() + b"\n"

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self.check()
