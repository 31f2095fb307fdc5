"""What the file says of a peer, as the speaker takes it."""

from __future__ import annotations

import pytest

from agent.node import Node
from agent.peering import peer_settings
from bgp.decision import Options
from bgp.policy import ACCEPT, REJECT
from bgp.settings import ListenRange, PeerSettings, PrefixLimit
from bgp.sockets import Endpoint, TcpOptions
from config.load import check_text
from config.prefix import FAMILIES
from config.remote_as import RemoteAs

TEXT = """\
apiVersion: podroute/v1
node: {name: n1, as: 65000, routerId: 10.1.1.11}
bgp: {holdTime: 30, connectRetry: 2}
peers:
  far: {address: 10.9.0.1, as: 65001, multihop: 3, maxPrefixes: {maximum: 100, warning: 75, restartAfter: 60}}
  near: {address: 10.1.1.1, as: 65001, ttlSecurity: 1, allowOwnAs: 2, enforceFirstAs: false,
         addPath: {receive: true, send: all}}
  inner: {address: 10.1.1.2, as: 65000, routeReflectorClient: true}
  rack: {listenRange: 10.2.0.0/24, as: external, families: [ipv4, ipv6], import: accept, export: accept}
  hall: {listenRange: "fd00:2::/64", as: [65040, "65020-65029"], listenLimit: 7, ttlSecurity: 1}
"""


def test_session_settings_arrive_at_the_speaker() -> None:
    config = check_text(TEXT, "f").config
    assert config is not None
    far, near, inner, rack, hall = (peer_settings(config, name, peer) for name, peer in config.peers.items())
    assert isinstance(far, PeerSettings)
    assert isinstance(near, PeerSettings)
    assert far.prefix_limit == PrefixLimit(100, 0.75, 60)
    assert far.tcp_options(65000).ttl == 3
    assert (near.tcp_options(65000).ttl, near.tcp_options(65000).minimum_ttl) == (255, 255)
    assert near.prefix_limit is None
    assert (near.allow_own_as, near.enforce_first_as) == (2, False)
    assert (far.allow_own_as, far.enforce_first_as) == (0, True)
    assert inner.route_reflector_client
    assert (near.add_path.mode, inner.add_path.mode) == (3, 0)
    assert isinstance(rack, ListenRange)
    assert (str(rack), rack.remote_as, rack.limit) == ("10.2.0.0/24", RemoteAs(kind="external"), 100)
    assert rack.families == frozenset((4, 6))
    assert (rack.hold_time, rack.export_policy) == (30, ACCEPT)
    assert isinstance(hall, ListenRange)
    assert (hall.remote_as, hall.limit) == (RemoteAs(((65020, 65029), (65040, 65040))), 7)
    assert (hall.families, hall.import_policy) == (frozenset((6,)), REJECT)


def test_a_dynamic_neighbour_has_the_settings_of_its_range() -> None:
    config = check_text(TEXT, "f").config
    assert config is not None
    made = peer_settings(config, "hall", config.peers["hall"])
    assert isinstance(made, ListenRange)
    remote = Endpoint.parse("fd00:2::7")
    settings = made.peer(remote, 65000)
    assert (settings.name, settings.endpoint, settings.asn, settings.passive) == ("hall/fd00:2::7", remote, 0, True)
    assert (settings.hold_time, settings.ttl_security, settings.families) == (30, 1, frozenset((6,)))
    assert settings.tcp_options(65000) == TcpOptions(255, 255)
    assert made.made("hall/fd00:2::7")
    assert not any(map(made.made, ("hall/fd00:3::7", "rack/fd00:2::7", "hall/x", "hall", "hall/n2/ipv4")))


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ("{}", Options(64, multipath_relax=True, always_compare_med=False)),
        ("{alwaysCompareMed: true}", Options(64, multipath_relax=True, always_compare_med=True)),
        ("{multipathRelax: false, maxPaths: 2}", Options(2, multipath_relax=False, always_compare_med=False)),
    ],
)
def test_what_the_file_says_of_the_decision_is_what_decides(keys: str, options: Options) -> None:
    config = check_text(TEXT.replace("{holdTime: 30, connectRetry: 2}", keys), "f").config
    assert config is not None
    rib = Node(config).speaker.rib
    assert {rib.loc[family].options for family in FAMILIES} == {options}
