"""Whether what a peer announced is complete, and how long what an earlier session left may stay.

That is the Receiving Speaker of RFC 4724 section 4.2: the End-of-RIB of each family is awaited for a bounded time;
paths of a lost session are kept as stale while the peer restarts, and go with its End-of-RIB or when time is up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from bgp import graceful_restart
from bgp.local import Local
from bgp.messages import Negotiated, Notification
from config.prefix import NAMES, Family

log = logging.getLogger("podroute.bgp")


class Receiving:
    """Of one peer. ``on_over`` hears that the peer has not come back and its stale paths are gone."""

    def __init__(self, peer: str, local: Local, on_over: Callable[[], None]) -> None:
        self._peer = peer
        self._local = local
        self._on_over = on_over
        self._state: dict[Family, str] = {}
        """``waiting``, ``received`` or ``timed out``, for each family of the established session."""
        self._negotiated: Negotiated | None = None
        """Of the established session, or the last that was."""
        self._farewell: Notification | None = None
        self._end_of_rib_timer: asyncio.TimerHandle | None = None
        self._stale_timer: asyncio.TimerHandle | None = None

    @property
    def end_of_rib(self) -> Mapping[Family, str]:
        """``waiting``, ``received`` or ``timed out`` for each family of the established session."""
        return self._state

    @property
    def waiting(self) -> list[str]:
        """Names of the families whose End-of-RIB is yet to come."""
        return [NAMES[family] for family, state in sorted(self._state.items()) if state == "waiting"]

    @property
    def holding(self) -> bool:
        """There are stale paths."""
        return any(self._local.rib.stale(self._peer, family) for family in NAMES)

    def farewell(self, notification: Notification) -> None:
        """This NOTIFICATION, sent or received, ends the established session."""
        self._farewell = notification

    def up(self, negotiated: Negotiated) -> None:
        """A session is established. Call before the RIB hears of it."""
        self._negotiated, self._farewell = negotiated, None
        self._state = dict.fromkeys(negotiated.families, "waiting")
        restart = negotiated.peer.graceful_restart
        patience = self._local.end_of_rib_wait
        if restart is not None and restart.restarting:  # it waits for others' tables before it sends its own
            patience = max(patience, self._local.restart.settings.stale_time)
        loop = asyncio.get_running_loop()
        self._end_of_rib_timer = loop.call_later(patience, self._end_of_rib_timed_out, patience)

    def await_end_of_rib(self) -> None:
        """What is stale now that the session is up goes when End-of-RIB takes too long."""
        self._await(self._local.restart.settings.stale_time, "no End-of-RIB after its restart")

    def await_refresh(self) -> None:
        """A route refresh has begun; what it does not bring goes when its end takes too long (RFC 7313 section 4)."""
        self._await(self._local.restart.settings.stale_time, "no end of its route refresh")

    def await_restart(self) -> None:
        """Give a lost peer the time that it asked for, at most ours (RFC 4724 section 4.2)."""
        restart = self._negotiated.peer.graceful_restart if self._negotiated else None
        limit = self._local.restart.settings.stale_time
        self._await(min(restart.restart_time, limit) if restart else 0.0, "it did not come back in time")

    def complete(self, family: Family) -> None:
        """The End-of-RIB of a family has arrived."""
        if self._state.get(family) == "waiting":
            self._end(family, "received")
            log.info("End-of-RIB received", extra={"fields": {"peer": self._peer, "family": NAMES[family]}})

    def down(self) -> frozenset[Family]:
        """The session is lost; return the families whose paths stay."""
        if self._end_of_rib_timer is not None:
            self._end_of_rib_timer.cancel()
        self._state = {}
        if self._negotiated is None:
            return frozenset()
        return graceful_restart.retained(self._negotiated, self._farewell)

    def stop(self) -> None:
        """Nothing that is stale is to be waited for any more."""
        if self._stale_timer is not None:
            self._stale_timer.cancel()
            self._stale_timer = None

    def _await(self, seconds: float, why: str) -> None:
        self.stop()
        if self.holding:
            self._stale_timer = asyncio.get_running_loop().call_later(seconds, self._stale_timed_out, why)

    def _stale_timed_out(self, why: str) -> None:
        self._stale_timer = None
        count = self._local.rib.drop_stale(self._peer)
        if count:
            log.warning("stale paths removed: %s", why, extra={"fields": {"peer": self._peer, "count": count}})
        if not self._state:
            self._on_over()
        self._local.wake()

    def _end_of_rib_timed_out(self, patience: float) -> None:
        for family, state in self._state.items():
            if state == "waiting":
                self._end(family, "timed out")
                fields = {"peer": self._peer, "family": NAMES[family]}
                log.warning("no End-of-RIB within %g s: taken as complete", patience, extra={"fields": fields})
        self._local.notify()

    def _end(self, family: Family, how: str) -> None:
        self._state[family] = how
        self._local.restart.complete(self._peer, family)
