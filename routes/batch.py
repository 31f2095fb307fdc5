"""What is on its way to the kernel: requests in order, with what each is for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from routes.encode import MOST, Shape, route_batch
from routes.shard import Flight
from routes.target import Target


class Part(NamedTuple):
    """Requests of one flight that differ in their prefix only. ``want`` is None for deletions."""

    flight: Flight
    want: Target | None
    shape: Shape
    prefixes: Sequence[bytes]


class Batch:
    """Requests in order. Shards with a flight among ``flights`` have something on its way until that is settled."""

    __slots__ = ("_starts", "flights", "parts", "size")

    def __init__(self) -> None:
        self.flights: list[Flight] = []
        self.parts: list[Part] = []
        self.size = 0
        self._starts: list[int] = []

    def add(self, part: Part) -> None:
        if part.prefixes:
            self._starts.append(self.size)
            self.parts.append(part)
            self.size += len(part.prefixes)

    def at(self, place: int) -> tuple[Part, bytes]:
        """Return the prefix that the request at a place is about, and the part that it belongs to."""
        index = bisect_right(self._starts, place) - 1
        return self.parts[index], self.parts[index].prefixes[place - self._starts[index]]

    def sends(self) -> Iterator[tuple[int, list[bytearray]]]:
        """Yield buffers of at most MOST requests together, numbered by place in these, and the place of the first.

        The requests of one buffer have one length.
        """
        pieces: list[bytearray] = []
        start = count = 0
        for part in self.parts:
            done = 0
            while done < len(part.prefixes):
                whole = not done and len(part.prefixes) <= MOST - count
                some = part.prefixes if whole else part.prefixes[done : done + MOST - count]
                pieces.append(route_batch(part.shape, some, count))
                done += len(some)
                count += len(some)
                if count == MOST:
                    yield start, pieces
                    start, count, pieces = start + count, 0, []
        if pieces:
            yield start, pieces
