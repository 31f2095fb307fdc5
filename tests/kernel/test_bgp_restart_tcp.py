"""A peer that restarts before its old connection is known to be dead (RFC 4724 section 5)."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from bgp import codec
from bgp import peer as bgp_peer
from bgp.messages import GracefulRestart, MessageType, Open
from tests.bgp_speakers import Node, peer, running
from tests.kernel.test_bgp_session_tcp import RawPeer
from tests.netns import Netns

pytestmark = pytest.mark.root

A, B = "127.0.0.1", "127.0.0.2"


async def established(node: Node, ns: Netns, restart: GracefulRestart) -> RawPeer:
    """Open a session with the speaker, whatever sessions there are."""
    raw = RawPeer(ns, B)
    await raw.connect(A)
    await raw.send(codec.encode_open(Open(65002, 90, socket.inet_aton("10.0.0.2"), graceful_restart=restart)))
    while (message := await raw.read()) is not None and message[0] != MessageType.KEEPALIVE:
        pass
    await raw.send(codec.KEEPALIVE)
    return raw


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bgp_peer, "_SETTLED", 0.0)


@pytest.mark.usefixtures("settled")
async def test_a_new_connection_of_a_peer_that_restarted_replaces_the_old_one(netns: Callable[[], Netns]) -> None:
    ns = netns()
    restart = GracefulRestart(forwarding={4: True})
    peers = [peer("b", B, 65002, local_address=A, passive=True, families=frozenset((4,)))]
    async with running(ns, 65001, "10.0.0.1", peers, listen=((A, 179),)) as node:
        old = await established(node, ns, restart)
        await node.established("b")
        new = await established(node, ns, restart)
        await node.until(lambda: node.status("b").established_count == 2, "a second session")
        assert await old.notification() == "connection closed without a NOTIFICATION"
        assert [change.retained for change in node.sessions if not change.up] == [{4}]
        for raw in (old, new):
            raw.close()


@pytest.mark.usefixtures("settled")
async def test_without_graceful_restart_the_established_session_stays(netns: Callable[[], Netns]) -> None:
    """RFC 4271 section 6.8."""
    ns = netns()
    peers = [peer("b", B, 65002, local_address=A, passive=True, families=frozenset((4,)))]
    async with running(ns, 65001, "10.0.0.1", peers, listen=((A, 179),)) as node:
        old = await established(node, ns, GracefulRestart(restart_time=0))
        await node.established("b")
        new = RawPeer(ns, B)
        await new.connect(A)
        await new.hello()
        assert await new.notification() == "Cease/Connection Collision Resolution"
        assert node.status("b").established_count == 1
        for raw in (old, new):
            raw.close()
