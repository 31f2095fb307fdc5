"""The garbage collector on a leash: it never walks over a full routing table, which would hold the event loop.

What the tables hold is freed by reference counts; only objects in cycles need a collection, and they are few. So the
oldest generation is left out of automatic collections. At times it is collected while it is small, and once it has
grown, set aside for good (``gc.freeze``): a cycle that became garbage just before that is lost, nothing else.
"""

from __future__ import annotations

import asyncio
import gc
import time

_YOUNG, _MIDDLE, _NEVER = 2000, 5, 1 << 30
"""New objects per collection of the young ones, such collections per one of the middle generation (a few ms)."""

LIMIT = 60_000
"""Objects of the oldest generation, or entries of its dicts, that are walked over in one go; some 10 ms."""

_INTERVAL = 10.0


class GarbageCollector:
    """``longest`` and ``seconds`` are what collections have taken since ``start``, at most and together."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.seconds = 0.0
        self._began = 0.0
        self._before = gc.get_threshold()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Set aside what exists by now, modules above all, and take over in the running event loop."""
        leash()
        gc.callbacks.append(self._measure)
        self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._again)

    def stop(self) -> None:
        """Leave it to the interpreter again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            gc.callbacks.remove(self._measure)
            gc.set_threshold(*self._before)
            gc.unfreeze()

    def tidy(self) -> None:
        """Collect the oldest generation, or set it aside where it is too large for that."""
        if _oldest() > LIMIT:
            gc.freeze()
        else:
            gc.collect()

    def _again(self) -> None:
        self.tidy()
        self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._again)

    def _measure(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            took = time.perf_counter() - self._began
            self.seconds += took
            self.longest = max(self.longest, took)


def leash() -> None:
    """Set aside what exists by now, and have only young objects collected automatically."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _NEVER)


def promote() -> None:
    """Move what is new out of the young generations, while it is small.

    A table that is still young when it fills is walked over by the next collections of young objects.
    """
    gc.collect(1)


def _oldest() -> int:
    """Return about how much there is to walk over in the oldest generation."""
    things = gc.get_objects(generation=2)
    return len(things) + sum(len(thing) for thing in things if isinstance(thing, dict))
