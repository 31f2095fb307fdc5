"""Attribute sections that we send, and the attributes that an import policy leaves (RFC 4271 section 5)."""

from __future__ import annotations

from typing import NamedTuple

from bgp import as_path
from bgp.attributes import (
    AGGREGATOR,
    AS4_AGGREGATOR,
    AS4_PATH,
    AS_PATH,
    CLUSTER_LIST,
    COMMUNITIES,
    DEFAULT_LOCAL_PREF,
    EXTENDED_COMMUNITIES,
    LOCAL_PREF,
    MED,
    NAMES,
    NEXT_HOP,
    OPTIONAL,
    OPTIONAL_TRANSITIVE,
    ORIGIN,
    ORIGINATOR_ID,
    PARTIAL,
    WELL_KNOWN,
    Attributes,
    pack_attribute,
    scope_of,
)
from bgp.conditions import COMMUNITY_CODES
from bgp.policy import NO_CHANGES, Changes
from bgp.usual_attributes import passed_on

_NOT_TO_EXTERNAL = (LOCAL_PREF, MED, ORIGINATOR_ID, CLUSTER_LIST)
"""RFC 4271 sections 5.1.5 and 5.1.4, RFC 4456 section 8."""

_EXTENDED_NON_TRANSITIVE = 0x40
"""Bit of an extended community's type that keeps it inside the AS (RFC 4360 section 2)."""

Items = dict[int, tuple[int, bytes]]
"""Attribute code to flags and value."""


class ExportKind(NamedTuple):
    """What the attributes that a session carries depend on."""

    local_as: int
    ibgp: bool
    four_octet_as: bool
    client: bool = False
    """The peer is a client of our route reflector (RFC 4456)."""
    cluster_id: bytes = b""
    """Of our route reflector, four octets."""


def own_attributes() -> Attributes:
    """Return the attributes of a route that starts here: ORIGIN IGP and an empty AS_PATH."""
    attributes = Attributes(pack_attribute(WELL_KNOWN, ORIGIN, b"\0") + pack_attribute(WELL_KNOWN, AS_PATH, b""))
    attributes.origin = 0
    return attributes


def imported(attributes: Attributes, changes: Changes, peer_as: int) -> Attributes:
    """Return the attributes that an import policy makes of those received."""
    items = _items(attributes)
    _change_communities(items, changes)
    if changes.med is not None:
        items[MED] = OPTIONAL, changes.med.to_bytes(4, "big")
    if changes.prepend:
        items[AS_PATH] = WELL_KNOWN, as_path.prepend(items[AS_PATH][1], peer_as, changes.prepend)
    raw = _pack(items)
    changed = Attributes(attributes.raw if raw == attributes.raw else raw)
    changed.origin = attributes.origin
    changed.path_length = attributes.path_length + changes.prepend
    changed.neighbor_as = peer_as if changes.prepend else attributes.neighbor_as
    changed.med = attributes.med if changes.med is None else changes.med
    changed.local_pref = attributes.local_pref if changes.local_pref is None else changes.local_pref
    changed.originator = attributes.originator
    changed.weight = changes.weight
    changed.scope = scope_of(items[COMMUNITIES][1]) if COMMUNITIES in items else 0
    return changed


def exported(
    attributes: Attributes, kind: ExportKind, changes: Changes, originator: bytes | None = None
) -> tuple[bytes, bytes]:
    """Return the attribute section for a session, as the parts before and after NEXT_HOP.

    ``originator`` is the BGP identifier of the internal peer from which the route is reflected; None: it is not.

    Everything but the next hop and the NLRI is in them, so that sessions which differ in those only can share it.
    """
    if not kind.ibgp and kind.four_octet_as and changes == NO_CHANGES:
        usual = passed_on(attributes.raw, kind.local_as)
        if usual is not None:
            return usual
    items = _items(attributes)
    items.pop(NEXT_HOP, None)
    path = items[AS_PATH][1]
    local_pref = attributes.local_pref
    if not kind.ibgp:
        for code in _NOT_TO_EXTERNAL:
            items.pop(code, None)
        path = as_path.prepend(path, kind.local_as, 1 + changes.prepend)
        _strip_extended_communities(items)
    else:
        local_pref = local_pref if changes.local_pref is None else changes.local_pref
        local_pref = DEFAULT_LOCAL_PREF if local_pref is None else local_pref
        items[LOCAL_PREF] = WELL_KNOWN, local_pref.to_bytes(4, "big")
        if originator is not None:  # RFC 4456 section 8
            items.setdefault(ORIGINATOR_ID, (OPTIONAL, originator))
            items[CLUSTER_LIST] = OPTIONAL, kind.cluster_id + items.get(CLUSTER_LIST, (0, b""))[1]
    if changes.med is not None:
        items[MED] = OPTIONAL, changes.med.to_bytes(4, "big")
    items[AS_PATH] = WELL_KNOWN, path
    _change_communities(items, changes)
    for code, (flags, value) in items.items():
        if code not in NAMES:
            items[code] = flags | PARTIAL, value  # RFC 4271 section 5: passed on without being understood
    if not kind.four_octet_as:
        _narrow(items)
    before = {code: item for code, item in items.items() if code < NEXT_HOP}
    after = {code: item for code, item in items.items() if code > NEXT_HOP}
    return _pack(before), _pack(after)


def _items(attributes: Attributes) -> Items:
    return {code: (flags, value) for flags, code, value in attributes}


def _pack(items: Items) -> bytes:
    """RFC 4271 section 5: in ascending order of their codes."""
    return b"".join(pack_attribute(flags, code, value) for code, (flags, value) in sorted(items.items()))


def _change_communities(items: Items, changes: Changes) -> None:
    """Take communities of all kinds away and add others, in this order."""
    for size, added in (
        (4, changes.communities),
        (8, changes.extended_communities),
        (12, changes.large_communities),
    ):
        code = COMMUNITY_CODES[size]
        flags, value = items.get(code, (OPTIONAL_TRANSITIVE, b""))
        present = [value[at : at + size] for at in range(0, len(value), size)]
        kept = [] if changes.replace_communities else [c for c in present if c not in changes.remove_communities]
        wanted = kept + sorted(added.difference(kept))
        if wanted != present:
            items[code] = flags, b"".join(wanted)
            if not wanted:
                del items[code]


def _strip_extended_communities(items: Items) -> None:
    flags, value = items.pop(EXTENDED_COMMUNITIES, (0, b""))
    kept = [value[at : at + 8] for at in range(0, len(value), 8) if not value[at] & _EXTENDED_NON_TRANSITIVE]
    if kept:
        items[EXTENDED_COMMUNITIES] = flags, b"".join(kept)


def _narrow(items: Items) -> None:
    """Rewrite AS numbers for a 2-octet peer (RFC 6793 section 4.2.2)."""
    narrow, wide = as_path.narrow(items[AS_PATH][1])
    items[AS_PATH] = WELL_KNOWN, narrow
    if wide is not None:
        items[AS4_PATH] = OPTIONAL_TRANSITIVE, wide
    if AGGREGATOR in items:
        flags, value = items[AGGREGATOR]
        if any(value[:2]):
            items[AS4_AGGREGATOR] = flags, value
            value = as_path.AS_TRANS.to_bytes(4, "big") + value[4:]
        items[AGGREGATOR] = flags, value[2:]
