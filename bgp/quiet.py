"""Log lines that somebody else can cause as often as he likes, kept to one in a while."""

from __future__ import annotations


class Quiet:
    """Lets one event through, then none for ``interval`` seconds, and counts."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._until: float | None = None
        self._count = 0

    def admit(self, now: float) -> int:
        """Count an event; return how many a log line should stand for now, 0: stay silent."""
        self._count += 1
        if self._until is not None and now < self._until:
            return 0
        self._until = now + self._interval
        count, self._count = self._count, 0
        return count
