"""Lists and dicts that know more than what is in them."""

from __future__ import annotations

from typing import TypeVar

from config.prefix import Run

K = TypeVar("K")
V = TypeVar("V")


class Neighbours(list[bytes]):
    """Distinct prefixes, and the same ones as a few runs."""

    def __init__(self, prefixes: list[bytes], runs: list[Run]) -> None:
        super().__init__(prefixes)
        self.runs = runs


class Shard(dict[K, V]):
    """A dict that the garbage collector knows from the beginning.

    It comes to know a plain dict with the first value, as a young object, so that the next collections of young objects
    walk over all of what may be a large part of a table by then. And it forgets an empty one.
    """

    __slots__ = ()
