"""A part of a desired table, and its changes: those that wait, and those on their way to the kernel. No I/O.

By far the most changes are new prefixes, of which the kernel holds nothing. They wait and travel as lists by where they
lead, until somebody asks for one of them: then they are spread, which is to say that they become entries of a dict,
like all other changes. What spreads is the loop's alone: a thread that is to look at shards needs Table.watched.
"""

from __future__ import annotations

from collections.abc import Iterator

from routes.state import Failure, State
from routes.target import Target

Fresh = dict[Target, list[bytes]]
"""New prefixes by where they lead."""


class Flight:
    """Changes of one shard that are on their way."""

    __slots__ = ("ahead", "changed", "fresh", "shard")

    def __init__(
        self,
        shard: Shard,
        changed: dict[bytes, Target | None],
        fresh: Fresh | None = None,
        *,
        ahead: bool = False,
    ) -> None:
        self.shard = shard
        self.changed = changed
        """Each with what the kernel held before."""
        self.fresh = fresh if fresh is not None else {}
        """Before, the kernel held nothing of these."""
        self.ahead = ahead
        """It passes those that departed before it."""

    @property
    def changes(self) -> dict[bytes, Target | None]:
        """All of them, each with what the kernel held before."""
        self.spread()
        return self.changed

    def spread(self) -> None:
        if self.fresh:
            spread(self.fresh, self.changed)
            self.fresh = {}

    def __len__(self) -> int:
        return len(self.changed) + total(self.fresh)

    def __iter__(self) -> Iterator[bytes]:
        yield from self.changed
        for prefixes in self.fresh.values():
            yield from prefixes


class Shard:
    """What the kernel holds of a prefix is in ``dirty``, else in ``failed``, else it is as desired."""

    __slots__ = ("attempts", "changed", "complained", "desired", "failed", "flights", "fresh", "going", "stale")

    def __init__(self) -> None:
        self.desired: dict[bytes, Target] = {}
        self.fresh: Fresh = {}
        """Changes not yet taken of which the kernel holds nothing, by what is desired."""
        self.changed: dict[bytes, Target | None] = {}
        """Changes not yet taken that are not in ``fresh``, each with what the kernel holds."""
        self.going = 0
        """How many changes desire nothing."""
        self.flights: list[Flight] = []
        """Changes on their way to the kernel."""
        self.failed: dict[bytes, Failure] = {}
        self.stale: dict[bytes, Target] = {}
        self.complained: dict[bytes, tuple[State, int]] = {}
        """What was last reported of prefixes that are not installed."""
        self.attempts: dict[bytes, int] = {}

    @property
    def dirty(self) -> dict[bytes, Target | None]:
        """All changes not yet taken, each with what the kernel holds."""
        self.spread()
        return self.changed

    def spread(self) -> None:
        if self.fresh:
            spread(self.fresh, self.changed)
            self.fresh = {}

    @property
    def waiting(self) -> int:
        """How many changes have not been taken."""
        return len(self.changed) + total(self.fresh)

    @property
    def has_news(self) -> bool:
        """Whether some changes are more than deletions, or the kernel has deleted the first already."""
        if self.fresh:
            return True
        there = next(iter(self.changed.values()), None)
        return len(self.changed) > self.going or (there is not None and there.absent)

    def on_its_way(self, prefix: bytes) -> bool:
        return any(prefix in flight.changes for flight in self.flights)

    def unsettled(self, prefix: bytes) -> bool:
        """Tell whether the kernel may hold something else than what is desired."""
        return prefix in self.dirty or prefix in self.failed or prefix in self.stale or self.on_its_way(prefix)


def total(fresh: Fresh) -> int:
    """Return how many prefixes there are."""
    count = 0
    for prefixes in fresh.values():
        count += len(prefixes)
    return count


def spread(fresh: Fresh, changed: dict[bytes, Target | None]) -> None:
    """Note of each new prefix that the kernel holds nothing."""
    for prefixes in fresh.values():
        changed.update(dict.fromkeys(prefixes))
