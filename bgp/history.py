"""What became of a peer so far: since when it is as it is and why, its last OPEN and NOTIFICATIONs."""

from __future__ import annotations

import logging
import time

from bgp import codec
from bgp.messages import Notification, Open
from bgp.quiet import Quiet
from bgp.status import NotificationRecord

log = logging.getLogger("podroute.bgp")


class History:
    """Of one peer; ``reason`` says why there is no session, and is empty while there is one.

    ``quiet`` thins the log lines of failed attempts out; dynamic neighbours of one range share theirs.
    """

    def __init__(self, peer: str, address: str, reason: str, quiet: Quiet | None) -> None:
        self.since = time.time()
        """When the session came up or was lost, or the peer became one; seconds since the epoch."""
        self.reason = reason
        self.established_count = 0
        self.offer: Open | None = None
        """The last OPEN, also one that was refused."""
        self.sent: NotificationRecord | None = None
        self.received: NotificationRecord | None = None
        self._peer, self._address = peer, address
        self._quiet = quiet

    def up(self) -> None:
        self.since, self.reason = time.time(), ""
        self.established_count += 1

    def down(self, reason: str) -> None:
        self.since, self.reason = time.time(), reason

    def failed(self, reason: str) -> bool:
        """Remember why an attempt failed; True where that is news. Logged when it changes, not at every attempt."""
        if reason == self.reason:
            return False
        self.reason = reason
        count = 1 if self._quiet is None else self._quiet.admit(time.monotonic())
        if count:
            fields = {"peer": self._peer, "address": self._address}
            log.warning("no session: %s", reason, extra={"fields": fields if count == 1 else fields | {"count": count}})
        return True

    def notification_sent(self, notification: Notification) -> None:
        self.sent = self._record("NOTIFICATION sent", notification)

    def notification_received(self, notification: Notification) -> None:
        self.received = self._record("NOTIFICATION received", notification)

    def _record(self, what: str, notification: Notification) -> NotificationRecord:
        text = codec.describe(notification)
        # Strangers inside a listen range can cause it as often as they like; ``failed`` has told.
        level = logging.INFO if self._quiet is None or not self.reason else logging.DEBUG
        log.log(level, "%s: %s", what, text, extra={"fields": {"peer": self._peer}})
        return NotificationRecord(notification.code, notification.subcode, text, time.time())
