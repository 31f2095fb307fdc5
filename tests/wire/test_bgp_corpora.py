"""Messages from captures, MRT files, fuzzing corpora and a genuine full table: never a crash, only BgpError."""

from __future__ import annotations

from collections import Counter
from struct import pack

import pytest

from bgp.framing import Framer
from bgp.messages import MessageType
from bgp.nlri import decode
from bgp.update import split
from tests import corpora
from tests.bgp_ribs import Node, add_peer, session
from tests.wire.receivers import drain, frames, receivers, take

FULL_TABLE = "internet/fulltable-2015-as4.updates.bin.gz"


@pytest.mark.parametrize("name", corpora.names("pcap") + corpora.names("mrt"))
def test_captures(name: str) -> None:
    nodes = receivers()
    for message in corpora.messages(corpora.read(name)):
        for kind, body in frames(message):
            take(nodes, kind, body)
    drain(nodes)


def test_fuzzing_corpora() -> None:
    nodes = receivers()
    found: Counter[str] = Counter()
    for _, data in corpora.archive("fuzz/bgp-messages.tar.gz"):
        for kind, body in frames(data):
            found += take(nodes, kind, body)
        # Also as the body of each type, so that what framing refuses reaches the decoders too.
        for kind in MessageType:
            if kind is not MessageType.KEEPALIVE:
                found += take(nodes, kind, data[19:])
    drain(nodes)
    assert found["refused"] > 100
    assert found["fine"] > 100


def test_full_table_comes_in_whole() -> None:
    node, peer = Node("node", 3856, 1), Node("peer", 3856, 2)
    add_peer(node, peer)
    add_peer(peer, node)
    session(node, peer)
    prefixes: set[bytes] = set()
    adj_in = node.rib.peers["peer"].adj_in
    data, framer, updates = corpora.read(FULL_TABLE), Framer(), 0
    faults: list[str] = []
    for at in range(0, len(data), 1 << 16):
        for _, body in framer.feed(data[at : at + (1 << 16)]):
            received = node.rib.receive("peer", body)
            faults += received.faults
            if "AS_PATH: AS 0" not in received.faults:
                prefixes.update(decode(split(body)[2], 32))
            updates += 1
    assert updates == 89_679
    assert Counter(faults) == {"AS_PATH: AS 0": 1, "AGGREGATOR: AS 0": 3}, "RFC 7607: seven prefixes are withdrawn"
    assert (len(prefixes), len(adj_in.tables[4])) == (577_702, 577_699), "three were announced before"
    paths = set(map(id, adj_in.tables[4].values()))
    assert len(paths) < 90_000


def test_table_of_2002_from_a_two_octet_collector() -> None:
    """112,988 prefixes seen by 36 peers; a few thousand routes of it do."""
    _, node = receivers()[:2]
    total = 0
    for prefix, attributes in corpora.table_dump(corpora.read("mrt/bgpdump-bview.20020722.2337.gz")):
        received = node.rib.receive("peer", pack("!HH", 0, len(attributes)) + attributes + prefix)
        assert set(received.faults) <= {
            "LOCAL_PREF: not accepted on this kind of session",
            "CLUSTER_LIST: not accepted on this kind of session",
            "ORIGINATOR_ID: not accepted on this kind of session",
        }
        total += 1
        if total == 5000:
            break
    drain([node])
    assert total == 5000
