"""Our decoding of UPDATEs against exabgp's, on generated and on captured messages.

Where exabgp is known to be wrong it is not asked: it repeats each IPv6 prefix for a link-local next hop behind a
global one, keeps host bits, takes malformed attributes that RFC 7606 treats as withdrawn, and reports an UPDATE that
holds only an empty AS_PATH as End-of-RIB.
"""

from __future__ import annotations

from struct import pack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp import as_path, codec
from bgp.attributes import AS_PATH, COMMUNITIES, LARGE_COMMUNITIES, Attributes, pack_attribute
from bgp.framing import Framer
from bgp.inspection import communities_text
from bgp.messages import BgpError
from bgp.table import Table
from config.prefix import FAMILIES, Family, make
from tests import corpora
from tests.bgp_ribs import Node, add_peer, session

assert codec  # exabgp is set up by its adapter

from exabgp.bgp.message import EOR, Message, Notify  # noqa: E402
from exabgp.bgp.message.action import Action  # noqa: E402
from exabgp.bgp.message.direction import Direction  # noqa: E402
from exabgp.bgp.message.open.capability import Negotiated  # noqa: E402
from exabgp.bgp.message.update.nlri.qualifier import PathInfo  # noqa: E402
from exabgp.protocol.family import _AFI, SAFI  # noqa: E402

Routes = dict[Family, set[bytes]]


class Oracle:
    """exabgp as a decoder."""

    def __init__(self, *, numbered: bool = False) -> None:
        self.negotiated = Negotiated({"capability": {"aigp": None}})
        self.negotiated.asn4 = True
        self.negotiated.families = [(_AFI(1), SAFI.unicast), (_AFI(2), SAFI.unicast)]
        if numbered:
            self.negotiated.addpath._receive.update(dict.fromkeys(self.negotiated.families, True))

    def decode(self, body: bytes) -> Any:
        """Return the decoded UPDATE, None where it is refused."""
        try:
            return Message.unpack(2, body, Direction.IN, self.negotiated)
        except Notify:
            return None

    def routes(self, update: Any) -> tuple[Routes, Routes]:
        """Return announced and withdrawn prefixes, host bits masked."""
        announced: Routes = {4: set(), 6: set()}
        withdrawn: Routes = {4: set(), 6: set()}
        for nlri in [] if isinstance(update, EOR) else update.nlris:
            family: Family = 4 if int(nlri.afi) == 1 else 6
            prefix = make(family, int.from_bytes(nlri.cidr._packed, "big"), nlri.cidr.mask)
            number = nlri.path_info.path_info if nlri.path_info is not PathInfo.NOPATH else b""
            (announced if nlri.action == Action.ANNOUNCE else withdrawn)[family].add(number + prefix)
        return announced, withdrawn


class Ours:
    """Our receiver, with every prefix it is asked about present beforehand where a withdrawal is to be seen."""

    def __init__(self) -> None:
        self.node, self.peer = Node("node", 65002, 1), Node("peer", 65002, 2)
        add_peer(self.node, self.peer)
        add_peer(self.peer, self.node)
        session(self.node, self.peer)
        self.adj_in = self.node.rib.peers["peer"].adj_in

    def decode(self, body: bytes, before: Routes) -> Routes | None:
        """Return what is announced after an UPDATE that finds ``before``, None where it resets the session."""
        good = pack_attribute(0x40, 1, b"\0") + pack_attribute(0x40, 2, b"")
        for family in FAMILIES:
            self.adj_in.tables[family] = Table()
        native = good + pack_attribute(0x40, 3, bytes((192, 0, 2, 2)))
        self.node.rib.receive("peer", pack("!HH", 0, len(native)) + native + b"".join(sorted(before[4])))
        if before[6]:
            value = pack("!HBB", 2, 1, 16) + b"\xfd" + bytes(15) + b"\0" + b"".join(sorted(before[6]))
            section = pack_attribute(0x80, 14, value) + good
            self.node.rib.receive("peer", pack("!HH", 0, len(section)) + section)
        try:
            self.node.rib.receive("peer", body)
        except BgpError:
            return None
        return {family: set(self.adj_in.tables[family]) for family in FAMILIES}


@st.composite
def wire_prefixes(draw: st.DrawFn, family: Family, most: int = 20) -> bytes:
    """An NLRI field: runs of one length or mixed lengths, host bits set or not."""
    bits = 32 if family == 4 else 128
    lengths = st.integers(0, bits)
    if draw(st.booleans()):
        lengths = st.just(draw(st.sampled_from([24, 32, 16, 0, 8, 25] if bits == 32 else [64, 48, 128, 56, 33])))
    field = b""
    for length in draw(st.lists(lengths, max_size=most)):
        size = (length + 7) // 8
        field += bytes((length,)) + draw(st.binary(min_size=size, max_size=size))
    return field


attribute_sections = st.builds(
    lambda path, med, communities, large: b"".join(
        (
            pack_attribute(0x40, 1, b"\0"),
            pack_attribute(0x40, 2, as_path.pack([(2, tuple(path))] if path else [])),
            b"" if med is None else pack_attribute(0x80, 4, pack("!I", med)),
            pack_attribute(0xC0, 8, b"".join(communities)) if communities else b"",
            pack_attribute(0xC0, 32, b"".join(large)) if large else b"",
        )
    ),
    st.lists(st.integers(1, 2**32 - 1), max_size=6),
    st.none() | st.integers(0, 2**32 - 1),
    st.lists(st.binary(min_size=4, max_size=4), max_size=3, unique=True),
    st.lists(st.binary(min_size=12, max_size=12), max_size=3, unique=True),
)


@st.composite
def updates(draw: st.DrawFn) -> bytes:
    """An UPDATE with good attributes and NLRI that may have been damaged."""
    section = draw(attribute_sections)
    withdrawn = draw(wire_prefixes(4, 6))
    nlri = draw(wire_prefixes(4))
    parts = [section]
    if nlri:
        parts.append(pack_attribute(0x40, 3, bytes((192, 0, 2, 2))))
    reach = draw(wire_prefixes(6))
    if reach:
        value = pack("!HBB", 2, 1, 16) + b"\xfd" + bytes(14) + b"\1\0" + reach
        parts.insert(draw(st.integers(0, len(parts))), pack_attribute(0x80, 14, value))
    unreach = draw(wire_prefixes(6, 6))
    if unreach:
        parts.insert(draw(st.integers(0, len(parts))), pack_attribute(0x80, 15, pack("!HB", 2, 1) + unreach))
    section = b"".join(parts)
    damage = draw(st.integers(0, 5))
    if damage == 0 and nlri:
        nlri = nlri[:-1]
    elif damage == 1 and nlri:
        at = draw(st.integers(0, len(nlri) - 1))
        nlri = nlri[:at] + draw(st.binary(min_size=1, max_size=1)) + nlri[at + 1 :]
    return pack("!H", len(withdrawn)) + withdrawn + pack("!H", len(section)) + section + nlri


ORACLE, OURS = Oracle(), Ours()


def numbered(field: bytes, number: int) -> bytes:
    """Put path identifiers before the prefixes of an NLRI field."""
    found, at = b"", 0
    while at < len(field):
        end = at + 1 + (field[at] + 7) // 8
        found += pack("!I", number + len(found)) + field[at:end]
        at = end
    return found


@st.composite
def numbered_updates(draw: st.DrawFn) -> bytes:
    """An UPDATE whose NLRI have path identifiers, some of them damaged."""
    first = draw(st.sampled_from([0, 1, 7, 2**31, 2**32 - 500]))
    nlri, withdrawn = numbered(draw(wire_prefixes(4)), first), numbered(draw(wire_prefixes(4, 6)), 2**16)
    reach, unreach = numbered(draw(wire_prefixes(6)), first), numbered(draw(wire_prefixes(6, 6)), 2**16)
    section = draw(attribute_sections) + (pack_attribute(0x40, 3, bytes((192, 0, 2, 2))) if nlri else b"")
    if reach:
        value = pack("!HBB", 2, 1, 16) + b"\xfd" + bytes(14) + b"\1\0" + reach
        section = pack_attribute(0x80, 14, value) + section
    if unreach:
        section += pack_attribute(0x80, 15, pack("!HB", 2, 1) + unreach)
    if nlri and draw(st.booleans()):
        at = draw(st.integers(0, len(nlri) - 1))
        nlri = nlri[:at] + draw(st.binary(max_size=2)) + nlri[at + 1 :]
    return pack("!H", len(withdrawn)) + withdrawn + pack("!H", len(section)) + section + nlri


@given(numbered_updates())
def test_generated_updates_with_path_identifiers(body: bytes) -> None:
    """RFC 7911 section 3, by both decoders."""
    oracle = Oracle(numbered=True)
    update = oracle.decode(body)
    node, peer = Node("node", 65002, 1), Node("peer", 65002, 2)
    add_peer(node, peer)
    add_peer(peer, node)
    modes = dict.fromkeys(FAMILIES, 3)
    session(node, peer, opens=(node.open(add_path=modes), peer.open(add_path=modes)))
    try:
        node.rib.receive("peer", body)
    except BgpError:
        assert update is None
        return
    assert update is not None
    tables = node.rib.peers["peer"].adj_in.numbered
    found = {
        family: {pack("!I", path.path_id) + prefix for prefix, paths in table.table.items() for path in paths}
        for family, table in tables.items()
    }
    assert found == oracle.routes(update)[0]


def compare(body: bytes) -> bool:
    """Decode both ways; tell whether exabgp takes the message as one that is all right."""
    update = ORACLE.decode(body)
    if update is None:
        assert OURS.decode(body, {4: set(), 6: set()}) is None
        return False
    announced, withdrawn = ORACLE.routes(update)
    before: Routes = {4: withdrawn[4] - {b"\0"}, 6: withdrawn[6] - {b"\0"}}
    found = OURS.decode(body, before)
    assert found is not None
    assert found == announced
    return True


@given(updates())
def test_generated_updates(body: bytes) -> None:
    compare(body)


@given(attribute_sections)
def test_attribute_values(section: bytes) -> None:
    section += pack_attribute(0x40, 3, bytes((192, 0, 2, 2)))
    theirs = ORACLE.decode(pack("!HH", 0, len(section)) + section + b"\x08\x0a").attributes
    ours = Attributes(section)
    path = [int(n) for segment in theirs[2].aspath for n in segment] if 2 in theirs else []
    assert as_path.text(ours.value(AS_PATH) or b"") == " ".join(map(str, path))
    if ours.value(COMMUNITIES):
        packed = {c.community for c in theirs[8].communities}
        assert len(communities_text(ours, 4)) == len(packed)
        assert {(ours.value(COMMUNITIES) or b"")[n : n + 4] for n in range(0, 4 * len(packed), 4)} == packed
    if ours.value(LARGE_COMMUNITIES):
        assert set(communities_text(ours, 12)) == {str(c) for c in theirs[32].communities}


def test_full_table() -> None:
    """Every fiftieth message of a genuine table transfer."""
    data = corpora.read("internet/fulltable-2015-as4.updates.bin.gz")
    compared = 0
    for number, (_, body) in enumerate(Framer().feed(data)):
        if number % 50 == 0:
            assert compare(body)
            compared += 1
    assert compared > 1700


@pytest.mark.parametrize("name", ["mrt/bgpdump-updates.20160811.1600.gz"])
def test_captured_churn(name: str) -> None:
    compared = 0
    for message in corpora.messages(corpora.read(name)):
        for kind, body in Framer(65535).feed(message):
            if kind == 2:
                compared += compare_if_good(body)
        if compared == 1500:
            break
    assert compared > 500


def compare_if_good(body: bytes) -> bool:
    """Compare unless exabgp found something that it leaves to the caller: those rows have tests of their own."""
    update = ORACLE.decode(body)
    if update is None or isinstance(update, EOR):
        return False
    if update.attributes.keys() & {0xFFFF, 0xFFFE} or b"\x02\x01\x20\x20\x01" in body:
        return False
    return compare(body)
