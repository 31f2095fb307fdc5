"""The free addresses of one block, and the order in which they are given."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

_NEVER = float("-inf")


class FreeAddresses:
    """Which ordinals of a block are free: never used ones first, then the longest released.

    Nothing inside a block is reserved: every address has a host route of its own, so the first and last serve too.
    Times are seconds of any clock that does not go back.
    """

    def __init__(
        self,
        size: int,
        used: Iterable[int] = (),
        released: Iterable[tuple[int, float]] = (),
        reserved: Iterable[int] = (),
        kept: Iterable[int] = (),
    ) -> None:
        """``released`` holds ordinals and the times they were released, oldest first. ``reserved`` ones are given to
        nobody but who asks for them; ``kept`` ones, among those in use, are no container's."""
        self.size = size
        self._used = _mask(used)
        self._reserved = _mask(reserved)
        self._kept = _mask(kept)
        self._released = OrderedDict(
            (ordinal, since) for ordinal, since in released if not (self._used | self._reserved) >> ordinal & 1
        )
        self._fresh = 0

    @property
    def used(self) -> int:
        """How many containers have."""
        return (self._used & ~self._kept).bit_count()

    @property
    def reserved(self) -> int:
        """How many are free, or in use, for nobody who does not ask for them."""
        return (self._kept | self._reserved & ~self._used).bit_count()

    @property
    def free(self) -> int:
        """How many can be taken without being asked for."""
        return self.size - (self._used | self._reserved).bit_count()

    def state(self, ordinal: int) -> str:
        """Return ``used``, ``reserved``, ``resting`` (free, and in use before) or ``free``."""
        if self._kept >> ordinal & 1:
            return "reserved"
        if self._used >> ordinal & 1:
            return "used"
        if self._reserved >> ordinal & 1:
            return "reserved"
        return "resting" if ordinal in self._released else "free"

    def take(self, now: float, cool_down: float) -> int | None:
        """Return an ordinal that was never used or was released at least ``cool_down`` ago; None if there is none."""
        if self.oldest() == _NEVER:
            return self.take_oldest()
        while self._fresh < self.size:
            ordinal = self._fresh
            self._fresh += 1
            if not (self._used | self._reserved) >> ordinal & 1 and ordinal not in self._released:
                self._used |= 1 << ordinal
                return ordinal
        since = self.oldest()
        return self.take_oldest() if since is not None and now - since >= cool_down else None

    def take_oldest(self) -> int | None:
        """Return the ordinal released longest ago, however recently; None where none is free."""
        if not self._released:
            return None
        ordinal, _ = self._released.popitem(last=False)
        self._used |= 1 << ordinal
        return ordinal

    def oldest(self) -> float | None:
        """Return when the ordinal that take_oldest would give was released."""
        return next(iter(self._released.values()), None)

    def take_exactly(self, ordinal: int) -> bool:
        """Take one ordinal; False where it is in use."""
        if self._used >> ordinal & 1:
            return False
        self._released.pop(ordinal, None)
        self._used |= 1 << ordinal
        return True

    def keep(self, ordinal: int) -> None:
        """Take note that an ordinal in use is no container's."""
        self._kept |= 1 << ordinal

    def give_back(self, ordinal: int, now: float) -> None:
        """Return an ordinal that was in use: it comes last."""
        self._used &= ~(1 << ordinal)
        self._kept &= ~(1 << ordinal)
        if self._reserved >> ordinal & 1:
            return
        self._released[ordinal] = now
        self._released.move_to_end(ordinal)

    def undo(self, ordinal: int) -> None:
        """Return an ordinal that was taken and handed to nobody: it comes next."""
        self._used &= ~(1 << ordinal)
        if self._reserved >> ordinal & 1:
            return
        self._released[ordinal] = _NEVER
        self._released.move_to_end(ordinal, last=False)


def _mask(ordinals: Iterable[int]) -> int:
    """Return a set of small numbers as the bits of one."""
    return sum(1 << ordinal for ordinal in set(ordinals))
