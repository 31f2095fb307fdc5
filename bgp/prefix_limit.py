"""How much a peer may announce (RFC 4271 section 6.7, RFC 4486 section 4)."""

from __future__ import annotations

import logging
from math import ceil
from struct import pack

from bgp.messages import Notification
from bgp.opening import AFI, UNICAST
from bgp.rib import Rib
from bgp.settings import PrefixLimit
from config.prefix import FAMILIES, NAMES, Family

log = logging.getLogger("podroute.bgp")


class LimitWatch:
    """Of one peer. Counting a table takes time, so it is done when enough has arrived to reach the next mark."""

    def __init__(self, peer: str, limit: PrefixLimit, rib: Rib) -> None:
        self.restart_after = limit.restart_after
        self._peer = peer
        self._limit = limit
        self._rib = rib
        self._warned: set[Family] = set()
        self._next: dict[Family, int] = {}
        """``Rib.told`` before which the next mark cannot be reached."""

    def start(self) -> None:
        """A session begins."""
        self._warned.clear()
        self._next.clear()

    def out_of_reach(self, octets: int) -> bool:
        """Tell whether UPDATEs of so many octets cannot reach the next mark: a prefix takes one at least."""
        return all(self._rib.told(self._peer, family) + octets < self._next.get(family, 0) for family in FAMILIES)

    def exceeded(self) -> tuple[str, Notification] | None:
        """Return why the session is to end, and what the peer is told, if it has announced too much; warn before."""
        for family in FAMILIES:
            told = self._rib.told(self._peer, family)
            if told < self._next.get(family, 0):
                continue
            # What is stale the peer announced before it restarted, and has not announced since
            count = self._rib.received(self._peer, family) - self._rib.stale(self._peer, family)
            maximum = self._limit.maximum
            if count > maximum:
                reason = f"{count} {NAMES[family]} prefixes received, the maximum is {maximum}"
                return reason, Notification(6, 1, pack("!HBI", AFI[family], UNICAST, maximum))
            near = ceil(maximum * self._limit.warning)
            if count >= near and family not in self._warned:
                self._warned.add(family)
                fields = {"peer": self._peer, "family": NAMES[family], "count": count, "maximum": maximum}
                log.warning("prefixes near the maximum", extra={"fields": fields})
            mark = maximum + 1 if family in self._warned else near
            self._next[family] = told + max(mark - count, 1)
        return None
