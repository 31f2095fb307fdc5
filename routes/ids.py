"""Ids of next-hop objects."""

from __future__ import annotations


class IdPool:
    """Hands out ids of a range in turn, so that an id is not used again soon."""

    def __init__(self, ids: range) -> None:
        self._ids = ids
        self._taken: set[int] = set()
        self._next = 0

    def take(self) -> int:
        for _ in range(len(self._ids)):
            candidate = self._ids[self._next]
            self._next = (self._next + 1) % len(self._ids)
            if candidate not in self._taken:
                self._taken.add(candidate)
                return candidate
        raise RuntimeError("no next-hop object id left")

    def reserve(self, identifier: int) -> None:
        """Never hand out an id that somebody uses."""
        self._taken.add(identifier)

    def free(self, identifier: int) -> None:
        self._taken.discard(identifier)
