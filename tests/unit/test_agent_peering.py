"""What the file says of a peer, as the speaker takes it."""

from __future__ import annotations

from agent.peering import peer_settings
from bgp.settings import PrefixLimit
from config.load import check_text

TEXT = """\
apiVersion: podroute/v1
node: {name: n1, as: 65000, routerId: 10.1.1.11}
peers:
  far: {address: 10.9.0.1, as: 65001, multihop: 3, maxPrefixes: {maximum: 100, warning: 75, restartAfter: 60}}
  near: {address: 10.1.1.1, as: 65001, ttlSecurity: 1, addPath: {receive: true, send: all}}
  inner: {address: 10.1.1.2, as: 65000, routeReflectorClient: true}
"""


def test_session_settings_arrive_at_the_speaker() -> None:
    config = check_text(TEXT, "f").config
    assert config is not None
    far, near, inner = (peer_settings(config, name, peer) for name, peer in config.peers.items())
    assert far.prefix_limit == PrefixLimit(100, 0.75, 60)
    assert far.tcp_options(65000).ttl == 3
    assert (near.tcp_options(65000).ttl, near.tcp_options(65000).minimum_ttl) == (255, 255)
    assert near.prefix_limit is None
    assert inner.route_reflector_client
    assert (near.add_path.mode, inner.add_path.mode) == (3, 0)
