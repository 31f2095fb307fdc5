"""Attribute sections as nearly every speaker writes them: judged by one regular expression instead of a walk.

The usual section has its attributes in ascending order with the flags that RFC 4271 section 5 gives them, and an
AS_PATH that is empty or one sequence. Every length in it is checked by the expression. One that does not match may be
as good; ``AttributeParser.parse`` alone says what is wrong with a section.
"""

from __future__ import annotations

import re
from typing import TypeVar

from bgp.as_path import SEQUENCE, unpack_sequence
from bgp.attributes import AS_PATH, GRACEFUL_SHUTDOWN, WELL_KNOWN, Attributes, pack_attribute, scope_of

_KNOWN_LIMIT = 4096
_ORIGIN_SIZE = 4

V = TypeVar("V")


def _counted(size: int, head: bytes = b"", *, number: bool = False) -> bytes:
    """Return an expression for a length octet and as many items of ``size`` octets as fit.

    ``head`` comes before the items, and their number after it where ``number`` is set.
    """
    forms = []
    for count in range(1, (255 - len(head) - number) // size + 1):
        lead = head + bytes((count,)) if number else head
        length = bytes((len(lead) + count * size,))
        forms.append(re.escape(length + lead) + b".{%d}" % (count * size))
    return b"|".join(forms)


_SECTION = re.compile(
    rb"(?s)"
    rb"\x40\x01\x01([\0-\2])"  # ORIGIN
    rb"(?:\x40\x02|\x50\x02\0)(\0|" + _counted(4, bytes((SEQUENCE,)), number=True) + rb")"  # AS_PATH
    rb"(?:\x40\x03\x04(.{4}))?"  # NEXT_HOP
    rb"(?:\x80\x04\x04(.{4}))?"  # MULTI_EXIT_DISC
    rb"(?:\x40\x05\x04(.{4}))?"  # LOCAL_PREF
    rb"(?P<after>(?:\x40\x06\0)?"  # ATOMIC_AGGREGATE
    rb"(?:[\xc0\xe0]\x07\x08(?!\0\0\0\0).{8})?"  # AGGREGATOR, not of AS 0
    rb"(?:[\xc0\xe0]\x08(" + _counted(4) + rb"))?)"  # COMMUNITIES
    rb"(?:\x80\x09\x04(.{4}))?"  # ORIGINATOR_ID
    rb"(?:\x80\x0a(" + _counted(4) + rb"))?"  # CLUSTER_LIST
    rb"(?P<extended>[\xc0\xe0]\x10(?:" + _counted(8) + rb"))?"  # EXTENDED COMMUNITIES
    rb"(?P<large>[\xc0\xe0]\x20(?:" + _counted(12) + rb"))?"  # LARGE_COMMUNITIES
).fullmatch


class UsualSections:
    """Judges the usual sections of a session with four-octet AS numbers; arguments as for ``AttributeParser``."""

    def __init__(self, *, local_as: int, ibgp: bool, first_as: int | None) -> None:
        self._local_as = local_as
        self._ibgp = ibgp
        self._first_as = first_as
        self._numbers: dict[int, int] = {}
        self._originators: dict[bytes, bytes] = {}
        """Those of late, so that equal ones are one object."""

    def judge(self, raw: bytes) -> tuple[Attributes, bytes | None] | None:
        """Return the attributes and the value of NEXT_HOP of a section without a fault; None: walk over it."""
        match = _SECTION(raw)
        if match is None:
            return None
        origin, path, next_hop, med, local_pref, _, communities, originator, clusters, _, _ = match.groups()
        attributes = Attributes(raw)
        attributes.origin = origin[0]
        if len(path) > 1:
            asns = unpack_sequence(path, 1)
            if 0 in asns:
                return None
            attributes.path_length = len(asns)
            attributes.neighbor_as = asns[0]
            if self._local_as in asns:
                attributes.own_as_count = asns.count(self._local_as)
        first_as = self._first_as
        if first_as is None:
            attributes.neighbor_as = _shared(self._numbers, attributes.neighbor_as)
        elif attributes.neighbor_as == first_as:
            attributes.neighbor_as = first_as
        else:
            return None
        if med is not None:
            attributes.med = _shared(self._numbers, int.from_bytes(med, "big"))
        if communities is not None:
            attributes.scope = scope_of(communities[1:])
        if self._ibgp:
            if local_pref is not None:
                attributes.local_pref = _shared(self._numbers, int.from_bytes(local_pref, "big"))
            if originator is not None:
                attributes.originator = _shared(self._originators, originator)
        elif local_pref or originator or clusters or (communities and GRACEFUL_SHUTDOWN in communities):
            return None
        return attributes, next_hop


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
    return raw[:_ORIGIN_SIZE] + pack_attribute(WELL_KNOWN, AS_PATH, value), match["after"] + (match["large"] or b"")


def _shared(known: dict[V, V], value: V) -> V:
    if len(known) > _KNOWN_LIMIT:
        known.clear()
    return known.setdefault(value, value)
