"""What is counted of one peer for as long as it is one, whatever becomes of its connections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from bgp.fsm_table import Event
from bgp.messages import MessageType

Loss = Literal[
    "stopped", "hold_timer", "send_hold_timer", "connection", "notification_received", "collision", "protocol_error"
]
"""Why established sessions end: ``stopped`` by podroute or its operator, ``connection`` is TCP's, ``protocol_error`` is
what we answered with a NOTIFICATION."""
LOSSES: tuple[Loss, ...] = get_args(Loss)

_LOSS: Mapping[Event, Loss] = {
    Event.ManualStop: "stopped",
    Event.AutomaticStop: "stopped",
    Event.HoldTimer_Expires: "hold_timer",
    Event.SendHoldTimer_Expires: "send_hold_timer",
    Event.TcpConnectionFails: "connection",
    Event.NotifMsg: "notification_received",
    Event.NotifMsgVerErr: "notification_received",
    Event.OpenCollisionDump: "collision",
}
_TYPE = 18
"""Where a message's type is (RFC 4271 section 4.1)."""


class Tally:
    """Messages of all connections of a peer, and how its sessions ended."""

    def __init__(self) -> None:
        self.received: Counter[int] = Counter()
        """Messages by ``MessageType``."""
        self.sent: Counter[int] = Counter()
        self.faults = 0
        """UPDATEs with a fault short of a session reset (RFC 7606), or with prefixes that are our own."""
        self.losses: Counter[Loss] = Counter()

    def wrote(self, messages: Iterable[bytes]) -> None:
        """Count framed messages that are sent."""
        self.sent.update(message[_TYPE] for message in messages)

    def lost(self, event: Event) -> None:
        """An event has ended the established session."""
        self.losses[_LOSS.get(event, "protocol_error")] += 1


def by_type(counts: Mapping[int, int]) -> dict[str, int]:
    """Return counts by the names of all message types, such as ``UPDATE``."""
    return {kind.name: counts.get(kind, 0) for kind in MessageType}
