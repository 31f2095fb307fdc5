"""Telling peers several paths to a prefix (RFC 7911), by a reflector and its clients joined in memory."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bgp.framing import HEADER_SIZE
from bgp.policy import ACCEPT, Changes, Match, Policy, Rule
from config.prefix import FAMILIES, parse
from config.prefix_range import PrefixRange
from tests.bgp_ribs import Node, add_peer, flat, session, settle

AS = 65001
A4, B4, A6 = "192.0.2.0/24", "198.51.100.0/24", "2001:db8:1::/48"
ALL = 0xFFFF
ANY = Match(sources=frozenset(("learned", "block")))
TRANSIT = Policy((Rule("transit", True, ANY),))


class Cluster:
    """A reflector ``r`` with clients, which tells each up to ``send`` paths to a prefix."""

    def __init__(self, clients: int, send: int, *, exports: Policy = TRANSIT, asn: int = AS) -> None:
        self.r = Node("r", AS, 99)
        self.clients = [Node(f"c{n}", asn, n + 1) for n in range(clients)]
        for client in self.clients:
            add_peer(self.r, client, client=asn == AS, send_paths=send, exports=exports)
            add_peer(client, self.r, send_paths=ALL)
            self.connect(client)

    def connect(self, client: Node) -> None:
        modes = dict.fromkeys(FAMILIES, 3)
        session(self.r, client, opens=(self.r.open(add_path=modes), client.open(add_path=modes)))

    def settle(self) -> None:
        settle(self.r, *self.clients)


def seen(client: Node, prefix: str = A4) -> dict[int, str]:
    """What a client was told: by identifier, the client that the path came from."""
    family, wire = parse(prefix)
    paths = client.rib.peers["r"].adj_in.paths(family, wire)
    return {p.path_id: f"c{p.attributes.originator[3] - 1}" for p in paths if p.path_id and p.attributes.originator}


def origins(client: Node, prefix: str = A4) -> set[str]:
    return set(seen(client, prefix).values())


def test_all_paths_are_reflected_but_ones_own() -> None:
    """RFC 7911 section 2; RFC 4456 section 6: not back to where a path came from."""
    cluster = Cluster(4, ALL)
    for client in cluster.clients[:3]:
        client.originate(A4, A6)
    cluster.settle()
    for prefix in (A4, A6):
        assert [origins(client, prefix) for client in cluster.clients] == [
            {"c1", "c2"},
            {"c0", "c2"},
            {"c0", "c1"},
            {"c0", "c1", "c2"},
        ]
    last = cluster.clients[3]
    assert len(last.fib[4][A4]) == 3
    assert cluster.r.rib.counts("c3")[4].advertised == 3
    assert [cluster.r.rib.counts(f"c{n}")[4].advertised for n in range(3)] == [2, 2, 2]
    cluster.clients[1].retract(A4)
    cluster.settle()
    assert origins(last) == {"c0", "c2"}


def test_the_best_paths_are_told_and_others_in_place_of_ones_own() -> None:
    """Two paths each: c0 and c1 are the best by identifier; each of them gets the third instead of its own."""
    cluster = Cluster(5, 2)
    for client in cluster.clients[:4]:
        client.originate(A4)
    cluster.settle()
    assert [origins(client) for client in cluster.clients] == [
        {"c1", "c2"},
        {"c0", "c2"},
        {"c0", "c1"},
        {"c0", "c1"},
        {"c0", "c1"},
    ]
    assert [cluster.r.rib.counts(f"c{n}")[4].advertised for n in range(5)] == [2] * 5
    cluster.clients[0].retract(A4)
    cluster.settle()
    assert [origins(client) for client in cluster.clients] == [
        {"c1", "c2"},
        {"c2", "c3"},
        {"c1", "c3"},
        {"c1", "c2"},
        {"c1", "c2"},
    ]
    assert [cluster.r.rib.counts(f"c{n}")[4].advertised for n in range(5)] == [2] * 5


def test_identifiers_are_stable_while_attributes_change() -> None:
    """RFC 7911 section 2: the same identifier replaces; a path that stays is not told again."""
    cluster = Cluster(3, ALL)
    watcher = cluster.clients[2]
    for client in cluster.clients[:2]:
        client.originate(A4)
    cluster.settle()
    before = seen(watcher)
    sent = len(cluster.r.messages["c2"])
    cluster.clients[0].rib.set_policies("r", ACCEPT, Policy((Rule("med", True, Match(), Changes(med=7)),)))
    cluster.settle()
    assert seen(watcher) == before
    assert len(cluster.r.messages["c2"]) == sent + 1
    cluster.clients[1].retract(A4)
    cluster.clients[1].originate(A4)
    cluster.settle()
    assert seen(watcher) == before, "withdrawn and announced at once is no change"


def test_a_refresh_and_a_new_session_repeat_every_path() -> None:
    cluster = Cluster(3, ALL)
    for client in cluster.clients[:2]:
        client.originate(A4, B4)
    cluster.settle()
    watcher = cluster.clients[2]
    before = seen(watcher)
    watcher.rib.refresh_begins("r", 4)
    cluster.r.rib.refresh("c2", 4)
    cluster.settle()
    assert watcher.rib.refresh_ends("r", 4) == 0
    cluster.r.rib.peer_down("c2")
    watcher.rib.peer_down("r")
    cluster.connect(watcher)
    cluster.settle()
    assert seen(watcher) == before
    assert watcher.rib.end_of_rib_received("r") == {4, 6}


def test_members_share_packed_messages() -> None:
    """One update is packed once for all peers whose export result is the same."""
    cluster = Cluster(6, 2)
    cluster.settle()
    cluster.clients[0].originate(A4)
    cluster.clients[1].originate(A4)
    for source in cluster.clients[:2]:
        source.rib.run(100)
        for message in source.rib.outgoing("r", 1 << 20):
            cluster.r.rib.receive(source.name, message[HEADER_SIZE:])
    cluster.r.rib.run(100)
    told = [cluster.r.rib.outgoing(client.name, 1 << 20) for client in cluster.clients[2:]]
    assert told[0]
    assert all(len(messages) == len(told[0]) for messages in told)
    assert all(one is other for messages in told for one, other in zip(messages, told[0], strict=True) if len(one) > 30)


def test_export_policy_decides_over_each_path() -> None:
    """What the rules keep back takes nobody's place among the best."""
    c0 = PrefixRange(*parse("192.0.2.1/32"), 32, 32)
    not_c0 = Rule("not c0", False, Match(sources=ANY.sources, next_hops=(c0,)))
    keep = Policy((not_c0, Rule("rest", True, ANY)))
    cluster = Cluster(4, 2, exports=keep)
    for client in cluster.clients[:3]:
        client.originate(A4)
    cluster.settle()
    assert origins(cluster.clients[3]) == {"c1", "c2"}
    (first, *_) = cluster.r.rib.explain(*parse(A4)).exports
    found = [e for e in cluster.r.rib.explain(*parse(A4)).exports if e.peer == "c3"]
    assert [(e.origin, e.advertised, e.reason) for e in found] == [
        ("c0", False, "not c0"),
        ("c1", True, "rest"),
        ("c2", True, "rest"),
    ]
    assert {e.path_id for e in found if e.advertised} == set(seen(cluster.clients[3]))
    assert first.peer == "c0"


def test_explain_names_what_a_limit_keeps_back() -> None:
    cluster = Cluster(4, 1)
    for client in cluster.clients[:2]:
        client.originate(A4)
    cluster.settle()
    exports = cluster.r.rib.explain(*parse(A4)).exports
    assert [(e.peer, e.origin, e.advertised, e.reason) for e in exports if e.peer in ("c0", "c3")] == [
        ("c0", "c0", False, "learned from this peer"),
        ("c0", "c1", True, "transit"),
        ("c3", "c0", True, "transit"),
        ("c3", "c1", False, "not among the 1 best that it takes"),
    ]
    (advertised,) = flat(cluster.r.rib.inspection.advertised("c3", 4))
    assert (advertised.prefix, advertised.path_id) == (A4, 1)


def test_a_peer_without_the_capability_gets_the_best_path_without_identifiers() -> None:
    cluster = Cluster(2, ALL)
    plain = Node("plain", AS, 50)
    add_peer(cluster.r, plain, client=True, send_paths=ALL, exports=TRANSIT)
    add_peer(plain, cluster.r)
    session(cluster.r, plain, opens=(cluster.r.open(add_path={4: 3}), plain.open()))
    for client in cluster.clients:
        client.originate(A4)
    settle(cluster.r, plain, *cluster.clients)
    (path,) = plain.rib.peers["r"].adj_in.paths(4, parse(A4)[1])
    assert path.path_id is None
    assert path.attributes.originator == cluster.clients[0].router_id


def test_other_policies_in_the_middle_of_a_session() -> None:
    cluster = Cluster(4, ALL)
    for client in cluster.clients[:3]:
        client.originate(A4)
    cluster.settle()
    watcher = cluster.clients[3]
    cluster.clients[0].retract(A4)  # identifiers of another group than those that it will have there
    marking = Policy((Rule("mark", True, ANY, Changes(med=5)),))
    cluster.r.rib.set_policies("c3", ACCEPT, marking)
    cluster.settle()
    assert origins(watcher) == {"c1", "c2"}
    assert all(route.med == 5 for route in flat(watcher.rib.inspection.received("r", 4)))
    cluster.r.rib.set_policies("c3", ACCEPT, Policy())
    cluster.settle()
    assert seen(watcher) == {}


operations = st.lists(
    st.tuples(
        st.sampled_from(["announce", "retract", "prefer", "lose", "back", "settle"]),
        st.integers(0, 4),
        st.sampled_from([A4, B4, A6]),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(operations, st.sampled_from([1, 2, 3, ALL]), st.booleans())
def test_what_clients_hold_is_what_ranks_first(steps: list[tuple[str, int, str]], send: int, internal: bool) -> None:
    """Whatever happens in whatever order, each client ends with the first paths of the rank that are not its own."""
    cluster = Cluster(5, send, asn=AS if internal else 65002)
    away: set[int] = set()
    for verb, number, prefix in steps:
        client = cluster.clients[number]
        if verb == "announce":
            client.originate(prefix)
        elif verb == "retract":
            client.retract(prefix)
        elif verb == "prefer":
            policy = Policy((Rule("med", True, Match(), Changes(med=len(prefix) % 3)),))
            client.rib.set_policies("r", ACCEPT, policy)
        elif verb == "lose" and number not in away:
            away.add(number)
            cluster.r.rib.peer_down(client.name)
            client.rib.peer_down("r")
        elif verb == "back" and number in away:
            away.discard(number)
            cluster.connect(client)
        elif verb == "settle":
            cluster.settle()
    cluster.settle()
    for prefix in (A4, B4, A6):
        family, wire = parse(prefix)
        ranked = [path for path in cluster.r.rib.loc[family].ranked(wire) if path.peer is not None]
        for number, client in enumerate(cluster.clients):
            if number in away:
                continue
            others = [path.peer.name for path in ranked if path.peer.name != client.name]  # type: ignore[union-attr]
            held = client.rib.peers["r"].adj_in.paths(family, wire)
            assert len(held) == len(others[:send])
            assert cluster.r.rib.announces(client.name, family, wire) == bool(ranked)
            if internal:
                assert origins(client, prefix) == set(others[:send])
    for number, client in enumerate(cluster.clients):
        if number not in away:
            for family in FAMILIES:
                held_count = client.rib.peers["r"].adj_in.count(family)
                counts = cluster.r.rib.counts(client.name)
                assert (counts[family].advertised if family in counts else 0) == held_count
