"""Sessions over real TCP, on the loopback of a fresh network namespace."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from random import Random
from typing import Any

import pytest

from bgp import codec
from bgp.connection import WRITE_HIGH
from bgp.framing import Framer
from bgp.messages import MessageType, Notification, Open
from bgp.notifications import shutdown_text
from bgp.peer import Peer
from bgp.session import TURNED_AWAY
from bgp.settings import PeerSettings
from bgp.status import SpeakerError
from config import prefix
from tests.bgp_speakers import PATIENCE, Node, opener_in, peer, running
from tests.netns import Netns, link

pytestmark = pytest.mark.root

A, B = "127.0.0.1", "127.0.0.2"
ONLY_A, ONLY_B = ((A, 179),), ((B, 179),)
Listen = Sequence[tuple[str, int]]
Maker = Callable[[], Netns]
SOON: dict[str, Any] = {"connect_retry": 0.2}


Peers = Sequence[PeerSettings]
Running = AbstractAsyncContextManager[Node]


def to_b(**settings: Any) -> Peers:
    return [peer("b", B, 65002, local_address=A, **(SOON | settings))]


def to_a(**settings: Any) -> Peers:
    return [peer("a", A, 65001, local_address=B, **(SOON | settings))]


def node_a(ns: Netns, *, peers: Peers | None = None, listen: Listen = ONLY_A, **options: Any) -> Running:
    return running(ns, 65001, "10.0.0.1", to_b() if peers is None else peers, listen=listen, **options)


def node_b(ns: Netns, *, peers: Peers | None = None, listen: Listen = ONLY_B, **options: Any) -> Running:
    return running(ns, 65002, "10.0.0.2", to_a() if peers is None else peers, listen=listen, **options)


class RawPeer:
    """Speaks BGP octet by octet at a speaker."""

    def __init__(self, ns: Netns, local: str, *, receive_buffer: int = 0) -> None:
        self.sock = opener_in(ns)(socket.AF_INET)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.setblocking(False)
        self.sock.bind((local, 0))
        self._framer = Framer()
        self._messages: list[tuple[int, bytes]] = []

    async def connect(self, address: str, port: int = 179) -> None:
        with suppress(ConnectionResetError):  # refused so soon that the reset came before we looked
            await asyncio.get_running_loop().sock_connect(self.sock, (address, port))

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def read(self) -> tuple[int, bytes] | None:
        """Return the next message, None at the end of the connection."""
        async with asyncio.timeout(PATIENCE):
            while not self._messages:
                try:
                    data = await asyncio.get_running_loop().sock_recv(self.sock, 4096)
                except OSError:
                    return None
                if not data:
                    return None
                self._messages += self._framer.feed(data)
            return self._messages.pop(0)

    async def notification(self) -> str:
        """Return the next NOTIFICATION, what comes before it left aside."""
        while (message := await self.read()) is not None:
            if message[0] == MessageType.NOTIFICATION:
                return codec.describe(codec.decode_notification(message[1]))
        return "connection closed without a NOTIFICATION"

    async def hello(self, asn: int = 65002, hold_time: int = 90, identifier: str = "10.0.0.2") -> None:
        await self.send(codec.encode_open(Open(asn, hold_time, socket.inet_aton(identifier))))

    def close(self) -> None:
        self.sock.close()


async def both_up(a: Node, b: Node) -> None:
    await a.established("b")
    await b.established("a")
    await a.speaker.wait_converged()
    await b.speaker.wait_converged()


async def test_both_ends_connect_at_once_and_end_with_one_session(netns: Maker) -> None:
    ns = netns()
    async with node_a(ns) as a, node_b(ns) as b:
        await both_up(a, b)
        status, other = a.status("b"), b.status("a")
        assert (status.established_count, other.established_count) == (1, 1)
        assert status.incoming is not other.incoming
        assert (status.received_as, status.hold_time, status.identifier) == (65002, 90, "10.0.0.2")
        assert status.reason == ""
        assert status.last_sent is None


@pytest.mark.parametrize("passive", ["a", "b"])
async def test_a_passive_end_waits_for_the_other(netns: Maker, passive: str) -> None:
    ns = netns()
    async with (
        node_a(ns, peers=to_b(passive=passive == "a")) as a,
        node_b(ns, peers=to_a(passive=passive == "b")) as b,
    ):
        await both_up(a, b)
        assert a.status("b").incoming is (passive == "a")
        assert b.status("a").incoming is (passive == "b")


async def test_without_listening_podroute_connects(netns: Maker) -> None:
    ns = netns()
    async with node_a(ns, listen=()) as a, node_b(ns) as b:
        await both_up(a, b)
        assert not a.status("b").incoming


async def test_the_shutdown_text_reaches_the_other_end_and_the_session_comes_back(netns: Maker) -> None:
    ns = netns()
    async with node_b(ns) as b:
        async with node_a(ns, farewell=Notification(6, 2, shutdown_text("maintenance ✓"))) as a:
            await both_up(a, b)
        status = await b.lost("a")
        assert status.last_received is not None
        assert status.last_received.text == 'Cease/Hard Reset: Cease/Administrative Shutdown: "maintenance ✓"'
        assert [change.up for change in b.sessions] == [True, False]
        assert b.sessions[1].reason == 'received Cease/Hard Reset: Cease/Administrative Shutdown: "maintenance ✓"'
        async with node_a(ns) as a:
            await both_up(a, b)
            assert b.status("a").established_count == 2


async def test_a_silent_stop_is_seen_as_a_lost_connection(netns: Maker) -> None:
    ns = netns()
    async with node_b(ns) as b:
        async with node_a(ns, farewell=None) as a:
            await both_up(a, b)
        status = await b.lost("a")
        assert b.sessions[-1].reason == "the peer closed the connection"
        assert status.last_received is None


async def test_a_peer_that_does_not_expect_us_is_one_line(netns: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """Routers close such connections before an OPEN, now and then by a reset: that is no other news."""
    ns, loop = netns(), asyncio.get_running_loop()
    with opener_in(ns)(socket.AF_INET) as listener, caplog.at_level(logging.INFO, "podroute.bgp"):
        listener.setblocking(False)
        listener.bind((B, 179))
        listener.listen()
        async with node_a(ns) as a:
            for turn in range(5):
                connection, _ = await asyncio.wait_for(loop.sock_accept(listener), PATIENCE)
                if turn % 2:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
            assert a.status("b").reason == TURNED_AWAY
    assert [r.getMessage() for r in caplog.records if "no session" in r.getMessage()] == [f"no session: {TURNED_AWAY}"]


async def test_a_wrong_as_is_shown_with_what_was_expected(netns: Maker) -> None:
    ns = netns()
    async with node_a(ns, peers=[peer("b", B, 65009, local_address=A, **SOON)]) as a, node_b(ns) as b:
        # Of two connections at once it is the last whose failure is the reason
        await a.until(lambda: a.status("b").reason == "expected AS 65009, received AS 65002", "the reason")
        await b.until(lambda: b.status("a").reason == "received OPEN Message Error/Bad Peer AS", "the reason")
        status = a.status("b")
        assert (status.expected_as, status.received_as) == (65009, 65002)
        assert status.last_sent is not None
        assert status.last_sent.text == "OPEN Message Error/Bad Peer AS"
        assert status.state != "Established"


async def test_no_family_in_common(netns: Maker) -> None:
    ns = netns()
    six, four = frozenset((6,)), frozenset((4,))
    async with node_a(ns, peers=to_b(families=six)) as a, node_b(ns, peers=to_a(families=four)):
        reason = "no common address family: we offer ipv6, the peer ipv4"
        await a.until(lambda: a.status("b").reason == reason, "the reason")


async def test_refused_and_unreachable_peers_say_so(netns: Maker) -> None:
    ns = netns()
    peers = [peer("refused", B, 65002, **SOON), peer("far", "198.51.100.1", 65003, **SOON)]
    peers.append(peer("here", "127.0.0.3", 65004, local_address="192.0.2.77", **SOON))
    async with node_a(ns, peers=peers) as a:
        wanted = {
            "refused": "connect to 127.0.0.2:179: Connection refused",
            "far": "connect to 198.51.100.1:179: Network is unreachable",
            "here": "connect to 127.0.0.3:179: local address 192.0.2.77 is not an address of this node",
        }
        await a.until(lambda: {p.name: p.reason for p in a.speaker.peers()} == wanted, "the reasons")


async def test_a_taken_port_is_one_clear_line(netns: Maker) -> None:
    ns = netns()
    async with node_a(ns):
        with pytest.raises(SpeakerError, match=r"^cannot listen on 127.0.0.1:179: Address already in use \(is another"):
            async with node_a(ns):
                pass


async def test_strangers_are_refused_counted_and_logged_once(netns: Maker, caplog: pytest.LogCaptureFixture) -> None:
    ns = netns()
    async with node_a(ns) as a:
        with caplog.at_level(logging.WARNING, "podroute.bgp"):
            for _ in range(5):
                stranger = RawPeer(ns, "127.0.0.66")
                await stranger.connect(A)
                assert await stranger.read() is None
                stranger.close()
        assert a.speaker.refused == 5
        lines = [record for record in caplog.records if "not an address of a peer" in record.getMessage()]
        assert len(lines) == 1


async def test_a_mute_peer_is_dropped_when_the_hold_time_is_over(netns: Maker) -> None:
    ns = netns()
    async with node_a(ns, peers=to_b(passive=True)) as a:
        mute = RawPeer(ns, B)
        await mute.connect(A)
        await mute.hello(hold_time=3)
        await mute.send(codec.KEEPALIVE)
        await a.established("b")
        assert await mute.notification() == "Hold Timer Expired"
        assert await mute.read() is None
        mute.close()
        status = await a.lost("b")
        assert status.reason == "hold timer expired: nothing received for 3 s"
        assert status.last_sent is not None
        assert status.last_sent.text == "Hold Timer Expired"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (codec.KEEPALIVE, "Finite State Machine Error/Unexpected Message in OpenSent State"),
        (b"\0" * 19, "Message Header Error/Connection Not Synchronized"),
        (b"\xff" * 16 + b"\0\x12\1", "Message Header Error/Bad Message Length"),
        (b"\xff" * 16 + b"\0\x13\x09", "Message Header Error/Bad Message Type"),
        (codec.encode_open(Open(65002, 90, bytes(4))), "OPEN Message Error/Bad BGP Identifier"),
        (codec.encode_open(Open(65002, 2, b"\1\1\1\1")), "OPEN Message Error/Unacceptable Hold Time"),
    ],
)
async def test_what_a_peer_is_told_about_its_first_message(netns: Maker, data: bytes, told: str) -> None:
    ns = netns()
    async with node_a(ns, peers=to_b(passive=True)) as a:
        raw = RawPeer(ns, B)
        await raw.connect(A)
        await raw.send(data)
        assert (await raw.notification()).startswith(told)
        raw.close()
        await a.until(lambda: a.status("b").last_sent, "a NOTIFICATION on record")


async def test_messages_in_the_wrong_state(netns: Maker) -> None:
    """RFC 6608: OpenConfirm and Established name themselves."""
    ns = netns()
    opening = codec.encode_open(Open(65002, 90, b"\x0a\0\0\2"))
    async with node_a(ns, peers=to_b(passive=True)):
        for data, state in (
            (opening + codec.encode_end_of_rib(4), "OpenConfirm"),
            (opening + codec.KEEPALIVE + opening, "Established"),
        ):
            raw = RawPeer(ns, B)
            await raw.connect(A)
            await raw.send(data)
            told = await raw.notification()
            assert told.startswith(f"Finite State Machine Error/Unexpected Message in {state} State")
            raw.close()


async def test_both_connections_live_until_an_open_decides(netns: Maker) -> None:
    """Section 6.8: ours and the peer's are both open; the peer's identifier is higher, so its connection is kept."""
    ns = netns()
    listener = opener_in(ns)(socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((B, 179))
    listener.listen()
    listener.setblocking(False)
    loop = asyncio.get_running_loop()
    async with node_a(ns) as a:
        ours = RawPeer(ns, "127.0.0.9")
        ours.sock.close()
        ours.sock, _ = await loop.sock_accept(listener)
        ours.sock.setblocking(False)
        theirs = RawPeer(ns, B)
        await theirs.connect(A)
        for raw in (ours, theirs):
            message = await raw.read()
            assert message is not None
            assert message[0] == MessageType.OPEN
        await theirs.hello(identifier="10.0.0.2")
        assert await ours.notification() == "Cease/Connection Collision Resolution"
        assert (await theirs.read() or (0,))[0] == MessageType.KEEPALIVE
        await theirs.send(codec.KEEPALIVE)
        assert (await a.established("b")).incoming
        late = RawPeer(ns, B)
        await late.connect(A)
        await late.hello(identifier="10.0.0.2")
        assert await late.notification() == "Cease/Connection Collision Resolution"
        assert a.status("b").state == "Established"
        for raw in (ours, theirs, late):
            raw.close()
    listener.close()


async def test_md5_passwords_that_agree(netns: Maker) -> None:
    ns = netns()
    for passive in (True, False):
        async with (
            node_a(ns, peers=to_b(password=b"secret", passive=passive)) as a,
            node_b(ns, peers=to_a(password=b"secret", passive=not passive)) as b,
        ):
            await both_up(a, b)


async def test_a_peer_whose_password_the_kernel_refuses_is_not_there(
    netns: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*words: object, **more: object) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    async with node_a(netns()) as a:
        late = peer("c", "10.0.0.9", 65003, password=b"secret")
        with monkeypatch.context() as full:
            full.setattr("bgp.listener.set_md5", refusing)
            with pytest.raises(SpeakerError, match=r"10.0.0.9: Cannot allocate memory .*net.core.optmem_max"):
                a.speaker.add_peer(late)
        assert [status.name for status in a.speaker.peers()] == ["b"]
        a.speaker.add_peer(late)
        assert [status.name for status in a.speaker.peers()] == ["b", "c"]


async def test_md5_passwords_that_differ_bring_no_session(netns: Maker) -> None:
    ns = netns()
    async with (
        node_a(ns, peers=to_b(password=b"secret")) as a,
        node_b(ns, peers=to_a(password=b"other", passive=True)) as b,
    ):
        await a.until(lambda: "no answer" in a.status("b").reason, "the connection attempt to go unanswered")
        assert "TCP-MD5 password" in a.status("b").reason
        assert b.status("a").established_count == 0


async def test_a_peer_without_the_password_is_not_heard(netns: Maker) -> None:
    ns = netns()
    async with (
        node_a(ns) as a,
        node_b(ns, peers=to_a(password=b"secret", passive=True)) as b,
    ):
        await a.until(lambda: "no answer" in a.status("b").reason, "the connection attempt to go unanswered")
        await b.speaker.remove_peer("a")
        b.speaker.add_peer(peer("a", A, 65001, passive=True))
        await both_up(a, b)


async def test_link_local_peers_over_ipv6(netns: Maker) -> None:
    ns, other = netns(), netns()
    link(ns, "eth7", other, "eth9")
    for end, device, address in ((ns, "eth7", "fe80::1"), (other, "eth9", "fe80::2")):
        end.run("ip", "addr", "add", f"{address}/64", "dev", device, "nodad")
    anywhere = (("::", 179),)
    async with (
        node_a(ns, peers=[peer("b", "fe80::2%eth7", 65002, **SOON)], listen=anywhere) as a,
        node_b(other, peers=[peer("a", "fe80::1%eth9", 65001, **SOON)], listen=anywhere) as b,
    ):
        await both_up(a, b)
        assert a.status("b").families[4].next_hop == "fe80::1", "RFC 8950"
        assert b.status("a").families[6].negotiated


async def test_gtsm_lets_the_peer_on_the_link_in(netns: Maker) -> None:
    ns = netns()
    async with node_a(ns, peers=to_b(ttl_security=1)) as a, node_b(ns, peers=to_a(ttl_security=1)) as b:
        await both_up(a, b)


async def test_gtsm_drops_what_comes_from_farther_away(netns: Maker) -> None:
    """RFC 5082: an ordinary external session has TTL 1."""
    ns = netns()
    async with node_a(ns, peers=to_b(ttl_security=1), listen=()) as a, node_b(ns, peers=to_a(passive=True)) as b:
        await b.until(lambda: b.status("a").received_as, "our OPEN, which has TTL 255")
        assert b.status("a").state == "OpenConfirm"
        assert (a.status("b").state, a.status("b").received_as) == ("OpenSent", None)


async def test_end_of_rib_that_never_comes_is_given_up(netns: Maker) -> None:
    ns = netns()
    async with node_a(ns, peers=to_b(passive=True, families=frozenset((4,))), end_of_rib_wait=0.05) as a:
        raw = RawPeer(ns, B)
        await raw.connect(A)
        await raw.hello()
        await raw.send(codec.KEEPALIVE)
        await a.established("b")
        async with asyncio.timeout(PATIENCE):
            await a.speaker.wait_converged()
        assert a.status("b").families[4].end_of_rib == "timed out"
        raw.close()


async def test_convergence_names_what_it_waits_for(netns: Maker) -> None:
    ns = netns()
    async with node_a(ns, peers=to_b(passive=True, families=frozenset((4,)))) as a:
        assert a.speaker.converged().waiting_for == ("session with b: waiting for the peer to connect",)
        raw = RawPeer(ns, B)
        await raw.connect(A)
        await raw.hello()
        await raw.send(codec.KEEPALIVE)
        await a.established("b")
        assert a.speaker.converged().waiting_for[0] == "End-of-RIB of b (ipv4)"
        await raw.send(codec.encode_end_of_rib(4))
        async with asyncio.timeout(PATIENCE):
            await a.speaker.wait_converged()
            await a.speaker.flushed("b")
        raw.close()


def _next(seen: Iterator[int], _: Peer) -> int:
    return next(seen, 0)


async def test_a_missed_acknowledgement_is_looked_for(netns: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells nobody of it: whoever saw octets without one has to look again."""
    ns = netns()
    async with node_a(ns, peers=to_b(passive=True, families=frozenset((4,)))) as a:
        raw = RawPeer(ns, B)
        await raw.connect(A)
        await raw.hello()
        await raw.send(codec.KEEPALIVE + codec.encode_end_of_rib(4))
        await a.established("b")
        await a.until(lambda: a.speaker.converged().ok, "convergence")
        for looks in range(1, 6):
            seen = iter([19] * looks)
            monkeypatch.setattr(Peer, "unacknowledged", property(partial(_next, seen)))
            async with asyncio.timeout(PATIENCE):
                await a.speaker.wait_converged()
        raw.close()


async def test_a_keepalive_on_its_way_undoes_no_advertisement(netns: Maker) -> None:
    """What the peer's TCP has acknowledged of the table stays so, whatever comes after it."""
    ns, other = netns(), netns()
    link(ns, "eth7", other, "eth9")
    for end, device, last in ((ns, "eth7", 1), (other, "eth9", 2)):
        end.run("ip", "addr", "add", f"192.0.2.{last}/24", "dev", device)
    first, second = prefix.parse("10.64.0.0/26"), prefix.parse("10.64.1.0/26")
    peers = [peer("b", "192.0.2.2", 65002, passive=True, families=frozenset((4,)))]
    async with node_a(ns, peers=peers, listen=(("192.0.2.1", 179),)) as a:
        a.speaker.originate(*first, owner="test", source="block")
        raw = RawPeer(other, "192.0.2.2")
        await raw.connect("192.0.2.1")
        await raw.hello()
        await raw.send(codec.KEEPALIVE + codec.encode_end_of_rib(4))
        async with asyncio.timeout(PATIENCE):
            await a.speaker.wait_converged()
        session = a.speaker._peers["b"].established
        assert session is not None
        assert session.connection is not None
        other.run("ip", "link", "set", "eth9", "down")  # from here on nothing is acknowledged
        session._send(codec.KEEPALIVE)
        assert session.connection.unacknowledged == len(codec.KEEPALIVE)
        assert a.speaker.converged().ok
        assert a.speaker.advertised(*first) == ["b"]
        a.speaker.originate(*second, owner="test", source="block")
        await a.until(lambda: a.speaker.idle, "the UPDATE")
        assert a.speaker.advertised(*first) == a.speaker.advertised(*second) == []
        assert a.speaker.converged().waiting_for[0].startswith("acknowledgement of ")
        raw.close()


async def test_a_peer_that_does_not_read_is_not_buffered_for(netns: Maker) -> None:
    """Back-pressure: what TCP does not take stays in the Adj-RIB-Out, and comes when the peer reads again."""
    ns = netns()
    only4 = to_b(passive=True, families=frozenset((4,)))
    async with node_a(ns, peers=only4, opener=opener_in(ns, send_buffer=8192)) as a:
        count = 60_000
        for number in range(count):
            wire = prefix.make(4, (10 << 24) + (number << 8), 24)
            a.speaker.originate(4, wire, owner="test", source="static")
        raw = RawPeer(ns, B, receive_buffer=4096)
        await raw.connect(A)
        await raw.hello()
        await raw.send(codec.KEEPALIVE)
        await a.established("b")
        session = a.speaker._peers["b"].established
        assert session is not None
        assert session.connection is not None
        connection = session.connection
        await a.until(lambda: not connection.can_write, "a full send buffer")
        assert connection.unsent < 2 * WRITE_HIGH
        assert not a.speaker.advertised(4, prefix.make(4, 10 << 24, 24))
        seen = 0
        while seen < count:
            message = await raw.read()
            assert message is not None
            if message[0] == MessageType.UPDATE:
                withdrawn, attributes = int.from_bytes(message[1][:2]), int.from_bytes(message[1][2:4])
                assert withdrawn == 0
                seen += (len(message[1]) - 4 - attributes) // 4
        assert seen == count
        assert a.status("b").state == "Established"
        raw.close()


@pytest.mark.parametrize("seed", range(3))
async def test_garbage_ends_its_own_connection_only(netns: Maker, seed: int) -> None:
    ns = netns()
    noise = Random(seed)
    opening = codec.encode_open(Open(65002, 90, b"\x0a\0\0\2"))
    async with node_a(ns, peers=to_b(passive=True)) as a, node_b(ns) as b:
        for _ in range(40):
            message = bytearray(noise.choice((opening, opening + codec.KEEPALIVE + codec.encode_end_of_rib(6))))
            for _ in range(noise.randrange(1, 6)):
                message[noise.randrange(16, len(message))] = noise.randrange(256)
            raw = RawPeer(ns, B)
            await raw.connect(A)
            await raw.send(bytes(message[: noise.randrange(len(message) + 1)]))
            raw.sock.shutdown(socket.SHUT_WR)
            while await raw.read() is not None:
                pass
            raw.close()
        await both_up(a, b)
