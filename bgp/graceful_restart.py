"""Graceful restart (RFC 4724, with the N bit and the Hard Reset of RFC 8538): who keeps what for how long. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bgp.messages import GracefulRestart, Negotiated, Notification
from bgp.notifications import HARD_RESET
from bgp.notifications import hard_reset as wrapped
from config.prefix import Family

_CEASE = 6


@dataclass(frozen=True, slots=True)
class RestartSettings:
    """Both roles; times in seconds."""

    enabled: bool = True
    """Off: what a peer announced goes with its session, and we ask peers to keep nothing."""
    restart_time: int = 120
    """How long peers shall keep our routes while we are away, 0 to 4095 (section 3)."""
    stale_time: float = 360.0
    """How long stale paths of a peer that is back may wait for its End-of-RIB (section 4.2)."""
    deferral: float = 60.0
    """Selection_Deferral_Timer: how long, after our restart, selection waits for the End-of-RIBs (section 4.1)."""
    absence: float = 5.0
    """How long, after our restart, selection waits for peers that have no session: one may have died meanwhile."""


def retained(session: Negotiated, notification: Notification | None) -> frozenset[Family]:
    """Return the families whose paths stay when a session is lost (RFC 4724 section 4.2, RFC 8538 section 4).

    ``notification`` ended the session, whoever sent it; None: the connection just went away.
    """
    ours, theirs = session.local.graceful_restart, session.peer.graceful_restart
    if ours is None or theirs is None or not ours.restart_time or not theirs.restart_time:
        return frozenset()
    if notification is not None and (
        not survives_notification(session) or (notification.code, notification.subcode) == (_CEASE, HARD_RESET)
    ):
        return frozenset()
    return session.families.intersection(theirs.forwarding)


def confirmed(session: Negotiated) -> frozenset[Family]:
    """Return the families whose stale paths stay now that the peer is back: it kept forwarding (section 4.2)."""
    theirs = session.peer.graceful_restart
    if theirs is None or session.local.graceful_restart is None:
        return frozenset()
    return session.families.intersection(family for family, kept in theirs.forwarding.items() if kept)


def survives_notification(session: Negotiated) -> bool:
    """Tell whether both ends set the N bit: then only a Hard Reset ends a session for good (RFC 8538 section 2)."""
    ours, theirs = session.local.graceful_restart, session.peer.graceful_restart
    return ours is not None and theirs is not None and ours.notification and theirs.notification


def final(session: Negotiated | None, notification: Notification | None) -> Notification | None:
    """Return what says ``notification`` such that the peer keeps nothing of ours (RFC 8538 section 3.1)."""
    if notification is None or session is None or not survives_notification(session):
        return notification
    return wrapped(notification)


class Restart:
    """Our own restart: what our OPENs say about it, and when route selection may begin (section 4.1).

    ``on_select`` is told of each family when selection may begin, ``on_complete`` when what was selected is the whole:
    between the two, routes of absent peers only are waited for.
    """

    def __init__(
        self,
        settings: RestartSettings,
        on_complete: Callable[[Family], None],
        on_select: Callable[[Family], None] = lambda family: None,
    ) -> None:
        self.settings = settings
        self.waiting: dict[Family, set[str]] = {}
        """Families that are not complete, and the peers whose End-of-RIB is waited for."""
        self.deferred: set[Family] = set()
        """Those of them in which nothing is selected yet."""
        self._retained: frozenset[Family] = frozenset()
        self._present: set[str] = set()
        self._absence_over = False
        self._on_complete, self._on_select = on_complete, on_select

    def begin(self, retained: frozenset[Family], peers: Mapping[str, frozenset[Family]]) -> None:
        """We have restarted; the kernel went on routing the families ``retained``, none: there is nothing to wait for.

        ``peers`` are those configured, with the families that we offer to each.
        """
        if not self.settings.enabled or not retained:
            return
        self._retained = retained
        families = frozenset[Family]().union(*peers.values())
        self.waiting = {family: {name for name, f in peers.items() if family in f} for family in sorted(families)}
        self.deferred = set(self.waiting)

    @property
    def active(self) -> bool:
        return bool(self.waiting)

    def capability(self, offered: frozenset[Family], *, established_before: bool) -> GracefulRestart:
        """Return what an OPEN says.

        The F bit is set where the kernel kept our routes, be it over a restart of ours or because only the session to
        this peer was lost.
        """
        if not self.settings.enabled:
            # Without families and time: we keep nothing, but want the End-of-RIB (section 3).
            return GracefulRestart(restart_time=0)
        return GracefulRestart(
            restarting=self.active,
            notification=True,
            restart_time=self.settings.restart_time,
            forwarding={family: established_before or family in self._retained for family in offered},
        )

    def established(self, name: str, session: Negotiated) -> None:
        """A peer is back: no End-of-RIB is waited for that it will not send, or not before ours (section 4.1)."""
        self._present.add(name)
        theirs = session.peer.graceful_restart
        for family in list(self.waiting):
            if family not in session.families or theirs is None or theirs.restarting:
                self.complete(name, family)

    def complete(self, name: str, family: Family) -> None:
        """A peer has sent its End-of-RIB, or will not."""
        peers = self.waiting.get(family)
        if peers is not None:
            peers.discard(name)
            if not peers:
                self._end(family)
            else:
                self._consider(family)

    def lost(self, name: str) -> None:
        """A peer's session is gone."""
        self._present.discard(name)
        for family in list(self.waiting):
            self._consider(family)

    def absence_over(self) -> None:
        """Those without a session have had the time to come back: what the others announce waits for them no more."""
        self._absence_over = True
        for family in list(self.waiting):
            self._consider(family)

    def forget(self, name: str) -> None:
        """A peer was removed."""
        for family in list(self.waiting):
            self.complete(name, family)

    def expire(self) -> dict[Family, set[str]]:
        """The deferral timer has expired; return the peers that were still waited for."""
        missing = dict(self.waiting)
        for family in missing:
            self._end(family)
        return missing

    def _consider(self, family: Family) -> None:
        if self._absence_over and not self.waiting[family] & self._present:
            self._select(family)

    def _select(self, family: Family) -> None:
        if family in self.deferred:
            self.deferred.discard(family)
            self._on_select(family)

    def _end(self, family: Family) -> None:
        del self.waiting[family]
        self._select(family)
        self._on_complete(family)
