"""Ids of next-hop objects, and who has them."""

from __future__ import annotations


class IdPool:
    """Hands out ids of a range in turn, so that an id is not used again soon."""

    def __init__(self, ids: range) -> None:
        self._ids = ids
        self._taken: set[int] = set()
        self._others: set[int] = set()
        self._next = 0

    def take(self) -> int:
        for _ in range(len(self._ids)):
            candidate = self._ids[self._next]
            self._next = (self._next + 1) % len(self._ids)
            if candidate not in self._taken and candidate not in self._others:
                self._taken.add(candidate)
                return candidate
        raise RuntimeError("no next-hop object id left")

    def adopt(self, identifier: int) -> None:
        """An id is ours since an earlier run."""
        self._taken.add(identifier)

    def free(self, identifier: int) -> None:
        """An id is ours no more."""
        self._taken.discard(identifier)

    def reserve(self, identifier: int) -> None:
        """Another program has this id."""
        self._others.add(identifier)

    def release(self, identifier: int) -> None:
        """No other program has this id any more."""
        self._others.discard(identifier)
