"""Which sessions a mesh wants, and with which settings."""

from __future__ import annotations

from agent.mesh import wanted_sessions
from bgp.settings import PeerSettings
from config.load import check_text
from config.model import Config
from ipam.records import NodeRecord


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
    return dict(wanted_sessions(made, nodes, "uuid-5"))


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
