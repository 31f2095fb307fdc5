"""Nothing visits a whole table at once: counted in prefixes, dict sizes and steps, not in seconds."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from struct import pack
from typing import Any

import pytest

from bgp.codec import negotiate
from bgp.framing import HEADER_SIZE, Framer
from bgp.nlri import decode
from bgp.paths import Path
from bgp.policy import Match, Policy, Rule
from bgp.table import SHARDS, Queue, Table
from bgp.telling import SLICE
from bgp.update import split
from config.nexthop import NextHops, Resolution
from config.prefix import Family
from tests.bgp_ribs import Node, add_peer, session, settle

COUNT = 30_000
BUDGET = 500
EVERYTHING = Policy(rules=(Rule("all", True, Match(sources=frozenset(("block", "static", "learned")))),))


def prefix(number: int) -> bytes:
    return b"\x18" + (0x010000 + number).to_bytes(3, "big")


def update(first: int, last: int) -> bytes:
    section = bytes.fromhex("4001010040020602010000fdea400304c0000202")
    nlri = b"".join(prefix(number) for number in range(first, last))
    return pack("!HH", 0, len(section)) + section + nlri


class Fixture:
    """A node with a source of many prefixes, and the sizes of the FIB batches that came of every ``run``."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.fib: dict[bytes, NextHops | None] = {}
        self.node, self.source, self.sink = Node("n", 65001, 1), Node("source", 65002, 2), Node("sink", 65003, 3)
        self.node.rib._on_fib = self.on_fib
        add_peer(self.node, self.source, exports=Policy())
        add_peer(self.source, self.node)
        add_peer(self.node, self.sink, exports=EVERYTHING)
        add_peer(self.sink, self.node)
        session(self.node, self.source)
        for first in range(0, COUNT, 1000):
            self.node.rib.receive("source", update(first, first + 1000))

    def on_fib(self, family: Family, changes: list[tuple[Sequence[bytes], NextHops | None]]) -> None:
        self.batches.append(sum(len(prefixes) for prefixes, _ in changes))
        self.fib.update((prefix, hops) for prefixes, hops in changes for prefix in prefixes)

    def work(self) -> int:
        """Run in slices to the end; return the largest number of routes that one of them changed."""
        self.batches.clear()
        while self.node.rib.run(BUDGET):
            pass
        return max(self.batches, default=0)

    def routes(self) -> int:
        return sum(hops is not None for hops in self.fib.values())


@pytest.fixture
def loaded() -> Fixture:
    fixture = Fixture()
    assert fixture.work() <= BUDGET
    assert fixture.routes() == COUNT
    return fixture


def test_who_announces_little_does_not_wait_for_a_table() -> None:
    fixture = Fixture()
    session(fixture.node, fixture.sink)
    fixture.node.rib.receive("sink", update(COUNT, COUNT + 3).replace(b"\xfd\xea", b"\xfd\xeb"))
    for _ in range(3):
        fixture.node.rib.run(BUDGET)
        assert fixture.batches[0] == 3
        assert prefix(COUNT) in fixture.fib
    assert max(fixture.batches) <= BUDGET
    assert fixture.work() <= BUDGET
    assert fixture.routes() == COUNT + 3


def test_a_lost_session_is_worked_off_in_slices(loaded: Fixture) -> None:
    loaded.node.rib.peer_down("source")
    assert len(loaded.node.rib.loc[4].table) == COUNT  # nothing has been done yet
    assert 0 < loaded.work() <= BUDGET
    assert not loaded.routes()
    assert not loaded.node.rib.loc[4].table


def test_next_hops_that_move_are_worked_off_in_slices(loaded: Fixture) -> None:
    next_hop = bytes((192, 0, 2, 2))
    loaded.node.resolver.answers[next_hop] = None
    loaded.node.rib.next_hops_changed([(next_hop, "")])
    loaded.batches.clear()
    assert loaded.node.rib.run(BUDGET)
    assert 0 < sum(loaded.batches) < COUNT / 2
    assert loaded.work() <= 2 * BUDGET
    assert not loaded.routes()


def test_what_goes_while_next_hops_move_leaves_the_fib(loaded: Fixture) -> None:
    """The walk finds moved prefixes in the tables; what was withdrawn before it came by is in none of them."""
    next_hop = bytes((192, 0, 2, 2))
    loaded.node.resolver.answers[next_hop] = None
    loaded.node.rib.next_hops_changed([(next_hop, "")])
    loaded.node.rib.peer_down("source")
    loaded.work()
    assert not loaded.routes()
    assert not loaded.node.rib.loc[4].unsettled
    loaded.node.resolver.answers.clear()
    loaded.node.rib.next_hops_changed([(next_hop, "")])
    loaded.work()
    assert not loaded.routes()


def test_a_changed_guard_is_worked_off_in_slices(loaded: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    own = loaded.node.rib.own[4]
    seen = 0
    judge = own.violated

    def counted(prefix: bytes) -> bytes | None:
        nonlocal seen
        seen += 1
        return judge(prefix)

    monkeypatch.setattr(own, "violated", counted)
    loaded.node.originate("1.0.0.0/8")
    assert not seen
    most, more = 0, True
    while more:
        seen = 0
        more = loaded.node.rib.run(BUDGET)
        most = max(most, seen)
    assert 0 < most < COUNT / 3
    assert loaded.routes() == 0  # all are more specifics of a block of ours


def test_a_peer_that_joins_is_told_in_slices(loaded: Fixture) -> None:
    node = loaded.node
    session(node, loaded.sink)
    loaded.work()
    told = 0
    framer = Framer()
    while node.rib.has_outgoing("sink"):
        stretch = 0
        for message in node.rib.outgoing("sink", 1 << 20):
            stretch += sum(len(split(body)[2]) // 4 for _, body in framer.feed(message))
        assert stretch <= 2 * SLICE
        told += stretch
    assert told == COUNT


def test_changes_while_a_peer_is_being_told_arrive_after_what_they_change(loaded: Fixture) -> None:
    node, sink = loaded.node, loaded.sink
    session(node, sink)
    loaded.work()
    taken = node.rib.outgoing("sink", 4096)
    section_less = b"".join(prefix(number) for number in range(1000))
    node.rib.receive("source", pack("!H", len(section_less)) + section_less + bytes(2))
    node.rib.refresh("sink", 4)
    framer = Framer()
    for message in taken:
        for _, body in framer.feed(message):
            sink.rib.receive("n", body)
    settle(node, sink)
    assert len(sink.rib.peers["n"].adj_in.tables[4]) == COUNT - 1000


def restart(fixture: Fixture) -> None:
    """The source loses its session, and is back with graceful restart."""
    kept: frozenset[Family] = frozenset((4,))
    fixture.node.rib.peer_down("source", kept)
    negotiated = negotiate(fixture.node.open(), fixture.source.open(), 65002)
    address = fixture.node.address(4)
    fixture.node.rib.peer_up(
        "source",
        negotiated,
        peer_address=fixture.source.address(4),
        local_address=address,
        device="eth0",
        next_hops={4: address},
        keep=kept,
    )


def test_stale_paths_are_marked_without_being_looked_at_and_withdrawn_in_slices(loaded: Fixture) -> None:
    rib = loaded.node.rib
    before = list(rib.peers["source"].adj_in.tables[4].shards)
    restart(loaded)
    assert all(a is b for a, b in zip(before, rib.peers["source"].adj_in.tables[4].shards, strict=True))
    assert rib.stale("source", 4) == COUNT
    half = COUNT // 2
    for first in range(0, half, 1000):
        rib.receive("source", update(first, first + 1000))
    assert rib.stale("source", 4) == half
    loaded.work()
    rib.receive("source", bytes(4))  # End-of-RIB
    assert half < rib.received("source", 4) <= COUNT  # most is still to be done
    most, more = 0, True
    while more:
        held = rib.received("source", 4)
        more = rib.run(BUDGET)
        most = max(most, held - rib.received("source", 4))
    assert 0 < most <= 2 * BUDGET
    assert rib.received("source", 4) == loaded.routes() == half


def test_what_is_announced_while_stale_paths_are_withdrawn_stays(loaded: Fixture) -> None:
    rib = loaded.node.rib
    restart(loaded)
    rib.receive("source", update(0, 1))
    assert rib.drop_stale("source") == COUNT - 1
    rib.receive("source", update(0, COUNT // 3))
    rib.receive("source", pack("!H", 4) + prefix(0) + bytes(2))
    loaded.work()
    assert rib.received("source", 4) == loaded.routes() == COUNT // 3 - 1


def test_a_second_restart_while_stale_paths_are_withdrawn(loaded: Fixture) -> None:
    rib = loaded.node.rib
    restart(loaded)
    rib.receive("source", update(0, 1000))
    rib.drop_stale("source")
    rib.run(BUDGET)
    restart(loaded)
    rib.receive("source", update(500, 1000))
    loaded.work()
    rib.receive("source", bytes(4))
    loaded.work()
    assert rib.received("source", 4) == loaded.routes() == 500


def test_what_a_lost_session_had_known_is_let_go_of_in_slices(loaded: Fixture) -> None:
    rib = loaded.node.rib
    count = 5000
    for number in range(count):
        section = bytes.fromhex("400101004002060201") + pack("!I", 65002) + bytes.fromhex("400304c0000202")
        section += bytes.fromhex("800404") + pack("!I", number)
        rib.receive("source", pack("!HH", 0, len(section)) + section + prefix(number))
    loaded.work()
    rib.peer_down("source")

    def held() -> int:
        return sum(map(len, rib._discarded))

    assert held() >= count
    most, more = 0, True
    while more:
        before = held()
        more = rib.run(BUDGET // 10)
        most = max(most, before - held())
    assert 0 < most < BUDGET * 2
    assert not rib._discarded


def test_a_changed_import_policy_is_worked_off_in_slices(loaded: Fixture) -> None:
    rib = loaded.node.rib
    queue = rib.peers["source"].adj_in.dirty[4]
    rib.set_policies("source", Policy(), Policy())
    assert not queue.waiting
    rib.run(BUDGET)
    assert 0 < queue.waiting < COUNT / 2
    assert 0 < loaded.work() <= BUDGET
    assert not loaded.routes()
    assert rib.received("source", 4) == COUNT


def test_shards_grow_at_different_times() -> None:
    """No stretch of arrivals has more than a few dicts grow: all of them at once would be one large pause again."""
    table: Table[int] = Table()
    sizes = [shard.__sizeof__() for shard in table.shards]
    for start in range(0, 200_000, 4000):
        for number in range(start, start + 4000):
            table[prefix(number)] = number
        now = [shard.__sizeof__() for shard in table.shards]
        if start >= 100_000:
            assert sum(a != b for a, b in zip(sizes, now, strict=True)) <= SHARDS // 5
        sizes = now
    assert max(map(len, table.shards)) < 3 * 200_000 / SHARDS
    assert len(table) == 200_000


def test_a_snapshot_stays_as_it_was() -> None:
    table: Table[int] = Table()
    for number in range(1000):
        table[prefix(number)] = number
    before = table.snapshot()
    untouched = list(before)
    table[prefix(5000)] = 1
    del table[prefix(0)]
    table[prefix(1)] = -1
    frozen: dict[bytes, Any] = {key: value for shard in before for key, value in shard.items()}
    assert frozen == {prefix(number): number for number in range(1000)}
    assert len(table) == 1000
    assert sum(a is not b for a, b in zip(untouched, table.shards, strict=True)) <= 3  # only what changed is copied


def test_a_copy_is_a_table_of_its_own() -> None:
    table: Table[int] = Table()
    for number in range(1000):
        table[prefix(number)] = number
    twin = table.copy()
    assert table.shared
    assert all(a is b for a, b in zip(table.shards, twin.shards, strict=True))
    table[prefix(0)] = -1
    del twin[prefix(1)]
    assert (table[prefix(0)], twin[prefix(0)]) == (-1, 0)
    assert prefix(1) in table
    assert len(twin.take(900)) == 900
    assert (len(table), len(twin)) == (1000, 99)
    assert len(twin.take(1000)) == 99
    assert not len(twin)


def test_a_queue_keeps_order_and_counts() -> None:
    queue = Queue()
    queue.add([b"a", b"b", b"c"])
    queue.add([])
    queue.add({b"d": None})
    assert queue.waiting == 4
    assert queue.take(2) == [b"a", b"b"]
    queue.add([b"a"])
    assert queue.take(2) == [b"c", b"d"]
    assert queue.waiting == 1
    assert queue.take(5) == [b"a"]
    assert queue.take(5) == []
    assert queue.waiting == 0


def paths(node: Node) -> Iterator[Path]:
    yield from node.rib.peers["source"].adj_in.tables[4].values()


def test_a_moved_next_hop_that_returns_brings_routes_back(loaded: Fixture) -> None:
    next_hop = bytes((192, 0, 2, 2))
    answers: list[Resolution | None] = [None]
    loaded.node.resolver.answers[next_hop] = answers[0]
    loaded.node.rib.next_hops_changed([(next_hop, "")])
    loaded.node.rib.run(BUDGET)
    loaded.node.resolver.answers.clear()
    loaded.node.rib.next_hops_changed([(next_hop, "")])
    loaded.work()
    assert loaded.routes() == COUNT
    assert not any(path.ineligible for path in paths(loaded.node))


def test_members_that_lag_get_their_backlogs_in_slices(loaded: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgp.adj_rib_out._LOG_LIMIT", COUNT // 10)
    rib = loaded.node.rib
    rib.peer_down("sink")
    others = [Node(f"sink{number}", 65003, 10 + number) for number in range(20)]
    for other in others:
        add_peer(loaded.node, other, exports=EVERYTHING)
        add_peer(other, loaded.node)
        session(loaded.node, other)
    loaded.work()
    for other in others:
        while rib.has_outgoing(other.name):
            rib.outgoing(other.name, 1 << 20)
    (group,) = {rib.peers[other.name].groups[4] for other in others}
    taken: list[int] = []
    absorb = group._absorb

    def counted(member: Any, last: int) -> None:
        taken[-1] += last - member.cursor
        absorb(member, last)

    monkeypatch.setattr(group, "_absorb", counted)
    rib.peer_down("source")
    more = True
    while more:
        taken.append(0)
        more = rib.run(BUDGET)
    assert sum(taken) > 20 * COUNT / 2, "all of them lag"
    assert max(taken) <= 8 * BUDGET
    assert len(group._log) <= COUNT // 10 + BUDGET
    for other in others:  # they are told all the same
        gone = 0
        while rib.has_outgoing(other.name):
            for message in rib.outgoing(other.name, 1 << 20):
                gone += len(decode(split(message[HEADER_SIZE:])[0], 32))
        assert gone == COUNT


class Watched(list[Any]):
    """A log that counts how many of its entries are read."""

    read = 0

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        Watched.read += len(found) if isinstance(index, slice) else 1
        return found


@pytest.mark.parametrize("asked", ["policy", "refresh"])
def test_a_member_that_lags_and_gets_another_policy_or_a_refresh_is_served_in_slices(
    loaded: Fixture, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    node, rib = loaded.node, loaded.node.rib
    session(node, loaded.sink)
    loaded.work()
    known: set[bytes] = set()

    def tell() -> None:
        for message in rib.outgoing("sink", 1 << 20):
            if message[18] == 2:
                gone, _, told = split(message[HEADER_SIZE:])
                known.difference_update(decode(gone, 32))
                known.update(decode(told, 32))

    while rib.has_outgoing("sink"):
        tell()
    assert len(known) == COUNT
    for first in range(0, COUNT - 1000, 1000):
        section = b"".join(prefix(number) for number in range(first, first + 1000))
        rib.receive("source", pack("!H", len(section)) + section + bytes(2))
    loaded.work()
    group = rib.peers["sink"].groups[4]
    group._log = Watched(group._log)
    assert len(group._log) == COUNT - 1000
    settings = rib.peers["sink"].settings
    Watched.read = 0
    if asked == "policy":
        rib.set_policies("sink", settings.import_policy, Policy(rules=(*EVERYTHING.rules, Rule("none", False))))
    else:
        rib.refresh("sink", 4)
    assert Watched.read == 0
    while rib.run(BUDGET) or rib.has_outgoing("sink"):
        Watched.read = 0
        tell()
        assert Watched.read <= 2 * SLICE
    assert len(known) == 1000


def test_the_collector_of_young_objects_never_walks_over_a_table() -> None:
    """A dict that is first seen by the garbage collector while it fills is walked over by the next collections."""
    node, source = Node("n", 65001, 1), Node("source", 65002, 2)
    add_peer(node, source)
    add_peer(source, node)
    session(node, source)
    gc.collect()  # as the agent does while there is little
    gc.collect(1)  # and when a session is up
    tables: list[dict[Any, Any]] = [
        *node.rib.peers["source"].adj_in.tables[4].shards,
        *node.rib.peers["source"].adj_in._native._shards,
        *node.rib.loc[4].table.shards,
    ]
    for first in range(0, COUNT, 1000):
        node.rib.receive("source", update(first, first + 1000))
    while node.rib.run(BUDGET):
        pass
    assert sum(map(len, tables)) > 2 * COUNT
    young = {id(thing) for generation in (0, 1) for thing in gc.get_objects(generation)}
    assert young.isdisjoint(map(id, tables))
