"""Why routes had to be repaired, and why everything was compared: the words of the log and of the counters.

A repair that a comparison has led to says so behind these words, ``missing, found by periodic comparison``.
"""

from __future__ import annotations

from typing import Final

ROUTE_DELETED: Final = "route deleted by another program"
ROUTE_REPLACED: Final = "route replaced by another program"
OBJECT_DELETED: Final = "next-hop object deleted by another program"
OBJECT_CHANGED: Final = "next-hop object changed by another program"
LINK_UP: Final = "link came up"
MISSING: Final = "missing"
ALTERED: Final = "altered"
SURPLUS: Final = "surplus"
OBJECT_MISSING: Final = "next-hop object missing"
OBJECT_ALTERED: Final = "next-hop object altered"
GROUP_MISSING: Final = "next-hop group missing when it was to change"
FOUND_BY: Final = ", found by "

REPAIRS: Final = (
    ROUTE_DELETED,
    ROUTE_REPLACED,
    OBJECT_DELETED,
    OBJECT_CHANGED,
    LINK_UP,
    MISSING,
    ALTERED,
    SURPLUS,
    OBJECT_MISSING,
    OBJECT_ALTERED,
    GROUP_MISSING,
)

EVENTS_LOST: Final = "netlink events were lost"
ANSWERS_LOST: Final = "the kernel's answers were lost"
GROUP_REFUSED: Final = "the kernel refuses a next-hop group of ours"
DENIED: Final = "permission was denied"

RESYNCS: Final = (EVENTS_LOST, ANSWERS_LOST, GROUP_REFUSED, DENIED)
