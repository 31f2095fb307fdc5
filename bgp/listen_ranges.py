"""Listen ranges and the dynamic neighbours made from them: who may come in, and how many at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator

from bgp.quiet import Quiet
from bgp.settings import ListenRange
from bgp.sockets import Endpoint
from bgp.status import RangeStatus

log = logging.getLogger("podroute.bgp")

_QUIET = 60.0
"""Seconds between two log lines about what somebody inside a range can cause as often as they like."""


class Admission:
    """One listen range and the names of its peers."""

    def __init__(self, settings: ListenRange) -> None:
        self.settings = settings
        self.peers: set[str] = set()
        self.refused = 0
        """Connections turned away because there were as many peers as there may be."""
        self.failures = Quiet(_QUIET)
        """For what is logged of its peers' failed attempts."""
        self._refusals = Quiet(_QUIET)

    def refuse(self, remote: Endpoint, limit: int) -> None:
        """Count a connection that is one too many."""
        self.refused += 1
        count = self._refusals.admit(time.monotonic())
        if count:
            fields = {"range": self.settings.name, "address": str(remote), "limit": limit, "count": count}
            log.warning("connection refused: the limit of dynamic neighbours is reached", extra={"fields": fields})

    def status(self) -> RangeStatus:
        own = self.settings
        return RangeStatus(own.name, str(own), str(own.remote_as), own.limit, len(self.peers), self.refused)


class ListenRanges:
    """All listen ranges of a speaker; ``limit`` is that of the dynamic neighbours of all of them together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_name: dict[str, Admission] = {}
        self._by_length: list[Admission] = []
        """The most specific first."""

    def __iter__(self) -> Iterator[Admission]:
        return iter(self._by_name.values())

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Admission:
        return self._by_name[name]

    def add(self, settings: ListenRange) -> None:
        self._by_name[settings.name] = Admission(settings)
        self._sort()

    def remove(self, name: str) -> Admission:
        """Forget a range. Raises KeyError."""
        gone = self._by_name.pop(name)
        self._sort()
        return gone

    def admit(self, remote: Endpoint) -> tuple[Admission, bool] | None:
        """Return the range that an address belongs to, and whether there is room for one more; None: a stranger's."""
        found = next((one for one in self._by_length if one.settings.holds(remote.packed)), None)
        if found is None:
            return None
        if len(found.peers) >= found.settings.limit:
            found.refuse(remote, found.settings.limit)
            return found, False
        if sum(len(one.peers) for one in self) >= self._limit:
            found.refuse(remote, self._limit)
            return found, False
        return found, True

    def makers(self, names: Iterable[str]) -> dict[str, ListenRange]:
        """Return those names that dynamic neighbours of some range have, or had in an earlier run, with the range."""
        return {name: one.settings for name in names for one in self if one.settings.made(name)}

    def _sort(self) -> None:
        self._by_length = sorted(self, key=lambda one: one.settings.prefix[0], reverse=True)
