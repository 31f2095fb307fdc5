"""The rows of UPDATE messages: RFC 7606 section by section, and what other RFCs say of single attributes."""

from __future__ import annotations

from struct import pack

from tests.conformance.bgp import wire
from tests.conformance.bgp.cases import Case, Expected, Level, any_of
from tests.conformance.bgp.updates import (
    ACCEPT,
    DISCARD,
    GROUP,
    IGNORED,
    KEPT,
    NEW_AS,
    PARTIAL,
    WITHDRAW,
    Build,
    Row,
    Scene,
)

RESET = any_of("reset")
NONE: Expected | None = None
_SAME = any_of()
"""Stands for: on internal sessions as on external ones."""


class _Table:
    """Collects rows."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(
        self,
        rfc: str,
        name: str,
        build: Build,
        external: Expected | None,
        internal: Expected | None = _SAME,
        *,
        level: Level = "must",
        code: int = 0,
        sent: bytes | None = None,
        wide: bool = True,
        six: bool = False,
    ) -> None:
        internal = external if internal is _SAME else internal
        self.rows.append(Row(name, rfc, level, build, external, internal, code, sent, wide, six))

    def value(
        self,
        rfc: str,
        name: str,
        code: int,
        flags: int,
        value: bytes,
        external: Expected | None,
        internal: Expected | None = _SAME,
        *,
        level: Level = "must",
        wide: bool = True,
        six: bool = False,
    ) -> None:
        """Add a row that has an attribute of these flags and this value in place of, or beside, the good ones."""

        def build(scene: Scene) -> bytes:
            return scene.message(scene.good() | {code: wire.attribute(flags, code, value)})

        self.add(rfc, name, build, external, internal, level=level, code=code, sent=value, wide=wide, six=six)

    def path(
        self, rfc: str, name: str, before: bytes, after: bytes, expected: Expected, *, level: Level = "must"
    ) -> None:
        """Add a row whose AS_PATH has octets before and after the good segment."""

        def build(scene: Scene) -> bytes:
            value = before + scene.path(NEW_AS) + after
            return scene.message(scene.good() | {wire.AS_PATH: wire.attribute(0x40, wire.AS_PATH, value)})

        self.add(rfc, name, build, expected, code=wire.AS_PATH)

    def flags(
        self, name: str, code: int, wrong: int, value: bytes, external: Expected, internal: Expected = _SAME
    ) -> None:
        """Add a row of RFC 7606 section 3 (c): the Optional or Transitive bit is not as specified.

        Where an external peer may not send the attribute at all (sections 7.5, 7.9, 7.10) both treatments have a case.
        """
        self.value("RFC 7606 3c", f"{name} with flags {wrong:#04x}", code, wrong, value, external, internal)


def _attributes(t: _Table) -> None:
    R = "RFC 7606 "  # noqa: N806
    t.value(R + "7.1", "ORIGIN EGP", wire.ORIGIN, 0x40, b"\1", ACCEPT)
    t.value(R + "7.1", "ORIGIN of length 0", wire.ORIGIN, 0x40, b"", WITHDRAW)
    t.value(R + "7.1", "ORIGIN of length 2", wire.ORIGIN, 0x40, b"\0\0", WITHDRAW)
    t.value(R + "7.1", "ORIGIN of value 3", wire.ORIGIN, 0x40, b"\3", WITHDRAW)
    t.value(R + "7.1", "ORIGIN of value 255", wire.ORIGIN, 0x40, b"\xff", WITHDRAW)
    for wrong in (0xC0, 0x00, 0x80):
        t.flags("ORIGIN", wire.ORIGIN, wrong, b"\0", WITHDRAW)
    t.value("RFC 4271 4.3", "ORIGIN with reserved flag bits set", wire.ORIGIN, 0x4F, b"\0", KEPT)

    t.path(R + "7.2", "AS_PATH of two segments", b"", wire.segment(64512, 64513, kind=1), KEPT)
    t.path(R + "7.2", "AS_PATH segment of count 0", b"", b"\2\0", WITHDRAW)
    t.path(R + "7.2", "AS_PATH segment of count 0 first", b"\2\0", b"", WITHDRAW)
    t.path(R + "7.2", "AS_PATH segment overruns by one AS", b"", wire.segment(64512, count=2), WITHDRAW)
    t.path(R + "7.2", "AS_PATH segment overruns by 250 ASes", b"", wire.segment(64512, count=251), WITHDRAW)
    t.path(R + "7.2", "AS_PATH ends in one stray octet", b"", b"\2", WITHDRAW)
    t.path(R + "7.2", "AS_PATH ends in half an AS number", b"", wire.segment(64512)[:-2], WITHDRAW)
    for kind in (0, 5, 255):
        t.path(R + "7.2", f"AS_PATH segment of type {kind}", b"", wire.segment(64512, kind=kind), WITHDRAW)
    for kind, name in ((3, "AS_CONFED_SEQUENCE"), (4, "AS_CONFED_SET")):

        def confederation(scene: Scene, kind: int = kind) -> bytes:
            value = wire.segment(64512, kind=kind) + scene.path(NEW_AS)
            return scene.message(scene.good() | {wire.AS_PATH: wire.attribute(0x40, wire.AS_PATH, value)})

        t.add("RFC 5065 5", f"{name} from outside a confederation", confederation, WITHDRAW, NONE)
    t.path("RFC 7607 2", "AS_PATH with AS 0", b"", wire.segment(0), WITHDRAW)

    def loop(scene: Scene) -> bytes:
        value = scene.path(NEW_AS, scene.target.asn, NEW_AS)
        return scene.message(scene.good() | {wire.AS_PATH: wire.attribute(0x40, wire.AS_PATH, value)})

    t.add("RFC 4271 9.1.2", "AS_PATH with the speaker's own AS", loop, IGNORED)

    def empty(scene: Scene) -> bytes:
        return scene.message(scene.good() | {wire.AS_PATH: wire.attribute(0x40, wire.AS_PATH, b"")})

    t.add("RFC 4271 5.1.2", "AS_PATH empty", empty, NONE, KEPT)
    t.add("RFC 4271 6.3", "AS_PATH empty, external", empty, WITHDRAW, NONE, level="should")

    def foreign(scene: Scene) -> bytes:
        value = wire.segment(NEW_AS, scene.target.outside_as)
        return scene.message(scene.good() | {wire.AS_PATH: wire.attribute(0x40, wire.AS_PATH, value)})

    t.add("RFC 4271 6.3", "AS_PATH does not start with the peer's AS", foreign, WITHDRAW | KEPT, NONE, level="may")

    def long(scene: Scene) -> bytes:
        value = scene.path(*([NEW_AS] * 200)) + wire.segment(*([NEW_AS] * 200))
        return scene.message(scene.good() | {wire.AS_PATH: wire.attribute(0x50, wire.AS_PATH, value)})

    t.add("RFC 4271 4.3", "AS_PATH of 400 ASes in two segments", long, KEPT)
    for wrong in (0x80, 0xC0, 0x00):

        def path_flags(scene: Scene, wrong: int = wrong) -> bytes:
            value = wire.attribute(wrong, wire.AS_PATH, scene.path(NEW_AS))
            return scene.message(scene.good() | {wire.AS_PATH: value})

        t.add(R + "3c", f"AS_PATH with flags {wrong:#04x}", path_flags, WITHDRAW)

    for size in (0, 3, 5, 16):
        t.value(R + "7.3", f"NEXT_HOP of length {size}", wire.NEXT_HOP, 0x40, bytes(range(10, 10 + size)), WITHDRAW)
    for wrong in (0xC0, 0x00):

        def hop_flags(scene: Scene, wrong: int = wrong) -> bytes:
            value = wire.attribute(wrong, wire.NEXT_HOP, wire.packed(scene.source))
            return scene.message(scene.good() | {wire.NEXT_HOP: value})

        t.add(R + "3c", f"NEXT_HOP with flags {wrong:#04x}", hop_flags, WITHDRAW)
    for address in ("0.0.0.0", "224.0.0.1", "127.0.0.1"):
        value = wire.packed(address)
        t.value("RFC 4271 6.3", f"NEXT_HOP {address}", wire.NEXT_HOP, 0x40, value, IGNORED, level="should")

    def own_hop(scene: Scene) -> bytes:
        value = wire.attribute(0x40, wire.NEXT_HOP, wire.packed(scene.target.address))
        return scene.message(scene.good() | {wire.NEXT_HOP: value})

    t.add("RFC 4271 6.3", "NEXT_HOP is the speaker's own address", own_hop, IGNORED, level="should")

    t.value("RFC 4271 5.1.4", "MED stays within the AS", wire.MED, 0x80, b"\0\0\0\7", KEPT, DISCARD)
    for size in (0, 3, 5):
        t.value(R + "7.4", f"MED of length {size}", wire.MED, 0x80, bytes(size), WITHDRAW)
    for wrong in (0xC0, 0x00, 0x40):
        t.flags("MED", wire.MED, wrong, b"\0\0\0\7", WITHDRAW)

    t.value(R + "7.5", "LOCAL_PREF", wire.LOCAL_PREF, 0x40, b"\0\0\0\7", DISCARD, DISCARD)
    for size in (0, 3, 5):
        t.value(R + "7.5", f"LOCAL_PREF of length {size}", wire.LOCAL_PREF, 0x40, bytes(size), DISCARD, WITHDRAW)
    for wrong in (0xC0, 0x00):
        t.flags("LOCAL_PREF", wire.LOCAL_PREF, wrong, b"\0\0\0\7", DISCARD | WITHDRAW, WITHDRAW)

    t.value(R + "7.6", "ATOMIC_AGGREGATE", wire.ATOMIC, 0x40, b"", ACCEPT)
    for size in (1, 4):
        t.value(R + "7.6", f"ATOMIC_AGGREGATE of length {size}", wire.ATOMIC, 0x40, bytes(size), DISCARD)
    for wrong in (0xC0, 0x80):
        t.flags("ATOMIC_AGGREGATE", wire.ATOMIC, wrong, b"", WITHDRAW)

    good = pack("!I", 64512) + b"\x0a\1\1\1"
    t.value(R + "7.7", "AGGREGATOR", wire.AGGREGATOR, 0xC0, good, ACCEPT)
    for size in (0, 6, 7, 9):
        t.value(R + "7.7", f"AGGREGATOR of length {size}", wire.AGGREGATOR, 0xC0, (good + b"\1")[:size], DISCARD)
    t.value(R + "7.7", "AGGREGATOR of length 8 without 4-octet AS", wire.AGGREGATOR, 0xC0, good, DISCARD, wide=False)
    t.value("RFC 7607 2", "AGGREGATOR of AS 0", wire.AGGREGATOR, 0xC0, bytes(4) + good[4:], DISCARD)
    for wrong in (0x40, 0x80):
        t.flags("AGGREGATOR", wire.AGGREGATOR, wrong, good, WITHDRAW)

    _lists(t, R)

    t.value(R + "7.9", "ORIGINATOR_ID", wire.ORIGINATOR_ID, 0x80, b"\x0a\7\7\7", DISCARD, DISCARD)
    for size in (0, 3, 5):
        t.value(R + "7.9", f"ORIGINATOR_ID of length {size}", wire.ORIGINATOR_ID, 0x80, bytes(size), DISCARD, WITHDRAW)
    for wrong in (0xC0, 0x40):
        t.flags("ORIGINATOR_ID", wire.ORIGINATOR_ID, wrong, b"\x0a\7\7\7", DISCARD | WITHDRAW, WITHDRAW)
    t.value(R + "7.10", "CLUSTER_LIST", wire.CLUSTER_LIST, 0x80, b"\x0a\7\7\7", DISCARD, DISCARD)
    for size in (0, 3, 5):
        t.value(R + "7.10", f"CLUSTER_LIST of length {size}", wire.CLUSTER_LIST, 0x80, bytes(size), DISCARD, WITHDRAW)
    for wrong in (0xC0, 0x40):
        t.flags("CLUSTER_LIST", wire.CLUSTER_LIST, wrong, b"\x0a\7\7\7", DISCARD | WITHDRAW, WITHDRAW)


def _lists(t: _Table, R: str) -> None:  # noqa: N803
    """Attributes whose value is a list of members of one size."""
    extended, large = bytes.fromhex("0002fde900000007"), pack("!III", 65001, 7, 7)
    six = bytes.fromhex("000220010db800000000000000000000000001000100")[:20]
    for rfc, name, code, member, level in (
        (R + "7.8", "COMMUNITIES", wire.COMMUNITIES, pack("!HH", 65001, 7), "must"),
        (R + "7.14", "EXTENDED_COMMUNITIES", wire.EXTENDED_COMMUNITIES, extended, "must"),
        (R + "7.15", "IPV6_EXTENDED_COMMUNITIES", wire.IPV6_EXTENDED_COMMUNITIES, six, "should"),
        ("RFC 8092 6", "LARGE_COMMUNITIES", wire.LARGE_COMMUNITIES, large, "must"),
    ):
        unknown = PARTIAL if code == wire.IPV6_EXTENDED_COMMUNITIES else frozenset()
        asked: Level = "must" if level == "must" else "should"
        bad = WITHDRAW | unknown  # a speaker may not know the attribute, and then passes it on
        t.value(rfc, name, code, 0xC0, member, ACCEPT | unknown, level=asked)
        for size in (0, 1, len(member) - 1, len(member) + 1):
            t.value(rfc, f"{name} of length {size}", code, 0xC0, (member + b"\0")[:size], bad, level=asked)
        if not unknown:
            for wrong in (0x80, 0x40):
                t.flags(name, code, wrong, member, WITHDRAW)


def _four_octet_as(t: _Table) -> None:
    as4 = wire.segment(NEW_AS)
    aggregator = pack("!I", 4200000001) + b"\x0a\1\1\1"
    old = pack("!H", wire.AS_TRANS) + b"\x0a\1\1\1"
    t.value("RFC 6793 4.1", "AS4_PATH from a 4-octet AS speaker", wire.AS4_PATH, 0xC0, as4, DISCARD)
    t.value("RFC 6793 4.1", "AS4_AGGREGATOR from a 4-octet AS speaker", wire.AS4_AGGREGATOR, 0xC0, aggregator, DISCARD)

    def merged(as4_path: bytes, *, flags: int = 0xC0) -> Build:
        def build(scene: Scene) -> bytes:
            path = scene.path(wire.AS_TRANS, NEW_AS)
            return scene.message(
                scene.good()
                | {
                    wire.AS_PATH: wire.attribute(0x40, wire.AS_PATH, path),
                    wire.AS4_PATH: wire.attribute(flags, wire.AS4_PATH, as4_path),
                }
            )

        return build

    for name, value in (
        ("AS4_PATH that fits", wire.segment(4200000001, NEW_AS)),
        ("AS4_PATH longer than AS_PATH", wire.segment(*[4200000001] * 9)),
        ("AS4_PATH of length 0", b""),
        ("AS4_PATH of odd length", as4 + b"\2"),
        ("AS4_PATH segment overruns", wire.segment(4200000001, count=3)),
        ("AS4_PATH segment of count 0", b"\2\0"),
        ("AS4_PATH segment of type 9", wire.segment(4200000001, kind=9)),
        ("AS4_PATH with AS 0", wire.segment(0, NEW_AS)),
        ("AS4_PATH with a confederation segment", wire.segment(64512, kind=3) + as4),
    ):
        t.add("RFC 6793 6", name, merged(value), DISCARD, code=wire.AS4_PATH, wide=False)

    def with_aggregator(value: bytes) -> Build:
        def build(scene: Scene) -> bytes:
            return scene.message(
                scene.good()
                | {
                    wire.AGGREGATOR: wire.attribute(0xC0, wire.AGGREGATOR, old),
                    wire.AS4_AGGREGATOR: wire.attribute(0xC0, wire.AS4_AGGREGATOR, value),
                }
            )

        return build

    t.add(
        "RFC 6793 4.2.3",
        "AS4_AGGREGATOR takes the place of AGGREGATOR",
        with_aggregator(aggregator),
        ACCEPT,
        code=wire.AGGREGATOR,
        sent=aggregator,
        wide=False,
    )
    for size in (0, 6, 7):
        build = with_aggregator(aggregator[:size])
        t.add("RFC 6793 6", f"AS4_AGGREGATOR of length {size}", build, KEPT, code=wire.AGGREGATOR, wide=False)
    build = with_aggregator(bytes(4) + aggregator[4:])
    t.add("RFC 7607 2", "AS4_AGGREGATOR of AS 0", build, KEPT, code=wire.AGGREGATOR, wide=False)


def _mandatory(t: _Table) -> None:
    for code, name in ((wire.ORIGIN, "ORIGIN"), (wire.AS_PATH, "AS_PATH"), (wire.NEXT_HOP, "NEXT_HOP")):

        def build(scene: Scene, code: int = code) -> bytes:
            attributes = scene.good()
            del attributes[code]
            return scene.message(attributes)

        t.add("RFC 7606 3d", f"{name} missing", build, WITHDRAW)

    def no_preference(scene: Scene) -> bytes:
        attributes = scene.good()
        del attributes[wire.LOCAL_PREF]
        return scene.message(attributes)

    t.add("RFC 7606 3d", "LOCAL_PREF missing", no_preference, NONE, WITHDRAW | KEPT, level="may")
    t.add("RFC 7606 3d", "no attribute at all", lambda s: s.message({}), WITHDRAW)


def _repeated(t: _Table) -> None:
    values = {
        wire.ORIGIN: (0x40, b"\0", "ORIGIN"),
        wire.MED: (0x80, b"\0\0\0\7", "MED"),
        wire.COMMUNITIES: (0xC0, pack("!HH", 65001, 7), "COMMUNITIES"),
        wire.ATOMIC: (0x40, b"", "ATOMIC_AGGREGATE"),
        wire.LARGE_COMMUNITIES: (0xC0, pack("!III", 65001, 7, 7), "LARGE_COMMUNITIES"),
        99: (0xC0, b"\1", "an unknown attribute"),
    }
    for code, (flags, value, name) in values.items():
        for again, what in ((value, ""), (value + b"\1\1", ", malformed the second time")):

            def build(
                scene: Scene, code: int = code, flags: int = flags, v: bytes = value, again: bytes = again
            ) -> bytes:
                attributes = scene.good() | {code: wire.attribute(flags, code, v)}
                return scene.message(attributes, wire.attribute(flags, code, again))

            expected = PARTIAL if code == 99 else KEPT
            t.add("RFC 7606 3g", f"{name} twice{what}", build, expected, code=code, sent=value)

    def path_twice(scene: Scene) -> bytes:
        return scene.message(scene.good(), wire.attribute(0x40, wire.AS_PATH, scene.path(64999)))

    t.add("RFC 7606 3g", "AS_PATH twice", path_twice, KEPT, code=wire.AS_PATH)

    def hop_twice(scene: Scene) -> bytes:
        return scene.message(scene.good(), wire.attribute(0x40, wire.NEXT_HOP, wire.packed("192.0.2.9")))

    t.add("RFC 7606 3g", "NEXT_HOP twice", hop_twice, KEPT, code=wire.NEXT_HOP)
    t.add("RFC 7606 3g", "MP_REACH_NLRI twice", lambda s: s.message(s.good(), s.reach()), RESET, six=True)

    def unreach_twice(scene: Scene) -> bytes:
        return wire.update(wire.mp_unreach(wire.nlri(scene.prefix6)) * 2)

    t.add("RFC 7606 3g", "MP_UNREACH_NLRI twice", unreach_twice, RESET, six=True)

    def strongest(scene: Scene) -> bytes:
        bad = {
            wire.ATOMIC: wire.attribute(0x40, wire.ATOMIC, b"\0"),
            wire.MED: wire.attribute(0x80, wire.MED, b"\0"),
        }
        return scene.message(scene.good() | bad)

    t.add("RFC 7606 3h", "the strongest of two treatments", strongest, WITHDRAW)


def _unknown(t: _Table) -> None:
    t.value("RFC 4271 5", "unknown optional transitive", 99, 0xC0, b"abc", PARTIAL)
    t.value("RFC 4271 5", "unknown optional transitive, partial already", 99, 0xE0, b"abc", PARTIAL)
    t.value("RFC 4271 5", "unknown optional transitive of length 0", 99, 0xC0, b"", PARTIAL)
    t.value("RFC 4271 5", "unknown optional transitive of 300 octets", 99, 0xD0, bytes(300), PARTIAL)
    t.value("RFC 4271 5", "unknown optional transitive of type 255", 255, 0xC0, b"abc", PARTIAL | DISCARD)
    t.value("RFC 4271 5", "unknown optional non-transitive", 99, 0x80, b"abc", DISCARD)
    t.value("RFC 4271 5", "unknown optional non-transitive, malformed for others", 99, 0x80, b"", DISCARD)
    t.value("RFC 4271 6.3", "unknown well-known", 99, 0x40, b"abc", any_of("reset 3/2"))
    t.value("RFC 4271 6.3", "unknown well-known, not transitive", 99, 0x00, b"abc", any_of("reset 3/2"))
    t.value("RFC 4271 4.3", "length of two octets without need", wire.MED, 0x90, b"\0\0\0\7", KEPT)


def _section(t: _Table) -> None:
    R = "RFC 7606 4"  # noqa: N806
    for name, tail in (
        ("one stray octet at the end", b"\xc0"),
        ("two stray octets at the end", b"\xc0\x08"),
        ("the last attribute overruns by one octet", b"\xc0\x08\x05\0\0\0\0"),
        ("the last attribute overruns by 250 octets", b"\xc0\x08\xff\0\0\0\0"),
        ("the last attribute overruns, length of two octets", b"\xd0\x08\xff\xff\0\0\0\0"),
        ("the last attribute has half of its length", b"\xd0\x08\x00"),
    ):
        t.add(R, name, lambda s, tail=tail: s.message(s.good(), tail), WITHDRAW)  # type: ignore[misc]

    def reversed_order(scene: Scene) -> bytes:
        section = b"".join(value for _, value in sorted(scene.good().items(), reverse=True))
        return wire.update(section, wire.nlri(scene.prefix))

    t.add("RFC 4271 5", "attributes in descending order", reversed_order, KEPT)

    def lengths(withdrawn: int, attributes: int) -> Build:
        def build(scene: Scene) -> bytes:
            section = b"".join(scene.good().values())
            size = len(section) + attributes
            return wire.message(wire.UPDATE, pack("!HH", withdrawn, size) + section + wire.nlri(scene.prefix))

        return build

    overrun = any_of("reset 3/1")
    t.add("RFC 7606 3b", "withdrawn routes length overruns the message", lengths(4000, 0), overrun)
    t.add("RFC 7606 3b", "path attribute length overruns the message", lengths(0, 400), overrun)
    t.add("RFC 7606 3b", "path attribute length overruns by one octet", lengths(0, 5), overrun)
    t.add("RFC 7606 3b", "path attribute length reaches over the NLRI", lengths(0, 4), RESET | WITHDRAW | IGNORED)
    ends_short = lambda s: wire.message(wire.UPDATE, b"\0\2\0\0")  # noqa: E731
    t.add("RFC 7606 3b", "no room for the path attribute length", ends_short, overrun)

    bad_origin = wire.attribute(0x40, wire.ORIGIN, b"\7")
    t.add("RFC 7606 5.2", "malformed attribute and no NLRI", lambda s: wire.update(bad_origin), any_of("reset 3"))
    harmless = wire.attribute(0x40, wire.ATOMIC, b"\7")
    t.add("RFC 7606 5.2", "attribute to discard and no NLRI", lambda s: wire.update(harmless), any_of("stale"))
    t.add(
        "RFC 4271 6.3",
        "good attributes and no NLRI",
        lambda s: wire.update(b"".join(s.good().values())),
        any_of("stale"),
    )


def _nlri(t: _Table) -> None:
    def announced(octets: bytes) -> Build:
        return lambda s: wire.update(b"".join(s.good().values()), wire.nlri(s.prefix) + octets)

    def withdrawn(octets: bytes) -> Build:
        return lambda s: wire.update(withdrawn=wire.nlri(s.prefix) + octets)

    syntax = any_of("reset 3/10", "reset 3/1")
    for name, octets in (
        ("length 33", b"\x21\x0a\0\0\0\0"),
        ("length 255", b"\xff" + bytes(32)),
        ("cut short", b"\x18\x0a\0"),
        ("length without octets", b"\x08"),
    ):
        t.add("RFC 7606 5.3", f"NLRI: {name}", announced(octets), syntax)
        t.add("RFC 7606 5.3", f"withdrawn routes: {name}", withdrawn(octets), syntax)

    def host_bits(scene: Scene) -> bytes:
        octets = b"\x14" + wire.packed(scene.prefix.partition("/")[0])[:2] + b"\xff"
        return wire.update(b"".join(scene.good().values()), wire.nlri(scene.prefix) + octets)

    t.add("RFC 4271 4.3", "NLRI with bits behind the length", host_bits, KEPT)

    def both(scene: Scene) -> bytes:
        prefix = wire.nlri(scene.prefix)
        return wire.update(b"".join(scene.good().values()), prefix, prefix)

    t.add("RFC 4271 4.3", "a prefix both withdrawn and announced", both, KEPT, level="should")

    def twice(scene: Scene) -> bytes:
        return wire.update(b"".join(scene.good().values()), wire.nlri(scene.prefix, scene.prefix))

    t.add("RFC 4271 4.3", "a prefix announced twice in one message", twice, KEPT)
    t.add("RFC 4271 4.3", "withdrawal", lambda s: wire.update(withdrawn=wire.nlri(s.prefix)), WITHDRAW)

    def with_attributes(scene: Scene) -> bytes:
        return wire.update(b"".join(scene.good().values()), withdrawn=wire.nlri(scene.prefix))

    t.add("RFC 4271 4.3", "withdrawal with attributes", with_attributes, WITHDRAW)
    stranger = wire.nlri("203.0.113.0/24")
    t.add(
        "RFC 4271 9", "withdrawal of what was not announced", lambda s: wire.update(withdrawn=stranger), any_of("stale")
    )
    t.add("RFC 4724 2", "End-of-RIB changes nothing", lambda s: wire.update(), any_of("stale"))
    six = wire.update(wire.mp_unreach(b""))
    t.add("RFC 4724 2", "End-of-RIB of IPv6 changes nothing", lambda s: six, any_of("stale"))
    vpn = wire.update(wire.mp_unreach(b"", afi=1, safi=128))
    t.add("RFC 4760 7", "End-of-RIB of a family not negotiated", lambda s: vpn, any_of("stale"), level="should")
    full = lambda s: s.message(s.good() | {wire.COMMUNITIES: wire.attribute(0xD0, 8, pack("!HH", 65001, 7) * 700)})  # noqa: E731
    t.add("RFC 4271 4", "message of nearly 3,000 octets", full, KEPT)


def _multiprotocol(t: _Table) -> None:
    hop, link_local = wire.packed("2001:db8:ffff::9"), wire.packed("fe80::9")

    def reach(next_hop: bytes, *, prefixes: bytes | None = None, **options: int) -> Build:
        def build(scene: Scene) -> bytes:
            octets = wire.nlri(scene.prefix6) if prefixes is None else prefixes
            return wire.update(wire.mp_reach(octets, next_hop, **options) + b"".join(scene.good().values()))

        return build

    def six(rfc: str, name: str, build: Build, expected: Expected, *, level: Level = "must", code: int = 0) -> None:
        t.add(rfc, name, build, expected, level=level, code=code, six=True)

    syntax = any_of("reset 3")
    six("RFC 4760 3", "MP_REACH_NLRI", reach(hop), KEPT)
    six("RFC 2545 3", "MP_REACH_NLRI with a link-local next hop beside the global one", reach(hop + link_local), KEPT)
    for size in (0, 4, 15, 17, 31, 33):
        next_hop = (hop + link_local + b"\0")[:size]
        six("RFC 7606 7.11", f"MP_REACH_NLRI with a next hop of {size} octets", reach(next_hop), syntax)
    six("RFC 7606 7.11", "MP_REACH_NLRI whose next hop overruns", reach(hop, size=250), syntax)
    for size in (0, 1, 4):
        short = wire.attribute(0x80, wire.MP_REACH, b"\0\2\1\x10"[:size])
        build: Build = lambda s, short=short: wire.update(short + b"".join(s.good().values()))  # type: ignore[misc]  # noqa: E731
        six("RFC 7606 7.11", f"MP_REACH_NLRI of length {size}", build, syntax)
    for wrong in (0xC0, 0x40, 0x00):
        six("RFC 7606 3c", f"MP_REACH_NLRI with flags {wrong:#04x}", reach(hop, flags=wrong), WITHDRAW)
    for name, octets in (("length 129", b"\x81" + bytes(17)), ("cut short", b"\x40\x20\x01\x0d")):
        six("RFC 7606 5.3", f"MP_REACH_NLRI: {name}", reach(hop, prefixes=octets), syntax)
        build = lambda s, octets=octets: wire.update(wire.mp_unreach(wire.nlri(s.prefix6) + octets))  # type: ignore[misc]  # noqa: E731
        six("RFC 7606 5.3", f"MP_UNREACH_NLRI: {name}", build, syntax)
    for size in (0, 2):
        short = wire.attribute(0x80, wire.MP_UNREACH, b"\0\2\1"[:size])
        build = lambda s, short=short: wire.update(short)  # type: ignore[misc]  # noqa: E731
        six("RFC 7606 7.12", f"MP_UNREACH_NLRI of length {size}", build, syntax)
    six("RFC 4760 4", "MP_UNREACH_NLRI", lambda s: wire.update(wire.mp_unreach(wire.nlri(s.prefix6))), WITHDRAW)
    for wrong in (0xC0, 0x40):
        build = lambda s, wrong=wrong: wire.update(wire.mp_unreach(wire.nlri(s.prefix6), flags=wrong))  # type: ignore[misc]  # noqa: E731
        # Its routes are withdrawn either way; with no other route in the message a reset is what section 5.2 asks.
        six("RFC 7606 3c", f"MP_UNREACH_NLRI with flags {wrong:#04x}", build, WITHDRAW | RESET)
    for afi, safi, name in ((16388, 71, "of an unknown family"), (1, 128, "of a family not negotiated")):
        build = lambda s, afi=afi, safi=safi: wire.update(  # type: ignore[misc]  # noqa: E731
            wire.mp_reach(b"", wire.packed("192.0.2.1"), afi=afi, safi=safi) + b"".join(s.good().values()),
            wire.nlri(s.prefix),
        )
        t.add("RFC 4760 7", f"MP_REACH_NLRI {name} beside good NLRI", build, KEPT, level="should")
    for code, name in ((wire.ORIGIN, "ORIGIN"), (wire.AS_PATH, "AS_PATH")):

        def missing(scene: Scene, code: int = code) -> bytes:
            attributes = scene.good()
            del attributes[code]
            return scene.message(attributes)

        six("RFC 7606 3d", f"{name} missing beside MP_REACH_NLRI", missing, WITHDRAW)
        bad = wire.attribute(0x40, code, b"\7")
        build = lambda s, code=code, bad=bad: s.message(s.good() | {code: bad})  # type: ignore[misc]  # noqa: E731
        six("RFC 7606 7", f"{name} malformed beside MP_REACH_NLRI", build, WITHDRAW)
    stray = wire.attribute(0x40, wire.NEXT_HOP, wire.packed("192.0.2.1"))
    six("RFC 4760 3", "NEXT_HOP beside MP_REACH_NLRI", lambda s: s.message(s.good() | {wire.NEXT_HOP: stray}), KEPT)
    for address in ("::", "ff02::1", "::1"):
        six(
            "RFC 4271 6.3",
            f"MP_REACH_NLRI with next hop {address}",
            reach(wire.packed(address)),
            IGNORED,
            level="should",
        )

    def last(scene: Scene) -> bytes:
        return wire.update(b"".join(scene.good().values()) + scene.reach())

    six("RFC 7606 5.1", "MP_REACH_NLRI behind the other attributes", last, KEPT)

    def reserved(scene: Scene) -> bytes:
        value = pack("!HBB", 2, 1, 16) + hop + b"\xff" + wire.nlri(scene.prefix6)
        return wire.update(wire.attribute(0x80, wire.MP_REACH, value) + b"".join(scene.good().values()))

    six("RFC 4760 3", "MP_REACH_NLRI with a reserved octet that is not 0", reserved, KEPT)

    def beside(scene: Scene) -> bytes:
        bad = scene.good() | {wire.MED: wire.attribute(0x80, wire.MED, b"")}
        section = scene.reach() + b"".join(bad[code] for code in sorted(bad))
        return wire.update(section, wire.nlri(scene.prefix))

    t.add("RFC 7606 3h", "malformed attribute beside NLRI of both families", beside, WITHDRAW)


def cases() -> list[Case]:
    """Return all UPDATE cases."""
    table = _Table()
    for part in (_attributes, _four_octet_as, _mandatory, _repeated, _unknown, _section, _nlri, _multiprotocol):
        part(table)
    return [Case(GROUP, r.name, r.rfc, r.level, r.run, r.external, r.internal) for r in table.rows]
