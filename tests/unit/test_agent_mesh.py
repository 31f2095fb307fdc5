"""Which sessions a mesh wants, with which settings, and how it comes to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from agent.mesh import Mesh
from agent.mesh_sessions import MeshSessions
from agent.peering import mesh_settings
from bgp.settings import PeerSettings
from bgp.speaker import Speaker
from config.load import check_text
from config.model import Config
from ipam import records
from ipam.identity import Identity
from ipam.records import NodeRecord
from ipam.service import Ipam
from ipam.sqlite_store import SqliteStore
from ipam.store import Delete, Put


def config(mesh: str, bgp: str = "{}", addresses: str = "[10.0.0.5]") -> Config:
    text = f"""\
apiVersion: podroute/v1
node: {{name: n5, as: 65000, routerId: 10.0.0.5, labels: {{rack: r1}}, addresses: {addresses}}}
bgp: {bgp}
mesh: {mesh}
"""
    report = check_text(text, "f")
    assert report.config is not None, report.problems
    return report.config


def node(number: int, *, rack: str = "r1", asn: int = 65000, cluster: str = "", six: bool = False) -> NodeRecord:
    addresses = (f"10.0.0.{number}", f"fd00::{number}") if six else (f"10.0.0.{number}",)
    return NodeRecord(
        f"n{number}", f"uuid-{number}", asn, f"10.0.0.{number}", {"rack": rack}, addresses, cluster_id=cluster
    )


def wanted(made: Config, *nodes: NodeRecord) -> dict[str, PeerSettings]:
    mesh = MeshSessions(made)
    mesh.own_uuid = "uuid-5"
    for one in nodes:
        mesh.put(one.name, one)
    return mesh.wanted()


def test_the_lower_address_dials_and_nobody_dials_itself() -> None:
    found = wanted(config("{all: {select: {}}}"), node(4), node(5), node(6), node(10))
    assert {name: settings.passive for name, settings in found.items()} == {
        "all/n4/ipv4": True,
        "all/n6/ipv4": False,
        "all/n10/ipv4": False,  # by the number, not by the text
    }


def test_labels_select_and_each_family_has_a_session() -> None:
    made = config("{rack: {select: {rack: r1}}}", addresses='[10.0.0.5, "fd00::5"]')
    found = wanted(made, node(1, six=True), node(2, rack="r2"), node(3))
    assert set(found) == {"rack/n1/ipv4", "rack/n1/ipv6", "rack/n3/ipv4"}


def test_the_first_entry_that_selects_a_node_has_it() -> None:
    made = config("{rack: {select: {rack: r1}}, all: {select: {}}}")
    assert set(wanted(made, node(1), node(2, rack="r2"))) == {"rack/n1/ipv4", "all/n2/ipv4"}


REFLECTING = "{all: {select: {}, reflectors: true}}"


def test_clients_peer_with_reflectors_only() -> None:
    found = wanted(config(REFLECTING), node(1), node(2, cluster="192.0.2.2"), node(3, cluster="192.0.2.3"))
    assert set(found) == {"all/n2/ipv4", "all/n3/ipv4"}
    assert not any(settings.route_reflector_client for settings in found.values())


def test_a_reflector_peers_with_all_and_reflects_to_those_that_are_none() -> None:
    made = config(REFLECTING, "{clusterId: 192.0.2.5}")
    found = wanted(made, node(1), node(2, cluster="192.0.2.5"), node(3, cluster="192.0.2.3"), node(4, asn=65004))
    assert {name: settings.route_reflector_client for name, settings in found.items()} == {
        "all/n1/ipv4": True,
        "all/n2/ipv4": False,
        "all/n3/ipv4": False,
        "all/n4/ipv4": False,  # another AS
    }
    assert [rule.match.sources for rule in found["all/n1/ipv4"].export_policy.rules] == [frozenset({"learned"})]
    assert found["all/n4/ipv4"].export_policy.rules == ()


def test_a_policy_of_the_operator_s_own_stays_as_it_is() -> None:
    rules = "{default: accept, rules: [{name: none, match: {source: [learned]}, action: reject}]}"
    made = config(f"{{all: {{select: {{}}, reflectors: true, export: {rules}}}}}", "{clusterId: 192.0.2.5}")
    (found,) = wanted(made, node(1)).values()
    assert [rule.name for rule in found.export_policy.rules] == ["none"]


class Sessions:
    """Stands for a speaker."""

    def __init__(self) -> None:
        self.news: list[str] = []
        self.closed = asyncio.Event()
        """Connections take until then to be closed."""
        self.closed.set()

    def add_peer(self, settings: PeerSettings) -> None:
        self.news.append(f"+{settings.name}")

    async def remove_peer(self, name: str) -> None:
        self.news.append(f"-{name}")
        await self.closed.wait()


class Cluster:
    """Stands for a node's Ipam: a store, and who the node is."""

    def __init__(self, store: SqliteStore) -> None:
        self.identity = Identity("n5", "uuid-5")
        self._store = store

    def shared(self) -> SqliteStore:
        return self._store

    async def put(self, *nodes: NodeRecord) -> None:
        await self._store.transact([], [Put(records.node_key(one.name), records.encode_node(one)) for one in nodes])

    async def delete(self, name: str) -> None:
        await self._store.transact([], [Delete(records.node_key(name))])


@dataclass
class Running:
    mesh: Mesh
    sessions: Sessions
    cluster: Cluster

    async def until(self, *news: str) -> None:
        """Wait until the speaker has heard just this since the last time."""
        async with asyncio.timeout(60):
            while len(self.sessions.news) < len(news):  # noqa: ASYNC110 (nothing tells)
                await asyncio.sleep(0.01)
        assert sorted(self.sessions.news) == sorted(news)
        self.sessions.news.clear()


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr("ipam.sqlite_store._POLL", 0.02)
    store = SqliteStore(str(tmp_path / "store.db"))
    await store.open()
    cluster, sessions = Cluster(store), Sessions()
    mesh = Mesh(
        config("{all: {select: {}}}"),
        cast(Ipam, cluster),
        cast(Speaker, sessions),
        memory=tmp_path / "mesh.json",
        on_added=lambda name: None,
        on_removed=lambda name: None,
    )
    await cluster.put(node(1), node(5))
    mesh.start()
    made = Running(mesh, sessions, cluster)
    await made.until("+all/n1/ipv4")
    yield made
    sessions.closed.set()
    await mesh.stop()
    await store.close()


def test_of_two_nodes_with_one_address_the_one_that_started_last_has_it() -> None:
    """A machine was set up anew under another name; so was this one."""
    old, new = replace(node(1), seen_at="2026-01-01"), replace(node(2), addresses=("10.0.0.1",), seen_at="2026-01-02")
    own = replace(node(9), addresses=("10.0.0.5",))
    for order in ((old, new, own), (new, own, old)):
        assert set(wanted(config("{all: {select: {}}}"), *order)) == {"all/n2/ipv4"}


def test_a_changed_record_costs_no_look_at_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def counted(config: Config, name: str, *words: Any) -> PeerSettings:
        made.append(name)
        return mesh_settings(config, name, *words)

    monkeypatch.setattr("agent.mesh_sessions.mesh_settings", counted)
    mesh = MeshSessions(config("{all: {select: {}}}"))
    for number in range(10, 200):
        mesh.put(f"n{number}", node(number))
    before = mesh.wanted()
    made.clear()
    mesh.put("n10", replace(node(10), seen_at="later"))
    assert made == ["all/n10/ipv4"]
    assert mesh.wanted() == before


async def test_a_record_that_is_not_understood_leaves_its_session_and_those_of_others(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    key = records.node_key("n1")
    newer = records.encode_node(node(1)).replace(b'"schema":1', b'"schema":99')
    for value in (newer, b"by hand", records.encode_node(replace(node(1), addresses=("nowhere",)))):
        await running.cluster.shared().transact([], [Put(key, value), Put(records.node_key("n0"), value)])
        await running.cluster.put(node(2))
        await running.until("+all/n2/ipv4")
        await running.cluster.delete("n2")
        await running.until("-all/n2/ipv4")
        assert list(running.mesh.sessions) == ["all/n1/ipv4"]
    said = [line for line in caplog.messages if line.startswith("node record not understood")]
    assert len(said) == 6, "once for each record"
    await running.cluster.put(replace(node(1), asn=65009))
    await running.until("-all/n1/ipv4", "+all/n1/ipv4")


async def test_a_connection_that_takes_long_to_close_holds_up_no_other_node(running: Running) -> None:
    running.sessions.closed.clear()
    store = running.cluster.shared()
    moved = replace(node(3), addresses=("10.0.0.1",))
    puts = [Put(records.node_key(one.name), records.encode_node(one)) for one in (node(2), moved)]
    await store.transact([], [Delete(records.node_key("n1")), *puts])
    await running.until("+all/n2/ipv4", "-all/n1/ipv4")
    running.sessions.closed.set()
    await running.until("+all/n3/ipv4")  # it has the address of the one that leaves


async def test_a_defect_does_not_go_unsaid(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    def broken(settings: PeerSettings) -> None:
        raise ZeroDivisionError

    running.sessions.add_peer = broken  # type: ignore[method-assign]
    await running.cluster.put(node(2))
    async with asyncio.timeout(60):
        while not any(line.startswith("mesh has failed") for line in caplog.messages):  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.01)
