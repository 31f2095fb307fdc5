"""What the tests with other speakers have in common: podroute in one namespace, a router in another, and a link."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from bgp.settings import PeerSettings
from config import prefix
from config.prefix import Family
from tests.bgp_speakers import PATIENCE, TableResolver, running
from tests.interop.matrix import Matrix
from tests.interop.routers import NODE4, NODE6, NODE_AS, ROUTERS, Router, Seen, Setup
from tests.netns import Netns


def packed(address: str) -> bytes:
    return prefix.of_address(address)[1][1:]


def entry(text: str) -> tuple[Family, bytes]:
    return prefix.parse(text)


class Bench:
    """Our namespace with that of a router, and the router in it."""

    def __init__(self, node: Netns, tor: Netns, kind: str, matrix: Matrix) -> None:
        self.node, self._tor, self.kind, self.matrix = node, tor, kind, matrix
        self.router: Router
        self._routers: list[Router] = []

    async def begin(self, setup: Setup) -> None:
        self.router = await asyncio.to_thread(ROUTERS[self.kind], self._tor, setup)
        self._routers.append(self.router)

    def close(self) -> None:
        for router in self._routers:
            router.close()

    def works(self, feature: str) -> Any:
        return self.matrix.feature(self.kind, feature)

    def speaker(self, *settings: PeerSettings, asn: int = NODE_AS, **options: Any) -> Any:
        return self.another(NODE4, NODE6, settings, asn=asn, **options)

    def another(self, address4: str, address6: str, peers: Sequence[PeerSettings], *, asn: int, **options: Any) -> Any:
        """Return a speaker with these addresses in our namespace; the first is also its identifier."""
        resolver = TableResolver(own={4: packed(address4), 6: packed(address6)})
        return running(self.node, asn, address4, peers, resolver=resolver, **options)

    async def ask(self, question: Callable[[], Any], holds: Callable[[Any], bool], what: str) -> Any:
        """Ask the router until its answer ``holds``; routers tell nobody when they have taken an UPDATE."""
        answer: Any = None
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    answer = await asyncio.to_thread(question)
                    if holds(answer):
                        return answer
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{self.kind}: {what}; the last answer is {answer}") from None

    async def path(self, text: str) -> Seen:
        found = await self.ask(lambda: self.router.paths(text), bool, f"{text} is missing")
        assert isinstance(found[0], Seen)
        return found[0]
