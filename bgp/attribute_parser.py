"""The walk over a received attribute section, with the outcomes of RFC 7606.

A section is judged once per distinct octets and peer. What best-path selection reads is taken out of it then; all else
stays in ``Attributes.raw`` and is read on demand.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from bgp import as_path
from bgp.attributes import (
    AGGREGATOR,
    AS4_AGGREGATOR,
    AS4_PATH,
    AS_PATH,
    ATOMIC_AGGREGATE,
    CLUSTER_LIST,
    COMMUNITIES,
    EXTENDED_COMMUNITIES,
    EXTENDED_LENGTH,
    GRACEFUL_SHUTDOWN,
    IPV6_EXTENDED_COMMUNITIES,
    LARGE_COMMUNITIES,
    LOCAL_PREF,
    MED,
    MP_REACH,
    MP_UNREACH,
    NEXT_HOP,
    OPTIONAL,
    OPTIONAL_TRANSITIVE,
    ORIGIN,
    ORIGINATOR_ID,
    TRANSITIVE,
    WELL_KNOWN,
    Attributes,
    attribute_name,
    pack_attribute,
    scope_of,
)
from bgp.messages import BgpError
from bgp.usual_attributes import UsualSections


class Treatment(IntEnum):
    """What RFC 7606 section 2 does about a fault, weakest first."""

    DISCARD = 1
    """The attribute goes, the routes stay."""
    WITHDRAW = 2
    """All routes of the UPDATE are treated as withdrawn."""


class Fault(NamedTuple):
    treatment: Treatment
    text: str


class Parsed(NamedTuple):
    """A walked attribute section."""

    attributes: Attributes
    next_hop: bytes | None
    """Value of NEXT_HOP, four octets."""
    mp_reach: bytes | None
    """Value of MP_REACH_NLRI, unjudged."""
    mp_unreach: bytes | None
    codes: int
    """Bit n is set where attribute n is present."""
    faults: tuple[Fault, ...]
    withdraw: bool
    """The routes are to be treated as withdrawn."""
    own_as_count: int
    """How often our own AS occurs in the AS_PATH."""


class _Walk:
    """What the checks of single attributes read and write during one walk."""

    __slots__ = (
        "aggregator",
        "as4_aggregator",
        "as4_path",
        "as_path",
        "attributes",
        "mp_reach",
        "mp_unreach",
        "next_hop",
        "own_as_count",
        "parser",
    )

    def __init__(self, parser: AttributeParser, raw: bytes) -> None:
        self.parser = parser
        self.attributes = Attributes(raw)
        self.next_hop: bytes | None = None
        self.mp_reach: bytes | None = None
        self.mp_unreach: bytes | None = None
        self.as_path = b""
        self.own_as_count = 0
        self.as4_path: list[as_path.Segment] | None = None
        self.aggregator: bytes | None = None
        self.as4_aggregator: bytes | None = None


_Check = Callable[[_Walk, bytes], str]
"""Takes in the value of an attribute; returns what is wrong with it, or nothing."""


class _Rule(NamedTuple):
    flags: int
    """Required values of the Optional and Transitive bits (RFC 7606 section 3 (c))."""
    treatment: Treatment
    """What happens where the value is malformed."""
    check: _Check
    kept: bool = True
    """Stays in ``Attributes.raw``."""


class AttributeParser:
    """Judges the attribute sections that one session delivers.

    ``first_as`` is the AS that must come first in an AS_PATH from an external peer, None where any may
    (RFC 4271 section 6.3).
    """

    def __init__(self, *, local_as: int, ibgp: bool, four_octet_as: bool, first_as: int | None = None) -> None:
        self.local_as = local_as
        self.ibgp = ibgp
        self.first_as = None if ibgp else first_as
        self.width = 4 if four_octet_as else 2
        self._usual = UsualSections(local_as=local_as, ibgp=ibgp, first_as=self.first_as) if four_octet_as else None
        self._rules = dict(_RULES)
        if not ibgp:
            for code in (LOCAL_PREF, ORIGINATOR_ID, CLUSTER_LIST):  # RFC 7606 sections 7.5, 7.9 and 7.10
                self._rules[code] = _REFUSED
        if four_octet_as:
            for code in (AS4_PATH, AS4_AGGREGATOR):  # RFC 6793 section 4.1
                self._rules[code] = _REFUSED

    def judge_usual(self, raw: bytes) -> bytes | None:
        """Return the value of NEXT_HOP of a section that has the usual form and no fault, empty where it has none.

        It holds neither MP_REACH_NLRI nor MP_UNREACH_NLRI, and a path of it needs no more than these octets. None:
        ``parse`` has to say what is in the section.
        """
        return None if self._usual is None else self._usual.judge(raw)

    def parse(self, raw: bytes) -> Parsed:
        """Walk an attribute section.

        Raises BgpError 3/1 for a repeated MP_REACH_NLRI or MP_UNREACH_NLRI (RFC 7606 section 3 (g)) and 3/2 for an
        unknown well-known attribute (RFC 4271 section 6.3). Everything else is reported in ``faults``.
        """
        walk = _Walk(self, raw)
        rules = self._rules
        faults: list[Fault] = []
        dropped: list[tuple[int, int]] = []
        codes = at = 0
        end = len(raw)
        while at < end:
            if end - at < 3:
                faults.append(Fault(Treatment.WITHDRAW, f"{end - at} stray octets after the last attribute"))
                break
            flags, code, length = raw[at], raw[at + 1], raw[at + 2]
            start = at + 3
            if flags & EXTENDED_LENGTH:
                start = at + 4
                length = length << 8 | raw[at + 3] if start <= end else end
            stop = start + length
            if stop > end:  # RFC 7606 section 4
                faults.append(Fault(Treatment.WITHDRAW, f"{attribute_name(code)} overruns the attribute section"))
                break
            bit = 1 << code
            rule = rules.get(code)
            if codes & bit:
                if code in (MP_REACH, MP_UNREACH):
                    raise BgpError(3, 1, reason=f"{attribute_name(code)} occurs twice")
                faults.append(Fault(Treatment.DISCARD, f"{attribute_name(code)} occurs twice, the first one counts"))
                dropped.append((at, stop))
            elif rule is None:
                if not flags & OPTIONAL:
                    raise BgpError(3, 2, raw[at:stop], f"unknown well-known attribute {code}")
                if not flags & TRANSITIVE:  # RFC 4271 section 5: quietly ignored
                    dropped.append((at, stop))
            else:
                required, treatment, check, kept = rule
                problem = check(walk, raw[start:stop])
                if problem:
                    faults.append(Fault(treatment, f"{attribute_name(code)}: {problem}"))
                if (flags ^ required) & (OPTIONAL | TRANSITIVE) and rule is not _REFUSED:
                    faults.append(Fault(Treatment.WITHDRAW, f"{attribute_name(code)}: attribute flags 0x{flags:02x}"))
                if problem or not kept:
                    dropped.append((at, stop))
            codes |= bit
            at = stop
        first_as, attributes = self.first_as, walk.attributes
        if first_as is not None and codes >> AS_PATH & 1 and attributes.neighbor_as != first_as:
            text = f"AS_PATH starts with AS {attributes.neighbor_as}, expected the peer's AS {first_as}"
            faults.append(Fault(Treatment.WITHDRAW, text))
        withdraw = bool(faults) and any(f.treatment is Treatment.WITHDRAW for f in faults)
        if dropped and not withdraw:
            attributes.raw = _without(raw, dropped)
        if self.width == 2 and not withdraw:
            attributes.raw = _widen(walk)
        return Parsed(
            attributes,
            walk.next_hop,
            walk.mp_reach,
            walk.mp_unreach,
            codes,
            tuple(faults),
            withdraw,
            walk.own_as_count,
        )


def _widen(walk: _Walk) -> bytes:
    """Return what a 2-octet peer sent as a 4-octet one would have sent it (RFC 6793 section 4.2.3)."""
    attributes = walk.attributes
    aggregator, as4_aggregator, as4_path = walk.aggregator, walk.as4_aggregator, walk.as4_path
    if aggregator is not None:
        asn = int.from_bytes(aggregator[:2], "big")
        if as4_aggregator is None or asn != as_path.AS_TRANS:
            if as4_aggregator is not None:
                as4_path = None
            as4_aggregator = asn.to_bytes(4, "big") + aggregator[2:]
    merged = as_path.merge(walk.as_path, as4_path)
    found = as_path.examine(merged, 4, walk.parser.local_as)
    if isinstance(found, as_path.Summary):
        attributes.path_length, attributes.neighbor_as, walk.own_as_count = found
    replaced = {AS_PATH: merged, AGGREGATOR: as4_aggregator}
    return b"".join(pack_attribute(flags, code, replaced.get(code) or value) for flags, code, value in attributes)


def _without(raw: bytes, dropped: list[tuple[int, int]]) -> bytes:
    """Return ``raw`` without the octets from each first position to the one before each second."""
    parts: list[bytes] = []
    at = 0
    for start, stop in dropped:
        parts.append(raw[at:start])
        at = stop
    parts.append(raw[at:])
    return b"".join(parts)


def _refused(walk: _Walk, value: bytes) -> str:
    return "not accepted on this kind of session"


def _origin(walk: _Walk, value: bytes) -> str:
    """RFC 7606 section 7.1."""
    if len(value) != 1:
        return f"length {len(value)}, expected 1"
    walk.attributes.origin = value[0]
    return "" if value[0] <= 2 else f"undefined value {value[0]}"


def _as_path(walk: _Walk, value: bytes) -> str:
    """RFC 7606 section 7.2."""
    found = as_path.examine(value, walk.parser.width, walk.parser.local_as)
    if isinstance(found, str):
        return found
    walk.as_path = value
    attributes = walk.attributes
    attributes.path_length, attributes.neighbor_as, walk.own_as_count = found
    return ""


def _next_hop(walk: _Walk, value: bytes) -> str:
    """RFC 7606 section 7.3. What the address says is judged where routes become paths."""
    walk.next_hop = value
    return "" if len(value) == 4 else f"length {len(value)}, expected 4"


def _med(walk: _Walk, value: bytes) -> str:
    """RFC 7606 section 7.4."""
    walk.attributes.med = int.from_bytes(value, "big")
    return "" if len(value) == 4 else f"length {len(value)}, expected 4"


def _local_pref(walk: _Walk, value: bytes) -> str:
    """RFC 7606 section 7.5."""
    walk.attributes.local_pref = int.from_bytes(value, "big")
    return "" if len(value) == 4 else f"length {len(value)}, expected 4"


def _atomic_aggregate(walk: _Walk, value: bytes) -> str:
    """RFC 7606 section 7.6."""
    return f"length {len(value)}, expected 0" if value else ""


def _aggregator(walk: _Walk, value: bytes) -> str:
    """RFC 7606 section 7.7 and RFC 7607 section 2."""
    expected = walk.parser.width + 4
    if len(value) != expected:
        return f"length {len(value)}, expected {expected}"
    if not any(value[:-4]):
        return "AS 0"
    walk.aggregator = value
    return ""


def _communities(walk: _Walk, value: bytes) -> str:
    """RFC 7606 section 7.8."""
    walk.attributes.scope = scope_of(value)
    if not walk.parser.ibgp and GRACEFUL_SHUTDOWN in [value[at : at + 4] for at in range(0, len(value), 4)]:
        walk.attributes.local_pref = 0  # RFC 8326 section 4: any other way is better
    return _multiple(4, value)


def _originator_id(walk: _Walk, value: bytes) -> str:
    """RFC 7606 section 7.9."""
    walk.attributes.originator = value
    return "" if len(value) == 4 else f"length {len(value)}, expected 4"


def _cluster_list(walk: _Walk, value: bytes) -> str:
    """RFC 7606 section 7.10."""
    return _multiple(4, value)


def _mp_reach(walk: _Walk, value: bytes) -> str:
    walk.mp_reach = value
    return ""


def _mp_unreach(walk: _Walk, value: bytes) -> str:
    walk.mp_unreach = value
    return ""


def _extended_communities(walk: _Walk, value: bytes) -> str:
    """RFC 7606 section 7.14."""
    return _multiple(8, value)


def _ipv6_extended_communities(walk: _Walk, value: bytes) -> str:
    """RFC 7606 section 7.15."""
    return _multiple(20, value)


def _large_communities(walk: _Walk, value: bytes) -> str:
    """RFC 8092 section 6."""
    return _multiple(12, value)


def _as4_path(walk: _Walk, value: bytes) -> str:
    found = as_path.examine_as4_path(value)
    if isinstance(found, str):
        return found
    walk.as4_path = found
    return ""


def _as4_aggregator(walk: _Walk, value: bytes) -> str:
    """RFC 6793 section 6 and RFC 7607 section 2."""
    if len(value) != 8:
        return f"length {len(value)}, expected 8"
    if not any(value[:4]):
        return "AS 0"
    walk.as4_aggregator = value
    return ""


def _multiple(size: int, value: bytes) -> str:
    return "" if value and len(value) % size == 0 else f"length {len(value)}, expected a multiple of {size}"


_RULES = {
    ORIGIN: _Rule(WELL_KNOWN, Treatment.WITHDRAW, _origin),
    AS_PATH: _Rule(WELL_KNOWN, Treatment.WITHDRAW, _as_path),
    NEXT_HOP: _Rule(WELL_KNOWN, Treatment.WITHDRAW, _next_hop),
    MED: _Rule(OPTIONAL, Treatment.WITHDRAW, _med),
    LOCAL_PREF: _Rule(WELL_KNOWN, Treatment.WITHDRAW, _local_pref),
    ATOMIC_AGGREGATE: _Rule(WELL_KNOWN, Treatment.DISCARD, _atomic_aggregate),
    AGGREGATOR: _Rule(OPTIONAL_TRANSITIVE, Treatment.DISCARD, _aggregator),
    COMMUNITIES: _Rule(OPTIONAL_TRANSITIVE, Treatment.WITHDRAW, _communities),
    ORIGINATOR_ID: _Rule(OPTIONAL, Treatment.WITHDRAW, _originator_id),
    CLUSTER_LIST: _Rule(OPTIONAL, Treatment.WITHDRAW, _cluster_list),
    MP_REACH: _Rule(OPTIONAL, Treatment.WITHDRAW, _mp_reach, kept=False),
    MP_UNREACH: _Rule(OPTIONAL, Treatment.WITHDRAW, _mp_unreach, kept=False),
    EXTENDED_COMMUNITIES: _Rule(OPTIONAL_TRANSITIVE, Treatment.WITHDRAW, _extended_communities),
    AS4_PATH: _Rule(OPTIONAL_TRANSITIVE, Treatment.DISCARD, _as4_path, kept=False),
    AS4_AGGREGATOR: _Rule(OPTIONAL_TRANSITIVE, Treatment.DISCARD, _as4_aggregator, kept=False),
    IPV6_EXTENDED_COMMUNITIES: _Rule(OPTIONAL_TRANSITIVE, Treatment.WITHDRAW, _ipv6_extended_communities),
    LARGE_COMMUNITIES: _Rule(OPTIONAL_TRANSITIVE, Treatment.WITHDRAW, _large_communities),
}

_REFUSED = _Rule(OPTIONAL, Treatment.DISCARD, _refused)
"""Stands for attributes that a kind of session may not carry, whatever their flags and value."""
