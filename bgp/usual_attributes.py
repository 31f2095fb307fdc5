"""Attribute sections as nearly every speaker writes them: judged by one regular expression instead of a walk.

The usual section has its attributes in ascending order with the flags that RFC 4271 section 5 gives them, and an
AS_PATH that is empty or one sequence. Every length in it is checked by the expression. One that does not match may be
as good; ``AttributeParser.parse`` alone says what is wrong with a section.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from bgp.as_path import SEQUENCE
from bgp.attributes import (
    AS_PATH,
    COMMUNITIES,
    GRACEFUL_SHUTDOWN,
    SCOPED,
    WELL_KNOWN,
    Attributes,
    pack_attribute,
    scope_of,
)

_ORIGIN_SIZE = 4
_AS_0 = bytes(4)


def _counted(size: int, head: bytes = b"", *, number: bool = False) -> bytes:
    """Return an expression for a length octet and as many items of ``size`` octets as fit.

    ``head`` comes before the items, and their number after it where ``number`` is set.
    """
    forms = []
    for count in range(1, (255 - len(head) - number) // size + 1):
        lead = head + bytes((count,)) if number else head
        length = bytes((len(lead) + count * size,))
        forms.append(re.escape(length + lead) + b".{%d}+" % (count * size))
    return b"|".join(forms)


def _section(*, internal: bool) -> Callable[[bytes], re.Match[bytes] | None]:
    """Return what matches a section; ``internal``: with attributes, too, that only internal peers may send.

    Where an attribute can be read at a place there is no other way to read it, so nothing is ever tried twice: every
    repetition is possessive (``?+``).
    """
    return re.compile(
        rb"(?s)"
        rb"\x40\x01\x01([\0-\2])"  # ORIGIN
        rb"(?:\x40\x02|\x50\x02\0)(\0|" + _counted(4, bytes((SEQUENCE,)), number=True) + rb")"  # AS_PATH
        rb"(?:\x40\x03\x04(....))?+"  # NEXT_HOP
        rb"(?:(?=.)"  # many end here
        rb"(?:\x80\x04\x04(....))?+"  # MULTI_EXIT_DISC
        + (rb"(?:\x40\x05\x04(....))?+" if internal else b"")  # LOCAL_PREF
        + rb"(?P<after>(?:\x40\x06\0)?+"  # ATOMIC_AGGREGATE
        rb"(?:[\xc0\xe0]\x07\x08(?!\0\0\0\0).{8}+)?+"  # AGGREGATOR, not of AS 0
        rb"(?:[\xc0\xe0]\x08(?:"
        + _counted(4)
        + rb"))?+)"  # COMMUNITIES
        + (rb"(?:\x80\x09\x04(....))?+" if internal else b"")  # ORIGINATOR_ID
        + (rb"(?:\x80\x0a(?:" + _counted(4) + rb"))?+" if internal else b"")  # CLUSTER_LIST
        + rb"(?P<extended>[\xc0\xe0]\x10(?:"
        + _counted(8)
        + rb"))?+"  # EXTENDED COMMUNITIES
        rb"(?P<large>[\xc0\xe0]\x20(?:" + _counted(12) + rb"))?+"  # LARGE_COMMUNITIES
        rb")?+"
    ).fullmatch


_SECTION = _section(internal=True)
_EXTERNAL = _section(internal=False)


class UsualSections:
    """Judges the usual sections of a session with four-octet AS numbers; arguments as for ``AttributeParser``."""

    def __init__(self, *, local_as: int, ibgp: bool, first_as: int | None) -> None:
        self._match = _SECTION if ibgp else _EXTERNAL
        self._ibgp = ibgp
        self._local_as = local_as.to_bytes(4, "big")
        self._first_as = None if first_as is None else first_as.to_bytes(4, "big")

    def judge(self, raw: bytes) -> bytes | None:
        """Return the value of NEXT_HOP of a section without a fault, empty where it has none; None: walk over it.

        What is in such a section is found out by ``read``, once somebody asks.
        """
        match = self._match(raw)
        if match is None:
            return None
        path, next_hop = match.group(2, 3)
        # What only looks like one of these will be found out by the walk. ``in`` would take twice as long as
        # ``find``: it tries its left side as a number first.
        if (
            path.find(_AS_0) >= 0
            or path.find(self._local_as) >= 0
            or (self._first_as is not None and path[3:7] != self._first_as)
            or (not self._ibgp and raw.find(GRACEFUL_SHUTDOWN) >= 0)
        ):
            return None
        return next_hop or b""


def read(raw: bytes) -> Attributes:
    """Return the attributes of a section of the usual form; ValueError for another one."""
    match = _SECTION(raw)
    if match is None:
        raise ValueError(f"not of the usual form: {raw.hex()}")
    origin, path, _, med, local_pref, _, originator, _, _ = match.groups()
    attributes = Attributes(raw)
    attributes.origin = origin[0]
    if len(path) > 1:
        attributes.path_length = path[2]
        attributes.neighbor_as = int.from_bytes(path[3:7], "big")
    if med is not None:
        attributes.med = int.from_bytes(med, "big")
    if local_pref is not None:
        attributes.local_pref = int.from_bytes(local_pref, "big")
    if raw.find(SCOPED) >= 0:
        attributes.scope = scope_of(attributes.value(COMMUNITIES) or b"")
    attributes.originator = originator
    return attributes


def passed_on(raw: bytes, local_as: int) -> tuple[bytes, bytes] | None:
    """Return a received section as an external peer is told it, the parts before and after NEXT_HOP.

    None where that takes more than to put our AS before the AS_PATH and to leave out what is not for external peers.
    """
    match = _SECTION(raw)
    if match is None or match["extended"] is not None:
        return None
    path = match[2]
    count = path[2] + 1 if len(path) > 1 else 1
    value = bytes((SEQUENCE, count)) + local_as.to_bytes(4, "big") + path[3:]
    return raw[:_ORIGIN_SIZE] + pack_attribute(WELL_KNOWN, AS_PATH, value), (match["after"] or b"") + (
        match["large"] or b""
    )
