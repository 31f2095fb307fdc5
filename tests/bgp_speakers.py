"""Speakers for tests: in a network namespace, with a resolver that reads a table instead of the kernel."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from bgp.messages import Notification
from bgp.policy import ACCEPT
from bgp.settings import ListenRange, PeerSettings
from bgp.speaker import Speaker
from bgp.status import PeerStatus, SessionChange
from config.nexthop import Gateway, NextHops, Resolution
from config.prefix import Family
from tests.netns import Netns

PATIENCE = 60.0
"""Seconds that anything in these tests may take; nothing should come near it."""


@dataclass
class TableResolver:
    """Every next hop is on the link ``device``; our own next hops are ``own``."""

    own: dict[Family, bytes] = field(default_factory=dict)
    device: str = "eth0"

    def lookup(self, address: bytes, device: str = "") -> Resolution | None:
        return Resolution((Gateway(address, device or self.device),), 0)

    def local(self, session_address: bytes, family: Family) -> bytes | None:
        if family in self.own:
            return self.own[family]
        return session_address if len(session_address) == (4 if family == 4 else 16) else None


@dataclass
class Node:
    """A speaker, and what it told the agent."""

    speaker: Speaker
    sessions: list[SessionChange] = field(default_factory=list)
    fib: dict[tuple[Family, bytes], NextHops] = field(default_factory=dict)

    def status(self, peer: str) -> PeerStatus:
        return self.speaker.peer(peer)

    async def until(self, holds: Callable[[], Any], what: str) -> None:
        """Wait for a change after which ``holds()``."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not holds():
                    await self.speaker.changed()
        except TimeoutError:
            raise AssertionError(f"not within {PATIENCE} s: {what}; {self.speaker.peers()}") from None

    async def established(self, peer: str) -> PeerStatus:
        await self.until(lambda: self.status(peer).state == "Established", f"session with {peer}")
        return self.status(peer)

    async def lost(self, peer: str) -> PeerStatus:
        await self.until(lambda: self.status(peer).state != "Established", f"loss of the session with {peer}")
        return self.status(peer)


def opener_in(ns: Netns, *, send_buffer: int = 0) -> Callable[[int], socket.socket]:
    """Return what makes sockets in ``ns``; a listening one hands its send buffer (octets) on to those it accepts."""

    def open_inside(family: int) -> socket.socket:
        with ns.entered():
            sock = socket.socket(family, socket.SOCK_STREAM)
        if send_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        return sock

    return open_inside


def peer(name: str, address: str, asn: int, **settings: Any) -> PeerSettings:
    """Return settings that accept everything both ways."""
    policies = {"import_policy": ACCEPT, "export_policy": ACCEPT}
    return PeerSettings(name=name, address=address, asn=asn, **(policies | settings))


@asynccontextmanager
async def running(
    ns: Netns,
    asn: int,
    router_id: str,
    peers: Sequence[PeerSettings],
    *,
    listen: Sequence[tuple[str, int]] = (("0.0.0.0", 179), ("::", 179)),
    resolver: TableResolver | None = None,
    farewell: Notification | None = Notification(6, 2),  # noqa: B008 immutable
    retained: frozenset[Family] = frozenset(),
    expected: Sequence[str] = (),
    ranges: Sequence[ListenRange] = (),
    **options: Any,
) -> AsyncIterator[Node]:
    """Run a speaker with its sockets in ``ns``; it stops with ``farewell``.

    ``retained`` and ``expected``: see ``Speaker.start``.
    """
    changes: list[SessionChange] = []
    fib: dict[tuple[Family, bytes], NextHops] = {}

    def on_fib(family: Family, batch: list[tuple[Sequence[bytes], NextHops | None]]) -> None:
        for prefix, hops in ((prefix, hops) for prefixes, hops in batch for prefix in prefixes):
            if hops is None:
                fib.pop((family, prefix), None)
            else:
                fib[family, prefix] = hops

    speaker = Speaker(
        asn=asn,
        router_id=socket.inet_aton(router_id),
        resolver=resolver or TableResolver(),
        on_fib=on_fib,
        on_session=changes.append,
        listen=listen,
        **({"opener": opener_in(ns)} | options),
    )
    for settings in peers:
        speaker.add_peer(settings)
    for one in ranges:
        speaker.add_range(one)
    await speaker.start(retained=retained, expected=expected)
    try:
        yield Node(speaker, changes, fib)
    finally:
        await speaker.stop(notification=farewell)
