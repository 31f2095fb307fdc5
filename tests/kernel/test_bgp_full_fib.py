"""While the FIB has more than it can take, who says little is heard all the same, and who says much waits."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence

import pytest

from bgp import codec
from bgp.messages import Open
from config.nexthop import NextHops
from config.prefix import Family
from tests.bgp_speakers import PATIENCE, opener_in, peer, running
from tests.netns import Netns

pytestmark = pytest.mark.root


def announcement(number: int, count: int) -> bytes:
    attributes = bytes.fromhex("40010100 40020602010000fdea 4003040a000002")
    nlri = b"".join(struct.pack("!BI", 24, (number << 24) + (n << 8))[:4] for n in range(count))
    body = struct.pack("!HH", 0, len(attributes)) + attributes + nlri
    return b"\xff" * 16 + struct.pack("!HB", 19 + len(body), 2) + body


async def established(ns: Netns, local: str) -> socket.socket:
    """Connect, and send what a peer has to say before it announces."""
    sock = opener_in(ns)(socket.AF_INET)
    sock.setblocking(False)
    sock.bind((local, 0))
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", 179))
    await loop.sock_sendall(sock, codec.encode_open(Open(65002, 90, socket.inet_aton(local))) + codec.KEEPALIVE)
    return sock


async def test_who_says_little_does_not_wait_for_the_fib(netns: Callable[[], Netns]) -> None:
    ns = netns()
    full = True
    told = asyncio.Event()
    peers = [peer(name, address, 65002, passive=True) for name, address in (("b", "127.0.0.2"), ("c", "127.0.0.3"))]
    async with running(ns, 65001, "10.0.0.1", peers, fib_full=lambda: full) as node:
        on_fib = node.speaker.rib._on_fib

        def listen(family: Family, changes: list[tuple[Sequence[bytes], NextHops | None]]) -> None:
            on_fib(family, changes)
            told.set()

        async def until(count: int) -> None:
            async with asyncio.timeout(PATIENCE):
                while len(node.fib) < count:
                    told.clear()
                    await told.wait()

        node.speaker.rib._on_fib = listen
        much, little = await established(ns, "127.0.0.2"), await established(ns, "127.0.0.3")
        await node.established("b")
        await node.established("c")
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(much, announcement(20, 900))  # one message, beyond what is heard
        for number in (30, 31):
            await loop.sock_sendall(little, announcement(number, 1))
            await until(number - 29)
        assert len(node.fib) == 2
        full = False
        node.speaker.fib_ready()
        await until(902)
        much.close()
        little.close()
